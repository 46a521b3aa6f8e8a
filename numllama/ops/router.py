"""Router of a mixture of experts: k of E experts for each token, and their weights.         Shazeer et al. 2017, eqs. 2 to 5

From a token's logits z, one for each expert:
    p = softmax(z), or σ(z)       v = the k largest of p       w = v / Σv if normalised, else v
The choice is constant almost everywhere, so the gradient runs through the values alone. With s = Σv:
    dvₐ = (dwₐ − Σ_b dw_b·w_b) / s,  because every v moves the sum
    dp = dv at the chosen places, 0 elsewhere;  plus the gradient of p itself, which the load-balancing loss reads
    dz = p·(dp − Σ dp·p) for softmax,  dp·p·(1 − p) for σ
"""

from typing import NamedTuple

from numllama.backend import Array, xp_of
from numllama.checks import check_shape
from numllama.dispatch import accelerated
from numllama.errors import shown
from numllama.ops.softmax import SoftmaxCache, softmax_backward, softmax_forward
from numllama.ops.swiglu import sigmoid

SCORES = ("softmax", "sigmoid")


class RouterCache(NamedTuple):
    """What backward needs: probabilities (N, E), chosen experts and weights (N, k), and the sum of the k largest (N, 1)."""

    probs: Array
    chosen: Array
    weights: Array
    total: Array | None
    score: str


@accelerated
def router_forward(
    logits: Array, top_k: int, score: str = "softmax", normalise: bool = True
) -> tuple[tuple[Array, Array], RouterCache]:
    """Choose k of E experts for each token.

    Parameters
    ----------
    logits : array, shape (N, E)
    top_k : int
        k, the experts of each token, at most E.
    score : str
        ``"softmax"`` over the experts, or ``"sigmoid"`` of each.
    normalise : bool
        Divide the k weights by their sum: Mixtral does, Qwen3-MoE says so in its configuration.

    Returns
    -------
    weights, probs : arrays, shapes (N, k) and (N, E)
        Weights of the chosen experts, largest first, and probabilities of all.
    cache : RouterCache
        Its ``chosen``, integers of shape (N, k), are the experts of the weights.
    """
    check_shape("logits", logits, (None, None))
    if score not in SCORES:
        raise ValueError(f"score is {shown(score)}, but must be one of {', '.join(SCORES)}")
    if not 1 <= top_k <= logits.shape[-1]:
        raise ValueError(f"top_k is {top_k}, but must lie in 1..{logits.shape[-1]}, the number of experts")
    xp = xp_of(logits)
    probs = softmax_forward(logits)[0] if score == "softmax" else sigmoid(logits)
    chosen = xp.argsort(-probs, -1, kind="stable")[:, :top_k]          # (N, k)
    weights = xp.take_along_axis(probs, chosen, -1)                    # (N, k)
    total = weights.sum(-1, keepdims=True) if normalise else None      # (N, 1)
    weights = weights if total is None else weights / total
    return (weights, probs), RouterCache(probs, chosen, weights, total, score)


@accelerated
def router_backward(douts: tuple[Array, Array | None], cache: RouterCache) -> Array:
    """Gradient of :func:`router_forward` with respect to ``logits``, from those of ``weights`` and of ``probs`` or None."""
    probs, chosen, weights, total, score = cache
    dweights, dprobs = douts
    if total is not None:
        dweights = (dweights - (dweights * weights).sum(-1, keepdims=True)) / total
    xp = xp_of(probs)
    dp = xp.zeros_like(probs)                                          # (N, E)
    xp.put_along_axis(dp, chosen, dweights, -1)
    dp = dp if dprobs is None else dp + dprobs
    if score == "softmax":
        return softmax_backward(dp, SoftmaxCache(probs))               # (N, E)
    return dp * probs * (1 - probs)                                    # (N, E)
