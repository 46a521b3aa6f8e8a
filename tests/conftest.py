"""Devices and hypothesis settings for all tests."""

import os
import signal

import pytest
from hypothesis import HealthCheck, Phase, settings
from threadpoolctl import threadpool_limits

from numllama.backend import array_module
from numllama.cpu import onednn
from numllama.errors import DeviceError

# Derandomized: a pull request fails because of its changes, not because of today's random draw.
# `pytest --hypothesis-profile=thorough` tries more examples, and new ones each time.
quiet = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("numllama", max_examples=40, derandomize=True, **quiet)
settings.register_profile("thorough", max_examples=1000, **quiet)
settings.register_profile("mistakes", settings.get_profile("numllama"), phases=[Phase.explicit, Phase.generate])  # no shrinking
settings.load_profile("numllama")

# Under nohup or in a background job these signals are ignored, and the commands that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The matrices are small: a second BLAS thread would only slow down the other test processes.
threadpool_limits(1, user_api="blas")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # oneDNN's


@pytest.fixture(scope="session", params=["cpu", "cuda"])
def device(request):
    """Each device of this machine; a test that uses this fixture runs once per device."""
    try:
        array_module(request.param)
    except DeviceError as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture
def without_onednn(monkeypatch):
    """NumPy computes all products, as where oneDNN is not installed."""
    monkeypatch.setattr(onednn, "library", lambda: None)


@pytest.fixture(scope="session")
def xp(device):
    """The device's array module: NumPy or CuPy."""
    return array_module(device)


@pytest.fixture(scope="session")
def small_text(tmp_path_factory):
    """A text file that a small model learns in a moment."""
    path = tmp_path_factory.mktemp("text") / "fox.txt"
    path.write_text("The quick brown fox jumps over the lazy dog.\n" * 30, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def small_run(small_text, tmp_path_factory):
    """A run of eight steps on that file. Copy it before changing anything in it."""
    from system.commands import TINY, run  # here: most tests need no command line

    out = tmp_path_factory.mktemp("run") / "run"
    assert run("train", "--data", small_text, *TINY, "--steps", 8, "--out", out)[0] == 0
    return out


# With NUMLLAMA_FAIL_ON_SKIP=1 a skipped test is a failure, except for these reasons. NUMLLAMA_SKIPPED names a file that
# collects a line for every skipped test, from which .ci/run prints its summary.
UNITS = {"needs oneDNN:": onednn.AVX512_ISA, "multiplies bfloat16": onednn.BFLOAT16_ISA, "multiplies int8": onednn.INT8_ISA}
LIBRARY = onednn.installed()  # units of the CPU may be missing, the library may not
MAY_BE_MISSING = (
    "needs CuPy", "needs an NVIDIA GPU", "needs mpirun and mpi4py", "needs llama2.c's run.c",
    *(reason for reason, isa in UNITS.items() if LIBRARY is not None and not LIBRARY.isa & isa),
)  # fmt: skip
_skipped = []  # (test, reason)


def pytest_runtest_logreport(report):
    if report.skipped and not any(words in str(report.longrepr) for words in MAY_BE_MISSING):
        note(report)


def pytest_collectreport(report):
    if report.skipped:
        note(report)


def note(report):
    _, _, reason = report.longrepr if isinstance(report.longrepr, tuple) else (None, None, str(report.longrepr))
    _skipped.append((report.nodeid, reason.removeprefix("Skipped: ")))


def pytest_sessionfinish(session):
    if _skipped and os.environ.get("NUMLLAMA_FAIL_ON_SKIP"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    collected = os.environ.get("NUMLLAMA_SKIPPED")
    if collected and not hasattr(session.config, "workerinput"):  # xdist's workers report to the main process
        with open(collected, "a", encoding="utf-8") as file:
            file.writelines(f"{reason}\t{test}\n" for test, reason in _skipped)


def pytest_terminal_summary(terminalreporter):
    if _skipped and os.environ.get("NUMLLAMA_FAIL_ON_SKIP"):
        terminalreporter.section("skipped, and must not be here")
        terminalreporter.write_line("\n".join(f"{test}: {reason}" for test, reason in _skipped))
