"""Files that other programs read and write: Hugging Face's layout, llama2.c's, and chat templates."""

from numllama.interop.load import load, save

__all__ = ["load", "save"]
