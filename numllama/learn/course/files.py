"""The files of the exercises, made from the package's own sources, and their solutions."""

import ast
import shlex
import textwrap
from pathlib import Path

from numllama import ops
from numllama.errors import NumllamaError
from numllama.learn.course import block
from numllama.learn.course.bugs import BUGS, Bug
from numllama.learn.course.symptoms import symptom_of
from numllama.learn.course.table import COURSE, EXERCISES, FORWARD, FUNCTIONS, Exercise, find_exercise
from numllama.learn.grade_template import TEMPLATE
from numllama.storage.folders import locked, published

FOLDER = Path("exercises")
ACCELERATED = "from numllama.dispatch import accelerated"  # the decorator of an op, which exercises leave out
BLANK = 'raise NotImplementedError("your turn")'
RULE = "-" * 94

HEAD = '''\
"""{title}

Write {op}_{blank}, then check which results are right:

    {check}

Forward returns its output and a cache for backward. dout is the gradient of the loss with respect to the output, and backward
returns one gradient for each input. The page docs/ops/{op} has the derivation.
Here xp is NumPy. You can ignore the optional output buffers.
"""
'''
HEAD_BUG = '''\
"""Find the mistake: one line of this file is wrong.

{story}

{symptom}

Fix the line, then check:

    {check}
"""
'''
HEAD_FUNCTION = '''\
"""{title}

Write {functions}, then check which results are right:

    {check}

{rest}
"""
'''
HEAD_BLOCK = '''\
"""The backward of a whole Llama block, value by value.

The forward is given. Each function below returns one gradient: write it, then check which are right:

    {check}

Each is checked on its own, from right values of what it is given, so you can write them in any order:
    d    the gradients of the values that are used further down in the forward, d.q for a.q and d.wq for w.wq
    a    the values of the forward
    w    the weights
The comment above each function is the line of the forward that it reverses; the one behind it is the shape of its result.
"""
'''
TESTS = f'''\


# {RULE} the test:  pytest {{name}}.py


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def example():
    return [{{arguments}}]


'''
TEST_BACKWARD = '''\
def test_gradients():
    gradcheck({op}_forward, {op}_backward, example(), wrt={wrt})
'''
TEST_FORWARD = '''\
def test_forward():
    out, _ = {op}_forward(*example())
    expected, _ = ops.{op}_forward(*example())
    for actual, right in zip(out, expected, strict=True) if isinstance(out, tuple) else [(out, expected)]:
        np.testing.assert_allclose(actual, right)


'''
TESTS_BLOCK = f'''\


# {RULE} the test:  pytest {{name}}.py


SIZES = [(12,), (H * D, 12), (K * D, 12), (K * D, 12), (12, H * D), (12,), (10, 12), (10, 12), (12, 10)]
NAMES = ["attn_gain", "wq", "wk", "wv", "wo", "ffn_gain", "w_gate", "w_up", "w_down"]


def test_gradients():
    def forward(x, *weights):
        w = Values(zip(NAMES, weights, strict=True))
        a = block_forward(x, w, *ops.rope_table(np.arange(5), D, 100.0, dtype="float64"))
        return a.after_ffn, (a, w)

    def backward(dout, cache):
        d = block_backward(dout, *cache)
        return d.x, *(d[name] for name in NAMES)

    rng = np.random.default_rng(0)
    args = [rng.standard_normal((2, 5, 12)), *(rng.standard_normal(size) / 3 for size in SIZES)]
    gradcheck(forward, backward, args, argument_names=["x", *NAMES])
'''


# ------------------------------------------------------------------------------------------------ texts


def exercise_text(name: str, blank: str = "backward", folder: Path = FOLDER) -> str:
    """The text of an exercise's file. With `blank="forward"` an op's name stands for the exercise of its forward."""
    name = f"{name}{FORWARD}" if blank == "forward" and name in EXERCISES else name
    exercise = find_exercise(name)
    check = check_command(name, folder)
    if exercise.kind == "capstone":
        return TEMPLATE.replace("numllama grade FILE", check)
    if exercise.kind == "bug":
        bug, code = bug_of(exercise), mistaken_text(exercise)
        symptom = textwrap.indent(symptom_of(bug, code), "    ")
        return HEAD_BUG.format(story=bug.story, symptom=symptom, check=check) + code
    if exercise.kind == "block":
        return HEAD_BLOCK.format(check=check) + _body(exercise, "d_") + _tests(exercise)
    if exercise.kind == "function":
        title, _, rest = (ast.get_docstring(ast.parse(_source(name))) or "").partition("\n\n")
        head = HEAD_FUNCTION.format(title=title, rest=rest, functions=" and ".join(exercise.functions), check=check)
        return head + _after_docstring(exercise, blank=True)
    tree = ast.parse(_source(exercise.base))
    title = (ast.get_docstring(tree) or name).splitlines()[0]
    head = HEAD.format(title=title, op=exercise.base, blank=exercise.kind, check=check)
    return head + _body(exercise, f"{exercise.base}_{exercise.kind}") + _tests(exercise)


def solved_text(name: str) -> str:
    """The text of an exercise's file with its solution, without its docstring."""
    exercise = find_exercise(name)
    return _after_docstring(exercise) if exercise.kind == "function" else _body(exercise, "") + _tests(exercise)


def mistaken_text(exercise: Exercise) -> str:
    """What follows the docstring of a mistake to find."""
    bug = bug_of(exercise)
    return solved_text(exercise.name).replace(bug.right, bug.wrong)


def solution_text(name: str) -> str:
    """What the library has in the place of the blank; of a bug, the line that is wrong and the right one."""
    exercise = find_exercise(name)
    if exercise.kind == "capstone":
        return "The solution is numllama/learn/plain_llama.py, built from the ops in numllama/ops."
    if exercise.kind == "bug":
        lines, wrong = solved_text(name).splitlines(), mistaken_text(exercise).splitlines()
        changed = [f"- {line}" for line in wrong if line not in lines] + [f"+ {line}" for line in lines if line not in wrong]
        return "\n".join(changed)
    tree, lines = _parsed(exercise.base)
    start = exercise.functions or ("d_" if exercise.kind == "block" else f"{exercise.base}_{exercise.kind}")
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith(start)]
    return "\n\n\n".join(_without_decorator(node, lines) for node in functions)


def is_blank(text: str, exercise: Exercise) -> bool:
    """Whether a file has a blank; of a mistake to find, whether its code is still as it was written."""
    return text.endswith(mistaken_text(exercise)) if exercise.kind == "bug" else BLANK in text


def bug_of(exercise: Exercise) -> Bug:
    return BUGS[int(exercise.name.removeprefix("bug_")) - 1]


def _source(base: str) -> str:
    here = Path(block.__file__)
    places = {"block": here} | {name: here.parent / "functions" / f"{name}.py" for name in FUNCTIONS}
    return places.get(base, Path(ops.__file__).with_name(f"{base}.py")).read_text(encoding="utf-8")


def _parsed(base: str) -> tuple[ast.Module, list[str]]:
    source = _source(base)
    return ast.parse(source), source.splitlines()


def _after_docstring(exercise: Exercise, blank: bool = False) -> str:
    """The source of a plain function, which has its test too; or with blanks in the place of what is to be written."""
    tree, lines = _parsed(exercise.base)
    for node in reversed(tree.body):
        if blank and isinstance(node, ast.FunctionDef) and node.name in exercise.functions:
            lines[node.lineno - 1 : node.end_lineno] = [*_head(node, lines).splitlines(), f"    {BLANK}"]
    return "\n".join(lines[tree.body[0].end_lineno or 0 :]) + "\n"


def _body(exercise: Exercise, blank: str) -> str:
    """The source with the functions of a name blank: all that begin with "d_"; or one, without its parts."""
    tree, lines = _parsed(exercise.base)
    imports, rest, end = ["import numpy as np", "from numllama import ops"], [], tree.body[0].end_lineno or 0
    for node in tree.body[1:]:
        text = _without_decorator(node, lines)
        if isinstance(node, ast.Import | ast.ImportFrom):
            text = text.replace("import accelerated, ", "import ")
            imports += [text] if text not in [*imports, ACCELERATED] else []
        elif isinstance(node, ast.FunctionDef) and blank.endswith("_backward") and node.name.startswith(f"{blank}_"):
            continue  # part of the solution
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            comments = [line for line in lines[end : node.lineno - 1] if line.startswith("#")]
            is_blank = node.name.startswith("d_") if blank == "d_" else node.name == blank
            if is_blank:
                text = f"{_head(node, lines)}\n    {BLANK}"
            section = [line for line in comments if "----" in line]
            rest += ["", "", *section, *(["", ""] if section else []), *(line for line in comments if line not in section)]
            rest += [text.replace(".reference(", "(")]
        else:
            rest += ["", text]
        end = node.end_lineno or 0
    imports.append("from numllama.gradcheck import gradcheck")
    groups = [[], [], []]
    for each in dict.fromkeys(imports):
        groups[2 if "numllama" in each else 1 if "numpy" in each else 0].append(each)
    head = "\n\n".join("\n".join(sorted(group, key=_imported)) for group in groups if group)
    return "\n".join(["", head, *rest]) + "\n"


def _imported(line: str) -> tuple[bool, str]:
    """What imports are sorted by: `import x` before `from x import y`, then by name."""
    return line.startswith("from"), line.split()[1]


def _head(node: ast.stmt, lines: list[str]) -> str:
    """The lines of a function down to the end of its docstring."""
    assert isinstance(node, ast.FunctionDef)
    has_docstring = ast.get_docstring(node) is not None
    end = node.body[0].end_lineno if has_docstring else node.body[0].lineno - 1
    return "\n".join(lines[node.lineno - 1 : end])


def _without_decorator(node: ast.stmt, lines: list[str]) -> str:
    return "\n".join(lines[node.lineno - 1 : node.end_lineno])


def _tests(exercise: Exercise) -> str:
    if exercise.base == "block":
        return TESTS_BLOCK.format(name=exercise.name)
    tests = TESTS + ("" if exercise.kind == "backward" else TEST_FORWARD) + TEST_BACKWARD
    return tests.format(name=exercise.name, arguments=exercise.arguments, op=exercise.base, wrt=list(exercise.wrt))


# ------------------------------------------------------------------------------------------------ files


def write_exercises(names: list[str], folder: Path) -> list[Path]:
    """Write the exercises that are missing; returns their files. Existing files are never overwritten."""
    for name in names:
        find_exercise(name)
    with locked(folder, NumllamaError):
        new = [name for name in names if not (folder / f"{name}.py").exists()]
        with published(folder, error=NumllamaError) as part:
            for name in new:
                (part / f"{name}.py").write_text(exercise_text(name, folder=folder), encoding="utf-8")
    return [folder / f"{name}.py" for name in new]


def check_command(name: str | None, folder: Path) -> str:
    """The command that checks the exercises in a folder."""
    return f"numllama exercises --check{f' {name}' if name else ''}{in_folder(folder)}"


def in_folder(folder: Path) -> str:
    """The option for the folder, unless it is the default."""
    return "" if folder == FOLDER else f" --out {shlex.quote(str(folder))}"


def names_in(folder: Path) -> list[str]:
    """The exercises that a folder has, in the order of the course."""
    known = [*COURSE, *(f"{op}{FORWARD}" for op in EXERCISES)]
    return [name for name in known if (folder / f"{name}.py").exists()]
