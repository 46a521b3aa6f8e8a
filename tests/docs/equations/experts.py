"""docs/chapters/experts.md"""

from itertools import permutations, product
from math import prod

import numpy as np
from docs.equations.common import normal

import numllama as nl
from numllama.model import parameter_shapes
from numllama.ops import (
    load_balancing_backward,
    load_balancing_forward,
    mixture_of_experts_backward,
    mixture_of_experts_forward,
    router_backward,
    router_forward,
    softmax_backward,
    softmax_forward,
)

N, E, C, F, K = 6, 5, 3, 4, 3
Z = normal(N, E)


def parameters():
    c = nl.ModelConfig(vocab_size=11, dim=12, n_layers=3, n_heads=2, ffn_dim=20, ffn="moe", n_experts=6, n_experts_per_token=2)
    shapes = parameter_shapes(c)
    inside = {name for name in shapes if "experts" in name}
    rest = sum(prod(shapes[name]) for name in set(shapes) - inside)
    yield float(rest + 3 * c.n_layers * c.n_experts * c.dim * c.ffn_dim), float(nl.count_parameters(c))
    met = sum(prod(shapes[name][1:]) * c.n_experts_per_token for name in inside)
    yield float(rest + 3 * c.n_layers * c.n_experts_per_token * c.dim * c.ffn_dim), float(rest + met)


def router_gradient():
    x, router, gate, up, down = normal(N, C), normal(E, C), normal(E, F, C), normal(E, F, C, seed=1), normal(E, C, F)
    (_, _), cache = mixture_of_experts_forward(x, router, gate, up, down, K)
    dout, w, chosen = normal(N, C, seed=2), cache.router.weights, cache.router.chosen
    dz = np.zeros((N, E))
    for n in range(N):
        hidden = [gate[e] @ x[n] for e in chosen[n]]
        y = [down[e] @ (h / (1 + np.exp(-h)) * (up[e] @ x[n])) for e, h in zip(chosen[n], hidden, strict=True)]
        dw = [sum(dout[n, c] * y[a][c] for c in range(C)) for a in range(K)]
        for a in range(K):
            dz[n, chosen[n, a]] = w[n, a] * (dw[a] - sum(w[n, b] * dw[b] for b in range(K)))
    yield dz.T @ x, mixture_of_experts_backward((dout, None), cache)[1]
    yield np.zeros(N), router_backward((normal(N, 1), None), router_forward(Z, 1)[1]).sum(-1)


def push():
    probs, softmax = softmax_forward(Z)
    _, cache = load_balancing_forward(probs, router_forward(Z, K)[1].chosen)
    f = cache.shares
    literal = [[E / N * probs[n, e] * (f[e] - sum(f[i] * probs[n, i] for i in range(E))) for e in range(E)] for n in range(N)]
    yield literal, softmax_backward(load_balancing_backward(1.0, cache), softmax)


def touched():
    """All orders of four experts' logits are equally likely: the router's choices for them, in all pairs of tokens."""
    experts, k, tokens = 4, 2, 2
    chosen = router_forward(np.array(list(permutations(range(experts))), float), k)[1].chosen
    counts = [len({*a, *b}) for a, b in product(chosen.tolist(), repeat=tokens)]
    yield experts * (1 - (1 - k / experts) ** tokens), float(np.mean(counts))
