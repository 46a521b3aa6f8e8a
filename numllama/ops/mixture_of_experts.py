"""Mixture of experts: a token passes through k of E feed-forwards.        Shazeer et al. 2017, eq. 1; Jiang et al. 2024

    w, e = the k weights and experts that the router chooses for z = router · x        (numllama.ops.router)
    out = Σₐ wₐ · yₐ,   yₐ = down_e · h,   h = silu(gate_e · x) · (up_e · x),   e = eₐ
A model has E times the parameters of one feed-forward, and k times its work. All tokens of one expert are computed together.
Backward, for each expert and the tokens that chose it:
    dwₐ = Σ dout·yₐ      dyₐ = wₐ · dout      and through linear maps and SwiGLU to gate_e, up_e, down_e and x
and the router's own:  dz from dw,  drouter = dzᵀ·x,  dx += dz · router.
"""

from typing import NamedTuple

from numllama.backend import Array, real_dtype, xp_of
from numllama.checks import check_shape
from numllama.dispatch import accelerated
from numllama.ops.linear import LinearCache, linear_backward, linear_backward_input, linear_forward
from numllama.ops.linears import linears_backward, linears_backward_input, linears_forward
from numllama.ops.router import RouterCache, router_backward, router_forward
from numllama.ops.swiglu import SwiGLUCache, swiglu_backward, swiglu_forward


class ExpertCache(NamedTuple):
    """What backward needs of an expert: its n tokens, their places among the k, the caches of its ops, and its output."""

    e: int
    tokens: Array
    places: Array
    maps: tuple[LinearCache, ...]
    activation: SwiGLUCache
    last: LinearCache
    y: Array


class MixtureOfExpertsCache(NamedTuple):
    """What backward needs: the inputs, the router's cache, and that of each expert that was chosen."""

    inputs: tuple[Array, ...]
    router: RouterCache
    experts: tuple[ExpertCache, ...]


@accelerated(of_ops=True)
def mixture_of_experts_forward(
    x: Array, router: Array, gate: Array, up: Array, down: Array, top_k: int, score: str = "softmax", normalise: bool = True
) -> tuple[tuple[Array, Array], MixtureOfExpertsCache]:
    """Each token through k of E feed-forwards.

    Parameters
    ----------
    x : array, shape (..., C)
    router : array, shape (E, C)
    gate, up, down : arrays, shapes (E, F, C), (E, F, C), (E, C, F)
    top_k, score, normalise
        See :func:`router_forward`.

    Returns
    -------
    out, probs : arrays, shapes (..., C) and (N, E)
        :func:`load_balancing_forward` reads the probabilities, and the experts chosen, ``cache.router.chosen``.
    cache : MixtureOfExpertsCache
    """
    E, C = router.shape
    check_shape("x", x, (*x.shape[:-1], C))
    check_shape("gate", gate, (E, None, C))
    check_shape("up", up, gate.shape)
    check_shape("down", down, (E, C, gate.shape[1]))
    xp, rows, experts = xp_of(x), x.reshape(-1, C), []                 # (N, C)
    logits, _ = linear_forward(rows, router)                           # (N, E)
    (weights, probs), routed = router_forward(logits, top_k, score, normalise)
    out = xp.zeros_like(rows)
    for e in xp.unique(routed.chosen).tolist():
        tokens, places = xp.nonzero(routed.chosen == e)                # (n,) both
        (g, u), maps = linears_forward(rows[tokens], (gate[e], up[e]))   # (n, F) both
        h, activation = swiglu_forward(g, u)                           # (n, F)
        y, last = linear_forward(h, down[e])                           # (n, C)
        out[tokens] += weights[tokens, places, None] * y
        experts.append(ExpertCache(e, tokens, places, maps, activation, last, y))
    cache = MixtureOfExpertsCache((x, router, gate, up, down), routed, tuple(experts))
    return (out.reshape(x.shape), probs), cache


@accelerated(of_ops=True)
def mixture_of_experts_backward(
    douts: tuple[Array, Array | None], cache: MixtureOfExpertsCache, into: tuple | None = None, *, frozen: bool = False
) -> tuple[Array, ...] | Array:
    """``dx, drouter, dgate, dup, ddown``, from the gradients of ``out`` and ``probs`` or None; of frozen maps ``dx`` alone.

    `into` are three buffers that the experts' gradients are added to, and that are then returned.
    """
    (dout, dprobs), ((x, router, *stacked), routed, experts) = douts, cache
    xp, rows = xp_of(dout), dout.reshape(-1, dout.shape[-1])           # (N, C)
    dweights, dx = xp.zeros_like(routed.weights), xp.zeros_like(rows)  # (N, k), (N, C)
    gradients = () if frozen else into or tuple(xp.zeros_like(w, dtype=real_dtype(w.dtype)) for w in stacked)
    for e, tokens, places, maps, activation, last, y in experts:
        dweights[tokens, places] = (rows[tokens] * y).sum(-1)
        dy = routed.weights[tokens, places, None] * rows[tokens]       # (n, C)
        if frozen:
            dh = linear_backward_input(dy, last)                       # (n, F)
            dx[tokens] += linears_backward_input(swiglu_backward(dh, activation), maps)
            continue
        dgate, dup, ddown = (total[e] for total in gradients)
        dh, _ = linear_backward(dy, last, into=ddown)                  # (n, F)
        dmaps = swiglu_backward(dh, activation)                        # (n, F) both
        dx[tokens] += linears_backward(dmaps, maps, into=(dgate, dup))[0]
    dlogits = router_backward((dweights, dprobs), routed)              # (N, E)
    last = LinearCache(x.reshape(rows.shape), router, None)
    if frozen:
        return linear_backward_input(dlogits, last, dx=dx).reshape(x.shape)
    dx, drouter = linear_backward(dlogits, last, dx=dx)
    return dx.reshape(x.shape), drouter, *gradients
