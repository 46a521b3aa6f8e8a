"""Kills: whatever moment they come at, `--resume auto` comes to the same end, and no checkpoint that was whole is lost."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import numllama
from numllama.cli import main
from numllama.errors import DamagedError
from numllama.training.checkpoint import read_state, step_folders

TEXT = "The quick brown fox jumps over the lazy dog.\n" * 30
FLAGS = dict(
    dim=16, n_layers=1, n_heads=2, ffn_dim=16, max_seq_len=8, dropout=0.1,
    batch_size=4, eval_batches=1, warmup_steps=2, workers=2,
)  # fmt: skip
PROGRAM = """
import sys
sys.modules["matplotlib"] = None  # a run that draws nothing ends a second sooner
from numllama.training import parallel
parallel.TEAM_AFTER = {team_after}
from numllama.cli import main
main()
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")


def errors_of(process: subprocess.Popen, seconds: int = 60) -> str:
    """What a process has written to standard error, as soon as it is over.

    Of the seconds that it may take only those count in which this process runs too: that a machine pauses is no hang.
    """
    for _ in range(4 * seconds):
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=0.25)[1]
    raise AssertionError(f"it goes on after {seconds} s")


class Run:
    """A run that is started again and again, by the same command.

    Parameters
    ----------
    team_after : float
        Seconds of work after which a run goes on with processes.
    """

    def __init__(self, folder: Path, name: str, team_after: float, **changes) -> None:
        book = folder / "book.txt"
        book.write_text(TEXT)
        self.out, self.kills, self.saves_hit = folder / name, 0, 0
        flags = [str(part) for flag, value in (FLAGS | changes).items() for part in (f"--{flag.replace('_', '-')}", value)]
        program = PROGRAM.format(team_after=team_after)
        self.command = [sys.executable, "-c", program, "train", "--data", book, *flags, "--resume", "auto", "--out", self.out]

    def start(self) -> subprocess.Popen:
        env = os.environ | {"PYTHONPATH": str(Path(numllama.__file__).parents[1])}
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command, env=env, stdout=subprocess.DEVNULL, stderr=pipe, text=True, start_new_session=True)

    def steps_logged(self) -> int:
        with suppress(OSError):
            return (self.out / "metrics.jsonl").read_bytes().count(b"\n")
        return 0

    def after_progress(self, process: subprocess.Popen, steps: int) -> None:
        """Wait until this life has done some steps, or has come to its end."""
        begun, deadline = None, time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            n = self.steps_logged()
            if begun is None or n < begun:  # a log is cut to the checkpoint when a run goes on
                begun = n
            if n >= begun + steps:
                return
            time.sleep(0.005)

    def kill(self, process: subprocess.Popen) -> None:
        """Kill the run, and see that its checkpoints are whole and that the newest was not lost."""
        before = newest(self.out)
        process.kill()
        process.communicate()
        self.kills += process.returncode == -signal.SIGKILL
        self.saves_hit += any(self.out.glob(".part-step-*"))
        assert newest(self.out) >= before

    def finish(self) -> str:
        process = self.start()
        err = errors_of(process, 600)
        assert process.returncode == 0, err
        lines = (self.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1))
        return learnt(self.out)


def newest(out: Path) -> int:
    """The newest step that can be gone on from; all step folders are whole, at whatever moment a kill came."""
    steps = [0]
    for folder in step_folders(out):
        try:
            state = read_state(folder)
            sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in state["sha256"]}
        except (FileNotFoundError, DamagedError):
            assert not folder.exists()  # what is old is deleted meanwhile
            continue
        assert state["sha256"] == sums
        steps.append(state["step"])
    return max(steps)


def learnt(out: Path) -> str:
    """A checksum of weights and moments at the end."""
    files = sorted(step_folders(out)[0].glob("*.safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_a_run_that_is_killed_again_and_again_comes_to_the_same_end(tmp_path):
    settings = dict(team_after=1e9, steps=80, eval_every=3)
    straight = Run(tmp_path, "straight", **settings)
    with pytest.raises(SystemExit):
        main(list(map(str, straight.command[3:])))
    expected = learnt(straight.out)
    run, moments = Run(tmp_path, "killed", **settings), random.Random(0)
    for _ in range(2):
        process = run.start()
        run.after_progress(process, moments.randrange(5, 25))
        run.kill(process)
    assert run.kills == 2
    assert run.finish() == expected


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds a run's processes under /proc")
@pytest.mark.parametrize("seed", range(4))
def test_a_hundred_kills_at_any_moment_leave_no_trace(tmp_path, seed):
    """Twenty-five for each seed: of the run, also while it starts and while it saves, and besides of one of its processes."""
    settings = dict(team_after=-1.0, steps=600, eval_every=1)
    expected = Run(tmp_path, "straight", **settings).finish()
    moments, kills, workers_killed, saves_hit, runs = random.Random(seed), 0, 0, 0, 0
    while kills < 25:
        run = Run(tmp_path, f"killed-{runs}", **settings)
        while kills + run.kills < 25:
            process = run.start()
            kind = moments.choice(["start", "any", "any", "any", "worker"])
            if kind == "start":
                time.sleep(moments.uniform(0, 1.5))
            else:
                run.after_progress(process, moments.randrange(1, 30))
                time.sleep(moments.uniform(0, 0.05))
            if process.poll() is not None:
                process.communicate()
                break
            if kind == "worker" and (pids := children(process.pid)):
                before = newest(run.out)
                os.kill(moments.choice(pids), signal.SIGKILL)
                err = errors_of(process, 30)
                if process.returncode == 0 and run.steps_logged() == settings["steps"]:
                    break  # the worker had nothing left to do
                assert process.returncode == 2
                assert "error: a worker process ended (code -9)" in err
                assert newest(run.out) >= before
                workers_killed += 1
                continue
            run.kill(process)
        assert run.finish() == expected
        kills, saves_hit, runs = kills + run.kills, saves_hit + run.saves_hit, runs + 1
    print(f"\n{kills} kills, {saves_hit} of them in the middle of a save, and {workers_killed} of a worker, in {runs} run(s)")
    assert saves_hit > 0
    assert workers_killed > 0


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system shares no memory by file descriptors")
def test_sigterm_to_all_processes_of_a_run_saves_and_exits_with_0(tmp_path):
    run = Run(tmp_path, "terminated", team_after=-1.0, steps=100_000, eval_every=1000)
    process = run.start()
    run.after_progress(process, 5)
    for pid in children(process.pid):  # first, and the run needs them to the end of its step
        os.kill(pid, signal.SIGTERM)
    run.after_progress(process, 2)
    process.send_signal(signal.SIGTERM)
    err = errors_of(process)
    assert process.returncode == 0, err
    assert newest(run.out) == run.steps_logged() > 0
