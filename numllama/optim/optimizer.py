"""What optimizers share: one pass over flat buffers, in pieces that stay in cache, with decay on the matrices only."""

from functools import partial

from numllama.blocks import piece_size, slices
from numllama.model.parameters import Parameters


class Optimizer:
    """Steps parameters in place; a subclass says in :meth:`update` how.

    Attributes
    ----------
    steps : int
        How many steps were taken.
    state : dict of str to Parameters
        The buffers that it keeps between steps.
    """

    def __init__(self, params: Parameters, lr: float, weight_decay: float) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}, but must not be negative")
        self.params, self.lr, self.weight_decay = params, lr, weight_decay
        self.steps = 0
        self.state: dict[str, Parameters] = {}

    def step(self, grads: Parameters, lr: float | None = None, run=map) -> None:
        """Step all parameters.

        Parameters
        ----------
        grads : Parameters
            Gradients, of the same layout.
        lr : float, optional
            Learning rate of this step; default, the one given at construction.
        run : callable
            ``map``, or the workers': the pieces are independent of each other.
        """
        self.params.check_layout("grads", grads)
        self.steps += 1
        lr = float(self.lr if lr is None else lr)  # a float64 scalar of NumPy's would widen float32
        flat, matrices = self.params.flat, self.params.matrices.size
        pieces = [(part, self.weight_decay) for part in slices(0, matrices, piece_size(flat))]
        pieces += [(part, 0.0) for part in slices(matrices, flat.size, piece_size(flat))]
        list(run(partial(self._update_piece, grads, lr), pieces))

    def _update_piece(self, grads: Parameters, lr: float, piece: tuple[slice, float]) -> None:
        part, weight_decay = piece
        self.update(part, grads, lr, weight_decay)

    def update(self, part: slice, grads: Parameters, lr: float, weight_decay: float) -> None:
        """Step the parameters ``flat[part]``."""
        raise NotImplementedError
