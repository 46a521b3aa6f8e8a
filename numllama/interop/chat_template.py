"""Chat templates of checkpoints: see :mod:`numllama.tokenizer.chat_template`."""

from numllama.tokenizer.chat_template import read_chat_template, render_answers, render_chat_template

__all__ = ["read_chat_template", "render_answers", "render_chat_template"]
