"""Kills, signals and full disks: whatever moment they come at, `--resume auto` comes to the same end, and no checkpoint that was
whole is lost. The soak takes `NUMLLAMA_KILLS` of them, 100 if it is not set.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

import numllama
from numllama.cli import main
from numllama.errors import CheckpointError
from numllama.training.checkpoint import read_state, step_folders

TEXT = "The quick brown fox jumps over the lazy dog.\n" * 30
FLAGS = dict(
    dim=16, n_layers=1, n_heads=2, ffn_dim=16, max_seq_len=8, dropout=0.1,
    batch_size=4, eval_batches=1, warmup_steps=2, workers=2,
)  # fmt: skip
KILLS = int(os.environ.get("NUMLLAMA_KILLS", 100))
PROGRAM = """
import sys
sys.modules["matplotlib"] = None  # a run that draws nothing ends a second sooner
from numllama.parallel import shards
shards.PROCESSES_AFTER = {processes_after}
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
    processes_after : float
        Seconds of work after which a run goes on with processes.
    """

    def __init__(self, folder: Path, name: str, processes_after: float, **changes) -> None:
        book = folder / "book.txt"
        book.write_text(TEXT)
        self.out, self.kills, self.saves_hit = folder / name, 0, 0
        self.steps = changes["steps"]
        flags = [str(part) for flag, value in (FLAGS | changes).items() for part in (f"--{flag.replace('_', '-')}", value)]
        program = PROGRAM.format(processes_after=processes_after)
        self.command = [sys.executable, "-c", program, "train", "--data", book, *flags, "--resume", "auto", "--out", self.out]

    def start(self, output: str = "read") -> subprocess.Popen:
        """Begin or go on, with standard error that is read, both outputs in one pipe, or both on a full disk."""
        env = os.environ | {"PYTHONPATH": str(Path(numllama.__file__).parents[1])}
        pipe, options = subprocess.PIPE, dict(text=True, start_new_session=True, env=env)
        if output == "full":
            with open("/dev/full", "wb") as full:
                return subprocess.Popen(self.command, stdout=full, stderr=full, **options)
        out, err = (pipe, subprocess.STDOUT) if output == "pipe" else (subprocess.DEVNULL, pipe)
        return subprocess.Popen(self.command, stdout=out, stderr=err, **options)

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

    @property
    def finished(self) -> bool:
        """Whether all steps are done, saved and evaluated."""
        with suppress(OSError, ValueError):
            return json.loads((self.out / "result.json").read_text())["step"] == self.steps == newest(self.out)
        return False

    def finish(self) -> str:
        """Come to the end without a disturbance; returns :func:`learnt`."""
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
        except (FileNotFoundError, CheckpointError):
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
    settings = dict(processes_after=1e9, steps=80, eval_every=3)
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


SIGNALS = {"hang up": signal.SIGHUP, "ctrl-c": signal.SIGINT, "scheduler": signal.SIGTERM} if os.name != "nt" else {}
CODES = {"hang up": 129, "ctrl-c": 130, "scheduler": 0}
KINDS = ["start", "any", "any", "unread", "worker", "disk", "moment", *SIGNALS, "tee"]


def disturb(kind: str, run: Run, moments: random.Random) -> None:
    """Start or go on with a run, and do something to it; whatever that is, exit code 0 is for runs that are done.

    start, any : killed at once, or after some steps, which may be in an evaluation or a save
    unread     : the same, with outputs that nobody can write
    worker     : one of its processes is killed
    disk       : no file may grow any more
    moment     : the same, for a moment
    hang up, ctrl-c, scheduler : a signal, now and then twice
    tee        : Ctrl-C that tells the reader of both outputs, too
    """
    before = newest(run.out)
    process = run.start({"unread": "full", "tee": "pipe"}.get(kind, "read"))
    if kind == "start":
        time.sleep(moments.uniform(0, 1.5))
    else:
        run.after_progress(process, moments.randrange(1, 30))
        time.sleep(moments.uniform(0, 0.05))
    if process.poll() is None:
        {"worker": kill_a_worker, "disk": fill_the_disk, "moment": fill_the_disk_for_a_moment, "tee": press_ctrl_c}.get(
            kind, send if kind in SIGNALS else kill
        )(kind, run, process, moments)
    errors_of(process)
    code = process.returncode
    assert newest(run.out) >= before
    if code == 0 and kind != "scheduler":
        assert run.finished, kind
    run.saves_hit += any(run.out.glob(".part-step-*"))
    if not run.finished:
        allowed = {"worker": {2}, "disk": {2}, "moment": {2}, "tee": {130}}.get(kind, {CODES.get(kind, -signal.SIGKILL)})
        assert code in allowed, (kind, code)
        if kind in (*SIGNALS, "tee"):
            assert newest(run.out) == run.steps_logged()


def kill(kind: str, run: Run, process: subprocess.Popen, moments: random.Random) -> None:
    process.kill()


def kill_a_worker(kind: str, run: Run, process: subprocess.Popen, moments: random.Random) -> None:
    pids = children(process.pid)
    if not pids:  # there are none yet
        run.after_progress(process, 3)
        pids = children(process.pid)
    with suppress(ProcessLookupError):
        os.kill(moments.choice(pids or [process.pid]), signal.SIGKILL)


def fill_the_disk(kind: str, run: Run, process: subprocess.Popen, moments: random.Random) -> None:
    import resource

    with suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (moments.choice([0, 100, 3000]), resource.RLIM_INFINITY))


def fill_the_disk_for_a_moment(kind: str, run: Run, process: subprocess.Popen, moments: random.Random) -> None:
    import resource

    fill_the_disk(kind, run, process, moments)
    time.sleep(moments.uniform(0, 0.02))
    with suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def send(kind: str, run: Run, process: subprocess.Popen, moments: random.Random) -> None:
    process.send_signal(SIGNALS[kind])
    if kind != "ctrl-c" and moments.random() < 0.5:
        time.sleep(moments.uniform(0, 0.1))
        process.send_signal(SIGNALS[kind])


def press_ctrl_c(kind: str, run: Run, process: subprocess.Popen, moments: random.Random) -> None:
    process.stdout.close()
    process.stdout = None  # which communicate() would read
    process.send_signal(signal.SIGINT)


on_linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds a run's processes under /proc, and limits them")


@on_linux
@pytest.mark.parametrize("kind", [
    "worker", "disk", "moment", *(pytest.param(each, marks=pytest.mark.thorough) for each in ("unread", "hang up", "tee")),
])  # fmt: skip
def test_whatever_happens_to_a_run_it_comes_to_the_same_end(tmp_path, expected_end, kind):
    run = Run(tmp_path, "disturbed", processes_after=-1.0 if kind == "worker" else 1e9, steps=40, eval_every=3)
    disturb(kind, run, random.Random(kind))
    assert run.finish() == expected_end


@pytest.fixture(scope="module")
def expected_end(tmp_path_factory):
    """What a run of 40 steps has learnt in the end."""
    return Run(tmp_path_factory.mktemp("straight"), "straight", processes_after=1e9, steps=40, eval_every=3).finish()


@pytest.mark.soak
@on_linux
@pytest.mark.parametrize("seed", range(4))
def test_kills_at_any_moment_leave_no_trace(tmp_path, seed):
    """A quarter of them for each seed."""
    settings = dict(processes_after=-1.0, steps=300, eval_every=1, eval_batches=4)
    expected = Run(tmp_path, "straight", **settings).finish()
    moments, counts, saves_hit, runs, left = random.Random(seed), Counter(), 0, 0, []
    while counts.total() < KILLS // 4:
        run = Run(tmp_path, f"disturbed-{runs}", **settings)
        while counts.total() < KILLS // 4 and not run.finished:
            left = left or moments.sample(KINDS, len(KINDS))
            kind = left.pop()
            disturb(kind, run, moments)
            counts[kind] += 1
        assert run.finish() == expected
        saves_hit, runs = saves_hit + run.saves_hit, runs + 1
    print(f"\n{counts.total()} disturbances in {runs} run(s), {saves_hit} of them in the middle of a save: {dict(counts)}")
    assert saves_hit > 0 or KILLS < 400
    assert not set(KINDS) - counts.keys() or 4 * len(KINDS) > KILLS


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system shares no memory by file descriptors")
def test_sigterm_to_all_processes_of_a_run_saves_and_exits_with_0(tmp_path):
    run = Run(tmp_path, "terminated", processes_after=-1.0, steps=100_000, eval_every=1000)
    process = run.start()
    run.after_progress(process, 5)
    for pid in children(process.pid):  # first, and the run needs them to the end of its step
        os.kill(pid, signal.SIGTERM)
    run.after_progress(process, 2)
    process.send_signal(signal.SIGTERM)
    err = errors_of(process)
    assert process.returncode == 0, err
    assert newest(run.out) == run.steps_logged() > 0
