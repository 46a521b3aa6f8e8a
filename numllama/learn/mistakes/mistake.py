"""A mistake that is easy to make in a Llama, as an equation that replaces the right one.

    @forward("scores", "The scores are not divided by √D.")
    def _(q, k, visible):
        return np.where(visible, q @ k.swapaxes(-1, -2), -math.inf)

The first argument names an op ("rmsnorm": wherever it is used) or a value ("attn_norm"). The function's parameters are those
of the op, and names of other values, weights and settings: `wk`, `v_heads`, `config`; `weight_of_layer_0` is the op's `weight`
in the first block, `weight_of_last_layer` in the last, `weight_of_next_layer` in the one after. Where a model has no such value,
or its sizes do not fit (:class:`DoesNotApply`), the mistake cannot be made. A mistaken backward takes `dout` first, and may take
other gradients, `d_weight_of_next_layer`; it returns a gradient for each differentiable parameter, or a dict with those that are
wrong. None drops a gradient.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from numllama.learn.equations import SETTINGS, Equations, Op, Row, gradient_of


class DoesNotApply(Exception):
    """The mistake cannot be made here: a matrix is not square, for example."""


class Mistake(NamedTuple):
    """A mistake.

    Attributes
    ----------
    what : str
        A sentence.
    at : tuple of str
        Ops or values whose equation is mistaken.
    function : callable
    in_backward : bool
    """

    what: str
    at: tuple[str, ...]
    function: Callable[..., Any]
    in_backward: bool = False


class Catalogue:
    """Mistakes, in the order in which they are tried; `forward` and `backward` are decorators that add one."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []

    def forward(self, at: str, what: str) -> Callable[[Callable], Callable]:
        return self._adding(at, what, False)

    def backward(self, at: str, what: str) -> Callable[[Callable], Callable]:
        return self._adding(at, what, True)

    def _adding(self, at: str, what: str, in_backward: bool) -> Callable[[Callable], Callable]:
        def add(function: Callable) -> Callable:
            self.mistakes.append(Mistake(what, tuple(at.split()), function, in_backward))
            return function

        return add


def places(equations: Equations, mistake: Mistake) -> list[str]:
    """The values whose equation the mistake may replace."""
    named = [node for node, row in equations.rows.items() if not {row.op.name, short_name(node)}.isdisjoint(mistake.at)]
    known = {*SETTINGS, *equations.rows, *equations.users}
    known |= set(map(gradient_of, known)) if mistake.in_backward else set()
    return [node for node in named if known.issuperset(more_inputs(equations, node, mistake).values())]


def more_inputs(equations: Equations, node: str, mistake: Mistake) -> dict[str, str]:
    """The values that a mistaken equation needs and the right one does not, by parameter."""
    inputs, layer, more = equations.rows[node].inputs, layer_of(node), {}
    others = {"last_layer": equations.config.n_layers - 1, "next_layer": (layer or 0) + 1}
    for parameter in wanted(mistake):
        name, _, other = parameter.partition("_of_")
        other = str(others.get(other, other.removeprefix("layer_")))
        own = name.removeprefix("d_")
        if other and own in inputs:
            more[parameter] = name.removesuffix(own) + inputs[own].replace(f".{layer}.", f".{other}.")
        elif parameter not in inputs:
            more[parameter] = equations.node(name, int(other) if other else layer)
    return more


def wanted(mistake: Mistake) -> list[str]:
    """The values that the mistake's function takes. A parameter with a default is a constant of its own."""
    parameters = inspect.signature(mistake.function).parameters.values()
    return [each.name for each in parameters if each.default is each.empty and each.name != "dout"]


def short_name(node: str) -> str:
    """The name of a value without its layer: ``values/layer.0.q`` is q."""
    return node.rpartition("/")[2].rpartition(".")[2]


def layer_of(node: str) -> int | None:
    """The layer of a value; None outside of the blocks."""
    parts = node.rpartition("/")[2].split(".")
    return int(parts[1]) if len(parts) == 3 else None


def mistaken(equations: Equations, node: str, mistake: Mistake) -> Row:
    """The equation of a value with the mistake in it."""
    op, inputs = equations.rows[node]
    own = len(inputs)
    parameters = wanted(mistake)
    more = more_inputs(equations, node, mistake)
    names = [*inputs, *more]

    def called(*values: Any) -> Any:
        given = dict(zip(names, values, strict=True))
        return mistake.function(**{name: given[name] for name in parameters})

    def called_backward(dout: Any, *values: Any) -> tuple:
        given = dict(zip(names, values, strict=True))
        wrong = mistake.function(dout, **{name: given[name] for name in parameters})
        if not isinstance(wrong, dict):
            return wrong
        right = dict(zip(op.wrt, op.backward(dout, *values[:own]), strict=True)) if op.backward else {}
        return tuple((right | wrong).values())

    def right_backward(dout: Any, *values: Any) -> tuple:
        return op.backward(dout, *values[:own]) if op.backward else ()

    if mistake.in_backward:
        changed = Op(op.name, lambda *values: op.forward(*values[:own]), called_backward, op.wrt, op.page, tuple(more.values()))
        return Row(changed, inputs)
    return Row(Op(op.name, called, right_backward if op.backward else None, op.wrt, op.page), inputs | more)
