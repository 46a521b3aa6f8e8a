"""Grading a file: points for what is right, one sentence for what is not, and whatever a file does, it harms nobody."""

import csv
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from learn.classroom import rmsnorm, solved, with_body

from numllama.cli import main
from numllama.errors import DataError
from numllama.learn import grade as grade_module
from numllama.learn import spreadsheet
from numllama.learn.course.files import exercise_text
from numllama.learn.course.table import COURSE
from numllama.learn.grade import PLAIN, Point, chosen, grade, points_of, sum_of
from numllama.learn.grade_report import files_of
from numllama.learn.grade_template import TEMPLATE
from numllama.learn.reference import opened_reference
from numllama.learn.students import MOST_BYTES, Call, run_file
from numllama.learn.vectors import STANDARD, standard_vectors

RIGHT = Path(__file__).with_name("student.py").read_text(encoding="utf-8")
PAGE = Path(__file__).parents[2] / "docs" / "grade.md"
START = "def llama(weights, config, tokens, targets, segments):\n"
FEW = ("gqa", "large-eps")


def run(*arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stopped:
        main(["grade", *map(str, arguments)])
    return stopped.value.code


@pytest.fixture
def graded(tmp_path):
    def grade_text(text, configurations=("gqa",), seconds=30, seed=5, only=()):
        path = tmp_path / "mine.py"
        path.write_text(text, encoding="utf-8")
        return grade(path, configurations, seed, seconds, only)

    return grade_text


def returning(*lines):
    """A file whose function has some lines."""
    return "import os, sys\nimport numpy as np\n\n\n" + START + "".join(f"    {line}\n" for line in lines)


def changed(*pairs):
    """The right file with some lines changed."""
    text = RIGHT
    for right, wrong in pairs:
        assert text.count(right) == 1, right
        text = text.replace(right, wrong)
    return text


def whys(result):
    """The sentences of the points that are lost."""
    return {point.name: point.why for point in result.points if not point.earned}


# ------------------------------------------------------------------------------------------------ points


@pytest.mark.parametrize("seed", range(3))
def test_a_right_file_earns_all_points_in_all_configurations(graded, seed):
    result = graded(RIGHT, tuple(STANDARD), seed=seed)
    assert whys(result) == {} and len(result.points) == 59 and result.earned == 59
    assert result.advice == "All is right." and not result.problem and not result.notes and not result.printed


def test_a_right_file_in_float32_earns_all_points_too(graded):
    single = RIGHT.replace("def llama(", "def double(") + """

def llama(weights, config, tokens, targets, segments):
    weights = {name: value.astype("float32") for name, value in weights.items()}
    return {name: np.asarray(value, "float32") for name, value in double(weights, config, tokens, targets, segments).items()}
"""
    assert whys(graded(single, tuple(STANDARD))) == {}


@pytest.mark.parametrize("name", STANDARD)
def test_each_value_and_gradient_is_a_point(name):
    vectors = standard_vectors(name)
    names = [node for _, nodes in points_of(opened_reference(vectors, {}).equations).values() for node in nodes]
    kinds = ("values/", "d_values/", "d_weights/")
    assert sorted(names) == sorted(name for name in vectors.tensors if name.startswith(kinds) and name != "d_values/loss")


def test_half_a_file_earns_half_of_the_points_and_is_told_the_next_one(graded):
    result = graded(changed(("    # backward\n", "    return v\n")))
    lost = whys(result)
    assert result.earned == 21 and set(lost.values()) == {"not returned"}
    assert all(name.startswith("d_") for name in lost)
    start = "Next: the gradient of logits comes from the backward of loss = cross_entropy(logits, targets)."
    assert result.advice == f"{start} Read docs/ops/cross_entropy.md."


def test_an_early_mistake_costs_its_own_point_and_not_those_after_it(graded):
    result = graded(changed(("return 1 / (1 + np.exp(-x))", "return 1 / (1 + np.exp(x))")))
    assert set(whys(result)) == {"swiglu", "d_gate", "d_up"}
    result = graded(changed(("k.swapaxes(-1, -2) / math.sqrt(D), -np.inf)", "k.swapaxes(-1, -2), -np.inf)")))
    lost = whys(result)
    assert set(lost) == {"scores"}
    sentence = r"layer.0.scores of gqa: relative error 1.0e\+00, the largest at \(.*\): -?[\d.]+ instead of -?[\d.]+"
    assert re.fullmatch(sentence, lost["scores"])
    assert result.advice.startswith("Next: layer.0.scores = scores(layer.0.q_rotated, layer.0.k_repeated, visible).")


def test_what_was_expected_is_what_the_files_own_numbers_give(graded):
    """After a mistake in the embedding, a factor of 2 in the norm is a factor of 2 beside what stands there."""
    text = changed(
        ('x = v["embedding"] = w["embed"][tokens]', 'x = v["embedding"] = w["embed"][tokens] + 1'),
        ('h = v["norm"] = rms(x, w["norm"], eps)', 'h = v["norm"] = 2 * rms(x, w["norm"], eps)'),
    )
    why = whys(graded(text))["norm"]
    got, expected = re.search(r"(\S+) instead of (\S+)", why).groups()
    assert float(got) == pytest.approx(2 * float(expected), rel=1e-4)


def test_a_mistake_that_one_configuration_shows_is_found_there(graded):
    text = changed(("* counted).sum() / counted.sum()", "* counted).mean()"))
    assert whys(graded(text)) == {}
    lost = whys(graded(text, PLAIN))
    assert set(lost) == {"loss"} and lost["loss"].startswith("loss of ignored: ")


def test_a_configuration_that_crashes_costs_what_it_has(graded):
    """Half of each of the 53 points that both have, and the 6 points that only it has."""
    result = graded(changed(("    # forward\n", "    assert not c.qk_norm, 'not yet'\n")), ("gqa", "qk-norm"))
    assert result.earned == 26.5 and len(result.points) == 59 and not result.problem
    assert re.fullmatch(r"qk-norm: line \d+ in llama: AssertionError: not yet", whys(result)["embedding"])
    (crash,) = result.failed.values()
    assert list(result.failed) == ["qk-norm"] and result.advice == f"Fix this first, in qk-norm: {crash}."


def test_what_was_computed_before_a_crash_counts_and_the_crash_comes_first(graded, tmp_path, capsys):
    """In the dicts of all functions of the file that were running, but not in those that it was given."""
    text = changed(("        dv = a.swapaxes(-1, -2) @ do\n", "        dv = a @ v['nothing']\n"))
    result = graded(text, PLAIN)
    lost = whys(result)
    assert [each.name for each in result.points if each.earned and each.is_backward] == ["d_logits", "d_norm", "d_norm (gain)"]
    assert result.earned == 24 and "logits" not in lost and not result.problem and not result.notes
    assert re.fullmatch(r"Fix this first: line \d+ in llama: KeyError: 'nothing'\.", result.advice)
    assert re.fullmatch(r"mha: line \d+ in llama: KeyError: 'nothing'", lost["d_head"])
    inner = returning("return forward(weights, tokens)") + """

def forward(weights, tokens):
    values = {"embedding": weights["embed"][tokens], "other": 3}
    weights["embedding"] = values["embedding"] + 1
    raise NotImplementedError("your turn")
"""
    result = graded(inner)
    assert result.earned == 1 and not result.notes and "NotImplementedError: your turn" in result.advice
    assert run(tmp_path / "mine.py", "--configurations", "gqa") == 1
    assert "\nmine.py: 1 of 53 points. Fix this first: line " in capsys.readouterr().out


def test_a_crash_in_one_of_all_configurations_costs_its_share(graded):
    result = graded(changed(('head = w["embed" if c.tie_embeddings else "head"]', 'head = w["head"]')), tuple(STANDARD))
    points = {point.name: (point.right, point.of) for point in result.points}
    assert points["ffn_out"] == (12, 12) and points["logits"] == points["d_wq"] == (11, 12) and points["d_head"] == (11, 11)
    assert result.earned == 56.2  # 33 points lack a twelfth
    assert re.fullmatch(r"Fix this first, in tied: line \d+ in llama: KeyError: 'head'\.", result.advice)


def test_points_are_rounded_down_so_that_all_of_them_means_that_all_is_right():
    points = [Point("q", "q", 1, 1)] * 52 + [Point("loss", "loss", 11, 12)]
    assert sum_of(points) == 52.9 and sum_of(points[:52]) == 52 and sum_of([Point("q", "q", 1, 3)] * 3) == 1
    assert sum_of([Point("q", "q", 99, 100)]) == 0.9


def test_a_mistake_that_gives_exactly_these_numbers_is_named(graded):
    result = graded(changed(("k.swapaxes(-1, -2) / math.sqrt(D), -np.inf)", "k.swapaxes(-1, -2), -np.inf)")))
    (scores,) = (point for point in result.points if not point.earned)
    assert (scores.name, scores.mistake) == ("scores", "The scores are not divided by √D.")
    result = graded(changed(('v["norm"] = rms(x, w["norm"], eps)', 'v["norm"] = rms(x, w["norm"], eps) + x ** 7')))
    assert [point.mistake for point in result.points if point.name == "norm"] == [""]


def test_another_layout_is_no_fault_and_a_note_says_so(graded):
    text = changed(("    return v | g\n", "    return v | {n: d.T if n == 'd_blocks.0.wo' else d for n, d in g.items()}\n"))
    text = text.replace("d.T if n == 'd_blocks.0.wo'", "d.T if n.endswith('w_down')")
    result = graded(text)
    assert whys(result) == {} and result.notes == ["d_w_down: transposed (a layout, not a fault)"]


@pytest.mark.thorough
def test_numbers_in_float16_are_named(graded):
    lost = whys(graded(changed(("    return v | g\n", "    return {n: np.float16(d) for n, d in (v | g).items()}\n"))))
    assert re.fullmatch(r".* \(it is float16: return float32 or float64\)", lost["attn_norm"])


@pytest.mark.parametrize("number", ["0.0", *(pytest.param(each, marks=pytest.mark.thorough) for each in ("np.nan", "np.inf"))])
def test_nothing_is_earned_by_numbers_from_which_anything_follows(graded, number):
    result = graded(RIGHT + f"""

right = llama


def llama(*given):
    return {{name: np.full(np.shape(value), {number}) for name, value in right(*given).items()}}
""")
    assert result.earned == 0


def test_not_a_number_is_named_where_it_begins_and_what_follows_is_still_judged(graded):
    line = 'out = v[at("ffn_out")] = act @ wt("w_down").T\n'
    text = changed((line, f"{line}        out[0, 1, 2] = np.nan\n"))
    lost = whys(graded(text))
    assert re.match(r"layer.0.ffn_out of gqa: nan at \(0, 1, 2\) instead of -?[\d.]+$", lost["ffn_out"])
    assert "norm" not in lost and "after_ffn" not in lost


# ------------------------------------------------------------------------------------------------ what a function may return


@pytest.mark.parametrize("line, point, why", [
    ("return {'layer.0.q': np.zeros((2, 5, 3))}", "q", "layer.0.q of gqa: it has shape (2, 5, 3), but must have (2, 5, 16)"),
    ("return {'embedding': [[1], [1, 2]]}", "embedding", "embedding of gqa: is a list of which NumPy makes no array"),
    ("return {'embedding': None}", "embedding",
     "embedding of gqa: is a NoneType, not an array of real numbers: did you forget return?"),
    ("return {'loss': 'small'}", "loss", "loss of gqa: is a str, not an array of real numbers"),
    ("return {'loss': np.array(1j)}", "loss", "loss of gqa: is a ndarray of dtype complex128, not an array of real numbers"),
    ("return {'loss': np.float16(1e300)}", "loss", "loss of gqa: inf at () instead of"),
    ("return {'layer.0.q': 1, 'layers.0.attention.wq': 1}", "q",
     "gqa: it returns values/layer.0.q twice: once as 'layer"),
    ("x = weights['embed'][tokens]; v = {'embedding': x}; x += 1; v['layer.0.attn_norm'] = x; return v", "embedding",
     "(it is the same array as layer.0.attn_norm: was it changed in place?)"),
])  # fmt: skip
def test_a_value_that_is_no_array_or_the_wrong_one_is_a_sentence(graded, line, point, why):
    result = graded(returning(line))
    assert why in whys(result)[point] and not result.problem


def test_names_that_mean_nothing_are_said(graded):
    result = graded(returning("return {'embedding': weights['embed'][tokens], 'querys': 1, 3: [], 'x' * 10_000: None}"))
    assert result.earned == 1
    assert "'querys' is not the name of a value" in result.notes and "'3' is not the name of a value" in result.notes
    assert max(map(len, result.notes)) < 100


def test_weights_tokens_and_other_vectors_are_not_points(graded):
    lines = "return {**{f'weights/{k}': 2 * v for k, v in weights.items()}, 'tokens': tokens + 1, 'after/head': weights['head']}"
    result = graded(returning(lines))
    assert result.earned == 0 and not result.notes and not result.problem


def test_what_a_file_does_to_its_inputs_stays_there(graded):
    text = RIGHT + """

right = llama


def llama(weights, config, tokens, targets, segments):
    values = right(weights, config, tokens, targets, segments)
    for value in (*weights.values(), tokens, targets):
        value[...] = 7
    weights.clear()
    config.clear()
    return values
"""
    assert whys(graded(text, FEW)) == {}


def test_a_file_that_is_not_text_is_one_sentence(tmp_path):
    path = tmp_path / "llama.py"
    path.write_bytes("x = 'é'".encode("latin-1"))
    assert grade(path, FEW, seconds=30).problem == "is not a text in UTF-8"


# ------------------------------------------------------------------------------------------------ what a file may do


@pytest.mark.parametrize("text, problem", [
    ("def", "line 1: SyntaxError: invalid syntax"),
    ("import nowhere\n", "line 1: ModuleNotFoundError: No module named 'nowhere'"),
    ("x = [\n1,\n1 / 0]\n", "line 3: ZeroDivisionError: division by zero"),
    ("import sys\nsys.exit(3)\n", "line 2: ends the program (SystemExit: 3)"),
    ("import os\nos._exit(3)\n", "ended the process with exit code 3 while it was imported"),
    ("raise KeyboardInterrupt\n", "line 1: KeyboardInterrupt"),
    ("llama = 3\n", "it does not define the function llama"),
    ("", "it does not define the function llama"),
    ("from numllama import ops\n", "line 1: ImportError: numllama is closed while a file is graded: it has the solutions"),
    ("import numllama.ops as o\n", "line 1: ImportError: numllama is closed while a file is graded: it has the solutions"),
    ("\0", "SyntaxError: source code string cannot contain null bytes"),
    (returning("return {}['q']"), "line 6 in llama: KeyError: 'q'"),
    (returning("return weights['embed'] @ weights['embed']"), "line 6 in llama: ValueError: matmul: Input operand 1 has"),
    (returning("return llama(weights, config, tokens, targets, segments)"), "line 6 in llama: RecursionError: maximum recursion"),
    (returning("return [1, 2]"), "returns a list, not a dict of arrays by name"),
    (returning("pass"), "returns nothing, not a dict of arrays by name: did you forget return?"),
    (returning("sys.exit('bye')"), "line 6 in llama: ends the program (SystemExit: bye)"),
    (returning("os._exit(0)"), "ended the process with exit code 0"),
    (returning("os.abort()"), "was ended by SIGABRT: a crash outside of Python, or not enough memory"),
    (returning("os.kill(os.getpid(), 9)"), "was ended by SIGKILL: a crash outside of Python, or not enough memory"),
    (returning("return {'loss': input()}"), "line 6 in llama: EOFError: EOF when reading a line"),
    (returning("return {'loss': config.width}"), "line 6 in llama: AttributeError: config has no 'width': it has vocab_size"),
    (returning("import numllama"), "line 6 in llama: ImportError: numllama is closed"),
    ("def llama(weights):\n    return {}\n", "TypeError: llama() takes 1 positional argument but 5 were given"),
    (returning("return {'loss': np.zeros(10**8)}"), "returns too much: loss has shape (100000000,)"),
    (returning("return {'loss': np.broadcast_to(1.0, (10**6, 10**6))}"), "returns too much: loss has shape (1000000, 1000000)"),
    (returning("return {'loss': np.ones(10**10)}"), "line 6 in llama: "),
    (returning("raise ValueError('x' * 10**6)"), "line 6 in llama: ValueError: xxx"),
], ids=lambda value: re.sub(r"\W+", " ", value)[-60:])  # fmt: skip
def test_a_file_that_cannot_be_graded_says_why_in_a_sentence(graded, text, problem):
    result = graded(text)
    assert problem in result.problem and len(result.problem) < 400 and "\n" not in result.problem
    assert result.earned == 0 and len(result.points) == 53
    assert result.advice == f"Fix this first: {result.problem}."


def test_a_file_cannot_import_the_solutions(graded):
    assert "numllama is closed" in graded("from numllama.learn import plain_llama\n" + RIGHT).problem


@pytest.mark.parametrize("way", [
    "import subprocess; subprocess.run([sys.executable, '-c', ''])", "os.system('true')", "os.execv(sys.executable, ['python'])",
])  # fmt: skip
def test_a_file_cannot_start_programs(graded, way):
    result = graded(returning(way, "return {'embedding': weights['embed'][tokens]}"))
    assert result.earned == 0 and result.problem.endswith("PermissionError: a file that is graded cannot start other programs")


def test_a_file_cannot_read_the_packages_sources(graded):
    source = str(Path(grade_module.__file__).with_name("plain_llama.py"))
    result = graded(f"text = open({source!r}).read()\n" + RIGHT)
    assert result.problem == "line 1: PermissionError: numllama/learn is closed while a file is checked"


def test_a_file_may_import_only_what_is_allowed(graded, tmp_path):
    (tmp_path / "helper.py").write_text("import json\n")
    (tmp_path / "other.py").write_text("import cyclopts\n")
    fine = "import json, math, os.path\nimport numpy.linalg\nimport helper\n"
    assert whys(graded(fine + RIGHT, only=("numpy",))) == {}
    why = "cyclopts is closed while a file is graded: only numpy and Python's own modules may be imported"
    for line in ("import cyclopts\n", "import importlib; importlib.import_module('cyclopts')\n"):
        assert graded(line + RIGHT, only=("numpy",)).problem == f"line 1: ImportError: {why}"
        assert graded(line + RIGHT).earned == graded(line + RIGHT, only=("numpy", "cyclopts")).earned == 53
    assert "ImportError: cyclopts is closed" in graded("import other\n" + RIGHT, only=("numpy",)).problem


@pytest.mark.parametrize("text, problem", [
    ("while True: pass\n", "took longer than 1 s while it was imported"),
    (returning("while True: pass"), "took longer than 1 s"),
    (returning("import time; time.sleep(99)"), "took longer than 1 s"),
    (returning("while True:", "    try: sys.exit()", "    except BaseException: pass"), "took longer than 1 s"),
    (returning("while True: print('x' * 10**6)"), "took longer than 1 s"),
])  # fmt: skip
def test_a_file_that_does_not_end_is_ended(graded, text, problem):
    start = time.monotonic()
    assert graded(text, seconds=1).problem == problem
    assert time.monotonic() - start < 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_processes_that_a_file_starts_end_with_it(graded, tmp_path):
    pids = tmp_path / "pid"
    lines = "child = os.fork()", "while child == 0: pass", f"open({str(pids)!r}, 'w').write(str(child))"
    start = time.monotonic()
    graded(returning(*lines, "return {'embedding': weights['embed'][tokens]}"))
    assert time.monotonic() - start < 20
    status = Path(f"/proc/{pids.read_text()}/stat")
    for _ in range(50):
        if not status.exists() or status.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("it still runs")


def test_what_was_done_before_a_file_hangs_is_not_forgotten(graded):
    text = returning("if config.n_kv_heads == 1:", "    while True: pass", "return {'embedding': weights['embed'][tokens]}")
    result = graded(text, ("gqa", "mqa"), seconds=2)
    assert not result.problem and result.earned == 0.5
    assert whys(result)["embedding"] == "mqa: took longer than 2 s"
    assert whys(result)["loss"] == "mqa: took longer than 2 s"


def test_what_is_printed_is_kept_within_limits_and_shown_safely(graded):
    result = graded(returning("print('a\\x1b[31mb'); print('x' * 10**7); return {'embedding': weights['embed'][tokens]}"))
    assert result.earned == 1 and result.printed.startswith("a\\x1b[31mb\nxxx") and len(result.printed) < 5000


def test_a_files_neighbours_can_be_imported_but_hide_nothing(graded, tmp_path):
    (tmp_path / "random.py").write_text("raise ValueError('hidden')")
    (tmp_path / "helper.py").write_text("def look(w, t):\n    return w[t]\n")
    text = "import random\nfrom helper import look\n" + returning("return {'embedding': look(weights['embed'], tokens)}")
    assert graded(text).earned == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["helper.py", "mine.py", "random.py"]  # no __pycache__


def test_files_that_a_file_writes_vanish(graded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert graded(returning("open('x.txt', 'w').write('x'); return {'embedding': weights['embed'][tokens]}")).earned == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_the_child_is_told_neither_the_seed_nor_a_result(graded):
    text = returning(
        "import glob, json", "where = os.path.dirname(os.getcwd())",
        "from safetensors.numpy import load_file",
        "print(sorted(os.listdir(where)), sorted(load_file(where + '/inputs.safetensors')))",
        "print(open(where + '/question.json').read())", "return {}",
    )  # fmt: skip
    printed = graded(text, seed=987654321).printed
    names = re.search(r"\['gqa/.*?\]", printed)[0]
    assert "987654321" not in printed and "values" not in names and "gqa/tokens" in names


def test_a_result_that_the_file_has_written_itself_is_read_with_care(tmp_path):
    path = tmp_path / "mine.py"
    text = """\
import os

def f():
    open("../0.json", "w").write({content!r})
    open("../0.safetensors", "w").write("x")
    os.truncate("../0.safetensors", {size})
    os._exit(0)
"""
    contents = {"{": 1, "[]": 1, "{}": 1, '{"problem": [], "lost": 3, "shared": {}}': 1, "{ }": 2 * MOST_BYTES}
    for content, size in contents.items():
        path.write_text(text.format(content=content, size=size))
        found = run_file(path, [Call("f", [], "dict")], {}, 20)
        assert found.answers == [] and found.problem.startswith("left a result that cannot be read: ")
        assert ("bytes, but at most" in found.problem) == (size > 1)


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_prints_points_sentences_and_what_to_do(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(RIGHT.replace("gate * sigmoid(gate) * up", "gate * sigmoid(up) * up"), encoding="utf-8")
    assert run(path, "--configurations", "gqa", "qk-norm", "--seed", 1) == 1
    out = capsys.readouterr().out
    assert re.search(r"^swiglu +0/1 +1/1$", out, re.M) and re.search(r"^sum +22/23 +36/36$", out, re.M)
    assert "swiglu: layer.0.swiglu of gqa: relative error" in out
    assert "mine.py: 58 of 59 points. Next: layer.0.swiglu = swiglu(layer.0.gate, layer.0.up). Read docs/ops/swiglu.md.\n" in out
    assert out.endswith("Graded on gqa, qk-norm with --seed 1.\n")
    path.write_text(RIGHT, encoding="utf-8")
    assert run(path, "--configurations", "all") == 0
    assert "mine.py: 59 of 59 points. All is right." in capsys.readouterr().out


def test_each_outcome_is_in_json(tmp_path, capsys):
    path = tmp_path / "mine.py"
    for text, code, earned in ((RIGHT, 0, 53), (returning("print('hi'); return {}"), 1, 0), ("1 / 0", 2, 0)):
        path.write_text(text, encoding="utf-8")
        assert run(path, "--json", "--configurations", "gqa", "--seed", 3) == code
        printed = capsys.readouterr()
        result = json.loads(printed.out)
        assert result["seed"] == 3 and result["configurations"] == ["gqa"]
        (file,) = result["files"]
        assert (file["file"], file["earned"], file["most"]) == ("mine.py", earned, 53)
        assert {point["pass"] for point in file["points"]} == {"forward", "backward"}
        assert all(point["earned"] == (not point["why"]) for point in file["points"])
        assert sum(op["earned"] for op in file["ops"]) == earned and sum(op["most"] for op in file["ops"]) == 53
        assert [op["op"] for op in file["ops"]][:2] == ["embedding", "attn_norm"]
        assert bool(file["problem"]) == (code == 2) == bool(printed.err)
        assert file["printed"] == ("hi\n" if code == 1 else "")


def test_another_seed_each_time_and_the_same_numbers_for_the_same_seed(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(returning("print(weights['embed'].sum()); return {}"), encoding="utf-8")
    seen = []
    for seed in ([], [], ["--seed", 8], ["--seed", 8]):
        run(path, "--json", "--configurations", "gqa", *seed)
        seen.append(json.loads(capsys.readouterr().out)["files"][0]["printed"])
    assert len({*seen[:3]}) == 3 and seen[2] == seen[3]


def test_the_folder_of_one_student_is_no_class(tmp_path):
    inner = tmp_path / "exercises"
    inner.mkdir()
    (inner / "linear.py").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"no subfolder has a file llama\.py"):
        files_of(tmp_path)
    (inner / "llama.py").write_text("", encoding="utf-8")
    assert files_of(tmp_path) == [inner / "llama.py"]
    (tmp_path / "llama.py").write_text("", encoding="utf-8")
    assert files_of(tmp_path) == [tmp_path / "llama.py"]


def test_a_folder_is_a_table_with_a_line_for_each_file(tmp_path, capsys):
    for name, text in {"anna": RIGHT, "ben": TEMPLATE, "carl": "1 / 0", "dora": returning("return {'q': 1}")}.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    (tmp_path / "notes.txt").write_text("no file of Python's")
    assert run(tmp_path, "--configurations", "gqa") == 1
    head, *rows, _ = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "forward", "backward", "points"]
    assert [row.split()[:4] for row in rows] == [
        ["anna.py", "21/21", "32/32", "53/53"], ["ben.py", "1/21", "0/32", "1/53"], ["carl.py", "0/21", "0/32", "0/53"],
        ["dora.py", "0/21", "0/32", "0/53"],
    ]  # fmt: skip
    assert rows[2].endswith("line 1: ZeroDivisionError: division by zero")
    assert rows[1].endswith("attn_norm: not returned (and 51 more)")
    assert run(tmp_path, "--configurations", "gqa", "--json") == 1
    assert [file["earned"] for file in json.loads(capsys.readouterr().out)["files"]] == [53, 1, 0, 0]
    for name in ("anna", "ben", "dora"):
        (tmp_path / f"{name}.py").unlink()
    assert run(tmp_path) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'carl.py'}: line 1: ZeroDivisionError: division by zero\n"


def handed_in(folder):
    """A class of two: one has all right, the other one a mistake, a crash, and a file that is missing."""
    crashes = with_body("linear", "return dout[7]")
    for path, text in {
        "anna/linear": solved("linear"), "anna/rmsnorm": solved("rmsnorm"), "anna/rope": solved("rope"), "_old/linear": crashes,
        "ben/exercises/linear": crashes, "ben/exercises/rmsnorm": rmsnorm("dx = rstd * dn"),
    }.items():  # fmt: skip
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{path}.py").write_text(text, encoding="utf-8")


def test_subfolders_hand_in_llama_py_and_a_missing_one_earns_nothing(tmp_path, capsys):
    for name in ("anna", "ben/exercises", "carl", ".git", "__pycache__"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("anna/llama.py", "anna/helper.py", "ben/exercises/llama.py", "dora.py"):
        (tmp_path / name).write_text(RIGHT if name.startswith("anna") else TEMPLATE, encoding="utf-8")
    assert run(tmp_path, "--configurations", "gqa", "--csv", "--seed", 2) == 1
    printed = capsys.readouterr()
    head, of, *rows = csv.reader(printed.out.splitlines())
    assert head[:2] == ["file", "embedding"] and head[-3:] == ["loss", "points", "note"] and of[:2] == ["of", "3"]
    assert int(of[-2]) == sum(map(int, of[1:-2])) == 53 and printed.err == "Graded on gqa with --seed 2.\n"
    assert [(row[0], row[-2], row[-1]) for row in rows] == [
        ("anna/llama.py", "53", ""), ("ben/exercises/llama.py", "1", "attn_norm: not returned (and 51 more)"),
        ("carl/llama.py", "0", "does not exist"), ("dora.py", "1", "attn_norm: not returned (and 51 more)"),
    ]  # fmt: skip
    assert all(len(row) == len(head) for row in rows)
    assert run(tmp_path, "--configurations", "gqa", "--json") == 1
    assert [each["file"] for each in json.loads(capsys.readouterr().out)["files"]] == [row[0] for row in rows]


def test_a_file_is_looked_for_in_the_folder_and_in_exercises_and_the_own_one_counts(tmp_path, capsys):
    for path, text in {
        "anna/llama": RIGHT, "anna/exercises/linear": solved("linear"), "ben/llama": RIGHT, "ben/exercises/llama": TEMPLATE,
        "ben/exercises/linear": with_body("linear", "return dout[7]"), "ben/linear": solved("linear"),
    }.items():  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{path}.py").write_text(text, encoding="utf-8")
    assert run(tmp_path, "--configurations", "gqa") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert rows == [[f"{name}/llama.py", "21/21", "32/32", "53/53"] for name in ("anna", "ben")]
    assert run(tmp_path, "--exercises", "linear", "llama", "--json") == 0
    students = json.loads(capsys.readouterr().out)["students"]
    files = [[Path(each["file"]).relative_to(tmp_path).as_posix() for each in student["exercises"]] for student in students]
    assert files == [["anna/exercises/linear.py", "anna/llama.py"], ["ben/linear.py", "ben/llama.py"]]


def test_a_row_has_the_first_point_that_is_lost_shortened_and_how_many_more_are(tmp_path, capsys):
    (tmp_path / "ben.py").write_text(changed(("gate * sigmoid(gate) * up", "gate * sigmoid(up) * up"),
                                             ('    g["d_weights/embed"] = dembed\n', "")), encoding="utf-8")  # fmt: skip
    (tmp_path / "dora.py").write_text(returning("return {'q': 'x', 'none of these names': 1}"), encoding="utf-8")
    (tmp_path / "eve.py").write_text(changed(('    g["d_weights/embed"] = dembed\n', "")), encoding="utf-8")
    (tmp_path / "finn.py").write_text(returning(f"raise ValueError('{'long ' * 40}end')"), encoding="utf-8")
    assert run(tmp_path, "--configurations", "gqa") == 1
    ben, dora, eve, finn = capsys.readouterr().out.splitlines()[1:-1]
    assert "   swiglu: layer.0.swiglu of gqa: " in ben and ben.endswith(" (and 1 more)")
    assert dora.endswith(" (and 52 more)") and eve.endswith("   d_embed: not returned") and finn.endswith("...")
    assert run(tmp_path, "--configurations", "gqa", "--csv") == 1
    *_, finn = csv.reader(capsys.readouterr().out.splitlines())
    assert finn[-1].endswith("long end"), "nothing is cut in a spreadsheet"


def test_notes_on_exercises_say_why_and_are_cut_only_on_a_terminal(tmp_path, capsys):
    (tmp_path / "ben").mkdir()
    crash = f"raise ValueError('{'long ' * 40}end')"
    for name, text in {
        "embedding": with_body("embedding", "dweight = 0"), "linear": with_body("linear", crash),
        "bug_01": exercise_text("bug_01"), "rmsnorm": rmsnorm("dx = rstd * dn"), "softcap": "x = 1\n  y = 2\n",
    }.items():  # fmt: skip
        (tmp_path / "ben" / f"{name}.py").write_text(text, encoding="utf-8")
    names = "rope", "linear", "embedding", "bug_01", "rmsnorm", "softcap"
    assert run(tmp_path, "--exercises", *names, "--csv") == 1
    *_, (*_, note) = csv.reader(capsys.readouterr().out.splitlines())
    linear, embedding, norm, *others = note.split("; ")
    assert re.fullmatch(r"linear crashed in dx: line \d+ in linear_backward: ValueError: (long ){40}end", linear)
    assert embedding == "embedding wrong in dweight: it is a NoneType, not an array of real numbers: did you forget return?"
    assert norm.startswith("rmsnorm wrong (2/4) in dx: dx treats rstd as a constant")
    assert others == ["softcap cannot be run: line 2: SyntaxError: unexpected indent", "rope missing", "bug_01 blank"]
    assert run(tmp_path, "--exercises", *names) == 1
    row = capsys.readouterr().out.splitlines()[-1]
    assert f"{linear[:117]}...; {embedding}; rmsnorm wrong" in row and row.endswith("; and 3 more")
    assert run(tmp_path, "--exercises", "rope", "linear", "bug_01") == 1
    assert capsys.readouterr().out.endswith("...; rope missing; bug_01 blank\n")


def test_a_class_has_a_row_for_each_student_and_a_column_for_each_exercise(tmp_path, capsys):
    handed_in(tmp_path)
    names = "--exercises", "rope", "linear", "rmsnorm"
    assert run(tmp_path, *names, "--csv") == 1
    *rows, ben = csv.reader(capsys.readouterr().out.splitlines())
    assert rows == [
        ["student", "rope", "linear", "rmsnorm", "points", "note"], ["of", "2", "3", "4", "9", ""],
        ["anna", "2", "3", "4", "9", ""],
    ]  # fmt: skip
    assert ben[:5] == ["ben", "0", "0", "2", "2"] and ben[6:] == []
    assert re.fullmatch(r"linear crashed in dx: .*; rmsnorm wrong \(2/4\) in dx: .*; rope missing", ben[5])
    assert run(tmp_path, *names, "--json") == 1
    students = json.loads(capsys.readouterr().out)["students"]
    assert [(each["student"], each["points"], each["of"]) for each in students] == [("anna", 9, 9), ("ben", 2, 9)]
    assert students[1]["exercises"][1]["crash"]["error"] == "IndexError"
    assert not list(tmp_path.rglob("progress.json"))
    assert run(tmp_path, "--exercises", "rope", "--only", "numpy") == 1
    text = (tmp_path / "anna" / "rope.py").read_text(encoding="utf-8")
    (tmp_path / "anna" / "rope.py").write_text("import cyclopts\n" + text, encoding="utf-8")
    assert run(tmp_path, "--exercises", "rope", "--only", "numpy") == 1
    before, after = (text.splitlines()[1] for text in re.split(r"(?=student)", capsys.readouterr().out)[1:])
    assert before.split() == ["anna", "2/2"] and after.split()[:4] == ["anna", "0/2", "rope", "crashed"]


def test_a_whole_course_includes_the_llama_in_whole_points(tmp_path, capsys):
    (tmp_path / "anna").mkdir()
    text = changed(("* counted).sum() / counted.sum()", "* counted).mean()"))
    (tmp_path / "anna" / "llama.py").write_text(text, encoding="utf-8")
    assert run(tmp_path, "--exercises", "all", "--csv") == 1
    head, of, anna = csv.reader(capsys.readouterr().out.splitlines())
    assert head[1:-2] == list(COURSE) and int(of[-2]) == sum(each.points for each in COURSE.values())
    assert anna[head.index("llama")] == anna[-2] == "52"


def test_a_cell_that_a_spreadsheet_would_compute_is_a_text():
    assert spreadsheet.row("=1+1", {"q": 1.5}, 1.5, "+a, b") == "'=1+1,1.5,1.5,\"'+a, b\""


def test_the_template_earns_its_first_point_and_is_never_written_over_a_file(tmp_path, capsys):
    path = tmp_path / "llama.py"
    assert run(path, "--template") == 0
    assert capsys.readouterr().out == f"{path}: fill in llama, then: numllama grade {path}\n"
    assert "    numllama grade llama.py\n" in path.read_text(encoding="utf-8")
    assert run(path, "--json") == 1
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert [point["name"] for point in file["points"] if point["earned"]] == ["embedding"] and not file["notes"]
    path.write_text("mine")
    assert run(path, "--template") == 2
    assert capsys.readouterr().err == f"error: {path} exists and is not overwritten: remove it to start again\n"
    assert path.read_text() == "mine"
    assert run(tmp_path / "nowhere" / "x.py", "--template") == 2
    assert "could not be written: No such file or directory" in capsys.readouterr().err


def test_the_template_has_every_value_with_its_shape():
    vectors = standard_vectors("gqa")
    c, (B, T) = vectors.config, vectors.tensors["tokens"].shape
    sizes = {"B": B, "T": T, "C": c.dim, "V": c.vocab_size, "H": c.n_heads, "K": c.n_kv_heads, "D": c.head_dim, "F": c.ffn_dim}
    shapes = dict(re.findall(r'values\[f?"(.*?)"\].*?(\([^()]*\)) ', TEMPLATE.replace("{i}", "0").replace("\n", "  \n")))
    names = {name.removeprefix("values/"): value for name, value in vectors.tensors.items() if name.startswith("values/")}
    assert {name for name in names if "layer.1" not in name} <= set(shapes)
    for name, shape in shapes.items():
        value = names.get(name, vectors.tensors.get(name, vectors.tensors.get(name.replace("d_", "d_values/", 1))))
        assert value.shape == eval(shape, sizes), name
    for name, shape in re.findall(r"\b((?:embed|norm|head|blocks\.i\.\w+)) (\(.*?\))", TEMPLATE):
        assert vectors.tensors[f"weights/{name.replace('.i.', '.0.')}"].shape == eval(shape, sizes), name


@pytest.mark.parametrize("arguments, sentence", [
    (["nowhere.py"], "nowhere.py does not exist: numllama grade nowhere.py --template writes a file to begin with"),
    (["."], ". is a folder without .py files"),
    (["mine.py", "--configurations", "gpa"], "configurations has 'gpa', but must be names of mha, gqa"),
    (["mine.py", "--seconds", "0"], "seconds is 0, but must be more than 0 and at most 86400"),
    (["mine.py", "--seconds", "nan"], "seconds is nan, but must be"),
    (["mine.py", "--seconds", "inf"], "seconds is inf, but must be"),
    (["mine.py", "--seed", "-1"], "seed is -1, but must not be negative"),
    (["/dev/null"], "/dev/null is not a regular file"),
    (["mine.py", "--csv", "--json"], "--csv and --json cannot be combined"),
    (["../clas", "--exercises", "rope"], "../clas does not exist"),
    (["mine.py", "--exercises", "rope"], "mine.py has no subfolders, but must have one for each student"),
    ([".", "--exercises", "rop"], "exercise is 'rop' (did you mean rope?), but must be one of linear, "),
    ([".", "--exercises", "rope", "--seed", "1"], "--exercises and --seed cannot be combined"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "mine.py":
        (tmp_path / "mine.py").write_text(RIGHT, encoding="utf-8")
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sentence}") and error.count("\n") == 1


def test_all_is_each_configuration_and_each_is_graded_once():
    assert chosen(["all"]) == tuple(STANDARD) and chosen(["gqa", "mha", "gqa"]) == ("gqa", "mha") and chosen([]) == PLAIN


@pytest.mark.thorough
def test_short_names_of_gains_and_their_gradients_mean_the_gain(graded):
    text = returning("return {'d_blocks.0.ffn_norm': np.zeros(16), 'd_blocks.0.attn_norm': np.zeros(16)}")
    lost = whys(graded(text))
    assert "instead of" in lost["d_ffn_norm (gain)"] and "instead of" in lost["d_attn_norm (gain)"]
    assert np.all([lost[name] == "not returned" for name in ("d_ffn_norm", "d_attn_norm")])


@pytest.mark.skipif(not PAGE.exists(), reason="tests without the documents")
def test_the_page_says_what_differs_in_each_configuration():
    table = PAGE.read_text(encoding="utf-8").partition("| configuration | what differs |")[2].partition("\n\n")[0]
    names = [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]*)`", row.split("|")[1])]
    assert sorted(names) == sorted(STANDARD) and names[:6] == ["mha", "gqa", "mqa", "odd-sizes", "large-eps", "ignored"]
    configs = {name: standard_vectors(name).config for name in STANDARD}
    assert f"`config.norm_eps` is {configs['large-eps'].norm_eps:g} " in table and configs["tied"].tie_embeddings
    odd = configs["odd-sizes"]
    assert (odd.n_heads, odd.head_dim, odd.dim) == (3, 6, 15) and "three query heads of six for a `dim` of 15" in table


@pytest.mark.skipif(not PAGE.exists(), reason="tests without the documents")
def test_the_transcripts_of_the_page_are_what_the_command_prints(tmp_path, monkeypatch, capsys):
    ben = changed(('v[at("swiglu")] = gate * sigmoid(gate) * up', 'v[at("swiglu")] = gate * sigmoid(up) * up'),
                  ('    g["d_weights/embed"] = dembed\n', ""))  # fmt: skip
    files = {"anna": RIGHT, "ben": ben, "carl": "import numpy as np\nimport numllama\n", "dora": TEMPLATE}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "course").mkdir()
    (tmp_path / "llama.py").write_text(ben, encoding="utf-8")
    for name, text in files.items():
        (tmp_path / "course" / f"{name}.py").write_text(text, encoding="utf-8")
    handed_in(tmp_path / "class")
    transcripts = re.findall(r"^```\n\$ numllama grade ([^\n]*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    assert len(transcripts) == 3
    for arguments, shown in transcripts:
        assert run(*arguments.split()) == 1
        assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == shown.splitlines()
