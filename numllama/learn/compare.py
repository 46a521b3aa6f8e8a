"""Which op of another Llama is wrong?

A wrong line changes all values after it. So each value is judged twice: against the reference, and alone, against what the right
equation makes of the other implementation's own inputs. Where the first fails and the second does not, the value follows from a
mistake before it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from numllama.errors import DataError, shown
from numllama.learn.dumps import narrowest, read_dump
from numllama.learn.equations import Equations
from numllama.learn.evaluation import evaluate, region, sources
from numllama.learn.layouts import Arranged, arranged_like, difference, norm
from numllama.learn.mistakes.mistake import short_name
from numllama.learn.names import OTHERS, TRAINED, named_tensors, readable, some, with_guess
from numllama.learn.optimizer_diagnosis import noise as noise_of_training
from numllama.learn.reference import Reference, check_batch, opened_reference
from numllama.learn.rounding import ALLOWED, ROUNDOFF, rounding

HOPELESS = 0.5  # a relative error that no rounding explains
SAME, WRONG, FOLLOWS, UNJUDGED = "same", "wrong", "follows", "unjudged"


@dataclass(frozen=True)
class Judged:
    """A tensor of the dump beside the reference.

    Attributes
    ----------
    name : str
        As in golden vectors.
    verdict : str
        "same"; "wrong": it does not follow from its inputs in the dump; "follows": it differs, as it must with those inputs;
        "unjudged": a gradient of an op whose forward is wrong.
    error, allowed : float
        |theirs - ours| / |ours|, and the largest such error that rounding explains.
    alone : float
        The same against what the right equation makes of the dump's own inputs; NaN if it was not needed.
    index : tuple of int
        Where the largest difference is.
    theirs, ours : array
        In the reference's layout.
    layout : str
        How the dump has it; empty if as the reference has it.
    """

    name: str
    verdict: str
    error: float
    allowed: float
    alone: float
    index: tuple[int, ...]
    theirs: np.ndarray
    ours: np.ndarray
    layout: str = ""


@dataclass(frozen=True)
class Comparison:
    """All tensors of a dump in the order of computation, and the first divergences in words.

    Attributes
    ----------
    judged : list of Judged
    forward, backward, others : str
        The first value, gradient, and vector beside them (optimizer, decoding, sampling) that is wrong; empty if none is.
    notes : list of str
        Layouts that were recognised, and tensors that were not.
    dtype : str
        Whose rounding is allowed for.
    """

    judged: list[Judged]
    forward: str
    backward: str
    others: str
    notes: list[str]
    dtype: str
    reference: Reference
    theirs: dict[str, Any]

    @property
    def same(self) -> bool:
        return all(each.verdict == SAME for each in self.judged)

    def wrong(self) -> list[Judged]:
        """The values that do not follow from their inputs, in the order of computation."""
        return [each for each in self.judged if each.verdict == WRONG]


def compare(
    reference: Any,
    dump: Any,
    *,
    names: Mapping[str, str] | None = None,
    tokens: Any = None,
    targets: Any = None,
    dtype: str | None = None,
) -> Comparison:
    """Compare another implementation's values and gradients with the right ones, op by op.

    Parameters
    ----------
    reference : path, Vectors or Transformer
        A folder of golden vectors, anything that :func:`numllama.load` opens, or a model: a plain Llama.
    dump : path or mapping of str to array
        As many or as few tensors as there are: a .safetensors or .npz file, a folder of .npy files, or arrays of any library.
        Names as in golden vectors, or those of Hugging Face, Meta, litgpt, nanoGPT or llama2.c.
    names : mapping of str to str, optional
        Other names in the dump: what they are in golden vectors.
    tokens, targets : integer array, shape (B, T), optional
        The batch, where the reference is a model. Default: those of the dump; without targets, each token predicts the next.
    dtype : {"float64", "float32", "float16", "bfloat16"}, optional
        What the other implementation computed in. Default: the narrowest dtype in the dump.

    Returns
    -------
    Comparison

    Raises
    ------
    CheckpointError
        If a file cannot be read.
    DataError
        If the dump belongs to another model: other shapes, another vocabulary, other tokens; or if no name in it is known.
    """
    tensors = read_dump(dump)
    reference = opened_reference(reference, tensors, tokens, targets)
    dtype = narrowest(tensors) if dtype is None else dtype
    if dtype not in ROUNDOFF:
        raise ValueError(f"dtype is {shown(dtype)}, but must be one of {', '.join(ROUNDOFF)}")
    found, unknown = named_tensors(tensors, reference.equations, names)
    check_batch(found, reference)
    real = {name: array for name, array in found.items() if name in reference.values or name in reference.vectors}
    if not real:
        raise DataError(f"no tensor of the dump has a name that is known, such as {shown(unknown[0]) if unknown else 'tokens'}")
    arranged = arranged_like(real, reference)
    theirs = {name: each.array for name, each in arranged.items()}
    judged = _Judge(reference, theirs, dtype).all(arranged)
    unknown = [with_guess(name, reference.equations) for name in unknown]
    notes = _notes(arranged, [*unknown, *(name for name in found if name.startswith(OTHERS) and name not in real)])
    return Comparison(judged, *_first_divergences(judged, reference, theirs), notes, dtype, reference, theirs)


# ------------------------------------------------------------------------------------------------ judging


class _Judge:
    """Judges the tensors of a dump."""

    def __init__(self, reference: Reference, theirs: Mapping[str, np.ndarray], dtype: str) -> None:
        self.reference, self.theirs, self.dtype = reference, theirs, dtype
        self.equations = reference.equations
        self.known = {**reference.known, **theirs}
        wanted = [name for name in theirs if name in reference.values and name not in reference.known]
        self.noisy = evaluate(self.equations, wanted, reference.known, jitter=rounding(dtype)) if wanted else {}
        trained = any(name.startswith(TRAINED) for name in theirs)
        self.noise = noise_of_training(reference, dtype) if trained else {}
        self.wrong: set[str] = set()  # the equations that are or may be wrong

    def all(self, arranged: Mapping[str, Arranged]) -> list[Judged]:
        place = {name: i for i, name in enumerate(self.equations.order)}
        judged: list[Judged] = []
        for name in sorted(arranged, key=lambda name: place.get(name, -1 if name.startswith("weights/") else len(place))):
            judged.append(self.one(name, arranged[name], judged))
        return judged

    def one(self, name: str, arranged: Arranged, before: Sequence[Judged]) -> Judged:
        theirs, ours = self.reference.cleaned(name, arranged.array), self.reference.expected(name)
        off = difference(theirs, ours)
        noise = self.noise.get(name, 0.0)
        if name in self.noisy:
            noise = difference(self.reference.cleaned(name, self.noisy[name]), ours)
        error, allowed = _relative(off, noise, ours, self.dtype)
        index = tuple(int(i) for i in np.unravel_index(int(np.abs(off).argmax()), off.shape)) if off.size else ()
        verdict, alone = SAME, math.nan
        if not error <= allowed:
            verdict, alone = self.verdict(name, theirs, before)
        return Judged(name, verdict, error, allowed, alone, index, theirs, ours, arranged.how)

    def verdict(self, name: str, theirs: np.ndarray, before: Sequence[Judged]) -> tuple[str, float]:
        if name.startswith("weights/"):
            return WRONG, math.nan
        if name.startswith(OTHERS):  # they follow from all of the model
            model_is_right = all(each.verdict == SAME for each in before if not each.name.startswith(OTHERS))
            return (WRONG if model_is_right else FOLLOWS), math.nan
        error, allowed = alone(self.reference, name, theirs, self.known, self.dtype)
        if error <= allowed:
            return FOLLOWS, error
        rows = rows_between(self.equations, name, self.known)
        if name.startswith("d_"):
            return (WRONG if rows.isdisjoint(self.wrong) else UNJUDGED), error
        self.wrong |= rows
        return WRONG, error


def rows_between(equations: Equations, name: str, known: Mapping[str, Any]) -> set[str]:
    """The equations, or those whose backward is used, between a value or gradient and what is known of its inputs."""
    nodes = region(equations, [name], without(name, known))
    if not name.startswith("d_"):
        return {node for node in nodes if node in equations.rows}
    return {user for node in nodes if node.startswith("d_") for user in equations.users[node[2:]]}


def alone(
    reference: Reference, name: str, theirs: np.ndarray, known: Mapping[str, Any], dtype: str, replaced: Any = None
) -> tuple[float, float]:
    """The error of a value against its equation on the dump's own inputs, and the error that rounding explains."""
    given = without(name, known)

    def off(numbers: Any, jitter: Any) -> tuple[np.ndarray, np.ndarray]:
        """How far `numbers` are from the equation's, and these."""
        with np.errstate(all="ignore"):
            value = reference.cleaned(name, evaluate(reference.equations, [name], given, replaced, jitter)[name])
        apart = difference(numbers, value)
        if short_name(name) == "scores":  # golden vectors, and perhaps the dump, have zeros where a key is hidden
            apart = np.where(np.isneginf(value) & (numbers == 0), 0, apart)
        return apart, value

    apart, ours = off(theirs, lambda value: value)
    error, allowed = _relative(apart, 0.0, ours, dtype)
    if allowed < error < HOPELESS:  # rounding may explain more
        allowed = _relative(apart, off(ours, rounding(dtype))[0], ours, dtype)[1]
    return error, allowed


def _relative(off: np.ndarray, noise: Any, ours: np.ndarray, dtype: str) -> tuple[float, float]:
    size = norm(ours) if np.isfinite(ours).all() else norm(ours[np.isfinite(ours)])
    size = size or 1.0
    return norm(off) / size, max(ALLOWED[dtype], 8 * norm(noise) / size)


# ------------------------------------------------------------------------------------------------ in words


def _first_divergences(judged: Sequence[Judged], reference: Reference, theirs: Mapping[str, np.ndarray]) -> tuple[str, str, str]:
    groups: tuple[list[Judged], ...] = ([], [], [])
    for each in judged:
        groups[2 if each.name.startswith(OTHERS) else 1 if each.name.startswith("d_") else 0].append(each)
    return tuple(_first(group, reference, theirs) for group in groups)  # type: ignore[return-value]


def _first(group: Sequence[Judged], reference: Reference, theirs: Mapping[str, np.ndarray]) -> str:
    wrong = next((each for each in group if each.verdict == WRONG), None)
    if wrong is None:
        drifted = next((each for each in group if each.verdict == FOLLOWS), None)
        return "" if drifted is None or drifted is not group[0] else f"{readable(drifted.name)} differs."
    sentence = f"{readable(wrong.name)} is the first that is wrong: {what_is_wrong(wrong)}."
    if wrong.name in reference.equations.order:
        sentence += " " + _where(wrong.name, reference, theirs)
    return sentence


def what_is_wrong(judged: Judged) -> str:
    """The error in words: "relative error 3.1e-01, the largest at (0, 1, 2): -0.31 instead of 0.12"."""
    theirs, ours = judged.theirs[judged.index], judged.ours[judged.index]
    if not np.isfinite(judged.theirs).all():
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(judged.theirs))[0])
        return f"{judged.theirs[bad]} at {bad} instead of {judged.ours[bad]:.6g}"
    return f"relative error {judged.error:.1e}, the largest at {judged.index}: {theirs:.6g} instead of {ours:.6g}"


def _where(name: str, reference: Reference, theirs: Mapping[str, np.ndarray]) -> str:
    """In which equations the mistake is: those between a value and what the dump has of its inputs."""
    equations = reference.equations
    nodes = sorted(region(equations, [name], without(name, {**reference.known, **theirs})), key=equations.order.index)
    read = dict.fromkeys(source for node in nodes for source in sources(node, equations.rows, equations.users))
    given = [readable(source) for source in read if source in theirs and source not in nodes]
    kind = name.partition("/")[0]
    lacking = [readable(node) for node in nodes if node != name and node.startswith(kind) and not is_helper(node)]
    start = f"From the dump's own {some(given)}" if given else "From the reference's tokens and weights"
    between = f"; the dump lacks what lies between: {some(lacking)}" if lacking else ""
    return f"{start} the right equation gives another value{between}."


def is_helper(node: str) -> bool:
    """Whether golden vectors lack a value: heads that were split or repeated."""
    return short_name(node).endswith(("heads", "repeated", "merged"))


def without(name: str, known: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in known.items() if key != name}


def _notes(arranged: Mapping[str, Arranged], unknown: Sequence[str]) -> list[str]:
    by_layout: dict[str, list[str]] = {}
    for name, each in arranged.items():
        if each.how:
            by_layout.setdefault(each.how, []).append(readable(name))
    notes = [f"{some(names)}: {how} (a layout, not a fault)" for how, names in by_layout.items()]
    return notes + ([f"not compared, as the names are not known: {some(unknown)}"] if unknown else [])
