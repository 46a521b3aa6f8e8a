"""The course in order: what each exercise is given, what must be done before it, how long it takes and what it is worth."""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from numllama.errors import shown
from numllama.learn.course.bugs import BUGS
from numllama.learn.course.function_hints import FUNCTION_HINTS
from numllama.learn.course.hints import BLOCK_HINTS, HINTS, Steps

CAPSTONE = "llama"
OUTPUTS = {"add_rmsnorm": ("total", "out"), "mixture_of_experts": ("out", "probs")}


class Exercise(NamedTuple):
    """An exercise.

    Attributes
    ----------
    name : str
        Of its file too.
    kind : str
        "backward" or "forward" of an op, "block", "function", "bug" or "capstone".
    base : str
        The op whose functions the file defines, "block", or the exercise of a plain function.
    title : str
    minutes : int
        That a first solution takes, about.
    worth : int
        Points for each result; of a bug, points for all of it.
    needs : tuple of str
        Exercises to do before.
    arguments : str
        Example arguments as Python source.
    wrt : tuple of int
        Positions of the arguments that have a gradient.
    hints : dict of str to three str
        For each gradient; of a forward, for "out"; of a function, for each result; of a bug, for the mistake.
    functions : tuple of str
        Of a function: what is to be written.
    """

    name: str
    kind: str
    base: str
    title: str
    minutes: int
    worth: int
    needs: tuple[str, ...] = ()
    arguments: str = ""
    wrt: tuple[int, ...] = ()
    hints: Mapping[str, Steps] = MappingProxyType({})
    functions: tuple[str, ...] = ()

    @property
    def points(self) -> int:
        """Points for all of it; the capstone's depend on what is graded."""
        results = {"forward": len(self.outputs), "bug": 1, "capstone": 53}.get(self.kind, len(self.hints))
        return results * self.worth

    @property
    def page(self) -> str:
        """The page of the book that explains it, without its ending."""
        return {"block": "trace", "": "grade"}.get(self.base, f"{'chapters' if self.functions else 'ops'}/{self.base}")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the forward's results."""
        return OUTPUTS.get(self.base, ("out",))

    @property
    def gradients(self) -> tuple[str, ...]:
        """Names of the backward's results."""
        return tuple(name for name in HINTS.get(self.base, self.hints) if name != "out")


def _op(op: str, title: str, minutes: int, worth: int, needs: str, arguments: str, wrt: tuple[int, ...]) -> Exercise:
    hints = {name: steps for name, steps in HINTS[op].items() if name != "out"}
    return Exercise(op, "backward", op, title, minutes, worth, tuple(needs.split()), arguments, wrt, hints)


EXERCISES = {each.name: each for each in (  # the ops, from easy to hard
    _op("linear", "matrix products", 15, 1, "", "normal(2, 3, 4), normal(5, 4), normal(5)", (0, 1, 2)),
    _op("embedding", "a table", 5, 1, "linear", "np.array([[2, 0, 2], [4, 2, 0]]), normal(5, 3)", (1,)),
    _op("dropout", "a mask", 5, 1, "", "normal(2, 3, 6), 0.3, (1, 2, 3)", (0,)),
    _op("softcap", "the chain rule", 5, 1, "", "3 * normal(2, 3, 5), 2.0", (0,)),
    _op("swiglu", "a gate", 10, 1, "softcap", "normal(2, 3, 4), normal(2, 3, 4)[::-1]", (0, 1)),
    _op("gelu", "the chain rule in a product", 10, 1, "softcap", "normal(2, 3, 5)", (0,)),
    _op("geglu", "ops from ops", 5, 1, "gelu swiglu", "normal(2, 3, 4), normal(2, 3, 4)[::-1]", (0, 1)),
    _op("lora", "two products", 10, 1, "linear", "normal(2, 3, 4), normal(2, 4), normal(5, 2), 0.5", (0, 1, 2)),
    _op("softmax", "a Jacobian", 20, 2, "linear", "normal(2, 3, 5)", (0,)),
    _op("cross_entropy", "the loss", 20, 2, "softmax", "normal(2, 3, 5), np.array([[1, 4, -100], [0, 2, 2]])", (0,)),
    _op("rmsnorm", "a statistic of the row", 30, 2, "linear softmax", "normal(2, 3, 6), normal(6), 1e-5", (0, 1)),
    _op("layernorm", "two statistics", 30, 2, "rmsnorm", "normal(2, 3, 6), normal(6), normal(6)[::-1], 1e-5", (0, 1, 2)),
    _op("add_rmsnorm", "a value that is used twice", 10, 1, "rmsnorm dropout",
        "normal(2, 3, 6), normal(2, 3, 6)[::-1], normal(6), 1e-5, 0.3, (1, 2, 3)", (0, 1, 2)),
    _op("rope", "a rotation", 15, 2, "linear",
        "normal(2, 3, 4, 6), *ops.rope_table(np.arange(4), 6, 100.0, dtype='float64')", (0,)),
    _op("mixture_of_experts", "gather, scatter and a router", 60, 2, "linear softmax swiglu",
        "normal(2, 3, 3), normal(4, 3), normal(4, 5, 3), normal(4, 5, 3)[::-1], normal(4, 3, 5), 2", (0, 1, 2, 3, 4)),
    _op("attention", "everything so far", 60, 3, "linear softmax",
        "normal(2, 4, 3, 5), normal(2, 2, 6, 5), normal(2, 2, 6, 5)[::-1]", (0, 1, 2)),
    _op("flash_attention", "the same in tiles", 120, 4, "attention",
        "normal(2, 4, 67, 5), normal(2, 2, 150, 5), normal(2, 2, 150, 5)[::-1]", (0, 1, 2)),
)}  # fmt: skip

BLOCK = Exercise("block", "block", "block", "a whole Llama block, value by value", 120, 1,
                 ("linear", "swiglu", "rmsnorm", "rope", "attention"), hints=BLOCK_HINTS)  # fmt: skip


def _function(name: str, title: str, minutes: int, worth: int, needs: str, functions: str) -> Exercise:
    return Exercise(name, "function", name, title, minutes, worth, tuple(needs.split()), hints=FUNCTION_HINTS[name],
                    functions=tuple(functions.split()))  # fmt: skip


FUNCTIONS = {each.name: each for each in (  # training and generation
    _function("adamw", "a step of the optimizer", 20, 1, "", "adamw_step"),
    _function("bpe", "merges, learned and applied", 40, 2, "", "learn_merges encode_word"),
    _function("sampling", "what the next token is drawn from", 30, 1, "softmax", "next_distribution"),
    _function("kv_cache", "attention with keys that are kept", 40, 2, "attention rope", "cached_attention"),
)}  # fmt: skip
LLAMA = Exercise(CAPSTONE, "capstone", "", "a whole Llama from an empty file", 600, 1, ("block", "embedding", "cross_entropy"))


def _bug(number: int) -> Exercise:
    bug = BUGS[number - 1]
    base = EXERCISES.get(bug.base, BLOCK)
    return base._replace(
        name=f"bug_{number:02}", kind="bug", title=f"find the mistake in {bug.base}", minutes=bug.minutes, worth=bug.worth,
        needs=(bug.base,), hints={"mistake": bug.hints},
    )  # fmt: skip


def _course() -> dict[str, Exercise]:
    """All exercises in order: each mistake follows the op that it is in; then the functions, and the whole Llama."""
    bugs = [_bug(number) for number in range(1, len(BUGS) + 1)]
    found = []
    for each in (*EXERCISES.values(), BLOCK):
        found += [each, *(bug for bug in bugs if bug.base == each.name)]
    return {each.name: each for each in (*found, *FUNCTIONS.values(), LLAMA)}


COURSE = _course()
FORWARD = "_forward"


def find_exercise(name: str) -> Exercise:
    """An exercise by its name, "rmsnorm", "rmsnorm_forward" or "bug_03"; ValueError if there is none."""
    op = name.removesuffix(FORWARD)
    if name.endswith(FORWARD) and op in EXERCISES:
        each = EXERCISES[op]
        title = f"{each.title}, the forward"
        return each._replace(name=name, kind="forward", title=title, minutes=max(5, each.minutes // 2),
                             hints={"out": HINTS[op]["out"]})
    if name not in COURSE:
        names = f"{', '.join(COURSE)}, or {', '.join(_some_forwards())}"
        near = difflib.get_close_matches(name, [*COURSE, *(f"{op}{FORWARD}" for op in EXERCISES)], 1)
        guess = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"exercise is {shown(name)}{guess}, but must be one of {names}")
    return COURSE[name]


def _some_forwards() -> list[str]:
    return [f"{op}{FORWARD}" for op in ("linear", "rmsnorm")] + ["the forward of another op"]
