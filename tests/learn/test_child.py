"""A student's file in a process of its own: what it may not reach, and what it cannot harm."""

import os

import pytest
from learn.classroom import rmsnorm, with_body

from numllama.learn.exercises import check_file, check_text

WAYS = {  # to a solution that somebody else wrote
    "its name": "from numllama.ops import rmsnorm_backward as f",
    "its file": "from numllama.ops.rmsnorm import rmsnorm_backward as f",
    "the reference": "f = ops.rmsnorm_backward.reference",
    "what it wraps": "f = ops.rmsnorm_backward.__wrapped__",
    "importlib": "import importlib; f = importlib.import_module('numllama.ops.rmsnorm').rmsnorm_backward",
    "a reload": "import importlib, numllama.ops.rmsnorm as m; f = importlib.reload(m).rmsnorm_backward",
    "a second import": "import sys; del sys.modules['numllama.ops.rmsnorm']; "
                       "from numllama.ops.rmsnorm import rmsnorm_backward as f",
    "its source": "names = {}; exec(open(ops.__file__.replace('__init__', 'rmsnorm')).read(), names); "
                  "f = names['rmsnorm_backward']",
    "its source again": "import inspect; inspect.getsource(ops.rmsnorm); f = None",
    "a loader": "import importlib.util as u; s = u.spec_from_file_location('x', ops.__file__.replace('__init__', 'rmsnorm')); "
                "m = u.module_from_spec(s); s.loader.exec_module(m); f = m.rmsnorm_backward",
    "another op": "from numllama.ops.add_rmsnorm import rmsnorm_backward as f",
    "an op that uses it": "f = lambda d, c: ops.add_rmsnorm_backward((None, d), (c, None))[1:]",
    "a faster version": "from numllama.cpu.rmsnorm import rmsnorm_backward as f",
    "a faster version that is there": "import sys; f = sys.modules['numllama.cpu.rmsnorm'].rmsnorm_backward",
    "the plain Llama": "from numllama.learn import plain_llama; f = plain_llama.ops.rmsnorm_backward",
    "the exercises": "from numllama.learn.exercises import solution_text; f = None",
    "the model": "import numllama as nl; f = nl.Transformer",
}  # fmt: skip


def test_no_way_leads_to_a_solution():
    tries = "\n".join(
        f"def way_{i}():\n    {way.replace('; ', chr(10) + '    ')}\n    return f\n" for i, way in enumerate(WAYS.values())
    )
    body = f"""\
x, weight, rstd = cache
for i in range({len(WAYS)}):
    try:
        globals()[f"way_{{i}}"]()(dout, cache)
        print(i, "is open")
    except (PermissionError, ImportError, KeyError, OSError) as error:
        print(i, type(error).__name__, "closed" in str(error))
return dout, weight"""
    found = check_text("rmsnorm", tries + with_body("rmsnorm", body))
    lines = found["printed"].splitlines()
    assert len(lines) == len(WAYS), (found["printed"], found["results"])
    assert not [way for way, line in zip(WAYS, lines, strict=True) if "open" in line]
    unexplained = [way for way, line in zip(WAYS, lines, strict=True) if not line.endswith("True")]
    assert set(unexplained) <= {"its source again", "a faster version that is there"}  # inspect's own words; no such module
    found = check_text("rmsnorm", with_body("rmsnorm", "return ops.rmsnorm_backward(dout, cache)"))
    sentence = "numllama's rmsnorm_backward is closed while a file is checked: it has what you write yourself"
    assert found["outcome"] == "crashed" and found["results"][1]["message"].endswith(sentence)


def test_a_right_file_is_right_in_a_process_of_its_own_and_what_it_prints_is_kept():
    found = check_text("rmsnorm", rmsnorm("print('x' * 100_000); import os; print(os.getpid())"))
    assert (found["outcome"], found["points"]) == ("right", 4)
    assert found["printed"].startswith("xxx") and len(found["printed"]) <= 4000


def test_an_endless_loop_ends_with_the_time_limit():
    found = check_text("rmsnorm", with_body("rmsnorm", "while True: pass"), seconds=1)
    assert (found["outcome"], found["points"]) == ("timed out", 0)
    assert found["message"].startswith("took longer than 1 s") and found["seconds"] < 30


@pytest.mark.parametrize("body, message", [
    ("import os; os._exit(3)", "ended the process with exit code 3"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL: a crash outside of Python, or not enough"),
    ("import shutil, os; shutil.rmtree(os.path.dirname(os.getcwd())); return dout, dout", ""),
])  # fmt: skip
def test_a_file_that_ends_its_process_or_deletes_files_harms_nobody(tmp_path, body, message):
    (tmp_path / "rmsnorm.py").write_text(with_body("rmsnorm", body), encoding="utf-8")
    found = check_file(tmp_path / "rmsnorm.py", "rmsnorm", seconds=20)
    assert (found["outcome"], found["points"]) == ("crashed", 0)
    assert message in found["message"] and found["message"] and found["crash"] is None
    assert os.listdir(tmp_path) == ["rmsnorm.py"]
