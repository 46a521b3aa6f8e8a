"""Real ranks, started by mpirun: the bits of one process; a rank that dies ends the job; the example, from the command line."""

import importlib.util
import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from numllama.interop import load_run
from numllama.training import checkpoint

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "train_shakespeare.py"
spec = importlib.util.spec_from_file_location("mpi_runs", HERE / "runs.py")
runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runs)


@pytest.fixture(scope="session")
def one_process():
    """What 50 steps give without ranks, in both dtypes."""
    from numllama import blocks
    from numllama.parallel import ranks

    before = blocks.PIECE_ELEMENTS, ranks.BUCKET_PIECES
    try:
        return {dtype: runs.run(dtype=dtype, workers=1) for dtype in ("float64", "float32")}
    finally:
        blocks.PIECE_ELEMENTS, ranks.BUCKET_PIECES = before


def finished(process, seconds=60):
    """Exit code and output."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_ranks_with_and_without_zero_1_give_what_one_process_gives(mpirun, one_process, n):
    code, out, err = finished(mpirun(n, HERE / "runs.py", "equal"))
    assert code == 0, err
    *by_shard, wide, narrow = json.loads(out)
    for way, result in zip(runs.WAYS, by_shard, strict=True):
        expected = json.loads(json.dumps(one_process[way["dtype"]]))
        assert result == expected  # to the bit: losses, norms, estimates, parameters
        assert len(result["reports"]) == 50
    for dtype, rtol, result in (("float64", 1e-12, wide), ("float32", 1e-6, narrow)):
        losses, expected = ([r[0] for r in run["reports"]] for run in (result, one_process[dtype]))
        assert losses == pytest.approx(expected, rel=rtol)
        assert losses[-1] < losses[0]
        in_order = n in (1, 4)  # of four shards: all on one rank, or one on each
        assert in_order == (result["digest"] == one_process[dtype]["digest"])


def runs_on(pid):
    """Whether a process is there and is no zombie, which nobody may be left to bury."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False


def ranks_begun(process, folder, n):
    """The process id of each rank, as soon as all have begun."""
    while len(list(folder.iterdir())) < n and process.poll() is None:
        time.sleep(0.05)
    return dict(map(int, path.name.split("-")) for path in folder.iterdir())


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_is_killed_ends_the_job_and_is_named(mpirun, tmp_path, victim):
    process = mpirun(3, HERE / "runs.py", "go-on", tmp_path)
    pids = ranks_begun(process, tmp_path, 3)
    start = time.monotonic()
    os.kill(pids[victim], signal.SIGKILL)
    code, _, err = finished(process, seconds=30)
    assert code != 0
    assert time.monotonic() - start < 30
    assert re.search(rf"rank {victim} .*(killed|signal 9)", err, re.IGNORECASE | re.DOTALL), err
    while any(map(runs_on, pids.values())):  # mpirun ends a moment before the last of them
        assert time.monotonic() - start < 30
        time.sleep(0.02)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_stands_still_ends_the_job_and_is_named(mpirun, tmp_path, victim):
    """As one on a machine that has vanished: no message tells of its end."""
    process = mpirun(3, HERE / "runs.py", "go-on", tmp_path, 2)
    pids = ranks_begun(process, tmp_path, 3)
    start = time.monotonic()
    os.kill(pids[victim], signal.SIGSTOP)
    code, _, err = finished(process, seconds=30)
    assert code != 0
    assert 2 < time.monotonic() - start < 30
    assert re.search(rf"error: rank [012] of 3 on \S+: no answer from rank {victim} on \S+ for 2 seconds", err), err
    while any(map(runs_on, pids.values())):
        assert time.monotonic() - start < 30
        time.sleep(0.02)


def test_a_rank_that_raises_ends_the_job_and_is_named(mpirun):
    code, _, err = finished(mpirun(3, HERE / "runs.py", "raise"), seconds=30)
    assert code != 0
    assert re.search(r"error: rank 1 of 3 on .*rank 1 has had enough", err, re.DOTALL), err


MODEL, TRAINING = dict(dim=32, n_layers=2), dict(batch_size=6, shards=3, eval_every=4, eval_batches=2, warmup_steps=2)
FLAGS = [word for name, value in (MODEL | TRAINING).items() for word in (f"--{name.replace('_', '-')}", value)]
TEXT = "To be, or not to be, that is the question.\n" * 60


def metrics(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"], line.get("val_loss")) for line in lines]


@pytest.mark.skipif(not EXAMPLE.exists(), reason="tests without the examples")
def test_the_example_trains_on_ranks_and_goes_on_with_fewer(mpirun, tmp_path):
    """As from the command line: rank 0 alone logs and saves, and what it saves is what one process would have saved."""
    from numllama.commands.train_run import train_run

    one, many, text = tmp_path / "one", tmp_path / "many", tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    train_run(text, None, "cpu", one, False, MODEL, TRAINING | dict(steps=8, workers=1))
    parallel = ["--parallel", "mpi", "--shard-optimizer", "--out", many]
    code, out, err = finished(mpirun(3, EXAMPLE, "--data", text, *FLAGS, "--steps", 4, *parallel))
    assert code == 0, err
    assert out.count("model: ") == out.count("validation loss: ") == 1
    assert "on cpu with 3 rank(s)" in out
    code, out, err = finished(mpirun(2, EXAMPLE, "--resume", "--steps", 8, *parallel))
    assert code == 0, err
    # the cosine of 4 steps is another one than that of 8, so that only the first two steps, of the warm-up, are the same
    assert metrics(many)[:2] == metrics(one)[:2]
    assert [line[0] for line in metrics(many)] == [line[0] for line in metrics(one)]
    folders = [checkpoint.find_step(run) for run in (one, many)]
    assert [folder.name for folder in folders] == ["step-000008"] * 2
    sizes = [(folder / "optimizer.safetensors").stat().st_size for folder in folders]
    assert sizes[0] == sizes[1]
    assert np.isfinite(load_run(many).params.flat).all()


@pytest.mark.skipif(not EXAMPLE.exists(), reason="tests without the examples")
def test_what_cannot_be_is_said_once_and_nothing_hangs(mpirun, tmp_path):
    code, _, err = finished(mpirun(3, EXAMPLE, "--parallel", "mpi", "--data", tmp_path / "nothing", "--out", tmp_path / "run"))
    assert code == 2
    assert err.count("error: ") == 1
    assert re.search(r"error: rank 0 of 3 on \S+: .*nothing does not exist", err)
    code, _, err = finished(mpirun(2, EXAMPLE, "--steps", 1, "--out", tmp_path / "run"))
    assert code == 2
    assert "each of which would train alone: add --parallel mpi" in err
    assert not (tmp_path / "run").exists()
