"""Mixture of experts as a model's feed-forward, and its load-balancing loss over all layers.

The loss counts the tokens and averages the probabilities of all layers together, as transformers does. So its gradient is known
after the last layer only, and is the same for every token of every layer.
"""

from typing import Any

from numllama import ops
from numllama.backend import Array, xp_of

NAMES = ("router", "experts_gate", "experts_up", "experts_down")


class Balance:
    """The routing of a pass's layers, and then the gradient of their load-balancing loss."""

    def __init__(self) -> None:
        self.probs: list[Array] = []
        self.chosen: list[Array] = []
        self.dprobs: Array | None = None                               # (1, E)

    def add(self, probs: Array, chosen: Array) -> None:
        """Keep a layer's routing; a layer that is recomputed adds nothing."""
        if self.dprobs is None:
            self.probs.append(probs)
            self.chosen.append(chosen)

    def loss(self, factor: float, scale: float) -> Array:
        """`factor` times the load-balancing loss; keeps the gradient, which has another factor of `scale`."""
        xp = xp_of(self.probs[0])
        loss, cache = ops.load_balancing_forward(xp.concatenate(self.probs), xp.concatenate(self.chosen))
        self.dprobs = ops.load_balancing_backward(factor * scale, cache)[:1]
        return factor * loss


def with_balance(loss: Array, context: Any, targets: Array, count: Any = None, scale: float = 1.0) -> Array:
    """The loss, and the load-balancing loss if the model adds that; of a part of a batch, as much as its part of the count."""
    c = context.config
    if not c.router_aux_loss:
        return loss
    part = 1.0 if count is None else float((targets != ops.IGNORE).sum() / count)
    return loss + context.balance.loss(c.router_aux_loss_coef * part, scale)


def experts_forward(n, w, context, cache_only=False):
    c, (router, gate, up, down) = context.config, (w[name] for name in NAMES)
    (out, probs), cache = ops.mixture_of_experts_forward(
        n, router, gate, up, down, c.n_experts_per_token, c.router_score, c.router_normalised
    )  # fmt: skip
    if c.router_aux_loss:
        context.balance.add(probs, cache.router.chosen)
    return out, (cache, context.balance)                               # (B, T, C)


def experts_backward(dout, caches, g):
    cache, balance = caches
    douts = dout, balance.dprobs
    if NAMES[0] not in g:
        return ops.mixture_of_experts_backward(douts, cache, frozen=True)
    buffers = tuple(g.buffer(name) for name in NAMES[1:])
    into = None if buffers[0] is None else buffers
    dx, drouter, *gradients = ops.mixture_of_experts_backward(douts, cache, into)
    g.add(NAMES[0], drouter)
    for name, gradient in zip(NAMES[1:], gradients, strict=True) if into is None else ():
        g.add(name, gradient)
    return dx
