"""Golden vectors as the autograder of a course: a point for each value and each gradient of a Llama.

A point is earned where the right equation, on the file's own numbers, gives what the file has, in all layers. So an early mistake
costs its own point, and not those of what follows from it. Each configuration that is graded has an equal share of a point, so a
configuration in which the file crashes costs no more than its share, and of that only what was not computed before.
"""

import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from numllama.errors import DataError, shown
from numllama.learn.compare import FOLLOWS, SAME, UNJUDGED, Comparison, Judged, compare, is_helper, what_is_wrong, without
from numllama.learn.diagnose import explained
from numllama.learn.dumps import narrowest
from numllama.learn.equations import Equations
from numllama.learn.evaluation import evaluate
from numllama.learn.layouts import arrangements, difference
from numllama.learn.mistakes.mistake import short_name
from numllama.learn.names import FEW, known_names, meaning, named_tensors, readable
from numllama.learn.reference import Reference, opened_reference
from numllama.learn.students import Answer, Call, Run, run_file
from numllama.learn.vectors import STANDARD, standard_vectors

FUNCTION = "llama"
PLAIN = ("mha", "gqa", "mqa", "odd-sizes", "large-eps", "ignored")  # what a Llama without options computes
CLOSED = ("numllama", "numllama is closed while a file is graded: it has the solutions")
NOT_RETURNED = "not returned"
NAMING = 3.0  # seconds for the mistakes of a configuration: in the order of computation, so the first ones are named


@dataclass(frozen=True)
class Point:
    """A value, or a gradient, in all layers and configurations.

    Attributes
    ----------
    name : str
        "q", "d_q", "d_wq".
    op : str
        The value whose forward or backward it belongs to.
    right, of : int
        In how many configurations it is right, and how many have it.
    why : str
        Why it is not right in all of them, in a sentence; empty if it is.
    where : str
        The first tensor that costs it: "values/layer.0.q"; empty if it is earned.
    mistake : str
        The mistakes that give exactly this tensor's numbers, if they are known ones.
    """

    name: str
    op: str
    right: int
    of: int
    why: str = ""
    where: str = ""
    mistake: str = ""

    @property
    def earned(self) -> bool:
        return self.right == self.of

    @property
    def is_backward(self) -> bool:
        return self.name.startswith("d_")


@dataclass(frozen=True)
class Grade:
    """What a file earns.

    Attributes
    ----------
    path : path
    points : list of Point
        In the order of computation.
    problem : str
        Why the file cannot be graded at all; empty if it can.
    failed : dict of str to str
        Configurations in which it did not run to its end, and why.
    advice : str
        What to do next.
    notes : list of str
        Names that mean nothing, and layouts of other implementations.
    printed : str
        The beginning of what it printed.
    seconds : float
    """

    path: Path
    points: list[Point]
    problem: str
    failed: dict[str, str]
    advice: str
    notes: list[str]
    printed: str
    seconds: float

    @property
    def earned(self) -> float:
        return sum_of(self.points)


def sum_of(points: Iterable[Point]) -> float:
    """What points are worth together, rounded down to a tenth: all of them only if each is right in each configuration."""
    tenths = math.floor(10 * sum(Fraction(point.right, point.of) for point in points))
    return tenths / 10 if tenths % 10 else tenths // 10


def grade(
    path: Path, configurations: Sequence[str] = PLAIN, seed: int | None = None, seconds: float = 60, only: Sequence[str] = ()
) -> Grade:
    """Grade a file: see :func:`grade_files`."""
    return next(grade_files([path], configurations, new_seed() if seed is None else seed, seconds, only))


def grade_files(
    paths: Sequence[Path], configurations: Sequence[str], seed: int, seconds: float, only: Sequence[str] = ()
) -> Iterator[Grade]:
    """Grade files that define ``llama(weights, config, tokens, targets, segments)``, one after the other.

    Parameters
    ----------
    paths : sequence of path
    configurations : sequence of str
        Names of golden vectors: see `STANDARD`.
    seed : int
        Of the weights and tokens. A file that does not know it cannot know any number before.
    seconds : float
        For each file.
    only : sequence of str
        The packages that a file may import: see :func:`run_file`.
    """
    if seed < 0:
        raise ValueError(f"seed is {shown(seed)}, but must not be negative")
    references = {name: opened_reference(standard_vectors(name, seed), {}) for name in configurations}
    calls, inputs = [], {}
    for name, reference in references.items():
        batch = {key: f"{name}/{key}" for key in ("tokens", "targets", "segments") if reference.known.get(key) is not None}
        weights = {key: array for key, array in reference.known.items() if key.startswith("weights/")}
        inputs |= {f"{name}/{key}": array for key, array in weights.items()}
        inputs |= {place: reference.known[key] for key, place in batch.items()}
        arrays = [{"array": batch[key]} if key in batch else None for key in ("tokens", "targets", "segments")]
        config = {"config": reference.config.to_dict()}
        calls.append(Call(FUNCTION, [{"arrays": f"{name}/weights/"}, config, *arrays], "dict"))
    for path in paths:
        if path.exists():
            run = run_file(path, calls, inputs, seconds, closed_package=CLOSED, only=only)
        else:
            run = Run([], "does not exist", "", 0.0)
        answers = run.answers + [Answer(problem=run.problem)] * (len(calls) - len(run.answers))
        found = dict(zip(references, answers, strict=True))
        problem = answers[0].problem if all(answer.problem and not answer.arrays for answer in answers) else ""
        failed = {name: answer.problem for name, answer in found.items() if answer.problem}
        points, notes = _points(references, found, failed)
        advice = _first_fix(failed, len(calls)) if failed else _advice(points, references)
        yield Grade(path, points, problem, failed, advice, notes, run.printed, run.seconds)


def new_seed() -> int:
    """A seed that nobody knows."""
    return secrets.randbelow(2**32)


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """Configurations by name, each once; "all" is each of `STANDARD`."""
    for name in names:
        if name not in STANDARD and name != "all":
            raise ValueError(f"configurations has {shown(name)}, but must be names of {', '.join(STANDARD)}, or all")
    return tuple(STANDARD) if "all" in names else tuple(dict.fromkeys(names)) or PLAIN


# ------------------------------------------------------------------------------------------------ points


def points_of(equations: Equations) -> dict[str, tuple[str, list[str]]]:
    """Each point's op, and the tensors that it stands for, in the order of computation."""
    found: dict[str, tuple[str, list[str]]] = {}
    for node in equations.order:
        kind, short = node.partition("/")[0], short_name(node)
        if kind not in ("values", "d_values", "d_weights") or is_helper(node) or node == "d_values/loss":
            continue
        op = short_name(equations.users[node[2:]][0]) if kind == "d_weights" else short
        name = short if kind == "values" else f"d_{short}"
        if kind == "d_weights" and short.endswith("norm"):  # a value has this name
            name += " (gain)"
        found.setdefault(name, (op, []))[1].append(node)
    return found


class Faults(NamedTuple):
    """What is wrong in a configuration: a sentence for each tensor, empty where nothing is; names that mean nothing."""

    of: dict[str, str]
    unknown: list[str]
    comparison: Comparison | None = None


def _points(
    references: dict[str, Reference], answers: dict[str, Answer], failed: dict[str, str]
) -> tuple[list[Point], list[str]]:
    """All points, and notes."""
    tables = {name: points_of(reference.equations) for name, reference in references.items()}
    faults = {name: faults_of(reference, answers[name]) for name, reference in references.items()}
    mistakes: dict[str, dict[str, str]] = {}  # by configuration and tensor
    points = []
    for point in dict.fromkeys(point for table in sorted(tables.values(), key=len, reverse=True) for point in table):
        groups = {name: table[point] for name, table in tables.items() if point in table}
        lost = [(name, node) for name, (_, nodes) in groups.items() for node in nodes if faults[name].of[node]]
        op, right = next(iter(groups.values()))[0], len(groups) - len({name for name, _ in lost})
        if not lost:
            points.append(Point(point, op, right, len(groups)))
            continue
        config, node = next((each for each in lost if faults[each[0]].of[each[1]] != NOT_RETURNED), lost[0])
        why, everywhere = faults[config].of[node], len(lost) == sum(len(nodes) for _, nodes in groups.values())
        if why != NOT_RETURNED or not everywhere:
            whole = why == failed.get(config) or all(each == why for each in faults[config].of.values())
            why = f"{config}: {why}" if whole else f"{readable(node)} of {config}: {why}"
        if config not in mistakes:
            mistakes[config] = _mistakes(faults[config].comparison)
        points.append(Point(point, op, right, len(groups), why, node, mistakes[config].get(node, "")))
    return points, _notes(faults.values())


def _mistakes(comparison: Comparison | None) -> dict[str, str]:
    """The mistakes that give exactly a tensor's numbers, as `numllama diagnose` says them."""
    if comparison is None or comparison.same:
        return {}
    with np.errstate(all="ignore"):
        explanations, _ = explained(comparison, pairs=0, most=NAMING)
    found = {}
    for each in explanations:
        alike = [" ".join(each.mistakes), *each.others[: FEW - 1]]
        found |= dict.fromkeys(each.values, alike[0] if len(alike) == 1 else f"One of these: {' '.join(alike)}")
    return found


def _notes(faults: Iterable[Faults]) -> list[str]:
    """Names that mean nothing, and values that have the layout of another implementation."""
    layouts: dict[str, dict[str, None]] = {}
    notes = {}
    for each in faults:
        notes |= dict.fromkeys(f"{shown(name)} is not the name of a value" for name in each.unknown)
        for judged in each.comparison.judged if each.comparison else ():
            if judged.layout:
                kind = "d_" * judged.name.startswith("d_")
                layouts.setdefault(judged.layout, {})[kind + short_name(judged.name)] = None
    return [*notes, *(f"{', '.join(names)}: {how} (a layout, not a fault)" for how, names in layouts.items())]


def faults_of(reference: Reference, answer: Answer) -> Faults:
    """What is wrong with each tensor of a configuration."""
    equations, D = reference.equations, reference.config.head_dim
    nodes = [node for _, group in points_of(equations).values() for node in group]
    faults = dict.fromkeys(nodes, answer.problem or NOT_RETURNED)
    if answer.problem and not answer.arrays:
        return Faults(faults, [])
    try:
        found, unknown = named_tensors(answer.arrays, equations)
    except DataError as error:
        return Faults(dict.fromkeys(nodes, str(error).replace("the dump has", "it returns")), [])
    known, n_layers = known_names(equations), reference.config.n_layers

    def meant(name: str) -> list[str]:
        return [node for node in meaning(name, np.zeros(0), n_layers, known) if node in faults]

    for name, why in answer.lost.items():
        faults |= dict.fromkeys(meant(name), why)
        unknown += [] if meaning(name, np.zeros(0), n_layers, known) else [name]
    fitting = {}
    for node in found.keys() & faults.keys():
        shape = reference.expected(node).shape
        if any(True for _ in arrangements(found[node], short_name(node), shape, D)):
            fitting[node] = found[node]
        else:
            faults[node] = f"it has shape {shown(found[node].shape)}, but must have {shape}"
    comparison = None
    if fitting:
        dtype = "float64" if narrowest(fitting) == "float64" else "float32"
        with np.errstate(all="ignore"):
            comparison = compare(reference, fitting, dtype=dtype)
            faults |= {judged.name: _fault(judged, comparison) for judged in comparison.judged}
    for name, dtype in answer.narrow.items():
        faults |= {node: f"{faults[node]} (it is {dtype}: return float32 or float64)" for node in meant(name) if faults[node]}
    for name, other in answer.shared.items():
        (twin,) = meaning(other, np.zeros(0), n_layers, known) or [other]
        for node in meant(name):
            alike = twin in faults and np.array_equal(reference.expected(node), reference.expected(twin))
            if faults[node] and not alike:
                faults[node] += f" (it is the same array as {readable(twin)}: was it changed in place?)"
    return Faults(faults, [] if answer.problem else unknown, comparison)


def _fault(judged: Judged, comparison: Comparison) -> str:
    """What is wrong with a value, beside what the right equation makes of the file's own numbers; empty if nothing is."""
    if judged.verdict == SAME:
        return ""
    finite = np.isfinite(judged.theirs)
    if judged.verdict == FOLLOWS:  # anything follows from nothing
        says = (judged.theirs[finite] != 0).any()
        return "" if says else "zero or not a number everywhere, because of what it is computed from"
    if judged.verdict == UNJUDGED:
        return "not judged before its forward is right"
    reference = comparison.reference
    given = without(judged.name, {**reference.known, **comparison.theirs})
    own = reference.cleaned(judged.name, np.asarray(evaluate(reference.equations, [judged.name], given)[judged.name]))
    off = difference(judged.theirs, own)
    index = tuple(int(i) for i in np.unravel_index(int(np.abs(off).argmax()), off.shape))
    return what_is_wrong(replace(judged, ours=own, error=judged.alone, index=index))


# ------------------------------------------------------------------------------------------------ what to do next


def _first_fix(failed: dict[str, str], n: int) -> str:
    """What to do about the first crash, and in which of the n configurations it is."""
    problem = next(iter(failed.values()))
    names = [name for name, each in failed.items() if each == problem]
    where = f", in {', '.join(names)}" if len(failed) < n else ""
    return f"Fix this first{where}: {problem}."


def _advice(points: Sequence[Point], references: dict[str, Reference]) -> str:
    """What to do next: the first point that is lost, and the equation that earns it."""
    lost = next((point for point in points if not point.earned), None)
    if lost is None:
        return "All is right."
    equations = next(each.equations for each in references.values() if lost.where in each.equations.order)
    value = lost.where.removeprefix("d_")
    rows = [lost.where] if not lost.is_backward else [user for user in equations.users[value] if equations.rows[user].op.backward]
    texts = [f"{readable(row)} = {equations.rows[row].op.name}({', '.join(map(readable, equations.rows[row].inputs.values()))})"
             for row in rows]  # fmt: skip
    start = f"{readable(lost.where)} comes from the backward of " if lost.is_backward else ""
    pages = dict.fromkeys(f"docs/{equations.rows[row].op.page}.md" for row in rows)
    return f"Next: {start}{', '.join(texts)}. Read {', '.join(pages)}."
