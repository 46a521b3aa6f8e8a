"""Would a mistake be caught?  Each one of `mistakes/`, made in a copy of the project, turns its test red."""

import gc
import multiprocessing
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from mistakes import MISTAKES

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    """A copy of the project, to make mistakes in."""
    copy = tmp_path_factory.mktemp("mistakes")
    for name in ("numllama", "kernels", "examples", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


@pytest.mark.mistakes
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what.replace(" ", "_"))
def test_a_mistake_is_caught(copy, tmp_path, mistake):
    path = copy / "numllama" / mistake.file
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(mistake.right, mistake.wrong), encoding="utf-8")
    printed = tmp_path / "printed.txt"
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment["NUMLLAMA_SKIPPED"] = ""  # only this test itself is counted
    run = PROCESSES.Process(target=run_test, args=(copy, mistake.test, printed, environment))
    try:
        run.start()
        run.join(120)
    finally:
        run.kill()
        path.write_text(source, encoding="utf-8")
    text = printed.read_text(encoding="utf-8", errors="replace")
    # Under NUMLLAMA_FAIL_ON_SKIP that exit code would be another.
    if run.exitcode == pytest.ExitCode.OK and " skipped" in text and " passed" not in text:
        pytest.skip("; ".join(sorted(set(re.findall(r"^SKIPPED \[\d+\] \S+ (.*)", text, re.MULTILINE)))))
    assert run.exitcode == pytest.ExitCode.TESTS_FAILED, text[-3000:]
    assert "1 failed" in text


# A process for each mistake. Where processes can be forked, they come with all loaded that takes long to load, but for numllama.
if "forkserver" in multiprocessing.get_all_start_methods():
    PROCESSES = multiprocessing.get_context("forkserver")
    PROCESSES.set_forkserver_preload([
        "_hypothesis_pytestplugin", "_pytest.doctest", "_pytest.fixtures", "_pytest.junitxml", "_pytest.logging",
        "_pytest.pytester", "_pytest.python", "_pytest.terminal", "asyncio", "cyclopts", "hypothesis.database",
        "hypothesis.extra.numpy", "jinja2.sandbox", "ml_dtypes", "numpy.testing", "pdb", "pytest", "regex", "threadpoolctl",
        "tomllib", "tqdm", "unittest.mock",
    ])  # fmt: skip
else:
    PROCESSES = multiprocessing.get_context("spawn")


def run_test(copy: Path, test: str, printed: Path, environment: dict[str, str]) -> None:
    """Ends with pytest's exit code. The copy comes before the project; compiled files of the right source are not left."""
    gc.freeze()  # pytest collects garbage again and again, of which what was loaded before has none
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(copy))
    os.environ.update(environment)
    os.chdir(copy)
    with open(printed, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # plain: no minutes of comparing long values
    quiet = ["-x", "-rs", "-m", "", "--assert=plain", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin"]
    sys.exit(pytest.main([*quiet, "--hypothesis-profile=mistakes", f"tests/{test}"]))


def test_every_mistake_can_be_made():
    for mistake in MISTAKES:
        n = (ROOT / "numllama" / mistake.file).read_text(encoding="utf-8").count(mistake.right)
        assert n == 1, f"{mistake.file} holds this {n} times: {mistake.right}"
        file, _, name = mistake.test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), mistake.test


def test_there_are_enough_of_them():
    assert len(MISTAKES) >= 25
    assert len({mistake.right for mistake in MISTAKES}) > 0.9 * len(MISTAKES)
