"""Mistakes that are easy to make in a Llama."""

from numllama.learn.mistakes import (
    attention,
    embedding,
    feed_forward,
    heads,
    loss,
    norms,
    products,
    rope,
    rope_table,
    softmax,
    wiring,
)
from numllama.learn.mistakes.backward import BACKWARD
from numllama.learn.mistakes.mistake import Mistake
from numllama.learn.mistakes.optimizer import OPTIMIZER

__all__ = ["BACKWARD", "FORWARD", "OPTIMIZER"]

FORWARD: list[Mistake] = [
    mistake
    for module in (rope_table, embedding, products, wiring, norms, heads, rope, attention, softmax, feed_forward, loss)
    for mistake in module.catalogue.mistakes
]
