"""Golden vectors as the autograder of a course: a point for each value and each gradient of a Llama.

A point is earned where the right equation, on the file's own numbers, gives what the file has: in all layers, and in all
configurations that are graded. So an early mistake costs its own point, and not those of what follows from it.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from numllama.errors import DataError, shown
from numllama.learn.compare import FOLLOWS, SAME, UNJUDGED, Comparison, Judged, compare, is_helper, what_is_wrong, without
from numllama.learn.dumps import narrowest
from numllama.learn.equations import Equations
from numllama.learn.evaluation import evaluate
from numllama.learn.layouts import arrangements, difference
from numllama.learn.mistakes.mistake import short_name
from numllama.learn.names import known_names, meaning, named_tensors, readable
from numllama.learn.reference import Reference, opened_reference
from numllama.learn.students import Answer, Call, run_file
from numllama.learn.vectors import STANDARD, standard_vectors

FUNCTION = "llama"
PLAIN = ("mha", "gqa", "mqa", "odd-sizes", "large-eps", "ignored")  # what a Llama without options computes
CLOSED = ("numllama", "numllama is closed while a file is graded: it has the solutions")
NOT_RETURNED = "not returned"


@dataclass(frozen=True)
class Point:
    """A value, or a gradient, in all layers and configurations.

    Attributes
    ----------
    name : str
        "q", "d_q", "d_wq".
    op : str
        The value whose forward or backward it belongs to.
    why : str
        Why it is not earned, in a sentence; empty if it is.
    where : str
        The first tensor that costs it: "values/layer.0.q"; empty if it is earned.
    """

    name: str
    op: str
    why: str = ""
    where: str = ""

    @property
    def earned(self) -> bool:
        return not self.why

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
    advice : str
        What to do next.
    notes : list of str
        Names that mean nothing.
    printed : str
        The beginning of what it printed.
    seconds : float
    """

    path: Path
    points: list[Point]
    problem: str
    advice: str
    notes: list[str]
    printed: str
    seconds: float

    @property
    def earned(self) -> int:
        return sum(point.earned for point in self.points)


def grade(path: Path, configurations: Sequence[str] = PLAIN, seed: int | None = None, seconds: float = 60) -> Grade:
    """Grade a file: see :func:`grade_files`."""
    return next(grade_files([path], configurations, new_seed() if seed is None else seed, seconds))


def grade_files(paths: Sequence[Path], configurations: Sequence[str], seed: int, seconds: float) -> Iterator[Grade]:
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
        run = run_file(path, calls, inputs, seconds, closed_package=CLOSED)
        answers = run.answers + [Answer(problem=run.problem)] * (len(calls) - len(run.answers))
        found = dict(zip(references, answers, strict=True))
        problem = answers[0].problem if all(answer.problem for answer in answers) else ""
        points, notes = _points(references, found)
        advice = f"Fix this first: {problem}." if problem else _advice(points, references)
        yield Grade(path, points, problem, advice, notes, run.printed, run.seconds)


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


def _points(references: dict[str, Reference], answers: dict[str, Answer]) -> tuple[list[Point], list[str]]:
    """All points, and notes."""
    tables = {name: points_of(reference.equations) for name, reference in references.items()}
    faults, notes = {}, {}
    for name, reference in references.items():
        faults[name], unknown = faults_of(reference, answers[name])
        notes |= dict.fromkeys(f"{shown(each)} is not the name of a value" for each in unknown)
    points = []
    for point in dict.fromkeys(point for table in sorted(tables.values(), key=len, reverse=True) for point in table):
        nodes = [(name, node) for name, table in tables.items() for node in table.get(point, ("", []))[1]]
        lost = [(name, node) for name, node in nodes if faults[name][node]]
        op = next(table[point][0] for table in tables.values() if point in table)
        points.append(Point(point, op, *(_why(lost, len(nodes), faults) if lost else ())))
    return points, list(notes)


def _why(lost: list[tuple[str, str]], n: int, faults: dict[str, dict[str, str]]) -> tuple[str, str]:
    """Why a point is lost, and the first tensor that costs it."""
    name, node = next((each for each in lost if faults[each[0]][each[1]] != NOT_RETURNED), lost[0])
    why = faults[name][node]
    if why == NOT_RETURNED and len(lost) == n:
        return why, node
    if all(each == why for each in faults[name].values()):  # a fault of the whole configuration
        return f"{name}: {why}", node
    return f"{readable(node)} of {name}: {why}", node


def faults_of(reference: Reference, answer: Answer) -> tuple[dict[str, str], list[str]]:
    """What is wrong with each tensor of a configuration, empty where nothing is; and names that mean nothing."""
    equations, D = reference.equations, reference.config.head_dim
    nodes = [node for _, group in points_of(equations).values() for node in group]
    if answer.problem:
        return dict.fromkeys(nodes, answer.problem), []
    try:
        found, unknown = named_tensors(answer.arrays, equations)
    except DataError as error:
        return dict.fromkeys(nodes, str(error).replace("the dump has", "it returns")), []
    faults = dict.fromkeys(nodes, NOT_RETURNED)
    known, n_layers = known_names(equations), reference.config.n_layers
    for name, why in answer.lost.items():
        meant = meaning(name, np.zeros(0), n_layers, known)
        faults |= {node: why for node in meant if node in faults}
        unknown += [] if meant else [name]
    fitting = {}
    for node in found.keys() & faults.keys():
        shape = reference.expected(node).shape
        if any(True for _ in arrangements(found[node], short_name(node), shape, D)):
            fitting[node] = found[node]
        else:
            faults[node] = f"it has shape {shown(found[node].shape)}, but must have {shape}"
    if fitting:
        dtype = "float64" if narrowest(fitting) == "float64" else "float32"
        with np.errstate(all="ignore"):
            comparison = compare(reference, fitting, dtype=dtype)
            faults |= {judged.name: _fault(judged, comparison) for judged in comparison.judged}
    shared = {node: name for name in answer.shared for node in meaning(name, np.zeros(0), n_layers, known)}
    for node, name in shared.items():
        (other,) = meaning(answer.shared[name], np.zeros(0), n_layers, known) or [""]
        alike = other in faults and np.array_equal(reference.expected(node), reference.expected(other))
        if faults.get(node) and not alike:
            faults[node] += f" (it is the same array as {readable(other)}: was it changed in place?)"
    return faults, unknown


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
