"""`numllama exercises`: what it prints, for people and as JSON, and its exit codes."""

import json
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numllama.errors import DataError, shown
from numllama.learn.course.bugs import BUGS
from numllama.learn.course.check import OUTCOMES, SECONDS, Checked, Element, Result, check
from numllama.learn.course.files import FOLDER, check_command, in_folder, names_in, solution_text, write_exercises
from numllama.learn.course.progress import LAST_STEP, State, read_progress, remember, remember_check, state_of
from numllama.learn.course.table import COURSE, EXERCISES, FORWARD, Exercise, find_exercise

WIDTH = 118
PLAIN = ("right", "blank", "not checked")  # nothing more is to be said
FEW = 8  # results that are shown in a line each
SPOILER = "Have you read all three hints?  "


def chosen_name(name: str | None, debug: int | None, blank: str) -> str | None:
    """The exercise that the flags name."""
    if debug is not None:
        if name is not None:
            raise ValueError(f"debug is {debug}, so there must be no name, but it is {shown(name)}")
        if not 1 <= debug <= len(BUGS):
            raise ValueError(f"debug is {shown(debug)}, but must lie in 1..{len(BUGS)}")
        name = f"bug_{debug:02}"
    if name is not None and blank == "forward" and not name.endswith(FORWARD):
        if name not in EXERCISES:
            raise ValueError(f"exercise is {shown(name)}, but only the forwards of {', '.join(EXERCISES)} may be blank")
        name += FORWARD
    if name is not None:
        find_exercise(name)
    return name


# ------------------------------------------------------------------------------------------------ write


def write(names: list[str], folder: Path) -> int:
    """Write exercises that are missing, and say how to check them."""
    one = names[0] if len(names) == 1 else None
    if one and (folder / f"{one}.py").exists():
        raise ValueError(f"{folder / f'{one}.py'} exists and is not overwritten: remove it to start again")
    for path in write_exercises(names, folder):
        print(f"{path}: {_task(find_exercise(path.stem))}")
    if one and (needs := _needed(find_exercise(one), folder)):
        print(f"easier after {', '.join(needs)}")
    print(f"then: {check_command(one, folder)}")
    return 0


def _task(exercise: Exercise) -> str:
    tasks = {"bug": "fix the line that is wrong", "block": "write each gradient", "capstone": "write llama"}
    return tasks.get(exercise.kind, f"write {' and '.join(exercise.functions) or f'{exercise.base}_{exercise.kind}'}")


def _needed(exercise: Exercise, folder: Path) -> list[str]:
    """What should be right before an exercise, and is not."""
    entries = read_progress(folder)
    return [name for name in exercise.needs if state_of(folder, COURSE[name], entries).state != "right"]


# ------------------------------------------------------------------------------------------------ the list


def show_list(folder: Path, as_json: bool) -> int:
    """Print all exercises with their states, and which is next."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file, but must be a folder")
    entries = read_progress(folder)
    forwards = [find_exercise(name) for name in names_in(folder) if name not in COURSE]
    states = [state_of(folder, exercise, entries) for exercise in (*COURSE.values(), *forwards)]
    points, of = sum(each.points for each in states), sum(each.of for each in states)
    following = next((each for each in states if each.state != "right"), None)
    if as_json:
        found = {"exercises": [_state_as_dict(each) for each in states], "points": points, "of": of}
        print(json.dumps(found | {"next": following and following.exercise.name}, indent=1))
        return 0
    print(f"{'exercise':20} {'state':12} {'points':>7} {'minutes':>8}  {'task':42} after")
    for each in states:
        exercise = each.exercise
        row = f"{exercise.name:20} {each.state:12} {f'{each.points}/{each.of}':>7} {exercise.minutes:8}  {exercise.title:42}"
        print(f"{row} {', '.join(exercise.needs)}".rstrip())
    print(f"{'sum':33} {f'{points}/{of}':>7} {sum(each.exercise.minutes for each in states):8}\n")
    print(_next_step(following, folder))
    return 0


def _next_step(following: State | None, folder: Path) -> str:
    if following is None:
        return "All is right."
    name = following.exercise.name
    to_write = f"numllama exercises {name}{in_folder(folder)}"
    return f"Next: {to_write if following.state == 'not started' else check_command(name, folder)}"


def _state_as_dict(each: State) -> dict[str, Any]:
    exercise = each.exercise
    return {
        "exercise": exercise.name, "kind": exercise.kind, "title": exercise.title, "minutes": exercise.minutes,
        "needs": list(exercise.needs), "state": each.state, "points": each.points, "of": each.of, "hints": each.hints,
        "solution": each.solution,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ hints and solutions


def show_hint(name: str, folder: Path) -> int:
    """Print the next hint of an exercise; the third time all three."""
    exercise = find_exercise(name)
    if not (folder / f"{name}.py").exists():
        raise ValueError(f"{folder / f'{name}.py'} does not exist: numllama exercises {name}{in_folder(folder)} writes it")
    if not exercise.hints:
        raise ValueError(f"{name} has no hints: numllama exercises --check {name}{in_folder(folder)} says what comes next")
    shown_before = read_progress(folder).get(name, {}).get("hints", 0)
    step = max(1, min(shown_before + 1, LAST_STEP))
    remember(folder, name, hints=step)
    print(f"{name}, hint {step} of {LAST_STEP}")
    for names, steps in grouped(exercise.hints).items():
        for number in range(1 if step == LAST_STEP else step, step + 1):
            title = ", ".join(names) if number == (1 if step == LAST_STEP else step) else ""
            print(_indented(title, steps[number - 1]))
    flag, what = ("--hint", "next hint") if step < LAST_STEP else ("--solution", "the solution")
    print(f"{what}: numllama exercises {flag} {name}{in_folder(folder)}")
    return 0


def grouped(hints: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Results that have the same hints, together."""
    groups: dict[Any, list[str]] = {}
    for name, steps in hints.items():
        groups.setdefault(steps, []).append(name)
    return {tuple(names): steps for steps, names in groups.items()}


def _indented(title: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=f"  {title:10} ", subsequent_indent=" " * 13, break_on_hyphens=False)


def show_solution(name: str, folder: Path) -> int:
    """Print the full solution of an exercise, after a warning; the folder remembers that it was shown."""
    text = solution_text(name)
    if folder.is_dir():
        remember(folder, name, solution=True)
    hints = f"  {SPOILER}numllama exercises --hint {name}{in_folder(folder)}" if find_exercise(name).hints else ""
    print(f"The solution follows.{hints}\n\n{text}")
    return 0


# ------------------------------------------------------------------------------------------------ the check


def check_exercises(names: Sequence[str], folder: Path, seconds: float = SECONDS, as_json: bool = False) -> int:
    """Check exercises, or all that are in the folder, and print what is right.

    The exit code is that of the first exercise that is not right: see `OUTCOMES`.
    """
    names = names or names_in(folder)
    if not names:
        raise ValueError(f"no exercises in {folder}: numllama exercises linear{in_folder(folder)} writes the first")
    entries, found = read_progress(folder), []
    for each in names:
        path = folder / f"{each}.py"
        if path.exists():
            step = max(1, entries.get(each, {}).get("hints", 1))
            found.append(check(path, each, seconds, step))
            remember_check(folder, path, found[-1])
        else:
            missing = f"{path} does not exist: numllama exercises {each}{in_folder(folder)} writes it"
            found.append(Checked(find_exercise(each), "cannot be run", [], 0, find_exercise(each).points, missing))
            step = 1
        if not as_json:
            print_check(found[-1], path, folder)
    if as_json:
        print(json.dumps(all_as_dict(found, folder, entries), indent=1, ensure_ascii=False))
    elif len(found) > 1:
        print(f"{sum(each.points for each in found)} of {sum(each.of for each in found)} points")
    return next((OUTCOMES[each.outcome] for each in found if each.outcome != "right"), 0)


def check_file(path: str | Path, name: str, seconds: float = SECONDS, hint_step: int = 1) -> dict[str, Any]:
    """The result of a check as plain values: what ``numllama exercises --check NAME --json`` prints of an exercise."""
    return as_dict(check(Path(path), name, seconds, hint_step), str(path), hint_step)


def check_text(name: str, text: str, seconds: float = SECONDS, hint_step: int = 1) -> dict[str, Any]:
    """As :func:`check_file`, for the text of a file."""
    with TemporaryDirectory(prefix="numllama-") as folder:
        path = Path(folder) / f"{name}.py"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        found = as_dict(check(path, name, seconds, hint_step), path.name, hint_step)
    return json.loads(json.dumps(found).replace(json.dumps(f"{folder}/")[1:-1], ""))  # nobody knows this folder


def all_as_dict(found: Sequence[Checked], folder: Path, entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The results of several checks as plain values."""
    outcome = next((each.outcome for each in found if each.outcome != "right"), "right")
    points, of, rows = sum(each.points for each in found), sum(each.of for each in found), []
    for each in found:
        name = each.exercise.name
        rows.append(as_dict(each, str(folder / f"{name}.py"), max(1, entries.get(name, {}).get("hints", 1))))
    return {"outcome": outcome, "points": points, "of": of, "exercises": rows}


def as_dict(found: Checked, file: str, hint_step: int) -> dict[str, Any]:
    """A check as plain values for JSON."""
    return {
        "exercise": found.exercise.name, "kind": found.exercise.kind, "file": file, "outcome": found.outcome,
        "points": found.points, "of": found.of, "message": found.message,
        "crash": None if found.crash is None else {"file": file, **found.crash},
        "results": [_result_as_dict(each, hint_step) for each in found.results],
        "printed": found.printed, "seconds": round(found.seconds, 3),
    }  # fmt: skip


def _result_as_dict(result: Result, hint_step: int) -> dict[str, Any]:
    element = result.element
    return {
        "name": result.name, "verdict": result.verdict, "points": result.of if result.verdict == "right" else 0, "of": result.of,
        "message": result.message, "mistake": result.mistake,
        "element": element and {"index": list(element.index), "expected": _number(element.expected), "got": _number(element.got)},
        "hint": {"step": min(hint_step, LAST_STEP), "text": result.hint} if result.hint else None,
    }  # fmt: skip


def _number(value: float) -> float | str:
    """JSON has no infinities: "inf", "nan"."""
    return value if math.isfinite(value) else str(value)


def print_check(found: Checked, path: Path, folder: Path = FOLDER) -> None:
    """Print a check for people; what cannot be run is a line on standard error."""
    name = found.exercise.name
    if found.outcome == "cannot be run":
        print(found.printed, end="")
        print("\n".join([f"error: {found.message}", *(f"  {code}" for code in _code(found.crash))]), file=sys.stderr)
        return
    print(found.printed, end="" if found.printed.endswith("\n") or not found.printed else "\n")
    points = f"{found.points} of {found.of} points"
    print(f"{name}: {found.outcome}, {points}")
    if found.message and all(found.message != each.message for each in found.results):
        print(_indented("", found.message))
    for names, result in _rows(found.results):
        names, (first, *others) = ", ".join(names), _sentences(result)
        many = len(found.results) > FEW and result.verdict in PLAIN
        print(_indented(result.verdict, names) if many else _indented(names, first))
        for each in (*_code(result.crash), *others):
            print(_indented("", each))
    if found.exercise.hints and any(each.verdict == "wrong" for each in found.results):
        print(f"more hints: numllama exercises --hint {name}{in_folder(folder)}")


def said(found: Checked) -> list[dict[str, Any]]:
    """What :func:`print_check` prints, for a page: of each fault the ``names`` of the results that have it, ``right``, the
    ``sentences``, and the ``code`` that raised."""
    rows = [(names, result.verdict == "right", _sentences(result), result.crash) for names, result in _rows(found.results)]
    rows = rows or [(["file"], False, [found.message], found.crash)]
    return [
        {"names": names, "right": right, "sentences": sentences, "code": "".join(_code(crash))}
        for names, right, sentences, crash in rows
    ]


def _sentences(result: Result) -> list[str]:
    """The verdict, the worst element, the mistake and the hint."""
    sentences = [f"{result.verdict}{f': {result.message}' if result.message else ''}"]
    sentences += [in_words(result.element)] if result.element else []
    return [*sentences, *filter(None, [result.mistake, result.hint and f"Hint: {result.hint}"])]


def _code(crash: dict[str, Any] | None) -> list[str]:
    """The line that raised, if it is one of the file's."""
    return [crash["code"]] if crash and crash["code"] else []


def in_words(element: Element) -> str:
    """An element that is wrong: "at [0, 2] it is 1.5, but must be 2"."""
    place = f"at [{', '.join(map(str, element.index))}] " if element.index else ""
    return f"{place}it is {element.got:.6g}, but must be {element.expected:.6g}"


def _rows(results: Sequence[Result]) -> list[tuple[list[str], Result]]:
    """Results with the same fault together; of many, those that are right, or blank, too."""
    groups: dict[Any, list[Result]] = {}
    for each in results:
        alike = (each.verdict, each.message) if each.message and each.element is None else each.name
        if len(results) > FEW and each.verdict in PLAIN:
            alike = each.verdict
        groups.setdefault(alike, []).append(each)
    return [([each.name for each in group], group[0]) for group in groups.values()]
