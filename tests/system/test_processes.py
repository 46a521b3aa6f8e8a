"""Processes: results in order, errors as they are, and a child that dies is noticed."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import count, islice
from operator import mul
from pathlib import Path

import pytest

import numllama
from numllama.errors import NumllamaError
from numllama.system import processes
from numllama.system.processes import Processes, available_cores


def test_results_come_in_the_order_of_the_items():
    with Processes(partial(mul, 3), 2) as processes:
        assert list(processes.map(range(50))) == [3 * i for i in range(50)]
        assert list(processes.map([])) == []


def test_only_a_few_items_are_taken_ahead():
    taken = count()
    with Processes(abs, 2) as processes:
        results = processes.map(next(taken) for _ in range(10**9))
        assert list(islice(results, 20)) == list(range(20))
        results.close()
    assert next(taken) < 40


def test_an_error_is_raised_as_it_is_and_the_children_go_on():
    with Processes(int, 1) as processes:
        with pytest.raises(ValueError, match="'x'"):
            list(processes.map(["1", "x", "2"]))
        assert list(processes.map(["3"])) == [3]


def test_whoever_waits_for_something_else_hears_of_an_error_before_the_future_tells():
    heard = []
    with Processes(int, 1) as processes:
        future = processes.submit("x", failed=lambda: (time.sleep(0.05), heard.append(True)))
        with pytest.raises(ValueError, match="'x'"):
            future.result()
        assert heard
        assert processes.submit("3", failed=heard.clear).result() == 3
        assert heard


def test_what_a_function_prints_is_no_answer():
    with Processes(print, 1) as processes:
        assert list(processes.map(["hello"])) == [None]


def test_a_child_that_dies_is_noticed():
    with Processes(os._exit, 1) as processes, pytest.raises(NumllamaError, match=r"a worker process ended \(code 7\)"):
        list(processes.map([7]))


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals go to one process here")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_is_for_the_parent_however_early_it_comes(number):
    with Processes(abs, 2) as processes:
        for pid in processes.pids:  # which are not even interpreters yet
            os.kill(pid, number)
        assert list(processes.map([-1, -2, -3])) == [1, 2, 3]
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_there_is_at_least_one_core():
    assert available_cores() >= 1


def test_a_script_needs_no_guard(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 50)
    lines = ["import numllama as nl", "print(nl.Tokenizer.train('text.txt', 260, workers=2, progress=False).merges)"]
    (tmp_path / "script.py").write_text("\n".join(lines))
    environment = os.environ | {"PYTHONPATH": str(Path(numllama.__file__).parents[1])}
    command = [sys.executable, "script.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=60)
    assert run.stderr == ""
    assert run.stdout.count("(b't', b'o')") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what processes share")
def test_memory_of_all_processes_is_counted_once_and_now(monkeypatch):
    fields = {"self": {b"VmRSS": 9e9}, 7: {b"VmHWM": 5e9, b"RssShmem": 2e9, b"RssFile": 1e9, b"VmRSS": 0}, 8: {}}

    def of(pid):
        if pid == 9:
            raise FileNotFoundError
        return fields[pid]

    alone = processes.peak_memory_mb()
    assert 1 < alone < 1e5
    monkeypatch.setattr(processes, "_memory_fields", of)
    assert processes.peak_memory_mb() == pytest.approx(alone, rel=0.2)
    assert processes.peak_memory_mb([7, 8, 9]) == 11e6  # 8 and 9 have ended
    fields["self"] = {b"VmRSS": 0}
    fields[7] = {**fields[7], b"VmHWM": 3e9}
    assert processes.peak_memory_mb([7]) == pytest.approx(alone, rel=0.2)  # its own peak was before the others started
