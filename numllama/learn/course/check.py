"""The check of an exercise: a file is run in a process of its own, and each of its results is compared with the right one."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from numllama import ops
from numllama.errors import DataError, shown
from numllama.learn.child import FORGOTTEN
from numllama.learn.course.cases import cases_of
from numllama.learn.course.comparison import Element, compare
from numllama.learn.course.examples import as_tuple, cotangent, example
from numllama.learn.course.files import is_blank
from numllama.learn.course.naming import block_values, mistake_in_block, mistake_in_function, mistake_in_op
from numllama.learn.course.table import Exercise, find_exercise
from numllama.learn.students import Answer, Call, Run, run_file

if TYPE_CHECKING:
    from numllama.learn.grade import Grade

SECONDS = 60.0
OUTCOMES = {  # and exit codes; the first that applies to one of the results is the exercise's
    "cannot be run": 2, "timed out": 5, "crashed": 4, "wrong": 1, "blank": 3, "right": 0,
}  # fmt: skip
NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class Result:
    """One output or gradient.

    Attributes
    ----------
    name : str
        "out", "dx", "d_swiglu".
    verdict : str
        An outcome, or "not checked".
    of : int
        Points for it.
    message : str
        What is wrong, in one sentence.
    element : Element, optional
    mistake : str
        The mistake that gives exactly these numbers, if it is a known one.
    hint : str
    compared : bool
        Whether there was an array to compare: a hint is of use then.
    crash : dict, optional
        The exception: ``line``, ``function``, ``error``, ``message``, and ``code``, the text of the line.
    """

    name: str
    verdict: str
    of: int = 0
    message: str = ""
    element: Element | None = None
    mistake: str = ""
    hint: str = ""
    compared: bool = False
    crash: dict[str, Any] | None = None


@dataclass(frozen=True)
class Checked:
    """What a check has found.

    Attributes
    ----------
    exercise : Exercise
    outcome : str
        A key of `OUTCOMES`.
    results : list of Result
    points, of : int
    message : str
        Why the file cannot be checked, or how it ended; empty if it ended well.
    crash : dict, optional
        The first exception, as in a Result.
    printed : str
        The beginning of what the file printed.
    seconds : float
    """

    exercise: Exercise
    outcome: str
    results: list[Result] = field(default_factory=list)
    points: int = 0
    of: int = 0
    message: str = ""
    crash: dict[str, Any] | None = None
    printed: str = ""
    seconds: float = 0.0


def check(path: Path, name: str, seconds: float = SECONDS, hint_step: int = 1, only: Sequence[str] = ()) -> Checked:
    """Check a file.

    Parameters
    ----------
    path : path
    name : str
        The exercise: "rmsnorm", "rmsnorm_forward", "block", "adamw", "bug_03" or "llama".
    seconds : float
        Time limit.
    hint_step : int
        Which of the three hints goes with a result that is wrong.
    only : sequence of str
        The packages that the file may import: see :func:`run_file`.
    """
    exercise = find_exercise(name)
    try:
        if exercise.kind == "capstone":
            from numllama.learn.grade import grade  # which needs the tokenizers' packages, as the other exercises do not

            return _capstone(exercise, grade(path, seconds=seconds, only=only))
        run_exercise, results_of = WAYS.get("block" if exercise.base == "block" else exercise.kind, (_run_op, _op_results))
        run = _with_code(run_exercise(path, exercise, seconds, only), path)
    except DataError as error:  # a folder, a pipe, no file
        return _cannot_run(exercise, str(error))
    if not run.usable:
        return _cannot_run(exercise, f"{path} cannot be run: {run.problem}", run)
    found = _checked(exercise, run, [_with_hint(each, exercise, hint_step) for each in results_of(run, exercise)])
    untouched = exercise.kind == "bug" and found.outcome == "wrong" and is_blank(_text_of(path), exercise)
    return replace(found, outcome="blank", message="the file is still as it was written") if untouched else found


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""  # a run can delete it


def _with_code(run: Run, path: Path) -> Run:
    """A run whose crashes have the text of their line."""
    lines = _text_of(path).splitlines()

    def placed(crash: dict[str, Any] | None) -> dict[str, Any] | None:
        if crash is None:
            return None
        text = lines[crash["line"] - 1] if 1 <= crash["line"] <= len(lines) else ""
        return {**crash, "code": shown(text.strip(), quote=False, most=90)}

    return replace(run, crash=placed(run.crash), answers=[replace(each, crash=placed(each.crash)) for each in run.answers])


def _cannot_run(exercise: Exercise, message: str, run: Run | None = None) -> Checked:
    found = Checked(exercise, "cannot be run", [], 0, exercise.points, message)
    return replace(found, crash=run.crash, printed=run.printed, seconds=run.seconds) if run else found


def _checked(exercise: Exercise, run: Run, results: list[Result]) -> Checked:
    """The outcome, the points and the first crash."""
    verdicts = {each.verdict for each in results}
    outcome = next(each for each in OUTCOMES if each in verdicts)
    points = sum(each.of for each in results if each.verdict == "right")
    if exercise.kind == "bug":
        points = exercise.points if outcome == "right" else 0
    crash = run.crash or next((answer.crash for answer in run.answers if answer.crash), None)
    return Checked(exercise, outcome, results, points, exercise.points, run.problem, crash, run.printed, run.seconds)


def _with_hint(result: Result, exercise: Exercise, step: int) -> Result:
    """A result that is wrong with the hint of a step. A mistake that is to be found has its own."""
    hint = exercise.hints.get("out" if exercise.kind == "forward" and result.name in exercise.outputs else result.name)
    wanted = result.verdict == "wrong" and result.compared and exercise.kind != "bug"
    return replace(result, hint=hint[min(step, len(hint)) - 1] if wanted and hint else "")


# ------------------------------------------------------------------------------------------------ an op


def _run_op(path: Path, exercise: Exercise, seconds: float, only: Sequence[str]) -> Run:
    """Call forward and backward of a file where numllama.ops does not have them."""
    op = exercise.base
    args, inputs = example(op), {}
    dout = as_tuple(cotangent(getattr(ops, f"{op}_forward")(*args)[0]))
    calls = [
        Call(f"{op}_forward", [_placed(arg, inputs) for arg in args], "output and cache"),
        Call(f"{op}_backward", [_placed(dout[0] if len(dout) == 1 else dout, inputs), {"kept": True}], "arrays"),
    ]
    return run_file(path, calls, inputs, seconds, closed_functions=(closed_functions(op), CLOSED), only=only)


def _placed(value: Any, inputs: dict[str, np.ndarray]) -> Any:
    """An argument as the process reads it; its arrays are added to the inputs."""
    if isinstance(value, tuple):
        return {"tuple": [_placed(each, inputs) for each in value]}
    if not isinstance(value, np.ndarray):
        return value
    inputs[str(len(inputs))] = value
    return {"array": str(len(inputs) - 1)}


CLOSED = "it has what you write yourself"


@cache
def closed_functions(op: str) -> tuple[str, ...]:
    """The functions of numllama.ops that an exercise does not build on."""
    modules = {name: set(_uses(name)) for name in _modules()}
    known: set[str] = set()
    todo = set(modules.get(op, ()))
    while todo:
        name = todo.pop()
        known.add(name)
        todo |= modules[name] - known
    functions = {name: function for name, function in vars(ops).items() if hasattr(function, "reference")}
    return tuple(sorted(name for name, function in functions.items() if function.__module__.rpartition(".")[2] not in known))


def _modules() -> list[str]:
    return sorted(path.stem for path in Path(ops.__file__).parent.glob("*.py") if path.stem != "__init__")


def _uses(name: str) -> list[str]:
    """The files of numllama.ops that one of them imports."""
    text = Path(ops.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    start = "from numllama.ops."
    return [line.removeprefix(start).split()[0] for line in text.splitlines() if line.startswith(start)]


def _op_results(run: Run, exercise: Exercise) -> list[Result]:
    """The verdicts on the outputs and the gradients."""
    op, args = exercise.base, example(exercise.base)
    expected, cache = getattr(ops, f"{op}_forward")(*args)
    dout = cotangent(expected)
    parameters = list(inspect.signature(getattr(ops, f"{op}_forward")).parameters)
    forward, backward = [*run.answers, None, None][:2]
    outs = _verdicts(forward, run, f"{op}_forward", parameters, exercise.outputs, as_tuple(expected))
    if all(each.verdict == "right" for each in outs):
        right = as_tuple(getattr(ops, f"{op}_backward")(dout, cache))
        gradients = _verdicts(backward, run, f"{op}_backward", ["dout", "cache"], exercise.gradients, right)
    else:
        gradients = [Result(name, NOT_CHECKED, message="until the output is right") for name in exercise.gradients]
    worth = {"forward": (exercise.worth, 0), "backward": (0, exercise.worth)}.get(exercise.kind, (0, 0))
    return [replace(each, of=of, mistake=_mistake(each, i, exercise, answer))
            for results, answer, of in zip((outs, gradients), (forward, backward), worth, strict=True)
            for i, each in enumerate(results)]  # fmt: skip


def _mistake(result: Result, i: int, exercise: Exercise, answer: Answer | None) -> str:
    """The sentence on a mistake that gives exactly these numbers; empty if it is not a known one."""
    if result.verdict != "wrong" or answer is None or answer.changed or str(i) not in answer.arrays:
        return ""
    if exercise.kind == "forward" and result.name not in exercise.outputs:
        return ""  # the gradients are the library's own: it is the cache that is wrong
    return mistake_in_op(exercise, result.name, answer.arrays[str(i)])


def _verdicts(
    answer: Answer | None, run: Run, function: str, parameters: Sequence[str], names: Sequence[str], expected: Sequence[Any]
) -> list[Result]:
    """The verdict on each result of a function."""
    problem, results = _problem(answer, run, function, parameters), _results(answer)
    if problem is None and len(results) != len(names):
        forgotten = FORGOTTEN if len(results) == 1 and str(results[0]).endswith(FORGOTTEN) else ""
        n = "nothing" if forgotten or not results else f"{len(results)} result{'s' * (len(results) != 1)}"
        problem = "wrong", f"{function} returns {n}, but must return {', '.join(names)}{forgotten}"
    if problem:
        return [Result(name, problem[0], message=problem[1], crash=answer and answer.crash) for name in names]
    found = []
    for i, (name, actual, right) in enumerate(zip(names, results, expected, strict=True)):
        verdict, message, element = compare(actual, right)
        if verdict == "wrong" and answer and str(i) in answer.narrow:
            message = f"it is {answer.narrow[str(i)]}, but the inputs are float64"
        found.append(Result(name, verdict, message=message, element=element, compared=True))
    return found


def _problem(answer: Answer | None, run: Run, function: str, parameters: Sequence[str]) -> tuple[str, str] | None:
    """Why a call has no results that can be compared: verdict and message."""
    if answer is None:
        return ("timed out" if run.timed_out else "crashed"), run.problem
    if answer.blank:
        return "blank", f"{function} is still blank"
    if answer.problem:
        return ("crashed" if answer.crash else "wrong"), answer.problem
    if answer.changed:
        return "wrong", f"{function} writes into {_named(answer.changed[0], parameters)}: work on a copy"
    return None


def _named(place: str, parameters: Sequence[str]) -> str:
    """An argument that was written to: "0" is the first one, "1.x" is x in the second."""
    number, _, inside = place.partition(".")
    parameter = parameters[int(number)] if number.isdigit() and int(number) < len(parameters) else f"argument {number}"
    return f"{inside} of {parameter}" if inside else parameter if parameter == "dout" else f"its input {parameter}"


def _results(answer: Answer | None) -> list[np.ndarray | str]:
    """Arrays in the order in which they were returned, or what the result is instead."""
    if answer is None:
        return []
    return [answer.arrays.get(str(i), answer.lost.get(str(i), "")) for i in range(len(answer.arrays) + len(answer.lost))]


# ------------------------------------------------------------------------------------------------ the block


def _run_block(path: Path, exercise: Exercise, seconds: float, only: Sequence[str]) -> Run:
    """Call the block's forward, and each function with the gradients that come before its own."""
    args, a, d, names = block_values()
    w = args[1]
    inputs = {f"{group}.{name}": array for group, arrays in (("w", w), ("a", a), ("d", d)) for name, array in arrays.items()}

    def named(group: str, arrays: Any) -> dict[str, Any]:
        return {"named": [group, {name: {"array": f"{group}.{name}"} for name in arrays}]}

    forward = [{"array": "a.x"}, named("w", w), {"array": "a.cos"}, {"array": "a.sin"}]
    calls = [Call("block_forward", forward, "arrays")]
    before = ["after_ffn"]
    for name in names:
        calls.append(Call(name, [named("d", before), named("a", a), named("w", w)], "arrays"))
        before.append(name.removeprefix("d_"))
    return run_file(path, calls, inputs, seconds, closed_functions=(closed_functions(""), CLOSED), only=only)


def _block_results(run: Run, exercise: Exercise) -> list[Result]:
    """The verdicts on the values of the forward, together, and on each gradient."""
    _, a, d, names = block_values()
    worth = 0 if exercise.kind == "bug" else exercise.worth
    answers = [*run.answers, *[None] * (1 + len(names) - len(run.answers))]
    found = [_forward_of_block(answers[0], run, a, exercise)]
    for name, answer in zip(names, answers[1:], strict=True):
        (one,) = _verdicts(answer, run, name, ["d", "a", "w"], [name], [d[name.removeprefix("d_")]])
        known = one.verdict == "wrong" and "0" in answer.arrays
        mistake = mistake_in_block(exercise, name, answer.arrays["0"]) if known else ""
        found.append(replace(one, of=worth, mistake=mistake))
    return found


def _forward_of_block(answer: Answer | None, run: Run, a: Any, exercise: Exercise) -> Result:
    problem = _problem(answer, run, "block_forward", ["x", "w", "cos", "sin"])
    if problem:
        return Result("values", problem[0], 0, problem[1], crash=answer and answer.crash)
    assert answer is not None
    for name, right in a.items():
        verdict, message, element = compare(answer.arrays.get(name, "is missing"), right)
        if verdict != "right":
            mistake = mistake_in_block(exercise, name, answer.arrays[name]) if name in answer.arrays else ""
            return Result("values", verdict, 0, f"a.{name}: {message}", element, mistake)
    return Result("values", "right")


# ------------------------------------------------------------------------------------------------ a plain function


def _run_function(path: Path, exercise: Exercise, seconds: float, only: Sequence[str]) -> Run:
    """Call the functions of a file in all cases."""
    inputs: dict[str, np.ndarray] = {}
    calls = [Call(case.function, [_placed(each, inputs) for each in case.arguments.values()], case.returns)
             for case in cases_of(exercise.name)]  # fmt: skip
    return run_file(path, calls, inputs, seconds, closed_functions=(closed_functions(""), CLOSED), only=only)


def _function_results(run: Run, exercise: Exercise) -> list[Result]:
    """The verdict on each result: that of the first case in which it is not right."""
    found: dict[str, list] = {name: [] for name in exercise.hints}
    for case, answer in zip_longest(cases_of(exercise.name), run.answers):
        results = _verdicts(answer, run, case.function, list(case.arguments), case.results, case.right)
        for i, each in enumerate(results):
            if answer and each.verdict in ("wrong", "crashed"):
                each = replace(each, message=f"{case.when}: {each.message}")
            numbers = answer.arrays.get(str(i)) if answer and not answer.changed else None
            found[each.name].append((each, case.arguments, numbers))
    return [_of_all_cases(exercise, each) for each in found.values()]


def _of_all_cases(exercise: Exercise, found: list[tuple[Result, dict[str, Any], np.ndarray | None]]) -> Result:
    """The first verdict that is not right; the mistake is the one that gives these numbers, and most of the others."""
    found = sorted(found, key=lambda each: each[0].verdict == "right")
    result, _, numbers = found[0]
    known = result.verdict == "wrong" and numbers is not None
    calls = [(arguments, each) for _, arguments, each in found if each is not None]
    return replace(result, of=exercise.worth, mistake=mistake_in_function(exercise, result.name, calls) if known else "")


WAYS: dict[str, tuple[Any, Any]] = {"block": (_run_block, _block_results), "function": (_run_function, _function_results)}

# ------------------------------------------------------------------------------------------------ the capstone


def _capstone(exercise: Exercise, grade: "Grade") -> Checked:
    """What a whole Llama earns, as the results of an exercise."""
    results = [
        Result(each.name, "right" if each.earned else "blank" if each.why == "not returned" else "wrong", 1,
               "" if each.earned else each.why, mistake=each.mistake)
        for each in grade.points
    ]  # fmt: skip
    problem = grade.problem or next(iter(grade.failed.values()), "")
    outcome = next(each for each in OUTCOMES if each in {result.verdict for result in results})
    if problem:
        outcome = "timed out" if problem.startswith("took longer") else "crashed"
    points = int(grade.earned)  # of an exercise they are whole
    return Checked(exercise, outcome, results, points, len(results), problem, None, grade.printed, grade.seconds)
