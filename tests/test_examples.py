"""The examples that print something: what they print is true."""

import runpy
import sys

import pytest
from generation.models import random_model
from helpers import EXAMPLES, example

import numllama as nl

pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="tests without the examples")


def test_bpe_steps_shows_each_merge_of_a_word():
    steps = example("bpe_steps")
    tokenizer = steps.learn(steps.CORPUS)
    lines = [line.split() for line in steps.show(tokenizer, "lowest newer")]
    assert lines[0] == ["l|o|w|e|s|t|␣|n|e|w|e|r"]
    assert lines[1:3] == [["0", "s", "+", "t", "l|o|w|e|st|␣|n|e|w|e|r"], ["1", "e", "+", "st", "l|o|w|est|␣|n|e|w|e|r"]]
    assert lines[-2][-1].count("|") + 1 == len(tokenizer.encode("lowest newer"))
    assert lines[-1] == f"ids: {tokenizer.encode('lowest newer')}".split()


def test_generate_writes_what_complete_writes_and_as_much_as_was_asked_for(tmp_path, monkeypatch, capsys):
    tokenizer = nl.CharTokenizer("abc\n")
    model = random_model("float32", vocab_size=4)
    model.save(tmp_path, tokenizer)
    monkeypatch.setattr(sys, "argv", ["generate.py", str(tmp_path), "abc"])
    runpy.run_path(str(EXAMPLES / "generate.py"))
    out = capsys.readouterr().out
    settings = dict(window=32, temperature=0.8, seed=0)
    assert out.startswith("abc" + nl.complete(model, tokenizer, "abc", 400, stop="\n\n", top_p=0.95, **settings) + "\n")
    lines = out.splitlines()[-6:]
    assert all(float(line.split()[0]) < 0 for line in lines)
    assert [line.split(maxsplit=1)[1].startswith(("'abc", "'\\n")) for line in lines] == [True] * 6
