"""Output that cannot be written decides nothing about the work, and about a result only that it was not seen."""

import errno
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from system.commands import ENVIRONMENT, TINY, after_steps, run, start, weights

import numllama as nl
from numllama.system.output import OutputError, OutputStream, output_is_optional, standard_streams
from numllama.training.checkpoint import find_step

FAILURES = {name: OSError(code := getattr(errno, name), os.strerror(code)) for name in ("ENOSPC", "EIO", "EPIPE", "EDQUOT")}
FAILURES["closed"] = ValueError("I/O operation on closed file")


class Failing(io.StringIO):
    """A stream that takes some writes, and then no more."""

    def __init__(self, error, after=0):
        super().__init__()
        self.error, self.left = error, after

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)


# ------------------------------------------------------------------------------------------------ work


@pytest.mark.parametrize("streams, failure", [
    ("err", "EPIPE"), ("out", "ENOSPC"), ("both", "EPIPE"), ("err", "closed"), ("both", "EIO"), ("out", "EPIPE"),
    ("err", "EDQUOT"),
])  # fmt: skip
def test_a_training_comes_to_the_same_end_whatever_becomes_of_its_output(small_text, small_run, tmp_path, streams, failure):
    error = FAILURES[failure]
    given = {name: Failing(error) for name in ("out", "err") if streams in (name, "both")}
    code, _, err = run("train", "--data", small_text, *TINY, "--steps", 8, "--out", tmp_path / "run", **given)
    assert code == 0
    assert weights(tmp_path / "run") == weights(small_run)
    assert (tmp_path / "run" / "result.json").read_bytes() == (small_run / "result.json").read_bytes()
    told = err.splitlines().count(f"standard output cannot be written: {getattr(error, 'strerror', error)}")
    assert told == (streams == "out" and failure != "EPIPE")


@pytest.mark.parametrize("after", [1, 3, 7])
def test_output_may_fail_at_any_line(small_text, small_run, tmp_path, after):
    streams = dict(out=Failing(FAILURES["EPIPE"], after), err=Failing(FAILURES["ENOSPC"], after))
    assert run("train", "--data", small_text, *TINY, "--steps", 8, "--out", tmp_path / "run", **streams)[0] == 0
    assert weights(tmp_path / "run") == weights(small_run)


@pytest.mark.parametrize("failure", ["EPIPE", "ENOSPC"])
def test_preparing_comes_to_the_same_end_without_output(small_text, tmp_path, failure):
    streams = dict(out=Failing(FAILURES[failure]), err=Failing(FAILURES[failure]))
    for out, given in (("seen", {}), ("unseen", streams)):
        assert run("prepare", small_text, "--vocab-size", 300, "--workers", 1, "--out", tmp_path / out, **given)[0] == 0
    for name in ("train.bin", "val.bin", "tokenizer.json", "train.json"):
        assert (tmp_path / "seen" / name).read_bytes() == (tmp_path / "unseen" / name).read_bytes()


@pytest.mark.parametrize("failure", ["EPIPE", "EIO"])
def test_finetuning_comes_to_the_same_end_without_output(small_run, tmp_path, failure):
    rows = [{"messages": [{"role": "user", "content": "The"}, {"role": "assistant", "content": "fox"}]}] * 6
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    streams = dict(out=Failing(FAILURES[failure]), err=Failing(FAILURES[failure]))
    command = ["finetune", small_run, "--data", tmp_path / "chat.jsonl", "--workers", 1, "--steps", 3, "--full"]
    for out, given in (("seen", {}), ("unseen", streams)):
        code, _, err = run(*command, "--out", tmp_path / out, **given)
        assert code == 0, err
    assert weights(tmp_path / "seen") == weights(tmp_path / "unseen")
    seen, unseen = (nl.load(tmp_path / out / "model").params.flat for out in ("seen", "unseen"))
    assert seen.tobytes() == unseen.tobytes()


def test_exercises_and_conversions_are_written_without_output(small_run, tmp_path):
    broken = FAILURES["EPIPE"]
    assert run("exercises", "--all", "--out", tmp_path / "exercises", out=Failing(broken))[0] == 0
    assert len(list((tmp_path / "exercises").glob("*.py"))) > 10
    assert run("convert", small_run, tmp_path / "model", out=Failing(broken))[0] == 0
    assert nl.load(tmp_path / "model").params.flat.tobytes() == nl.load(small_run).params.flat.tobytes()


# ------------------------------------------------------------------------------------------------ results


RESULTS = [
    ["plan"], ["plan", "--json"], ["--help"], ["train", "--help"], ["--version"], ["inspect", "RUN"], ["doctor"], ["trace"],
    ["eval", "RUN", "BOOK"], ["generate", "RUN", "--prompt", "The"],
    ["bench", "RUN", "--prompt-tokens", 2, "--new-tokens", 2, "--rounds", 1],
]  # fmt: skip


@pytest.mark.parametrize("command", RESULTS, ids=lambda command: " ".join(map(str, command)))
def test_a_result_that_cannot_be_written_is_one_sentence_or_of_a_pipe_none_and_never_exit_code_0(command, small_text, small_run):
    command = [{"RUN": small_run, "BOOK": small_text}.get(part, part) for part in command]
    code, _, err = run(*command, out=Failing(FAILURES["ENOSPC"]))
    assert (code, err.splitlines()[-1]) == (2, "error: standard output cannot be written: No space left on device")
    code, _, err = run(*command, out=Failing(FAILURES["EPIPE"]))
    assert code == 141
    assert "error" not in err


def test_a_text_ends_when_nobody_reads_on(small_run):
    code, out, err = run("generate", small_run, "--prompt", "The", "--window", 8, "--max-new-tokens", 10**9, "--seed", 0,
                         out=Failing(FAILURES["EPIPE"], 12))  # fmt: skip
    assert (code, err) == (141, "")
    assert out.startswith("The")
    assert len(out) < 200


def test_standard_error_alone_ends_nothing(small_run):
    assert run("generate", small_run, "--prompt", "The", err=Failing(FAILURES["EPIPE"]))[0] == 0
    assert run("generate", small_run, "--prompt", "", err=Failing(FAILURES["ENOSPC"]))[0] == 2


# ------------------------------------------------------------------------------------------------ the streams


def test_an_output_that_is_not_needed_leaves_out_what_cannot_be_written_and_writes_again_when_it_can():
    stream = Failing(FAILURES["ENOSPC"], 1)
    output = OutputStream(stream)
    for i, left in ((1, 1), (2, 0), (3, 9)):
        stream.left = left
        print(i, end="", file=output)
    assert stream.getvalue() == "13"
    assert output.error is FAILURES["ENOSPC"]


def test_an_output_that_is_needed_says_why_it_fails():
    with pytest.raises(OutputError, match="standard output cannot be written: No space left on device"):
        print("x", file=OutputStream(Failing(FAILURES["ENOSPC"]), needed=True))


def test_a_character_that_cannot_be_encoded_is_no_failure_of_the_output():
    with pytest.raises(UnicodeEncodeError):
        OutputStream(io.TextIOWrapper(io.BytesIO(), encoding="ascii")).write("é")


def test_an_output_is_asked_what_its_stream_is_asked():
    with open(os.devnull, "w", encoding="latin-1") as file:
        output = OutputStream(file)
        assert (output.fileno(), output.encoding, output.isatty()) == (file.fileno(), "latin-1", False)


def test_streams_that_are_closed_are_like_dev_null_and_are_put_back(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with standard_streams() as (out, err):
        print("lost")
        print("lost", file=sys.stderr)
        assert (sys.stdout, sys.stderr) == (out, err)
        with pytest.raises(nl.NumllamaError, match="standard input is closed"):
            input()
    assert (sys.stdin, sys.stdout, sys.stderr) == (None, None, None)


def test_what_goes_on_without_output_is_needed_again_afterwards():
    stream = Failing(FAILURES["EPIPE"])
    with redirect_stdout(stream), standard_streams() as (out, _):
        with output_is_optional():
            print("left out")
        assert out.needed
        with pytest.raises(OutputError):
            print("needed")


# ------------------------------------------------------------------------------------------------ real pipes, disks and signals

posix = pytest.mark.skipif(os.name == "nt", reason="file descriptors and signals of POSIX")


@posix
@pytest.mark.parametrize("number, code", [("SIGINT", 130), ("SIGHUP", 129), ("SIGTERM", 0)])
def test_a_signal_saves_when_the_reader_of_all_output_has_gone_with_it(small_text, tmp_path, number, code):
    """As Ctrl-C with `2>&1 | tee log`: the terminal tells tee, too."""
    process = start("train", "--data", small_text, *TINY, "--steps", 10**6, "--out", tmp_path / "run",
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    after_steps(tmp_path / "run", 6, process)
    process.stdout.close()
    process.send_signal(getattr(signal, number))
    assert process.wait(60) == code
    steps = (tmp_path / "run" / "metrics.jsonl").read_bytes().count(b"\n")
    assert find_step(tmp_path / "run").name == f"step-{steps:06d}"


@posix
@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "> /dev/full 2> /dev/full", "2>&1 | true"])
def test_nothing_is_written_into_a_runs_files_where_output_is_closed_or_full(small_text, small_run, tmp_path, closed):
    if "full" in closed and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = shlex.join(map(str, ["train", "--data", small_text, *TINY, "--steps", 8, "--out", tmp_path / "run"]))
    script = f'set -o pipefail; {shlex.quote(sys.executable)} -c "$PROGRAM" {command} {closed}'
    assert subprocess.run(["bash", "-c", script], env=ENVIRONMENT, timeout=60).returncode == 0
    assert weights(tmp_path / "run") == weights(small_run)
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9))


@posix
def test_closed_input_is_one_sentence(small_run):
    program = "import os, sys; os.close(0); sys.stdin = None; from numllama.cli import main; main(['chat', sys.argv[1]])"
    child = subprocess.run([sys.executable, "-c", program, small_run], capture_output=True, text=True, timeout=60)
    assert child.returncode == 2
    assert child.stderr == "error: standard input is closed, so there is nothing to read\n"


@posix
def test_a_full_disk_below_standard_output_is_told_once_and_python_adds_nothing(small_run):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        process = start("inspect", small_run, stdout=full, stderr=subprocess.PIPE, text=True)
        err = process.communicate(timeout=60)[1]
    assert (process.returncode, err) == (2, "error: standard output cannot be written: No space left on device\n")
