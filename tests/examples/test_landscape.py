"""The planes of the ladder: what is kept for the book is what the script writes."""

import json
import sys

import numpy as np
import pytest
from helpers import EXAMPLES, example

from numllama.data.synthetic import write_play

KEPT = EXAMPLES.parent / "docs" / "chapters" / "landscape.json"


def run(monkeypatch, *args):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", ["landscape.py", *map(str, args)])
    script = example("landscape")
    monkeypatch.setattr(script, "BATCH_SIZE", 2)
    monkeypatch.setattr(script, "WINDOWS", 2)
    script.main()
    return script


@pytest.fixture
def play(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text(write_play(14_000), encoding="utf-8")
    return path


def test_the_script_writes_a_plane_for_each_rung_with_the_lowest_rung_first(tmp_path, monkeypatch, capsys, play):
    script = run(monkeypatch, "--data", play, "--out", tmp_path / "out", "--steps", 1, "--points", 3, "--rungs", "gpt2", "heads")
    made = json.loads((tmp_path / "out" / "landscape.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in made["rungs"]] == ["heads", "gpt2"]
    assert made["at"] == [-1.0, 0.0, 1.0]
    assert made["settings"]["steps"] == 1 and made["settings"]["seq_len"] == script.SEQ_LEN
    printed = capsys.readouterr().out
    for one in made["rungs"]:
        assert np.shape(one["loss"]) == (3, 3) and np.isfinite(one["loss"]).all()
        assert f"{one['name']}: {one['loss'][1][1]:.3f} in the middle" in printed


@pytest.mark.parametrize(
    "args, says",
    [
        (["--points", "4"], "points is 4, but must be an odd number of at least 3"),
        (["--steps", "0"], "steps is 0, but must be a whole number of at least 1"),
        (["--data", "no.txt"], "no.txt does not exist"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, monkeypatch, capsys, play, args, says):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "--data", play, "--out", tmp_path / "out", "--rungs", "bigram", *args)
    assert end.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.skipif(not KEPT.exists(), reason="tests without the documents")
def test_the_kept_planes_are_of_the_ladders_rungs_and_lowest_near_the_middle(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    script, kept = example("landscape"), json.loads(KEPT.read_text(encoding="utf-8"))
    assert [one["name"] for one in kept["rungs"]] == script.SHOWN
    shape = (kept["settings"]["batch_size"], kept["settings"]["seq_len"])
    assert shape == (script.BATCH_SIZE, script.SEQ_LEN)
    n = len(kept["at"])
    for one in kept["rungs"]:
        loss = np.array(one["loss"])
        assert loss.shape == (n, n)
        low = np.array(np.unravel_index(loss.argmin(), loss.shape))
        assert abs(low - n // 2).max() <= 2, one["name"]               # a trained model lies in a valley
