"""The ops that `nl.judge` knows: how the arguments of each are drawn, in each case, and what its results are called."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from numllama import ops
from numllama.ops.rope_table import rope_table

IGNORE = ops.IGNORE
SMALL = dict(B=2, T=4, S=6, C=8, H=4, K=2, D=8, F=12, O=6, R=2, V=16, E=4, k=2)
ONE = dict.fromkeys(SMALL, 1) | {"D": 2}
ODD = dict(B=3, T=7, S=11, C=13, H=6, K=2, D=10, F=17, O=9, R=3, V=19, E=5, k=3)
LONG = dict(B=1, T=131, S=197, C=1031, H=2, K=1, D=66, F=517, O=67, R=5, V=2053, E=3, k=2)  # more than a tile, a warp, a block


class Case(NamedTuple):
    """One kind of arguments."""

    sizes: Mapping[str, int] = SMALL
    scale: float = 1.0
    offset: float = 0.0
    layout: str = "contiguous"
    special: str | None = None


LARGE = 0.0  # a scale that each op chooses
CASES = {
    "plain": Case(),
    "single": Case(ONE),
    "odd": Case(ODD),
    "long": Case(LONG),
    "large": Case(scale=LARGE),  # exp and squares overflow, where they are not kept from it
    "tiny": Case(scale=2.0**-10),  # squares are far below eps
    "offset": Case(ODD, offset=100.0),  # a mean far above the standard deviation
    "zeros": Case(special="zeros"),  # rows of zeros
    "repeated": Case(special="repeated"),  # one token everywhere
    "masked": Case(ODD, special="masked"),  # keys, targets or logits that do not count, queries that see nothing
    "nan": Case(special="nan"),  # a number that is not one must be seen in the results
    "strided": Case(ODD, layout="strided"),  # a gap after each element, which holds NaN
    "transposed": Case(ODD, layout="transposed"),  # the last two axes in the other order in memory
}


class Draw:
    """The arguments of one call; sizes are its attributes, by the letters of the ops."""

    def __init__(self, rng: np.random.Generator, case: Case, large: float, dtype: np.dtype) -> None:
        self.rng, self.case, self.dtype = rng, case, dtype
        self.scale = case.scale or large

    def __getattr__(self, size: str) -> int:
        return self.case.sizes[size]

    def values(self, *shape: int) -> np.ndarray:
        """Activations, as large as the case says."""
        x = self.scale * self.rng.standard_normal(shape) + self.case.offset
        rows = x.reshape(-1, shape[-1])
        if self.case.special == "zeros":
            rows[self.rng.random(len(rows)) < 0.5] = 0
            rows[0] = 0
        if self.case.special == "nan":
            rows[self.rng.integers(len(rows)), self.rng.integers(shape[-1])] = np.nan
        return x

    def weights(self, *shape: int) -> np.ndarray:
        """Parameters, whose scale is the same in all cases."""
        return self.rng.standard_normal(shape)

    def number(self, *choices: float) -> float:
        return float(self.rng.choice(choices))

    def key(self) -> tuple[int, ...]:
        return tuple(self.rng.integers(0, 2**31, 3).tolist())

    def tokens(self) -> np.ndarray:
        tokens = self.rng.integers(0, self.V, (self.B, self.T))
        return np.full_like(tokens, tokens[0, 0]) if self.case.special == "repeated" else tokens

    def logits(self) -> np.ndarray:
        logits = self.values(self.B, self.T, self.V)
        if self.case.special == "masked":
            logits[self.rng.random(logits.shape) < 0.4] = -math.inf
            logits[..., self.rng.integers(self.V)] = 1.0  # not all of a row
        if self.case.special == "repeated":
            logits[...] = logits[:1, :1, :1]
        return logits

    def targets(self) -> np.ndarray:
        targets = self.tokens()
        if self.case.special == "masked":
            targets[self.rng.random(targets.shape) < 0.4] = IGNORE
            targets[0, :2] = self.rng.integers(self.V), IGNORE
        return targets

    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """The keys that each query sees: causal; or any, of which some are empty."""
        first, last = np.zeros((self.B, self.T), int), np.arange(self.T) + np.full((self.B, 1), max(1, self.S - self.T + 1))
        if self.case.special == "masked":
            first = self.rng.integers(0, self.S, (self.B, self.T))
            last = self.rng.integers(0, self.S + 1, (self.B, self.T))
            first[:, 0], last[:, 0] = 3, 3
        return first, last

    def spaced(self, *shape: int) -> np.ndarray:
        """Rows whose numbers are well apart, so that rounding does not change which are the largest."""
        places = self.rng.permuted(np.broadcast_to(np.arange(shape[-1]), shape), axis=-1)
        return 1.5 * places - shape[-1] + self.rng.uniform(-0.4, 0.4, shape)

    def routed(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and a router, whose logits are well apart."""
        router, rows, n = self.weights(self.E, self.C), np.empty((0, self.C)), self.B * self.T
        while len(rows) < n:
            more = self.weights(4 * n + 16, self.C)
            logits = np.sort(more.astype(self.dtype).astype(float) @ router.astype(self.dtype).astype(float).T)
            apart = np.diff(logits, axis=-1)[:, -self.k :] > 0.5 * min(1, math.sqrt(self.C) / 4)
            rows = np.concatenate([rows, more[apart.all(-1)]])
        return rows[:n].reshape(self.B, self.T, self.C), router


class JudgedOp(NamedTuple):
    """An op: its functions, how its arguments are drawn, and the names of its results.

    `large` is the scale of large arguments; cases in `skip` say nothing of the op; where it `has_factor`, a kernel may multiply
    an input by it.
    """

    forward: Callable
    backward: Callable
    arguments: Callable[[Draw], tuple]
    results: tuple[str, ...]
    gradients: tuple[str, ...]
    large: float = 30.0
    skip: tuple[str, ...] = ("repeated", "masked")
    has_factor: bool = False
    options: Mapping[str, Any] = {}


def _row(name: str, arguments: Callable[[Draw], tuple], gradients: str, results: str = "out", **more: Any) -> JudgedOp:
    forward, backward = (getattr(ops, f"{name}_{way}") for way in ("forward", "backward"))
    return JudgedOp(forward, backward, arguments, tuple(results.split()), tuple(gradients.split()), **more)


def _rope(d: Draw) -> tuple:
    positions = int(d.rng.integers(0, 100)) + np.arange(d.T)
    return d.values(d.B, d.H, d.T, d.D), *rope_table(positions, d.D, 10000.0, dtype="float64")


def _attention(d: Draw) -> tuple:
    return d.values(d.B, d.H, d.T, d.D), d.values(d.B, d.K, d.S, d.D), d.weights(d.B, d.K, d.S, d.D), *d.intervals()


def _causal(d: Draw) -> tuple:
    return d.values(d.B, d.H, d.T, d.D), d.values(d.B, d.K, d.T, d.D), d.weights(d.B, d.K, d.T, d.D)


def _experts(d: Draw) -> tuple:
    maps = [d.weights(d.E, *shape) / math.sqrt(shape[-1]) for shape in ((d.F, d.C), (d.F, d.C), (d.C, d.F))]
    return *d.routed(), *maps, d.k


def _eps(d: Draw) -> float:
    return d.number(1e-6, 1e-5, 0.1)


NO_SCALE = ("large", "tiny", "offset", "zeros", "nan", "repeated", "masked")
NORM: dict[str, Any] = dict(large=1000.0)
ATTENTION: dict[str, Any] = dict(skip=("repeated", "nan", "offset"), has_factor=True)
CAUSAL: dict[str, Any] = ATTENTION | {"skip": (*ATTENTION["skip"], "masked")}
JUDGED = {
    "linear": _row("linear", lambda d: (d.values(d.B, d.T, d.C), d.weights(d.O, d.C)), "dx dweight"),
    "linear_bias": _row(
        "linear", lambda d: (d.values(d.B, d.T, d.C), d.weights(d.O, d.C), d.weights(d.O)), "dx dweight dbias"
    ),
    "lora": _row(
        "lora",
        lambda d: (d.values(d.B, d.T, d.C), d.weights(d.R, d.C), d.weights(d.O, d.R), d.number(0.5, 1.5, 2.0)),
        "dx da db", has_factor=True,
    ),
    "embedding": _row("embedding", lambda d: (d.tokens(), d.values(d.V, d.C)), "dweight", skip=("masked",)),
    "rmsnorm": _row("rmsnorm", lambda d: (d.values(d.B, d.T, d.C), d.weights(d.C), _eps(d)), "dx dweight", **NORM),
    "add_rmsnorm": _row(
        "add_rmsnorm",
        lambda d: (d.values(d.B, d.T, d.C), d.values(d.B, d.T, d.C), d.weights(d.C), _eps(d)),
        "dx dbranch dweight", "total out", **NORM,
    ),
    "layernorm": _row(
        "layernorm", lambda d: (d.values(d.B, d.T, d.C), d.weights(d.C), d.weights(d.C), _eps(d)), "dx dweight dbias", **NORM
    ),
    "rope": _row("rope", _rope, "dx"),
    "rope_interleaved": _row("rope", _rope, "dx", options={"layout": "interleaved"}),
    "softmax": _row("softmax", lambda d: (d.logits(),), "dx", "p", large=1000.0, skip=()),
    "attention": _row("attention", _attention, "dq dk dv", **ATTENTION),
    "flash_attention": _row("attention", _attention, "dq dk dv", **ATTENTION),
    "causal_attention": _row("attention", _causal, "dq dk dv", **CAUSAL),
    "swiglu": _row("swiglu", lambda d: (d.values(d.B, d.T, d.F), d.values(d.B, d.T, d.F)), "dgate dup"),
    "geglu": _row("geglu", lambda d: (d.values(d.B, d.T, d.F), d.values(d.B, d.T, d.F)), "dgate dup"),
    "gelu": _row("gelu", lambda d: (d.values(d.B, d.T, d.F),), "dx"),
    "gelu_exact": _row("gelu", lambda d: (d.values(d.B, d.T, d.F),), "dx", options={"approximate": "none"}),
    "softcap": _row("softcap", lambda d: (d.values(d.B, d.T, d.V), d.number(2.0, 5.0, 30.0)), "dx", has_factor=True),
    "cross_entropy": _row(
        "cross_entropy",
        lambda d: (d.values(d.B, d.T, d.V), d.targets()),
        "dlogits", "loss", large=1000.0, skip=(),
    ),
    "dropout": _row(
        "dropout", lambda d: (d.values(d.B, d.T, d.C), d.number(0.1, 0.5, 0.9), d.key()), "dx", skip=("nan", "repeated", "masked")
    ),
    "router": _row("router", lambda d: (d.spaced(d.B * d.T, d.E), d.k), "dlogits", "weights probs", skip=NO_SCALE),
    "load_balancing": _row(
        "load_balancing",
        lambda d: (abs(d.values(d.B * d.T, d.E)), d.rng.integers(0, d.E, (d.B * d.T, d.k))), "dprobs", "loss",
    ),
    "mixture_of_experts": _row("mixture_of_experts", _experts, "dx drouter dgate dup ddown", "out probs", skip=NO_SCALE),
}  # fmt: skip
