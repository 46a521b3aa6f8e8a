"""For readers: a plain Llama and its trace, exercises, plots, and helpers for the pages of the book."""
