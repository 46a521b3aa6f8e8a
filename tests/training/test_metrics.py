"""metrics.jsonl: strict JSON, whole in the end, and never in the way of a run."""

import errno
import json
import math
import os
from dataclasses import replace

import pytest
from system.commands import TINY, run, weights

from numllama.errors import CheckpointError
from numllama.training import metrics
from numllama.training.metrics import MetricsLog, parse_line, read_metrics
from numllama.training.trainer import StepReport

REPORT = StepReport(1, 2.5, 1e-3, 0.5, 1000.0, 4.0, 80.0)


def report(step):
    return replace(REPORT, step=step, loss=1 / step)


class Disk:
    """A file on a disk that is full at times: of each line that does not fit, a part may still be written."""

    def __init__(self, file, full, part=0):
        self.file, self.full, self.part, self.calls = file, full, part, 0

    def write(self, content):
        self.calls += 1
        if self.full(self.calls):
            if self.part:
                part, self.part = self.part, 0
                return self.file.write(content[:part])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(content)

    def close(self):
        self.file.close()


@pytest.fixture
def disk(monkeypatch):
    """Let the log lie on such a disk."""

    def let(full, part=0):
        monkeypatch.setattr(metrics, "open", lambda *args, **how: Disk(open(*args, **how), full, part), raising=False)  # noqa: SIM115

    return let


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("part", [0, 1, 40])
@pytest.mark.parametrize("full", [lambda n: n <= 3, lambda n: 2 <= n <= 5, lambda n: n % 2], ids=["first", "later", "often"])
def test_lines_that_could_not_be_written_are_written_when_they_can_be(tmp_path, disk, full, part):
    disk(full, part)
    told = []
    log = MetricsLog(tmp_path / "m.jsonl", 0, told.append)
    for step in range(1, 9):
        log(report(step))
    assert log.close() is None or log.close() is None  # the last line, where the disk is full every other time
    assert steps_in(tmp_path / "m.jsonl") == list(range(1, 9))
    assert len(told) == 1
    assert told[0].startswith(f"{tmp_path / 'm.jsonl'} cannot be written: No space left on device. The run continues")


def test_what_is_missing_in_the_end_is_counted(tmp_path, disk, monkeypatch):
    disk(lambda n: n > 2)
    monkeypatch.setattr(metrics, "MOST_WAITING", 500)
    log = MetricsLog(tmp_path / "m.jsonl", 0, lambda sentence: None)
    for step in range(1, 21):
        log(report(step))
    assert log.close() == f"18 line(s) of {tmp_path / 'm.jsonl'} could not be written: No space left on device"
    assert steps_in(tmp_path / "m.jsonl") == [1, 2]


def test_a_run_goes_on_while_its_log_cannot_be_written(small_text, small_run, tmp_path, disk):
    disk(lambda n: 3 <= n <= 6)
    code, _, err = run("train", "--data", small_text, *TINY, "--steps", 8, "--out", tmp_path / "run")
    assert code == 0
    assert weights(tmp_path / "run") == weights(small_run)
    assert steps_in(tmp_path / "run" / "metrics.jsonl") == list(range(1, 9))
    assert err.count("metrics.jsonl cannot be written: No space left on device") == 1


def test_a_run_whose_log_stays_incomplete_is_whole_but_its_exit_code_says_so(small_text, small_run, tmp_path, disk):
    disk(lambda n: n > 2)
    code, out, err = run("train", "--data", small_text, *TINY, "--steps", 8, "--out", tmp_path / "run")
    assert code == 2
    sentence = f"error: 6 line(s) of {tmp_path / 'run' / 'metrics.jsonl'} could not be written: No space left on device"
    assert err.splitlines()[-1] == sentence
    assert out.splitlines()[-1].startswith("validation loss: ")
    assert weights(tmp_path / "run") == weights(small_run)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_every_line_is_strict_json_and_a_loss_that_is_not_finite_is_read_as_such(tmp_path, loss):
    path = tmp_path / "m.jsonl"
    log = MetricsLog(path, 0, print)
    log(report(1))
    log(replace(report(2), loss=loss, grad_norm=loss, skipped=True))
    log.close()
    MetricsLog(path, 2, print).close()  # read, and written again
    assert [json.loads(line, parse_constant=pytest.fail)["loss"] for line in path.read_text().splitlines()] == [1.0, None]
    assert math.isnan(read_metrics(path)[1]["loss"])


def test_old_lines_with_nan_are_read_and_written_anew(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.5, "grad_norm": Infinity}\n')
    MetricsLog(path, 2, print).close()
    assert path.read_text() == '{"step": 1, "loss": null}\n{"step": 2, "loss": 1.5, "grad_norm": null}\n'


@pytest.mark.parametrize("line", [
    "", "7", "null", "[]", "{}", '{"step": 1}', '{"loss": 1.0}', '{"step": "1", "loss": 1.0}', '{"step": true, "loss": 1.0}',
    '{"step": 1, "loss": "x"}', '{"step": 1, "loss": 1.0', "[" * 100_000, b"\xff\xfe", b"\0",
])  # fmt: skip
def test_what_is_no_line_is_left_out(line):
    with pytest.raises(ValueError, match=r"."):
        parse_line(line)


def test_a_log_that_is_no_file_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "m.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"m\.jsonl is a folder"):
        MetricsLog(tmp_path / "m.jsonl", 0, print)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_log_that_is_a_device_is_neither_read_nor_replaced(tmp_path):
    (tmp_path / "m.jsonl").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        MetricsLog(tmp_path / "m.jsonl", 0, print)
