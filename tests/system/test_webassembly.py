"""What runs in WebAssembly, in a process that lacks what WebAssembly lacks. tests/wasm runs all of it there."""

import json
import subprocess
import sys
from concurrent.futures import CancelledError

import pytest

from numllama.system import webassembly
from numllama.system.progress import NoBar, progress_bar

LACKING = (
    "socket", "ssl", "asyncio", "multiprocessing", "mmap", "resource", "fcntl", "safetensors", "ml_dtypes", "cyclopts",
    "rich", "regex", "tqdm", "threadpoolctl", "matplotlib", "jinja2",
)  # fmt: skip
PROGRAM = """
import ctypes, json, subprocess, sys, tempfile, threading
from pathlib import Path
import numpy as np

def refused(*_, **__):
    raise RuntimeError("there are no threads, processes and shared libraries")

threading.Thread.start = subprocess.Popen.__init__ = ctypes.CDLL.__init__ = refused
sys.platform = "wasi"
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))    # None: importing it is an ImportError

import numllama as nl
from numllama import ops
from numllama.learn.exercises import check_file, exercise_text

lines = '''x, weight, rstd = cache
    n, dn = x * rstd, dout * weight
    dx = rstd * (dn - n * (dn * n).mean(-1, keepdims=True))
    print("here")
    return dx, (dout * n).reshape(-1, x.shape[-1]).sum(0)
'''
before = ops.rmsnorm_backward
with tempfile.TemporaryDirectory() as folder:
    path, found = Path(folder) / "rmsnorm.py", []
    for body in (lines, lines.replace("dx = rstd", "dx = -rstd"), "return ops.rmsnorm_backward(dout, cache)", "return 1 / 0"):
        path.write_text(exercise_text("rmsnorm").replace('raise NotImplementedError("your turn")', body), encoding="utf-8")
        results = check_file(path, "rmsnorm")["results"]
        found.append({each["name"]: f"{each['verdict']} {each['message']}".strip() for each in results})
model = nl.Transformer(nl.ModelConfig(vocab_size=8, dim=8, n_layers=1, n_heads=2, max_seq_len=8), seed=0)
optimizer, tokens, losses = nl.AdamW(model.params), np.arange(9)[None] % 8, []
for _ in range(2):
    loss, grads = model.loss_and_grads(tokens[:, :-1], tokens[:, 1:])
    optimizer.step(grads, 1e-2)
    losses.append(float(loss))
same = ops.rmsnorm_backward is before and "student" not in sys.modules and folder not in sys.path
try:
    nl.Transformer(model.config, compute_dtype="bfloat16")
except nl.NumllamaError as error:
    said = str(error)
print(json.dumps({"found": found, "losses": losses, "same": same, "said": said, "ids": nl.generate(model, [1, 2], 3)}))
"""


def test_exercises_and_training_need_nothing_but_numpy():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(LACKING)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout.splitlines()[-1])
    right, sign, borrowed, crash = there["found"]
    assert set(right.values()) == {"right"}
    assert sign["dweight"] == "right" and sign["dx"] == "wrong the sign"
    assert "PermissionError: numllama's rmsnorm_backward is closed" in borrowed["dx"]
    assert crash["dx"].endswith("in rmsnorm_backward: ZeroDivisionError: division by zero")
    assert there["same"], "what the file has changed is undone"
    assert there["losses"][1] < there["losses"][0] and len(there["ids"]) == 3
    assert there["said"] == "bfloat16 needs the package ml_dtypes: pip install ml_dtypes"


def test_a_pool_without_threads_has_done_its_work_when_it_is_given(monkeypatch):
    monkeypatch.setattr(webassembly, "IN_WEBASSEMBLY", True)
    with webassembly.thread_pool(2) as pool:
        futures = [pool.submit(int, text) for text in ("7", "x")]
        assert all(future.done() for future in futures) and futures[0].result() == 7
        with pytest.raises(ValueError, match="invalid literal"):
            futures[1].result()
        assert list(pool.map(abs, [-1, 2])) == [1, 2]
    with pytest.raises(CancelledError):
        cancelled = webassembly.thread_pool(1).submit(raise_cancelled)
        cancelled.result()


def raise_cancelled():
    raise CancelledError


def test_a_progress_bar_that_nobody_sees_counts_and_closes():
    with progress_bar(False, total=3) as bar:
        bar.update(2)
    bar.close()
    assert isinstance(bar, NoBar)
    with progress_bar(total=3, disable=True) as bar:
        assert type(bar).__name__ == "tqdm"
