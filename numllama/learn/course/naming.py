"""The mistake that gives exactly the numbers of a wrong result: the planted one, or one of those that students make."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from numllama import ops
from numllama.learn.course import block
from numllama.learn.course.examples import as_tuple, cotangent, example
from numllama.learn.course.files import mistaken_text
from numllama.learn.course.symptoms import functions_of
from numllama.learn.course.table import Exercise, find_exercise

STILL = "{} has the numbers that the planted mistake gives: it is still there."


def mistake_in_op(exercise: Exercise, name: str, actual: np.ndarray) -> str:
    """Name the mistake in an output or a gradient of an op; empty if it is not a known one."""
    from numllama.learn.wrong_answers import explain, is_alike

    if exercise.kind == "bug" and is_alike(actual, _planted_results(exercise.name)[name]):
        return STILL.format(name)
    args = example(exercise.base)
    dout = cotangent(getattr(ops, f"{exercise.base}_forward")(*args)[0])
    return explain(exercise.base, name, actual, args, dout) or ""


def mistake_in_block(exercise: Exercise, name: str, actual: np.ndarray) -> str:
    """Name the mistake in a gradient of the block, "d_wq", or in a value of its forward, "scores"."""
    from numllama.learn.wrong_answers import explain_calls, is_alike

    args, a, d, _ = block_values()
    values = {"d": d, "a": a, "w": args[1]}
    if exercise.kind == "bug":
        functions = _planted_functions(exercise.name)
        planted = functions[name](**values) if name in functions else functions["block_forward"](*args)[name]
        if is_alike(actual, planted):
            return STILL.format(name)
    return explain_calls("block", name, [(values, actual)])


def mistake_in_function(exercise: Exercise, name: str, calls: Sequence[tuple[Mapping[str, Any], np.ndarray]]) -> str:
    """Name the mistake in what a plain function has returned: the arguments of each call, and its numbers."""
    from numllama.learn.wrong_answers import explain_calls

    return explain_calls(exercise.name, name, calls)


@cache
def block_values() -> tuple[list[Any], Any, Any, list[str]]:
    """The arguments of the block's forward, the values, the gradients, and the order of the gradients."""
    rng, C, F = np.random.default_rng(0), 12, 10
    H, K, D = block.H, block.K, block.D
    shapes = dict(attn_gain=(C,), wq=(H * D, C), wk=(K * D, C), wv=(K * D, C), wo=(C, H * D), ffn_gain=(C,), w_gate=(F, C),
                  w_up=(F, C), w_down=(C, F))  # fmt: skip
    w = {name: rng.standard_normal(shape) / 2 for name, shape in shapes.items()}
    args = [rng.standard_normal((2, 5, C)), block.Values(w), *ops.rope_table(np.arange(5), D, 100.0, dtype="float64")]
    values = block.block_forward(*args)
    return args, values, block.block_backward(rng.standard_normal((2, 5, C)), values, args[1]), list(find_exercise("block").hints)


def _planted_functions(name: str) -> dict[str, Any]:
    return functions_of(mistaken_text(find_exercise(name)))


@cache
def _planted_results(name: str) -> dict[str, np.ndarray]:
    """Outputs and gradients of an op with its mistake."""
    exercise, functions = find_exercise(name), _planted_functions(name)
    out, cache = functions[f"{exercise.base}_forward"](*example(exercise.base))
    gradients = functions[f"{exercise.base}_backward"](cotangent(out), cache)
    names = (*exercise.outputs, *exercise.gradients)
    return dict(zip(names, (*as_tuple(out), *as_tuple(gradients)), strict=True))
