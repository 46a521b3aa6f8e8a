"""AdamW: step by the mean of recent gradients over their RMS; decoupled weight decay.           Loshchilov & Hutter 2019, alg. 2

    m ← β₁·m + (1 − β₁)·g            v ← β₂·v + (1 − β₂)·g²
    m̂ = m / (1 − β₁ᵗ)                v̂ = v / (1 − β₂ᵗ)                     (correct the bias of starting at 0)
    w ← w − lr·λ·w − lr · m̂ / (√v̂ + eps)                                   (λ = 0 for gains and biases)
With c = √(1 − β₂ᵗ), so √v̂ = √v / c:   m̂ / (√v̂ + eps) = c / (1 − β₁ᵗ) · m / (√v + c·eps): saves a pass.    Kingma & Ba, sec. 2
"""

from math import sqrt

from numllama.backend import Array, xp_of
from numllama.dispatch import accelerated
from numllama.model.parameters import Parameters
from numllama.optim.optimizer import Optimizer


class AdamW(Optimizer):
    """Adam with decoupled weight decay, on matrices only.

    Parameters
    ----------
    params : Parameters
        Stepped in place.
    lr : float
        Default learning rate of :meth:`step`.
    betas : (float, float)
        Decay rates of the running means of gradients and of their squares.
    eps : float
    weight_decay : float
        λ. Embeddings are matrices too; gains and biases never decay.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, lr, weight_decay)
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise ValueError(f"betas are {betas}, but both must lie in [0, 1)")
        if not eps >= 0:
            raise ValueError(f"eps is {eps}, but must not be negative")
        self.betas, self.eps = betas, eps
        self.state = {"m": params.zeros_like(), "v": params.zeros_like()}

    def update(self, part: slice, grads: Parameters, lr: float, weight_decay: float) -> None:
        w, g = self.params.flat[part], grads.flat[part]
        m, v = self.state["m"].flat[part], self.state["v"].flat[part]
        copy = self.params.low_precision_part(part)
        adamw_update(w, g, m, v, self.steps, lr, self.betas, self.eps, weight_decay, copy)


@accelerated
def adamw_update(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    t: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    copy: Array | None = None,
) -> None:
    """Step number `t` (from 1) of AdamW: updates w, m and v, all of the same shape, and `copy`, which is w in another dtype."""
    xp, (beta1, beta2) = xp_of(w), betas
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    c = sqrt(1 - beta2**t)
    step = c / (1 - beta1**t) * m / (xp.sqrt(v) + c * eps)             # m̂ / (√v̂ + eps)
    w[...] = w - lr * weight_decay * w - lr * step
    if copy is not None:
        copy[...] = w
