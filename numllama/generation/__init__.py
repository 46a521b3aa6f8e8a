"""Generation: from a model to text."""

from numllama.generation.generate import generate

__all__ = ["generate"]
