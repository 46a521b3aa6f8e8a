"""Exercises: an op with its backward (or its forward) left blank, and a check that says which gradients are right.

A file is made from the op's own source, so the solution is the library itself. The check runs what was written on small arrays in
float64 and compares each result with the library's.
"""

import ast
import math
import runpy
import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numllama import ops
from numllama.errors import NumllamaError, shown
from numllama.storage.folders import locked, published

FOLDER = Path("exercises")
ACCELERATED = "from numllama.dispatch import accelerated"  # the decorator of an op; an exercise has none
RIGHT = 1e-9  # relative error in float64 that is rounding


class Exercise(NamedTuple):
    """An example's arguments, as they stand in the file, which of them have a gradient, and a hint for each."""

    arguments: str
    wrt: tuple[int, ...]
    hints: dict[str, str]


EXERCISES = {  # in the order in which they are easiest to learn
    "linear": Exercise("normal(2, 3, 4), normal(5, 4), normal(5)", (0, 1, 2), {
        "dx": "x[n, i] is in every output of its row, with the factor weight[o, i]: sum over the outputs.",
        "dweight": "weight[o, i] is in output o of every row, with the factor x[n, i]: sum over all rows.",
        "dbias": "the bias was added to every row: sum over all rows.",
    }),
    "lora": Exercise("normal(2, 3, 4), normal(2, 4), normal(5, 2), 0.5", (0, 1, 2), {
        "dx": "h = x @ a.T is a linear map of x: dx = dh @ a, where dh is what reaches h through b, times the scale.",
        "da": "as dweight in linear, of a map from x to h: dh transposed @ x.",
        "db": "as dweight in linear, of a map from h to out, times the scale: dout transposed @ h.",
    }),
    "embedding": Exercise("np.array([[2, 0, 2], [4, 2, 0]]), normal(5, 3)", (1,), {
        "dweight": "a token that occurs several times collects all of its gradients; dweight[tokens] += dout keeps one.",
    }),
    "softmax": Exercise("normal(2, 3, 5)", (0,), {
        "dx": "every x[j] is in the sum that all p[i] are divided by: dp[i]/dx[j] = p[i] (delta_ij - p[j]).",
    }),
    "cross_entropy": Exercise("normal(2, 3, 5), np.array([[1, 4, -100], [0, 2, 2]])", (0,), {
        "dlogits": "what was predicted minus what happened, divided by count; rows that are ignored get nothing.",
    }),
    "swiglu": Exercise("normal(2, 3, 4), normal(2, 3, 4)[::-1]", (0, 1), {
        "dgate": "silu(g) = g * sigmoid(g) is a product: its derivative has two terms. And the other factor, up, stays.",
        "dup": "up was multiplied by silu(gate).",
    }),
    "gelu": Exercise("normal(2, 3, 5)", (0,), {
        "dx": "x * (1 + tanh u) / 2 is a product, and u a function of x: tanh' = 1 - tanh^2, u' = SLOPE (1 + 3 CUBIC x^2).",
    }),
    "rmsnorm": Exercise("normal(2, 3, 6), normal(6), 1e-5", (0, 1), {
        "dx": "x[j] is in its own output and, through rstd, in all outputs of its row: drstd/dx[j] = -rstd^3 x[j] / C.",
        "dweight": "weight multiplies x * rstd in every row: sum over all rows.",
    }),
    "layernorm": Exercise("normal(2, 3, 6), normal(6), normal(6)[::-1], 1e-5", (0, 1, 2), {
        "dx": "x[j] moves the mean (by 1/C) and rstd as well: take two means off dn, the mean of dn and its part along n.",
        "dweight": "weight multiplies n in every row: sum over all rows.",
        "dbias": "the bias was added to every row: sum over all rows.",
    }),
    "add_rmsnorm": Exercise("normal(2, 3, 6), normal(2, 3, 6)[::-1], normal(6), 1e-5, 0.3, (1, 2, 3)", (0, 1, 2), {
        "dx": "total went on along the stream, and through the norm: add both paths.",
        "dbranch": "x and branch were added, the branch through dropout: dx, through the same mask.",
        "dweight": "as in rmsnorm, of total.",
    }),
    "dropout": Exercise("normal(2, 3, 6), 0.3, (1, 2, 3)", (0,), {
        "dx": "the same mask again, from the same key, with the same factor.",
    }),
    "rope": Exercise("normal(2, 3, 4, 6), *ops.rope_table(np.arange(4), 6, 100.0, dtype='float64')", (0,), {
        "dx": "the transpose of a rotation is the rotation back.",
    }),
    "attention": Exercise("normal(2, 4, 3, 5), normal(2, 2, 6, 5), normal(2, 2, 6, 5)[::-1]", (0, 1, 2), {
        "dq": "dq sums over keys: ds @ k, times the scale; ds needs softmax's backward.",
        "dk": "dk sums over queries, and over the query heads of its group: ds transposed @ q, times the scale.",
        "dv": "dv sums over queries, and over the query heads of its group: p transposed @ dout.",
    }),
    "flash_attention": Exercise("normal(2, 4, 67, 5), normal(2, 2, 150, 5), normal(2, 2, 150, 5)[::-1]", (0, 1, 2), {
        "dq": "each tile adds ds @ k; delta is the sum of dout * out over D; the scale comes in at the end.",
        "dk": "each tile adds ds transposed @ q; the scale comes in once, at the end.",
        "dv": "each tile adds p transposed @ dout, with p = exp(s - lse).",
    }),
}  # fmt: skip

FILE = '''\
"""{title}

Write {op}_{blank}, then ask which results are right:

    {check}

Forward returns its output and a cache, which backward is given; dout is the gradient of the loss with respect to the output, and
backward returns one gradient for each input. The derivation is on the page docs/ops/{op}. xp is NumPy here. You can ignore the
optional output buffers.
"""

{source}


# ---------------------------------------------------------------------------------------------- the test:  pytest {op}.py


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def example():
    return [{arguments}]


{tests}
'''
TEST_BACKWARD = '''\
def test_gradients():
    gradcheck({op}_forward, {op}_backward, example(), wrt={wrt})'''
TEST_FORWARD = '''\
def test_forward():
    out, _ = {op}_forward(*example())
    expected, _ = ops.{op}_forward(*example())
    np.testing.assert_allclose(out, expected)


'''


def exercise_text(op: str, blank: str = "backward", folder: Path = FOLDER) -> str:
    """The file of an exercise in a folder: the op's source with one function left blank, and the test."""
    exercise = find_exercise(op)
    source = Path(find_spec(f"numllama.ops.{op}").origin).read_text(encoding="utf-8")
    lines, tree = source.splitlines(), ast.parse(source)
    imports, rest = ["import numpy as np", "", "from numllama import ops"], []
    for node in tree.body[1:]:
        text = "\n".join(lines[node.lineno - 1 : node.end_lineno])  # a function without its decorator
        if isinstance(node, ast.Import | ast.ImportFrom):
            text = text.replace("import accelerated, ", "import ")
            imports += [text] if text not in [*imports, ACCELERATED] else []
        elif isinstance(node, ast.FunctionDef) and blank == "backward" and node.name.startswith(f"{op}_backward_"):
            continue  # a part of the solution
        elif isinstance(node, ast.FunctionDef) and node.name == f"{op}_{blank}":
            head = "\n".join(lines[node.lineno - 1 : node.body[0].end_lineno])  # down to the end of the docstring
            rest += ["", "", f'{head}\n    raise NotImplementedError("your turn")']
        else:
            rest += ["", "", text.replace(".reference(", "(")] if isinstance(node, ast.FunctionDef) else ["", text]
    imports.append("from numllama.gradcheck import gradcheck")
    tests = (TEST_FORWARD if blank == "forward" else "") + TEST_BACKWARD
    return FILE.format(
        title=ast.get_docstring(tree).splitlines()[0], op=op, blank=blank, source="\n".join(imports + rest),
        arguments=exercise.arguments, check=check_command(op, folder), tests=tests.format(op=op, wrt=list(exercise.wrt)),
    )  # fmt: skip


def find_exercise(op: str) -> Exercise:
    """The exercise of that name, or ValueError."""
    if op not in EXERCISES:
        raise ValueError(f"op is {shown(op)}, but must be one of {', '.join(EXERCISES)}")
    return EXERCISES[op]


def write_exercises(op: str | None, blank: str, folder: Path) -> int:
    """Write one exercise, or all that are not there yet. A file that is there is never written over."""
    if op is not None:
        find_exercise(op)
    with locked(folder, NumllamaError):
        if op is not None and (folder / f"{op}.py").exists():
            raise ValueError(f"{folder / f'{op}.py'} is there already, and is not written over: remove it to begin anew")
        new = [name for name in ([op] if op else EXERCISES) if not (folder / f"{name}.py").exists()]
        with published(folder, error=NumllamaError) as part:
            for name in new:
                (part / f"{name}.py").write_text(exercise_text(name, blank, folder), encoding="utf-8")
    for name in new:
        print(f"{folder / name}.py: write {name}_{blank}")
    print(f"then: {check_command(op, folder)}")
    return 0


def check_command(op: str | None, folder: Path) -> str:
    """What to type to have the exercises in a folder checked."""
    return f"numllama exercises --check{f' {op}' if op else ''}{_in(folder)}"


def _in(folder: Path) -> str:
    """The option that names the folder, where that is needed."""
    return "" if folder == FOLDER else f" --out {shlex.quote(str(folder))}"


# ------------------------------------------------------------------------------------------------ the check


def check_exercises(op: str | None, folder: Path) -> int:
    """Say of one exercise, or of all that are there, what is right and what is not. Exit code 0 if all is right, else 2."""
    names = [name for name in EXERCISES if (folder / f"{name}.py").exists()] if op is None else [op]
    if not names:
        raise ValueError(f"there are no exercises in {folder}: numllama exercises{_in(folder)} writes them")
    all_right = True
    for name in names:
        find_exercise(name)
        path = folder / f"{name}.py"
        if not path.exists():
            raise ValueError(f"{path} is not there: numllama exercises {name}{_in(folder)} writes it")
        verdicts = check_file(path, name)
        print("\n".join([name, *(f"  {what:9} {verdict}" for what, verdict in verdicts.items())]))
        all_right &= all(verdict == "right" for verdict in verdicts.values())
    return 0 if all_right else 2


def check_file(path: Path, op: str) -> dict[str, str]:
    """For the output and for each gradient: "right", or what is wrong with it."""
    exercise = find_exercise(op)
    try:
        written = runpy.run_path(str(path))
    except Exception as error:
        return {"file": f"cannot be run: {type(error).__name__}: {error}"}
    args = written["example"]()
    expected_out, expected_cache = getattr(ops, f"{op}_forward")(*args)
    result, problem = attempt(written[f"{op}_forward"], *copies(args))
    if problem is None and not (isinstance(result, tuple) and len(result) == 2):
        problem = "forward must return two things: the output, and the cache"
    if problem is not None:
        return {"out": problem}
    out, cache = result
    verdicts = {"out": worst(out, expected_out)}
    if verdicts["out"] != "right":
        return verdicts
    dout = cotangent(expected_out)
    expected = as_tuple(getattr(ops, f"{op}_backward")(dout, expected_cache))
    gradients, problem = attempt(written[f"{op}_backward"], dout, cache)
    if problem is None and len(as_tuple(gradients)) != len(expected):
        problem = f"backward returns {len(as_tuple(gradients))} gradients, but must return {', '.join(exercise.hints)}"
    if problem is not None:
        return verdicts | dict.fromkeys(exercise.hints, problem)
    for (name, hint), actual, right in zip(exercise.hints.items(), as_tuple(gradients), expected, strict=True):
        verdict = compare(actual, right)
        verdicts[name] = verdict if verdict == "right" else f"{verdict}. Hint: {hint}"
    return verdicts


def attempt(function: Callable, *args: Any) -> tuple[Any, str | None]:
    """What a function returns, or in words why it does not."""
    try:
        return function(*args), None
    except NotImplementedError:
        return None, "blank"
    except Exception as error:
        return None, f"raises {type(error).__name__}: {error}"


def worst(out: Any, expected: Any) -> str:
    """The verdict on one output, or on several."""
    if len(as_tuple(out)) != len(as_tuple(expected)):
        return f"{len(as_tuple(out))} outputs, but there must be {len(as_tuple(expected))}"
    verdicts = [compare(*pair) for pair in zip(as_tuple(out), as_tuple(expected), strict=True)]
    return next((verdict for verdict in verdicts if verdict != "right"), "right")


def compare(actual: Any, expected: np.ndarray) -> str:
    """How far an array is from what it should be, and how it differs, if that can be seen."""
    if not hasattr(actual, "dtype"):
        return f"wrong: a {type(actual).__name__}, not an array"
    if actual.shape != expected.shape:
        swapped = actual.shape[::-1] == expected.shape and actual.ndim == 2
        return f"wrong: shape {actual.shape}, but {expected.shape} is needed" + (" (transposed?)" if swapped else "")
    if not np.isfinite(actual).all():
        return "wrong: it holds infinities or not-a-numbers"
    norm = float(np.linalg.norm(expected))
    error = float(np.linalg.norm(actual - expected)) / norm
    if error <= RIGHT:
        return "right"
    factor = float((actual * expected).sum()) / norm**2
    if factor != 0 and np.linalg.norm(actual - factor * expected) <= RIGHT * norm * abs(factor):
        return "wrong: the sign" if math.isclose(factor, -1) else f"wrong: {factor:.6g} times what it should be"
    return f"wrong: off by {error:.1%} of its norm"


def cotangent(out: Any) -> Any:
    """A random gradient of the output, or of each of several."""
    rng = np.random.default_rng(1)
    douts = tuple(np.asarray(rng.standard_normal(np.shape(part))) for part in as_tuple(out))
    return douts if isinstance(out, tuple) else douts[0]


def as_tuple(value: Any) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def copies(args: list) -> list:
    """So that a forward that writes to its inputs harms nothing else."""
    return [arg.copy() if hasattr(arg, "copy") else arg for arg in args]
