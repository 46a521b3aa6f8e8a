"""Wrong answers to the exercises, and the mistake behind each."""

from numllama.learn.wrong_answers.explain import TABLES, explain

__all__ = ["TABLES", "explain"]
