"""Kills and signals of a job of several ranks: `--resume auto`, with any number of ranks, comes to the end of one process."""

import os
import random
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from commands.test_train import Run, children, errors_of, learnt, newest

from numllama.cli import main

RUNS = Path(__file__).with_name("runs.py")
pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds a job's ranks under /proc")


class Job(Run):
    """A run whose steps are done by ranks; how many, each start may choose anew."""

    def __init__(self, folder, name, mpirun, **changes):
        super().__init__(folder, name, 1e9, shards=4, **changes)
        self.mpirun = mpirun
        at = self.command.index("--workers")
        self.arguments = [*self.command[3:at], *self.command[at + 2 :], "--parallel", "mpi"]

    def start(self, ranks=2, *more):
        return self.mpirun(ranks, RUNS, *self.arguments, *more)

    def finish_alone(self):
        """What one process learns."""
        with pytest.raises(SystemExit):
            main(list(map(str, self.command[3:])))
        return learnt(self.out)


def ended(process, pids, seconds=30):
    """Standard error of a job that is over, all of its ranks included, after at most so many seconds."""
    try:
        err = errors_of(process, seconds)
        for _ in range(100):  # mpirun ends a moment before the last of them
            if not any(map(state, pids)):
                return err
            time.sleep(0.05)
        raise AssertionError("some ranks go on")
    except AssertionError as error:
        raise AssertionError(f"{error}: mpirun {state(process.pid)}, ranks {[state(pid) for pid in pids]}") from error


def state(pid):
    """What a process does; nothing if it is gone, or if only nobody has buried it."""
    with suppress(OSError):
        found = re.search(r"State:\t(.*)", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))[1]
        return "" if found.startswith("Z") else found
    return ""


def kill_a_rank(job, moments, ranks, *more):
    """Kill one of the ranks at some moment; whether there was one. What was saved stays."""
    process = job.start(ranks, *more)
    if moments.random() < 0.2:
        time.sleep(moments.uniform(0.3, 2))
    else:
        job.after_progress(process, moments.randrange(1, 30))
        time.sleep(moments.uniform(0, 0.05))
    pids = children(process.pid)
    before = newest(job.out)
    if process.poll() is not None or not pids:
        process.terminate()
        ended(process, pids)
        return False
    with suppress(ProcessLookupError):
        os.kill(moments.choice(pids), signal.SIGKILL)
    ended(process, pids)
    assert newest(job.out) >= before
    if process.returncode == 0:  # its ranks had come to their end
        return False
    job.kills += 1
    job.saves_hit += any(job.out.glob(".part-step-*"))
    return True


def test_a_job_whose_ranks_are_killed_comes_to_the_end_of_one_process(tmp_path, mpirun):
    settings = dict(steps=45, eval_every=3)
    expected = Job(tmp_path, "straight", mpirun, **settings).finish_alone()
    job, moments = Job(tmp_path, "killed", mpirun, **settings), random.Random(0)
    for ranks, more in ((3, ["--shard-optimizer"]), (2, [])):
        process = job.start(ranks, *more)
        job.after_progress(process, moments.randrange(4, 12))
        pids, before = children(process.pid), newest(job.out)
        os.kill(moments.choice(pids), signal.SIGKILL)
        ended(process, pids)
        assert process.returncode != 0
        assert newest(job.out) >= before
    assert job.finish() == expected


def to_ranks(process):
    """As srun does."""
    for pid in children(process.pid):
        os.kill(pid, signal.SIGTERM)


def to_one_rank(process):
    os.kill(children(process.pid)[1], signal.SIGTERM)


def to_mpirun(process):
    process.send_signal(signal.SIGUSR1)


@pytest.mark.parametrize("send", [to_ranks, to_one_rank, to_mpirun])
def test_a_signal_to_end_saves_and_exits_with_0(tmp_path, mpirun, send):
    job = Job(tmp_path, "terminated", mpirun, steps=100_000, eval_every=100_000)
    process = job.start(3)
    job.after_progress(process, 5)
    pids = children(process.pid)
    send(process)
    err = ended(process, pids, seconds=60)
    assert process.returncode == 0, err
    assert newest(job.out) == job.steps_logged() > 0


def test_sigterm_to_mpirun_ends_everything_and_loses_nothing_that_was_saved(tmp_path, mpirun):
    """It hands the signal on, and a second later it kills: who saves in less has saved."""
    job = Job(tmp_path, "terminated", mpirun, steps=100_000, eval_every=10)
    process = job.start(3)
    job.after_progress(process, 25)
    pids, before = children(process.pid), newest(job.out)
    process.terminate()
    ended(process, pids)
    assert process.returncode != 0  # that is mpirun's own
    assert newest(job.out) >= before > 0


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2))
def test_fifty_kills_of_ranks_leave_no_trace(tmp_path, mpirun, seed):
    """Twenty-five for each seed: of any of one to four ranks, with ZeRO-1 or without, also while they start and save."""
    settings = dict(steps=600, eval_every=1)
    expected = Job(tmp_path, "straight", mpirun, **settings).finish_alone()
    moments, kills, saves_hit, jobs = random.Random(seed), 0, 0, 0
    while kills < 25:
        job = Job(tmp_path, f"killed-{jobs}", mpirun, **settings)
        while kills + job.kills < 25:
            if not kill_a_rank(job, moments, moments.randint(1, 4), *moments.choice([[], ["--shard-optimizer"]])):
                break
        assert job.finish() == expected
        kills, saves_hit, jobs = kills + job.kills, saves_hit + job.saves_hit, jobs + 1
    print(f"\n{kills} kills of a rank, {saves_hit} of them in the middle of a save, in {jobs} run(s)")
