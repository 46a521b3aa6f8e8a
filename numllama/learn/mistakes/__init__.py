"""Mistakes that are easy to make in a Llama."""
