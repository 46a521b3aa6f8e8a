"""Base class of optimizers: one pass over flat buffers, in pieces that fit in cache, with weight decay on matrices only."""

from collections.abc import Callable
from functools import partial

from numllama.blocks import piece_size, slices
from numllama.checks import checked_arguments
from numllama.model.parameters import FlatTensors, Parameters


class Optimizer:
    """Steps parameters in place; subclasses implement :meth:`update`.

    Attributes
    ----------
    steps : int
        Number of steps taken.
    state : dict of str to FlatTensors
        Buffers kept between steps.
    """

    def __init__(self, params: Parameters, lr: float, weight_decay: float) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}, but must not be negative")
        self.params, self.lr, self.weight_decay = params, lr, weight_decay
        self.steps = 0
        self.state: dict[str, FlatTensors] = {}

    def step(self, grads: FlatTensors, lr: float | None = None) -> None:
        """Step all parameters.

        Parameters
        ----------
        grads : FlatTensors
            Gradients, in the layout of the parameters.
        lr : float, optional
            Learning rate of this step; default: the one from construction.
        """
        step_in_pieces(self, grads, lr)

    def update(self, part: slice, grads: FlatTensors, lr: float, weight_decay: float) -> None:
        """Step the parameters ``flat[part]``."""
        raise NotImplementedError


def step_in_pieces(optimizer: Optimizer, grads: FlatTensors, lr: float | None = None, map_fn: Callable = map) -> None:
    """:meth:`Optimizer.step` in independent pieces, which workers can share with their own `map_fn`."""
    params = optimizer.params
    params.check_layout("grads", grads)
    optimizer.steps += 1
    lr = float(optimizer.lr if lr is None else lr)  # a NumPy float64 scalar would promote float32
    flat, matrices = params.flat, params.matrices.size
    pieces = [(part, optimizer.weight_decay) for part in slices(0, matrices, piece_size(flat))]
    pieces += [(part, 0.0) for part in slices(matrices, flat.size, piece_size(flat))]
    list(map_fn(partial(_update_piece, optimizer, grads, lr), pieces))


@checked_arguments()
def _update_piece(optimizer: Optimizer, grads: FlatTensors, lr: float, piece: tuple[slice, float]) -> None:
    part, weight_decay = piece
    optimizer.update(part, grads, lr, weight_decay)
