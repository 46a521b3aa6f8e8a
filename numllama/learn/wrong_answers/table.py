"""A table of wrong answers to one exercise.

    Table("rmsnorm", values, {"dx": [
        ("dx treats rstd as a constant: ...", lambda rstd, dn: rstd * dn),
    ], ...})

A row is a sentence and the array that the mistake gives. The function's parameters are names of values: the arguments of the
op's forward, `dout`, the right results, sizes, and what `values` computes of them. A function of `actual`, the student's array,
gives what the mistake makes of a choice that is read off there: a random mask, for example.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from numllama import ops

Rows = list[tuple[str, Callable[..., Any]]]

SIZES = {  # the meaning of a size, and whether it counts rows
    "N": "the number of rows", "B": "the number of sequences", "T": "the number of tokens in a sequence",
    "C": "the width", "I": "the input's width", "O": "the output's width", "F": "the width", "V": "the size of the vocabulary",
    "D": "the size of a head", "S": "the number of keys", "H": "the number of query heads", "K": "the number of key heads",
    "R": "the rank", "E": "the number of experts", "top_k": "the number of experts of a token",
}  # fmt: skip


class Table(NamedTuple):
    """The wrong answers to an exercise.

    Attributes
    ----------
    op : str
    values : callable
        What rows compute with, by name: a function of `dout` and the arguments.
    rows : dict of str to list of (str, callable)
        For each result, outputs before gradients, in the order in which they are returned.
    outputs : tuple of str
        Names of the forward's outputs.
    independent : bool
        Whether each row of `dout` adds its own part to every gradient. (In attention rows read one another.)
    """

    op: str
    values: Callable[..., dict[str, Any]]
    rows: dict[str, Rows]
    outputs: tuple[str, ...] = ("out",)
    independent: bool = True

    @property
    def gradients(self) -> tuple[str, ...]:
        return tuple(name for name in self.rows if name not in self.outputs)


class Case:
    """An exercise with its arguments: right results, and wrong ones."""

    def __init__(self, table: Table, args: list[Any], dout: Any) -> None:
        self.table, self.args, self.dout = table, args, dout
        forward = getattr(ops, f"{table.op}_forward")
        names = inspect.signature(forward).parameters
        self.arguments = dict(zip(names, args))  # noqa: B905 - the rest have defaults
        out, self._cache = forward(*args)
        self.right = dict(zip(table.outputs, as_tuple(out), strict=True))
        self._wrong: dict[str, np.ndarray] = {}  # by sentence

    def backward(self, dout: Any) -> dict[str, np.ndarray]:
        """All gradients for a gradient of the output."""
        results = getattr(ops, f"{self.table.op}_backward")(dout, self._cache)
        return dict(zip(self.table.gradients, as_tuple(results), strict=True))

    @cached_property
    def results(self) -> dict[str, np.ndarray]:
        """Outputs and gradients, right."""
        return {name: np.asarray(array) for name, array in (self.right | self.backward(self.dout)).items()}

    @cached_property
    def values(self) -> dict[str, Any]:
        """What the rows compute with."""
        return {"dout": self.dout, **self.arguments, **self.results, **self.table.values(self.dout, *self.args)}

    def wrong(self, result: str, actual: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The sentences on a result, each with the array that its mistake gives."""
        for sentence, function in self.table.rows[result]:
            names = parameters(function)
            if "actual" in names or sentence not in self._wrong:
                values = self.values | {"actual": actual}
                self._wrong[sentence] = np.asarray(function(**{name: values[name] for name in names}))
            yield sentence, self._wrong[sentence]

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {name: self.values[name] for name in SIZES if isinstance(self.values.get(name), int)}

    def input_of(self, result: str) -> str:
        """The argument that a gradient belongs to."""
        return result[1:]


def parameters(function: Callable) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def packed(douts: list[Any]) -> Any:
    """What a backward takes: an array, or a tuple of them for several outputs."""
    return tuple(douts) if len(douts) > 1 else douts[0]


def as_tuple(value: Any) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
