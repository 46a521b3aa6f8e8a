"""Mistakes that are easy to make in a Llama."""

from numllama.learn.mistakes.backward import BACKWARD

__all__ = ["BACKWARD"]
