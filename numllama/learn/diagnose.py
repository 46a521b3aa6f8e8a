"""Which mistake is it?  Mistakes of a catalogue are tried on another Llama's own inputs until one gives its numbers.

compare finds the values that do not follow from their inputs. For each of them, the equations between it and its inputs are
replaced by mistaken ones, one at a time and then two. A gradient may also be the right one of a forward that is wrong, as
automatic differentiation computes it: that is no second mistake.
"""

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from numllama.learn.compare import SAME, UNJUDGED, WRONG, Comparison, Judged, alone, compare, rows_between, without
from numllama.learn.equations import Row, gradient_of
from numllama.learn.evaluation import evaluate, region, sources
from numllama.learn.mistakes import BACKWARD, FORWARD
from numllama.learn.mistakes.mistake import DoesNotApply, Mistake, mistaken, places, short_name
from numllama.learn.names import TRAINED
from numllama.learn.optimizer_diagnosis import explain as explain_training
from numllama.learn.rounding import ALLOWED

DIRECTIONS, STEP = 4, 1e-4  # of the differences that check a gradient
MOST_FIRST = 40  # mistakes that are tried together with others
SECONDS = 10.0  # for all pairs of mistakes
ALIKE = 3.0  # a second explanation is told if its error is at most this multiple of the best one's


class Candidate(NamedTuple):
    """Mistakes and the equations that they replace; `everywhere` if these are all of their kind."""

    mistakes: tuple[Mistake, ...]
    replaced: dict[str, Row]
    everywhere: bool


@dataclass(frozen=True)
class Explanation:
    """A mistake that gives the dump's numbers.

    Attributes
    ----------
    mistakes : tuple of str
        Sentences; two if only both together do.
    values : list of str
        The values or gradients that it explains.
    equations : list of str
        The values whose equations are mistaken.
    page : str
        The page of the book with the right equation.
    before, after : float
        The largest relative error of these values against the right equation, and against the mistaken one.
    others : list of str
        Other mistakes that give the same numbers.
    """

    mistakes: tuple[str, ...]
    values: list[str]
    equations: list[str]
    page: str
    before: float
    after: float
    others: list[str]


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with another Llama.

    Attributes
    ----------
    comparison : Comparison
    explanations : list of Explanation
        In the order of computation.
    unexplained : list of str
        Values that are wrong in a way that the catalogue does not have.
    """

    comparison: Comparison
    explanations: list[Explanation]
    unexplained: list[str]


def diagnose(reference: Any, dump: Any, **options: Any) -> Diagnosis:
    """Name the mistakes in another Llama.

    Parameters
    ----------
    reference, dump, options
        As for :func:`compare`.

    Returns
    -------
    Diagnosis
    """
    comparison = compare(reference, dump, **options)
    return Diagnosis(comparison, *explained(comparison))


def explained(
    comparison: Comparison, pairs: float = SECONDS, most: float = math.inf
) -> tuple[list[Explanation], list[str]]:
    """The mistakes that give what is wrong in a comparison, and the values that none explains.

    `pairs` is the time in seconds for all pairs of mistakes, and after `most` seconds no other value is looked at.
    """
    search, until = _Search(comparison, pairs), time.monotonic() + most
    for judged in comparison.judged:
        if judged.verdict in (WRONG, UNJUDGED) and time.monotonic() < until:
            search.explain(judged)
    trained = search.training()
    return search.explanations() + trained, search.unexplained


class _Search:
    def __init__(self, comparison: Comparison, seconds: float) -> None:
        self.comparison = comparison
        self.reference, self.equations = comparison.reference, comparison.reference.equations
        self.known = {**self.reference.known, **comparison.theirs}
        self.forward: dict[str, Row] = {}  # the equations that are known to be wrong
        self.found: list[tuple[Judged, Candidate, float, list[str]]] = []
        self.unexplained: list[str] = []
        self.seconds = seconds

    def explain(self, judged: Judged) -> None:
        name = judged.name
        if name.startswith(TRAINED):
            return
        if name not in self.equations.order:
            self.unexplained.append(name)
            return
        backward = name.startswith("d_")
        if self.forward and (self.follows(judged) or (backward and self.is_the_gradient(name, judged.theirs))):
            return
        best = self.best(judged, self.candidates(name, BACKWARD if backward else FORWARD))
        if best is None:
            self.unexplained += [name] if judged.verdict == WRONG else []  # the others' forward is wrong
        else:
            self.found.append((judged, *best))
            if not backward:
                self.forward |= best[0].replaced

    def follows(self, judged: Judged) -> bool:
        """Whether the mistakes found so far give a value."""
        error, allowed = alone(
            self.reference, judged.name, judged.theirs, self.known, self.comparison.dtype, self.forward
        )
        return error <= allowed

    # ---------------------------------------------------------------------------------- candidates

    def candidates(self, name: str, mistakes: Iterable[Mistake]) -> list[Candidate]:
        """Mistakes in the equations between a value and its inputs: everywhere, in the same place of all layers, in one place."""
        between, candidates = rows_between(self.equations, name, self.known), []
        for mistake in mistakes:
            at = [node for node in places(self.equations, mistake) if node in between]
            wide = {tuple(at)} | {tuple(node for node in at if short_name(node) == short) for short in map(short_name, at)}
            for scope in sorted(wide | {(node,) for node in at}, key=len, reverse=True) if at else ():
                replaced = {node: mistaken(self.equations, node, mistake) for node in scope}
                candidates.append(Candidate((mistake,), replaced, scope in wide))
        return candidates

    def best(self, judged: Judged, candidates: Sequence[Candidate]) -> tuple[Candidate, float, list[str]] | None:
        """The candidate that gives a value's numbers best, alone or together with another, its error, and the others that do."""
        tried = self.tried(judged, candidates)
        if not any(error <= allowed for _, error, allowed in tried):
            start = time.monotonic()
            until = start + self.seconds
            pairs = itertools.takewhile(lambda _: time.monotonic() < until, self.pairs([each for each, *_ in tried]))
            tried = self.tried(judged, pairs, one_is_enough=True)
            self.seconds -= time.monotonic() - start
        fits = [(candidate, error) for candidate, error, allowed in tried if error <= allowed]
        if not fits:
            return None
        floor = max(fits[0][1] * ALIKE, ALLOWED[self.comparison.dtype] * 1e-2)
        alike = [candidate for candidate, error in fits if error <= floor]
        chosen = min(alike, key=lambda each: (not self.was_found(each), judged.name not in each.replaced, -len(each.replaced)))
        error = next(error for candidate, error in fits if candidate is chosen)
        others = dict.fromkeys(_what(each) for each in alike if _what(each) != _what(chosen))
        return chosen, error, list(others)

    def was_found(self, candidate: Candidate) -> bool:
        return any(candidate.mistakes == each.mistakes for _, each, _, _ in self.found)

    def tried(
        self, judged: Judged, candidates: Iterable[Candidate], one_is_enough: bool = False
    ) -> list[tuple[Candidate, float, float]]:
        """The candidates that can be made, their errors, and the errors that rounding explains; the best ones first."""
        found = []
        for each in candidates:
            replaced = self.forward | each.replaced
            try:
                error, allowed = alone(
                    self.reference, judged.name, judged.theirs, self.known, self.comparison.dtype, replaced
                )
            except DoesNotApply:
                continue
            found.append((each, math.inf if math.isnan(error) else error, allowed))
            if one_is_enough and error <= allowed:
                break
        return sorted(found, key=lambda each: each[1])

    def pairs(self, candidates: Sequence[Candidate]) -> Iterator[Candidate]:
        """Two mistakes in different equations, each wherever it can be; those that come closest alone are the first."""
        candidates = [each for each in candidates if each.everywhere]
        for i, first in enumerate(candidates[:MOST_FIRST]):
            for second in candidates[i + 1 :]:
                if first.replaced.keys().isdisjoint(second.replaced):
                    yield Candidate(first.mistakes + second.mistakes, first.replaced | second.replaced, True)

    # ---------------------------------------------------------------------------------- gradients of a wrong forward

    def is_the_gradient(self, name: str, theirs: np.ndarray) -> bool:
        """Whether a gradient is that of the forward with the mistakes found so far: by differences in random directions."""
        value = name.removeprefix("d_")
        values = [key for key in self.known if key.startswith("values/") and gradient_of(key) not in self.known]
        known = {key: array for key, array in self.known.items() if key not in values}
        if value not in known:
            return False
        after = self.downstream(value, known)
        rng = np.random.default_rng(0)
        for _ in range(DIRECTIONS):
            u = self.reference.cleaned(name, rng.standard_normal(theirs.shape))
            u /= np.linalg.norm(u)
            step = STEP * max(1.0, float(np.abs(known[value]).max()))
            ahead, back = (self.weighted(after, {**known, value: known[value] + sign * step * u}) for sign in (1, -1))
            if not abs((ahead - back) / (2 * step) - (theirs * u).sum()) <= self.slack(theirs):
                return False
        return True

    def slack(self, theirs: np.ndarray) -> float:
        return 8 * ALLOWED[self.comparison.dtype] * float(np.linalg.norm(theirs)) / math.sqrt(theirs.size)

    def downstream(self, value: str, known: Mapping[str, Any]) -> list[str]:
        """The values with a known gradient that are computed directly from `value`."""
        rows = {**self.equations.rows, **self.forward}
        found = []
        for node in self.equations.rows:
            if gradient_of(node) in known and node != value:
                nodes = region(self.equations, [node], without(node, known), self.forward)
                if any(value in sources(each, rows, {}) for each in nodes):
                    found.append(node)
        return found

    def weighted(self, nodes: Sequence[str], known: Mapping[str, Any]) -> float:
        """The sum of values times their gradients: its derivative is the gradient of the loss."""
        total = 0.0
        for node in nodes:
            value = evaluate(self.equations, [node], without(node, known), self.forward)[node]
            total += float((np.where(np.isfinite(value), value, 0) * known[gradient_of(node)]).sum())
        return total

    # ---------------------------------------------------------------------------------- results

    def training(self) -> list[Explanation]:
        """A mistake of the optimizer, given those of the model: it can be found only if all of these are."""
        off = [each for each in self.comparison.judged if each.name.startswith(TRAINED) and each.verdict != SAME]
        if not off or self.unexplained:
            return []
        replaced = {node: row for _, candidate, *_ in self.found for node, row in candidate.replaced.items()}
        found = explain_training(self.reference, self.comparison.theirs, self.comparison.dtype, replaced)
        if not found:
            self.unexplained += [each.name for each in off if each.verdict == WRONG]
            return []
        what, before, after = found[0]
        names = [each.name for each in off]
        return [Explanation((what,), names, [], "chapters/adamw", before, after, [each.what for each in found[1:]])]

    def explanations(self) -> list[Explanation]:
        """One for each mistake, with all that it explains."""
        by_mistake: dict[tuple[str, ...], list[tuple[Judged, Candidate, float, list[str]]]] = {}
        for each in self.found:
            by_mistake.setdefault(tuple(mistake.what for mistake in each[1].mistakes), []).append(each)
        return [
            Explanation(
                what, [judged.name for judged, *_ in group],
                list(dict.fromkeys(node for _, candidate, *_ in group for node in candidate.replaced)),
                next(iter(group[0][1].replaced.values())).op.page,
                max(judged.alone for judged, *_ in group), max(error for _, _, error, _ in group), group[0][3],
            )
            for what, group in by_mistake.items()
        ]  # fmt: skip


def _what(candidate: Candidate) -> str:
    return " ".join(mistake.what for mistake in candidate.mistakes)
