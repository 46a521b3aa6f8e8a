"""Signals: each ends a command quietly, with its code, at whatever moment and however often it comes."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from system.commands import ENVIRONMENT, TINY, after_steps, start

from numllama.system.signals import FOR_THE_PARENT, TO_END, exit_code, exits_on_signals, handling, ignore, restored

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def test_each_signal_has_its_exit_code():
    assert {number: exit_code(number) for number in FOR_THE_PARENT} == {
        signal.SIGINT: 130, signal.SIGTERM: 0, signal.SIGUSR1: 0, signal.SIGHUP: 129,
    }  # fmt: skip


@pytest.mark.parametrize("number", TO_END)
def test_whoever_is_told_to_end_ends_and_is_deaf_from_then_on(number):
    before, heard = [signal.getsignal(n) for n in TO_END], []
    with restored():
        for n in TO_END:
            signal.signal(n, lambda number, frame: heard.append(number))
        with pytest.raises(SystemExit) as end:
            exits_on_signals(signal.raise_signal)(number)
        for again in TO_END:
            signal.raise_signal(again)
    assert heard == []
    assert end.value.code == exit_code(number)
    assert [signal.getsignal(n) for n in TO_END] == before


def test_a_signal_is_handled_and_then_given_back():
    before, caught = signal.getsignal(signal.SIGUSR1), []
    with handling(lambda number, frame: caught.append(number), signal.SIGUSR1):
        signal.raise_signal(signal.SIGUSR1)
    assert caught == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_process_under_nohup_stays_deaf_to_sighup():
    with restored():
        ignore(signal.SIGHUP)
        with handling(lambda *_: pytest.fail("it is not ignored"), *TO_END):
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_in_a_thread_signals_are_left_to_whoever_handles_them():
    before = {number: signal.getsignal(number) for number in FOR_THE_PARENT}

    def work():
        with restored():
            exits_on_signals(ignore)(signal.SIGTERM)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert {number: signal.getsignal(number) for number in FOR_THE_PARENT} == before


# ------------------------------------------------------------------------------------------------ while a program is imported

AT_IMPORT = """
import os, runpy, signal, sys
when, times, program = sys.argv[1:]

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == when:
            for _ in range(int(times)):
                os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = ["plan"]
runpy.run_module(program, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module, times", [
    ("numllama.cli", 1), ("cyclopts", 2), ("numllama.training.plan", 2), ("numllama.ops", 2), ("numpy._core.overrides", 1),
])  # fmt: skip
def test_ctrl_c_while_the_package_is_imported_ends_quietly(module, times):
    command = [sys.executable, "-c", AT_IMPORT, module, str(times), "numllama"]
    child = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (child.returncode, child.stdout, child.stderr) == (130, "", "")


def test_it_is_quiet_for_the_module_of_the_command_line_too():
    command = [sys.executable, "-c", AT_IMPORT, "cyclopts", "2", "numllama.cli"]
    child = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (child.returncode, child.stdout, child.stderr) == (130, "", "")


# ------------------------------------------------------------------------------------------------ while it ends

AT_THE_END = """
import atexit, os, signal, sys, weakref
from numllama.cli import main
moment, numbers = sys.argv[1], [int(number) for number in sys.argv[2].split(",")]
sys.argv[1:] = ["train"]

def send(*_):
    for number in numbers:
        os.kill(os.getpid(), number)

class Held:
    def __del__(self):
        send()
        for _ in range(1000):
            pass

def train_run(*_):
    if moment == "atexit":
        atexit.register(send)
        return int(sys.argv[0] != "-c")
    if moment == "callback":
        held = Held()
        del held
        return 7
    if moment == "twice":
        try:
            send()
        finally:
            send()
    if moment == "uncaught":
        from numllama import cli
        cli.ignore = send

import numllama.commands.train_run as run
run.train_run = run.exits_on_signals(train_run)
main()
"""


@pytest.mark.parametrize("moment, numbers, code", [
    ("atexit", "2,2,15,1,10", 0), ("twice", "2", 130), ("twice", "15", 0), ("twice", "1,15", 129), ("callback", "2", 130),
    ("callback", "15", 0), ("uncaught", "2", 130),
])  # fmt: skip
def test_signals_while_a_command_ends_change_neither_its_code_nor_its_quiet(moment, numbers, code):
    child = subprocess.run([sys.executable, "-c", AT_THE_END, moment, numbers], env=ENVIRONMENT, capture_output=True, timeout=60)
    assert (child.returncode, child.stderr) == (code, b"")


@pytest.mark.parametrize("numbers, codes", [
    (["SIGTERM", "SIGTERM"], {0}), (["SIGHUP", "SIGHUP", "SIGHUP"], {129}), (["SIGINT", "SIGINT"], {130}),
    (["SIGHUP", "SIGTERM"], {0, 129}),
])  # fmt: skip
def test_a_training_that_is_told_again_and_again_ends_quietly(small_text, tmp_path, numbers, codes):
    out = tmp_path / "run"
    command = ["train", "--data", small_text, *TINY, "--steps", 10**6, "--out", out]
    process = start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    after_steps(out, 6, process)
    for number in numbers:
        process.send_signal(getattr(signal, number))
    err = process.communicate(timeout=60)[1]
    assert process.returncode in codes
    assert "Traceback" not in err
    assert "Exception" not in err
