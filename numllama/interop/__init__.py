"""Files that other programs read and write: Hugging Face's layout, llama2.c's, and chat templates."""

from numllama.interop.load import load, load_run, save
from numllama.interop.peft import save_adapter

__all__ = ["load", "load_run", "save", "save_adapter"]
