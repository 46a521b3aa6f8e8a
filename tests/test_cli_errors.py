"""What goes wrong around a command, in any of them: one sentence that names the file, exit code 2, no traceback."""

import errno
import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from threading import Thread

import pytest
from system.commands import ENVIRONMENT, TINY, run

from numllama.cli import ORDER, app
from numllama.errors import explained, naming
from numllama.training import trainer

LONG = "a" * 300
MODEL_COMMANDS = {  # what each needs besides a model
    "generate": ["--prompt", "The"], "chat": [], "serve": ["--port", 0, "--no-page"], "eval": ["TEXT"], "inspect": [],
    "convert": ["NEW"], "bench": [], "finetune": ["--data", "TEXT", "--out", "NEW"],
}  # fmt: skip
PATHS = [
    *([command, "PATH", *more] for command, more in MODEL_COMMANDS.items()),
    ["generate", "RUN", "--tokenizer", "PATH"], ["chat", "RUN", "--tokenizer", "PATH"], ["eval", "RUN", "PATH"],
    ["convert", "RUN", "PATH"], ["convert", "RUN", "NEW", "--tokenizer", "PATH"], ["serve", "RUN", "--tokenizer", "PATH"],
    ["finetune", "RUN", "--data", "PATH", "--out", "NEW"], ["finetune", "RUN", "--data", "TEXT", "--out", "PATH"],
    ["finetune", "RUN", "--data", "CHAT", "--val-data", "PATH", "--out", "NEW"], ["finetune", "--resume", "--out", "PATH"],
    ["finetune", "RUN", "--data", "TEXT", "--chat-template", "PATH", "--out", "NEW"],
    ["train", "--data", "PATH", "--out", "NEW"], ["train", "--data", "TEXT", *TINY, "--out", "PATH"],
    ["train", "--data", "TEXT", "--tokenizer", "PATH", "--out", "NEW"], ["train", "--resume", "--out", "PATH"],
    ["prepare", "PATH", "--vocab-size", 300, "--out", "NEW"], ["prepare", "TEXT", "--vocab-size", 300, "--out", "PATH"],
    ["prepare", "TEXT", "--tokenizer", "PATH", "--out", "NEW"],
    ["exercises", "rmsnorm", "--out", "PATH"], ["exercises", "--check", "--out", "PATH"],
    ["trace", "--json", "PATH"], ["trace", "--html", "PATH"], ["grade", "PATH"], ["grade", "PATH", "--template"],
]  # fmt: skip


def named(command):
    return " ".join(map(str, command))


def refused(result, *parts):
    """The sentence of a command that ended with one."""
    code, _, err = result
    assert code == 2, err
    assert "Traceback" not in err
    (sentence,) = [line for line in err.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in sentence
    assert len(sentence) < 700
    return sentence


@pytest.fixture(scope="session")
def chat(tmp_path_factory):
    """A few conversations."""
    path = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    row = {"messages": [{"role": "user", "content": "The"}, {"role": "assistant", "content": "fox"}]}
    path.write_text(6 * (json.dumps(row) + "\n"))
    return path


@pytest.fixture
def given(small_run, small_text, chat, tmp_path):
    """Fills in what a command works on."""

    def fill(command, path):
        places = {"PATH": path, "RUN": small_run, "TEXT": small_text, "CHAT": chat, "NEW": tmp_path / "new"}
        return [places.get(part, part) for part in command]

    return fill


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("command", PATHS, ids=named)
def test_a_name_that_is_too_long_for_the_system_is_one_sentence(command, given, tmp_path):
    refused(run(*given(command, tmp_path / LONG)), "File name too long", LONG[:50])


@pytest.mark.parametrize("command", PATHS, ids=named)
def test_an_empty_name_is_refused_and_is_not_the_folder_that_one_is_in(command, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*given(command, ""))
    assert code == 2
    assert "empty" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [
    ["trace", "--html", "PATH"], ["trace", "--json", "PATH"], ["exercises", "rmsnorm", "--out", "PATH"],
    ["convert", "RUN", "PATH"], ["train", "--data", "TEXT", *TINY, "--steps", 1, "--out", "PATH"],
    ["prepare", "TEXT", "--vocab-size", 300, "--out", "PATH"],
], ids=named)  # fmt: skip
def test_a_place_below_a_file_cannot_be_written_and_is_named(command, given, tmp_path):
    (tmp_path / "file").write_text("a file")
    refused(run(*given(command, tmp_path / "file" / "below")), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "a file"


def test_a_page_or_an_exercise_that_cannot_be_written_names_its_file(tmp_path):
    (tmp_path / "file").write_text("")
    page = tmp_path / "nowhere" / "x.html"
    refused(run("trace", "--html", page), f"{page} could not be written", "No such file")
    refused(run("trace", "--html", tmp_path), f"{tmp_path} could not be written", "Is a directory")
    refused(run("exercises", "rmsnorm", "--out", tmp_path / "file"), str(tmp_path / "file"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("flag", ["--json", "--html"])
def test_a_full_disk_is_one_sentence_that_names_the_file(flag, tmp_path):
    full = tmp_path / "full"
    full.symlink_to("/dev/full")  # a program that replaces what it writes to would replace the link
    refused(run("trace", flag, full), f"{full} could not be written", "No space left on device")
    assert full.is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with a name")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = Thread(target=lambda: read.append(json.loads(pipe.read_text())), daemon=True)
    reader.start()
    assert run("trace", "--json", pipe)[0] == 0
    assert pipe.is_fifo()
    reader.join(10)
    assert read[0]["loss"] > 0


def test_a_file_that_a_link_leads_to_is_replaced_and_the_link_is_not(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "there" / "trace.json")
    for _ in "new", "old":
        assert run("trace", "--json", link)[0] == 0
        assert link.is_symlink()
        assert json.loads((tmp_path / "there" / "trace.json").read_text())["loss"] > 0
    assert os.listdir(tmp_path / "there") == ["trace.json"]


@contextmanager
def forbidden(path):
    """Let this process neither read nor enter a file or folder, nor write beside it."""
    mode, root = path.stat().st_mode, os.geteuid() == 0
    path.chmod(0)
    if root:  # whom nothing is forbidden
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(mode)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no permissions of POSIX")
@pytest.mark.parametrize("command", [
    ["inspect", "PATH"], ["generate", "PATH", "--prompt", "The"], ["convert", "PATH", "NEW"], ["chat", "PATH"],
    ["eval", "PATH", "TEXT"], ["bench", "PATH", "--prompt-tokens", 2, "--new-tokens", 2],
    ["exercises", "--check", "--out", "PATH"], ["exercises", "--out", "PATH"], ["trace", "--json", "PATH/x"],
    ["train", "--resume", "auto", "--data", "TEXT", *TINY, "--steps", 8, "--out", "PATH"], ["train", "--resume", "--out", "PATH"],
    ["prepare", "PATH/text.txt", "--vocab-size", 300, "--out", "NEW"],
], ids=named)  # fmt: skip
def test_a_folder_that_may_not_be_entered_is_one_sentence(command, given, small_run, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    places = {"PATH/x": folder / "x", "PATH/text.txt": folder / "text.txt"}
    command = [places.get(part, part) for part in command]
    run(*given(command, small_run if command[0] != "exercises" else folder))  # who may not enter cannot import either
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail("there is nobody to talk to"))
    with forbidden(folder):
        refused(run(*given(command, folder)), "folder")


# ------------------------------------------------------------------------------------------------ the sentence


@pytest.mark.parametrize("error, sentence", [
    (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b cannot be read or written: No space left on device"),
    (OSError(errno.ENOENT, "No such file or directory", b"a/b"), "a/b cannot be read or written: No such file or directory"),
    (OSError(errno.ENOSPC, "No space left on device"), "the operating system refused: No space left on device"),
    (OSError(errno.EBADF, "Bad file descriptor", 3), "the operating system refused: Bad file descriptor"),
    (OSError("unknown"), "the operating system refused: unknown"),
])  # fmt: skip
def test_errors_of_the_system_are_sentences_with_and_without_a_file(error, sentence):
    assert explained(error) == sentence


def test_the_longest_name_of_a_file_is_cut():
    assert len(explained(OSError(errno.ENAMETOOLONG, "File name too long", "x" * 10_000))) < 600


def test_what_is_a_mistake_of_ours_has_no_sentence():
    for mistake in (KeyError, IndexError, AttributeError, RuntimeError, TypeError, AssertionError, ZeroDivisionError):
        assert explained(mistake()) is None


def test_an_error_that_knows_no_file_is_told_which_it_is_about():
    with pytest.raises(OSError, match=r"about\.txt") as told, naming("about.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert told.value.filename == "about.txt"
    with pytest.raises(OSError, match="known"), naming("about.txt"):
        raise OSError(errno.ENOSPC, "No space left on device", "known")


# ------------------------------------------------------------------------------------------------ odd surroundings


@pytest.mark.parametrize("columns", ["0", "-1", "1", "", "wide", "1e3", "99999999999", "9" * 5000])
@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["train", "--nonsense"]], ids=named)
def test_a_terminal_of_no_size_still_shows_help(command, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", columns)
    code, out, err = run(*command)
    assert code == (2 if "--nonsense" in command else 0)
    assert max(map(len, (out + err).splitlines())) <= 80
    assert ("--nonsense" if code else "Commands" if len(command) == 1 else "--batch-size") in out + err


WITHOUT_DOCSTRINGS = """
import sys
from numllama.cli import ORDER, main
sys.modules["matplotlib"] = None
helps = [["--help"], *([name, "--help"] for name in ORDER)]
for command in [*helps, ["plan"], ["plan", "--n-layers", "many"], sys.argv[1:]]:
    try:
        main(command)
    except SystemExit as end:
        print(command[0], end.code)
assert not main.__doc__
"""


def test_python_without_docstrings_and_assertions_runs_every_command(small_text, tmp_path):
    training = ["train", "--data", small_text, *TINY, "--steps", 2, "--out", "run"]
    command = [sys.executable, "-OO", "-c", WITHOUT_DOCSTRINGS, *map(str, training)]
    child = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr
    codes = [line for line in child.stdout.splitlines() if re.fullmatch(r"[a-z-]+ \d", line)]
    assert codes == ["--help 0", *(f"{name} 0" for name in ORDER), "plan 0", "plan 2", "train 0"]


@pytest.mark.parametrize("tick", [0.0, 10.0])
def test_a_clock_that_stands_still_or_jumps_divides_nothing_by_zero(tick, small_run, small_text, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: float(int(time.monotonic() / tick) * tick) if tick else 7.0)
    for command in (
        ["train", "--data", small_text, *TINY, "--steps", 4, "--out", tmp_path / "run"], ["eval", small_run, small_text],
        ["bench", small_run, "--prompt-tokens", 2, "--new-tokens", 2, "--rounds", 1],
        ["generate", small_run, "--prompt", "The", "--max-new-tokens", 4],
    ):  # fmt: skip
        code, out, err = run(*command)
        assert code == 0, err
        assert "inf" not in out.split("a sample")[0].replace("information", "")
        assert "nan" not in out.split("a sample")[0]
    assert trainer.TICK > 0


# ------------------------------------------------------------------------------------------------ the list of commands


def test_commands_are_listed_in_the_order_of_their_use():
    out = run("--help")[1]
    listed = re.findall(r"^│ ([a-z]+) {2,}", out, re.MULTILINE)
    assert listed == list(ORDER)
    assert set(ORDER) == {name for name in app if not name.startswith("-")}
