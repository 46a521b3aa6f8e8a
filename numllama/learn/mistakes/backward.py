"""Mistakes in a backward, in the order in which they are tried: the right values, and wrong gradients of them."""

from numllama.learn.mistakes import (
    backward_attention,
    backward_feed_forward,
    backward_linear,
    backward_loss,
    backward_mixed,
    backward_norms,
    backward_rope,
)
from numllama.learn.mistakes.mistake import Mistake

_MODULES = (
    backward_loss, backward_linear, backward_norms, backward_feed_forward, backward_attention, backward_rope, backward_mixed,
)  # fmt: skip
BACKWARD: list[Mistake] = [mistake for module in _MODULES for mistake in module.catalogue.mistakes]
