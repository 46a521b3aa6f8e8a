"""Devices and hypothesis settings for all tests."""

import os
import signal

import pytest
from hypothesis import HealthCheck, Phase, settings
from threadpoolctl import threadpool_limits

from numllama.backend import array_module
from numllama.errors import DeviceError

# Derandomized: a pull request fails for what it changes, not for what was drawn today.
# `pytest --hypothesis-profile=thorough` looks further, at new examples each time.
quiet = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("numllama", max_examples=40, derandomize=True, **quiet)
settings.register_profile("thorough", max_examples=1000, **quiet)
settings.register_profile("mistakes", settings.get_profile("numllama"), phases=[Phase.explicit, Phase.generate])  # none is shrunk
settings.load_profile("numllama")

# Under nohup, or in a shell's background, they would be ignored, by the commands that tests start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Many small products: a second BLAS thread would only get in the way of the other test processes.
threadpool_limits(1, user_api="blas")


@pytest.fixture(scope="session", params=["cpu", "cuda"])
def device(request):
    """Each device that this machine has; a test that uses it runs once on each."""
    try:
        array_module(request.param)
    except DeviceError as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture(scope="session")
def xp(device):
    """The array module of the device: NumPy or CuPy."""
    return array_module(device)


@pytest.fixture(scope="session")
def small_text(tmp_path_factory):
    """A text file that a small model learns within a moment."""
    path = tmp_path_factory.mktemp("text") / "fox.txt"
    path.write_text("The quick brown fox jumps over the lazy dog.\n" * 30, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def small_run(small_text, tmp_path_factory):
    """A run of eight steps on it; read it, but copy it before it is changed."""
    from system.commands import TINY, run  # here: other tests need no command line

    out = tmp_path_factory.mktemp("run") / "run"
    assert run("train", "--data", small_text, *TINY, "--steps", 8, "--out", out)[0] == 0
    return out


# Where everything that a check needs is there, a skipped check is a failure: NUMLLAMA_FAIL_ON_SKIP=1 (but for these).
MAY_BE_MISSING = ("needs CuPy", "needs an NVIDIA GPU", "needs mpirun and mpi4py")
_skipped = []


def pytest_runtest_logreport(report):
    if report.skipped and not any(words in str(report.longrepr) for words in MAY_BE_MISSING):
        _skipped.append(f"{report.nodeid}: {report.longrepr}")


def pytest_collectreport(report):
    if report.skipped:
        _skipped.append(f"{report.nodeid}: {report.longrepr}")


def pytest_sessionfinish(session):
    if _skipped and os.environ.get("NUMLLAMA_FAIL_ON_SKIP"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if _skipped and os.environ.get("NUMLLAMA_FAIL_ON_SKIP"):
        terminalreporter.section("skipped, and must not be here")
        terminalreporter.write_line("\n".join(_skipped))
