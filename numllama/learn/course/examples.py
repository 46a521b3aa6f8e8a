"""What the functions of an exercise are called with: small float64 arrays, the same each time."""

from typing import Any

import numpy as np

from numllama import ops
from numllama.learn.course.table import EXERCISES


def example(op: str) -> list[Any]:
    """The arguments of an op's forward."""
    names = {"np": np, "ops": ops, "normal": lambda *shape: np.random.default_rng(0).standard_normal(shape)}
    return eval(f"[{EXERCISES[op].arguments}]", names)


def cotangent(out: Any) -> Any:
    """A random gradient for each output."""
    rng = np.random.default_rng(1)
    douts = tuple(np.asarray(rng.standard_normal(np.shape(part))) for part in as_tuple(out))
    return douts if isinstance(out, tuple) else douts[0]


def as_tuple(value: Any) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
