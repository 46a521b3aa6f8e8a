"""Stochastic gradient descent:  w ← w − lr·u,   u ← μ·u + g + λ·w                           Robbins & Monro 1951; Polyak 1964

With ``inverse_sqrt``, step t uses lr/√t, a rate that provably works on convex problems (Zinkevich 2003).
"""

from math import sqrt

from numllama.backend import Array
from numllama.model.parameters import Parameters
from numllama.optim.optimizer import Optimizer


class SGD(Optimizer):
    """Gradient descent with momentum.

    Parameters
    ----------
    params : Parameters
        Stepped in place.
    lr : float
    momentum : float
        μ; 0 keeps no state.
    weight_decay : float
        λ, on matrices only.
    inverse_sqrt : bool
        Divide the learning rate of step t by √t.
    """

    def __init__(
        self, params: Parameters, lr: float = 0.1, *, momentum: float = 0.0, weight_decay: float = 0.0, inverse_sqrt: bool = False
    ) -> None:
        super().__init__(params, lr, weight_decay)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, but must lie in [0, 1)")
        self.momentum, self.inverse_sqrt = momentum, inverse_sqrt
        self.state = {"u": params.zeros_like()} if momentum else {}

    def update(self, part: slice, grads: Parameters, lr: float, weight_decay: float) -> None:
        u = self.state["u"].flat[part] if self.momentum else None
        lr = lr / sqrt(self.steps) if self.inverse_sqrt else lr
        w, copy = self.params.flat[part], self.params.low_precision_part(part)
        sgd_update(w, grads.flat[part], u, lr, self.momentum, weight_decay)
        if copy is not None:
            copy[...] = w


def sgd_update(w: Array, g: Array, u: Array | None, lr: float, momentum: float, weight_decay: float) -> None:
    """One step: updates w, and u if there is momentum; all arrays have the same shape."""
    g = g + weight_decay * w
    if u is not None:
        u *= momentum
        u += g
        g = u
    w -= lr * g
