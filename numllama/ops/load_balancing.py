"""Load-balancing loss: k if all experts of a mixture do the same work, more if not.          Fedus et al. 2021, eqs. 4 to 6

Without it a router prefers a few experts, which then learn more and are preferred all the more. For N tokens, with
    f_e = the tokens that chose expert e, divided by N      P_e = mean of p_e over the tokens
    loss = E · Σ_e f_e·P_e
f counts and has no gradient. P does:   dp[n, e] = dloss · E·f_e / N, the same for all tokens: what is chosen often goes down.
"""

from typing import NamedTuple

from numllama.backend import Array, xp_of
from numllama.checks import check_shape
from numllama.dispatch import accelerated


class LoadBalancingCache(NamedTuple):
    """What backward needs: the share of each expert, (E,), and the probabilities, (N, E), for their shape."""

    shares: Array
    probs: Array


@accelerated
def load_balancing_forward(probs: Array, chosen: Array) -> tuple[Array, LoadBalancingCache]:
    """The load-balancing loss of N tokens.

    Parameters
    ----------
    probs : array, shape (N, E)
        Probabilities of all experts.
    chosen : integer array, shape (N, k)
        The experts of each token, from :func:`router_forward`.

    Returns
    -------
    loss : scalar array
        k if all experts do the same work.
    cache : LoadBalancingCache
    """
    N, E = probs.shape
    check_shape("chosen", chosen, (N, None))
    counts = xp_of(probs).bincount(chosen.ravel(), minlength=E)        # (E,)
    shares = counts.astype(probs.dtype) / N                            # (E,)
    return E * (shares * probs.mean(0)).sum(), LoadBalancingCache(shares, probs)


@accelerated
def load_balancing_backward(dout: Array | float, cache: LoadBalancingCache) -> Array:
    """Gradient of :func:`load_balancing_forward` with respect to ``probs``: (N, E), all rows the same."""
    shares, probs = cache
    N, E = probs.shape
    row = (dout * E / N * shares).astype(probs.dtype)                  # (E,)
    return xp_of(probs).broadcast_to(row, probs.shape)                 # (N, E)
