"""Which mistake is in another optimizer?  Steps of AdamW are taken with each of a catalogue, until the numbers come out.

Steps amplify rounding: where a gradient is nearly zero, its sign decides the step. So each simulation is run twice, the second
time with numbers that are changed as rounding changes them. Where the two part, nothing is compared any more.
"""

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from numllama.learn.equations import Row
from numllama.learn.evaluation import evaluate
from numllama.learn.layouts import difference, norm
from numllama.learn.mistakes.optimizer import OPTIMIZER, OptimizerMistake
from numllama.learn.names import TRAINED
from numllama.learn.optimizer_equations import Step, Weights, trajectory
from numllama.learn.reference import Reference
from numllama.learn.rounding import ALLOWED, rounding

SECONDS, MORE_SECONDS = 10.0, 2.0  # for pairs of mistakes, and after the first pair that fits
ALIKE = 3.0  # another explanation is told if its error is at most this multiple of the best one's
OFF = {dtype: math.sqrt(allowed) for dtype, allowed in ALLOWED.items()}  # a relative error that only rounding may exceed
PARTED = 0.1  # a relative change by rounding after which steps are not compared
SLACK = 16  # how many times the simulated rounding an error may be
BETTER = 0.25  # how much of the error a mistake may leave
LOSSES, NORMS = "optimizer/losses", "optimizer/norms"


class Explanation(NamedTuple):
    """Sentences, and the largest relative error of the dump's tensors without and with these mistakes."""

    what: str
    error_before: float
    error_after: float


def explain(
    reference: Reference,
    theirs: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]],
    dtype: str,
    replaced: Mapping[str, Row] | None = None,
) -> list[Explanation]:
    """Mistakes of the optimizer that give a dump's numbers.

    Parameters
    ----------
    reference : Reference
        Of golden vectors.
    theirs : mapping of str to array, or pairs
        Any of ``optimizer/losses``, ``optimizer/norms`` and ``after/...``; others are ignored.
    dtype : str
        Whose rounding is allowed for.
    replaced : mapping of str to Row, optional
        Equations of the model that are known to be mistaken.

    Returns
    -------
    list of Explanation
        The best first; others follow if their error is about as small. Empty if none gives these numbers, or none is needed.
    """
    theirs = {
        name: np.asarray(array, np.float64)
        for name, array in dict(theirs).items()
        if name.startswith(TRAINED) and name in reference.vectors
    }
    if not theirs:
        return []
    search = _Search(reference, theirs, dtype, replaced)
    right = search.attempt(())
    if right.fits:
        return []
    singles = search.attempts((mistake,) for mistake in OPTIMIZER)
    found = [each for each in singles if each.fits]
    if not found:
        likely = sorted(singles, key=lambda each: (-each.steps, each.error))
        pairs = search.attempts(_pairs([each.mistakes[0] for each in likely]), SECONDS, MORE_SECONDS)
        found = [each for each in pairs if each.fits]
    if not found:
        return []
    most = max(each.steps for each in found)
    found = sorted((each for each in found if each.steps == most), key=lambda each: each.error)
    before, floor = search.error(search.right, most), max(found[0].error * ALIKE, ALLOWED[dtype] * 1e-2)
    return [Explanation(_what(each), before, each.error) for each in found if each.error <= floor]


def noise(reference: Reference, dtype: str) -> dict[str, np.ndarray]:
    """What rounding in a dtype changes of the losses, the norms and the weights after the steps, by their names in vectors."""
    if "optimizer" not in reference.manifest:
        return {}
    search = _Search(reference, {}, dtype)
    exact, noisy = (search.numbers(path, search.steps) for path in (search.right, search.path((), noisy=True)))
    return {name: noisy[name] - exact[name] for name in exact}


class _Attempt(NamedTuple):
    """Mistakes, the error with them, whether rounding explains it, and the number of steps that were compared."""

    mistakes: tuple[OptimizerMistake, ...]
    error: float
    fits: bool
    steps: int


def _what(attempt: _Attempt) -> str:
    return " ".join(mistake.what for mistake in sorted(attempt.mistakes, key=OPTIMIZER.index))


def _pairs(mistakes: Sequence[OptimizerMistake]) -> Iterator[tuple[OptimizerMistake, OptimizerMistake]]:
    """Two mistakes in different equations, the more likely ones first."""
    for i, j in sorted(itertools.combinations(range(len(mistakes)), 2), key=sum):
        if mistakes[i].equations.keys().isdisjoint(mistakes[j].equations):
            yield mistakes[i], mistakes[j]


class _Path:
    """Steps that are taken when they are needed."""

    def __init__(self, steps: Iterator[Step]) -> None:
        self.steps, self.taken = steps, []

    def __getitem__(self, i: int) -> Step:
        with np.errstate(all="ignore"):
            while len(self.taken) <= i:
                self.taken.append(next(self.steps))
        return self.taken[i]

    def last(self) -> Step:
        with np.errstate(all="ignore"):
            self.taken += self.steps
        return self.taken[-1]


class _Search:
    def __init__(
        self, reference: Reference, theirs: dict[str, np.ndarray], dtype: str, replaced: Mapping[str, Row] | None = None
    ) -> None:
        self.reference, self.theirs, self.dtype, self.replaced = reference, theirs, dtype, replaced
        self.settings = reference.manifest["optimizer"]
        self.steps = len(self.settings["losses"])
        self.weights = {name[len("weights/") :]: each for name, each in reference.known.items() if name.startswith("weights/")}
        self.jitter = rounding(dtype)
        self.first, self.first_noisy = self.gradients_of(self.weights), self.gradients_of(self.weights, self.jitter)
        self.right = self.path(())

    # ---------------------------------------------------------------------------------- simulations

    def gradients_of(self, weights: Weights, jitter: Any = None) -> tuple[float, Weights]:
        """The loss and its gradients."""
        known = {**self.reference.known, **{f"weights/{name}": weight for name, weight in weights.items()}}
        wanted = ["values/loss", *(f"d_weights/{name}" for name in weights)]
        more = {"jitter": jitter} if jitter else {}
        values = evaluate(self.reference.equations, wanted, known, self.replaced, **more)
        return float(values["values/loss"]), {name: values[f"d_weights/{name}"] for name in weights}

    def path(self, mistakes: Sequence[OptimizerMistake], noisy: bool = False) -> _Path:
        replaced = {name: equation for mistake in mistakes for name, equation in mistake.equations.items()}
        jitter, first = (self.jitter, [self.first_noisy]) if noisy else (None, [self.first])

        def gradients(weights: Weights) -> tuple[float, Weights]:
            return first.pop() if first else self.gradients_of(weights, jitter)  # those of the first step are computed once

        return _Path(trajectory(self.weights, gradients, self.settings, self.steps, replaced, jitter))

    def numbers(self, path: _Path, n: int) -> dict[str, np.ndarray]:
        """Losses and norms of the first n steps; after all, the weights too."""
        losses, norms = np.array([path[i][:2] for i in range(n)]).T
        after = {f"after/{name}": weight for name, weight in path.last().weights.items()} if n == self.steps else {}
        return {LOSSES: losses, NORMS: norms} | after

    # ---------------------------------------------------------------------------------- against the dump

    def attempts(
        self, candidates: Iterable[tuple[OptimizerMistake, ...]], seconds: float = math.inf, more: float = math.inf
    ) -> list[_Attempt]:
        """The candidates in order, as far as the time goes: `seconds`, and `more` after the first that fits."""
        attempts, end = [], time.monotonic() + seconds
        for mistakes in candidates:
            attempts.append(self.attempt(mistakes))
            if attempts[-1].fits:
                end = min(end, time.monotonic() + more)
            if time.monotonic() > end:
                break
        return attempts

    def attempt(self, mistakes: tuple[OptimizerMistake, ...]) -> _Attempt:
        exact, noisy, n, rounded = self.path(mistakes), self.path(mistakes, noisy=True), 0, 0.0
        while n < self.steps:
            if (off := self.off(exact, n)) > OFF[self.dtype]:
                rounded = max(rounded, apart(noisy[n][:2], exact[n][:2]))
                if rounded > PARTED and n > 1:
                    break
                if off > SLACK * rounded:
                    return _Attempt(mistakes, off, False, n)
            n += 1
        error = self.error(exact, n)
        fits = error <= ALLOWED[self.dtype] or (
            (not mistakes or error < BETTER * self.error(self.right, n)) and self.is_rounding(exact, noisy, n)
        )
        return _Attempt(mistakes, error, fits, n)

    def off(self, ours: _Path, i: int) -> float:
        """The relative error of the loss and of the norm before a step."""
        given = [(name, number) for name, number in zip((LOSSES, NORMS), ours[i][:2], strict=True) if name in self.theirs]
        return max((apart(self.theirs[name][i], number) for name, number in given), default=0)

    def errors(self, ours: _Path, n: int) -> dict[str, float]:
        """The relative error of each tensor, as far as n steps tell it."""
        numbers = self.numbers(ours, n)
        return {name: apart(self.theirs[name][: len(each)], each) for name, each in numbers.items() if name in self.theirs}

    def error(self, ours: _Path, n: int) -> float:
        return max(self.errors(ours, n).values(), default=0)

    def is_rounding(self, exact: _Path, noisy: _Path, n: int) -> bool:
        """Whether rounding explains all errors after n steps."""
        ours, changed = self.numbers(exact, n), self.numbers(noisy, n)
        allowed = {name: max(ALLOWED[self.dtype], SLACK * apart(changed[name], ours[name])) for name in ours}
        return all(error <= allowed[name] for name, error in self.errors(exact, n).items())


def apart(theirs: Any, ours: Any) -> float:
    """|theirs - ours| / |ours|."""
    theirs, ours = np.asarray(theirs), np.asarray(ours)
    return norm(difference(theirs, ours)) / (norm(ours[np.isfinite(ours)]) or 1.0)
