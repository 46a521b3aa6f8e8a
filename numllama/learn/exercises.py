"""Exercises: an op with a blank backward (or forward), and a check that says which gradients are right.

Each file is made from the op's own source, so the library is the solution. The check runs your function in a process of its own,
on small float64 arrays, and compares each result with the library's.
"""

import ast
import math
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numllama import ops
from numllama.errors import NumllamaError, shown
from numllama.learn.students import Answer, Call, Run, run_file
from numllama.storage.folders import locked, published

FOLDER = Path("exercises")
ACCELERATED = "from numllama.dispatch import accelerated"  # the decorator of an op, which exercises leave out
RIGHT = 1e-9  # relative error up to which float64 results count as equal


class Exercise(NamedTuple):
    """Example arguments as Python source, the positions of those that have a gradient, and a hint for each gradient."""

    arguments: str
    wrt: tuple[int, ...]
    hints: dict[str, str]


EXERCISES = {  # from easy to hard
    "linear": Exercise("normal(2, 3, 4), normal(5, 4), normal(5)", (0, 1, 2), {
        "dx": "x[n, i] enters every output of its row, with the factor weight[o, i]: sum over the outputs.",
        "dweight": "weight[o, i] enters output o of every row, with the factor x[n, i]: sum over all rows.",
        "dbias": "the bias was added to every row: sum over all rows.",
    }),
    "lora": Exercise("normal(2, 3, 4), normal(2, 4), normal(5, 2), 0.5", (0, 1, 2), {
        "dx": "h = x @ a.T is a linear map of x: dx = dh @ a, where dh is the gradient of h, through b and the scale.",
        "da": "like dweight in linear, for the map from x to h: dh transposed @ x.",
        "db": "like dweight in linear, for the map from h to out, times the scale: dout transposed @ h.",
    }),
    "embedding": Exercise("np.array([[2, 0, 2], [4, 2, 0]]), normal(5, 3)", (1,), {
        "dweight": "a token that occurs several times gets the sum of its gradients; dweight[tokens] += dout keeps only one.",
    }),
    "softmax": Exercise("normal(2, 3, 5)", (0,), {
        "dx": "every x[j] enters the sum that divides all p[i]: dp[i]/dx[j] = p[i] (delta_ij - p[j]).",
    }),
    "cross_entropy": Exercise("normal(2, 3, 5), np.array([[1, 4, -100], [0, 2, 2]])", (0,), {
        "dlogits": "predicted probabilities minus the one-hot target, divided by count; ignored rows get zero.",
    }),
    "swiglu": Exercise("normal(2, 3, 4), normal(2, 3, 4)[::-1]", (0, 1), {
        "dgate": "silu(g) = g * sigmoid(g) is a product, so its derivative has two terms. The other factor, up, stays.",
        "dup": "up was multiplied by silu(gate).",
    }),
    "gelu": Exercise("normal(2, 3, 5)", (0,), {
        "dx": "x * (1 + tanh u) / 2 is a product, and u depends on x: tanh' = 1 - tanh^2, u' = SLOPE (1 + 3 CUBIC x^2).",
    }),
    "geglu": Exercise("normal(2, 3, 4), normal(2, 3, 4)[::-1]", (0, 1), {
        "dgate": "the gradient of gelu(gate) is dout * up; gelu_backward takes it from there.",
        "dup": "up was multiplied by gelu(gate).",
    }),
    "softcap": Exercise("3 * normal(2, 3, 5), 2.0", (0,), {
        "dx": "the chain rule: cap * tanh'(x / cap) / cap, and tanh' = 1 - tanh^2.",
    }),
    "rmsnorm": Exercise("normal(2, 3, 6), normal(6), 1e-5", (0, 1), {
        "dx": "x[j] enters its own output and, through rstd, all outputs of its row: drstd/dx[j] = -rstd^3 x[j] / C.",
        "dweight": "weight multiplies x * rstd in every row: sum over all rows.",
    }),
    "layernorm": Exercise("normal(2, 3, 6), normal(6), normal(6)[::-1], 1e-5", (0, 1, 2), {
        "dx": "x[j] also changes the mean (by 1/C) and rstd: subtract two terms from dn, its mean and its component along n.",
        "dweight": "weight multiplies n in every row: sum over all rows.",
        "dbias": "the bias was added to every row: sum over all rows.",
    }),
    "add_rmsnorm": Exercise("normal(2, 3, 6), normal(2, 3, 6)[::-1], normal(6), 1e-5, 0.3, (1, 2, 3)", (0, 1, 2), {
        "dx": "total continues along the stream and goes through the norm: add both gradients.",
        "dbranch": "the branch was added after dropout: dx, through the same mask.",
        "dweight": "like dweight in rmsnorm, with total in place of x.",
    }),
    "dropout": Exercise("normal(2, 3, 6), 0.3, (1, 2, 3)", (0,), {
        "dx": "the same mask, from the same key, with the same factor.",
    }),
    "rope": Exercise("normal(2, 3, 4, 6), *ops.rope_table(np.arange(4), 6, 100.0, dtype='float64')", (0,), {
        "dx": "the transpose of a rotation is the rotation by the opposite angle.",
    }),
    "mixture_of_experts": Exercise(
        "normal(2, 3, 3), normal(4, 3), normal(4, 5, 3), normal(4, 5, 3)[::-1], normal(4, 3, 5), 2", (0, 1, 2, 3, 4), {
            "dx": "each token's experts add their part to its row, and so does the router.",
            "drouter": "out is linear in the weights: dweights sums dout * y over C. Then router_backward, and a linear map.",
            "dgate": "an expert's own tokens only, each with its weight: linears_backward of swiglu_backward of dh.",
            "dup": "the second result of the same linears_backward.",
            "ddown": "like dweight in linear, for the map from h to y: the gradient of y is weight * dout.",
        }
    ),
    "attention": Exercise("normal(2, 4, 3, 5), normal(2, 2, 6, 5), normal(2, 2, 6, 5)[::-1]", (0, 1, 2), {
        "dq": "dq sums over keys: ds @ k, times the scale; ds comes from the backward of softmax.",
        "dk": "dk sums over queries, and over the query heads of its group: ds transposed @ q, times the scale.",
        "dv": "dv sums over queries, and over the query heads of its group: p transposed @ dout.",
    }),
    "flash_attention": Exercise("normal(2, 4, 67, 5), normal(2, 2, 150, 5), normal(2, 2, 150, 5)[::-1]", (0, 1, 2), {
        "dq": "each tile adds ds @ k, times the scale; ds needs delta, the sum of dout * out over D.",
        "dk": "each tile adds ds transposed @ q, times the scale.",
        "dv": "each tile adds p transposed @ dout, with p = exp(s - lse).",
    }),
}  # fmt: skip

FILE = '''\
"""{title}

Write {op}_{blank}, then check which results are right:

    {check}

Forward returns its output and a cache for backward. dout is the gradient of the loss with respect to the output, and backward
returns one gradient for each input. The page docs/ops/{op} has the derivation.
Here xp is NumPy. You can ignore the optional output buffers.
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
    for actual, right in zip(out, expected, strict=True) if isinstance(out, tuple) else [(out, expected)]:
        np.testing.assert_allclose(actual, right)


'''


def exercise_text(op: str, blank: str = "backward", folder: Path = FOLDER) -> str:
    """The text of an exercise: the op's source with one blank function, and the test."""
    exercise = find_exercise(op)
    source = Path(ops.__file__).with_name(f"{op}.py").read_text(encoding="utf-8")
    lines, tree = source.splitlines(), ast.parse(source)
    imports, rest = ["import numpy as np", "", "from numllama import ops"], []
    for node in tree.body[1:]:
        text = "\n".join(lines[node.lineno - 1 : node.end_lineno])  # leaves out a function's decorator
        if isinstance(node, ast.Import | ast.ImportFrom):
            text = text.replace("import accelerated, ", "import ")
            imports += [text] if text not in [*imports, ACCELERATED] else []
        elif isinstance(node, ast.FunctionDef) and blank == "backward" and node.name.startswith(f"{op}_backward_"):
            continue  # part of the solution
        elif isinstance(node, ast.FunctionDef) and node.name == f"{op}_{blank}":
            head = "\n".join(lines[node.lineno - 1 : node.body[0].end_lineno])  # down to the end of the docstring
            rest += ["", "", f'{head}\n    raise NotImplementedError("your turn")']
        else:
            is_definition = isinstance(node, ast.FunctionDef | ast.ClassDef)
            rest += ["", "", text.replace(".reference(", "(")] if is_definition else ["", text]
    imports.append("from numllama.gradcheck import gradcheck")
    tests = (TEST_FORWARD if blank == "forward" else "") + TEST_BACKWARD
    return FILE.format(
        title=(ast.get_docstring(tree) or op).splitlines()[0], op=op, blank=blank, source="\n".join(imports + rest),
        arguments=exercise.arguments, check=check_command(op, folder), tests=tests.format(op=op, wrt=list(exercise.wrt)),
    )  # fmt: skip


def find_exercise(op: str) -> Exercise:
    """The exercise for an op; ValueError if there is none."""
    if op not in EXERCISES:
        raise ValueError(f"op is {shown(op)}, but must be one of {', '.join(EXERCISES)}")
    return EXERCISES[op]


def write_exercises(op: str | None, blank: str, folder: Path) -> int:
    """Write one exercise, or all that are missing. Existing files are never overwritten."""
    if op is not None:
        find_exercise(op)
    with locked(folder, NumllamaError):
        if op is not None and (folder / f"{op}.py").exists():
            raise ValueError(f"{folder / f'{op}.py'} exists and is not overwritten: remove it to start again")
        new = [name for name in ([op] if op else EXERCISES) if not (folder / f"{name}.py").exists()]
        with published(folder, error=NumllamaError) as part:
            for name in new:
                (part / f"{name}.py").write_text(exercise_text(name, blank, folder), encoding="utf-8")
    for name in new:
        print(f"{folder / name}.py: write {name}_{blank}")
    print(f"then: {check_command(op, folder)}")
    return 0


def check_command(op: str | None, folder: Path) -> str:
    """The command that checks the exercises in a folder."""
    return f"numllama exercises --check{f' {op}' if op else ''}{_in(folder)}"


def _in(folder: Path) -> str:
    """The option for the folder, unless it is the default."""
    return "" if folder == FOLDER else f" --out {shlex.quote(str(folder))}"


# ------------------------------------------------------------------------------------------------ the check


def check_exercises(op: str | None, folder: Path, seconds: float = 60) -> int:
    """Print which results are right, for one exercise or for all in the folder. Exit code 0 if all are right, else 2."""
    names = [name for name in EXERCISES if (folder / f"{name}.py").exists()] if op is None else [op]
    if not names:
        raise ValueError(f"no exercises in {folder}: numllama exercises{_in(folder)} writes them")
    all_right = True
    for name in names:
        find_exercise(name)
        path = folder / f"{name}.py"
        if not path.exists():
            raise ValueError(f"{path} does not exist: numllama exercises {name}{_in(folder)} writes it")
        run = run_exercise(path, name, seconds)
        verdicts = verdicts_of(run, name)
        print(run.printed, end="")
        print("\n".join([name, *(f"  {what:9} {verdict}" for what, verdict in verdicts.items())]))
        all_right &= all(verdict == "right" for verdict in verdicts.values())
    return 0 if all_right else 2


def check_file(path: Path, op: str, seconds: float = 60) -> dict[str, str]:
    """For the output and each gradient: "right", or what is wrong."""
    return verdicts_of(run_exercise(path, op, seconds), op)


def run_exercise(path: Path, op: str, seconds: float) -> Run:
    """Call the forward and the backward of a file in a process of its own, where numllama.ops does not have them."""
    args = example(op)
    dout = as_tuple(cotangent(getattr(ops, f"{op}_forward")(*args)[0]))
    inputs: dict[str, np.ndarray] = {}

    def placed(value: Any) -> Any:
        """An argument as the process reads it."""
        if isinstance(value, tuple):
            return {"tuple": [placed(each) for each in value]}
        if not isinstance(value, np.ndarray):
            return value
        inputs[str(len(inputs))] = value
        return {"array": str(len(inputs) - 1)}

    calls = [
        Call(f"{op}_forward", [placed(arg) for arg in args], "output and cache"),
        Call(f"{op}_backward", [placed(dout[0] if len(dout) == 1 else dout), {"kept": True}], "arrays"),
    ]
    names = [call.function for call in calls]
    return run_file(path, calls, inputs, seconds, closed_functions=(names, f"numllama.ops.{op} is what you write yourself"))


def example(op: str) -> list[Any]:
    """The arguments of an exercise."""
    names = {"np": np, "ops": ops, "normal": lambda *shape: np.random.default_rng(0).standard_normal(shape)}
    return eval(f"[{EXERCISES[op].arguments}]", names)


def verdicts_of(run: Run, op: str) -> dict[str, str]:
    """The verdicts on what a file has returned."""
    hints = EXERCISES[op].hints
    expected_out, cache = getattr(ops, f"{op}_forward")(*example(op))
    if not run.answers:
        return {"file": f"cannot be run: {run.problem}"}
    forward, *rest = run.answers
    verdicts = {"out": _problem(forward) or worst(_results(forward), expected_out)}
    if verdicts["out"] != "right":
        return verdicts
    backward = rest[0] if rest else Answer(problem=run.problem)
    expected, results = as_tuple(getattr(ops, f"{op}_backward")(cotangent(expected_out), cache)), _results(backward)
    problem = _problem(backward)
    if not problem and len(results) != len(expected):
        problem = f"backward returns {len(results)} gradients, but must return {', '.join(hints)}"
    if problem:
        return verdicts | dict.fromkeys(hints, problem)
    for (name, hint), actual, right in zip(hints.items(), results, expected, strict=True):
        verdict = compare(actual, right)
        verdicts[name] = verdict if verdict == "right" else f"{verdict}. Hint: {hint}"
    return verdicts


def _problem(answer: Answer) -> str:
    return "blank" if answer.blank else answer.problem


def _results(answer: Answer) -> list[np.ndarray | str]:
    """Arrays in the order in which they were returned, or what the result is instead."""
    return [answer.arrays.get(str(i), answer.lost.get(str(i), "")) for i in range(len(answer.arrays) + len(answer.lost))]


def worst(results: list[np.ndarray | str], expected: Any) -> str:
    """The first verdict that is not "right", for one or several outputs."""
    if len(results) != len(as_tuple(expected)):
        return f"{len(results)} outputs, but there must be {len(as_tuple(expected))}"
    verdicts = [compare(*pair) for pair in zip(results, as_tuple(expected), strict=True)]
    return next((verdict for verdict in verdicts if verdict != "right"), "right")


def compare(actual: np.ndarray | str, expected: np.ndarray) -> str:
    """The verdict on one array: how it differs from the expected one."""
    if isinstance(actual, str):
        return f"wrong: it {actual}"
    if actual.shape != expected.shape:
        swapped = actual.shape[::-1] == expected.shape and actual.ndim == 2
        return f"wrong: shape {actual.shape}, but {expected.shape} is needed" + (" (transposed?)" if swapped else "")
    if not np.isfinite(actual).all():
        return "wrong: it contains infinities or NaNs"
    norm = float(np.linalg.norm(expected))
    error = float(np.linalg.norm(actual - expected)) / norm
    if error <= RIGHT:
        return "right"
    factor = float((actual * expected).sum()) / norm**2
    if factor != 0 and np.linalg.norm(actual - factor * expected) <= RIGHT * norm * abs(factor):
        return "wrong: the sign" if math.isclose(factor, -1) else f"wrong: {factor:.6g} times what it should be"
    return f"wrong: off by {error:.1%} of its norm"


def cotangent(out: Any) -> Any:
    """A random gradient for each output."""
    rng = np.random.default_rng(1)
    douts = tuple(np.asarray(rng.standard_normal(np.shape(part))) for part in as_tuple(out))
    return douts if isinstance(out, tuple) else douts[0]


def as_tuple(value: Any) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
