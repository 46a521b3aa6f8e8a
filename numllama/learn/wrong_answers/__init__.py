"""Wrong answers to the exercises, and the mistake behind each."""

from numllama.learn.wrong_answers.explain import PLAIN_ROWS, TABLES, explain, explain_calls, is_alike

__all__ = ["PLAIN_ROWS", "TABLES", "explain", "explain_calls", "is_alike"]
