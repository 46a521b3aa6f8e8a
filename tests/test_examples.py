"""The examples that print something: what they print is true. All scripts explain themselves with --help."""

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
    runpy.run_path(str(EXAMPLES / "generate.py"), run_name="__main__")
    out = capsys.readouterr().out
    settings = dict(window=32, temperature=0.8, seed=0)
    assert out.startswith("abc" + nl.complete(model, tokenizer, "abc", 400, stop="\n\n", top_p=0.95, **settings) + "\n")
    lines = out.splitlines()[-6:]
    assert all(float(line.split()[0]) < 0 for line in lines)
    assert [line.split(maxsplit=1)[1].startswith(("'abc", "'\\n")) for line in lines] == [True] * 6


BENCHMARKS = EXAMPLES.parent / "benchmarks"
SCRIPTS = sorted([*EXAMPLES.glob("*.py"), *BENCHMARKS.glob("*.py")])
FOR_READING = ("train_loop", "broken_llama")  # short ones, without flags
WITH_FLAGS = [path for path in SCRIPTS if path.stem not in FOR_READING]


def script(path, *arguments, monkeypatch):
    """The exit code of a script, in this process."""
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    monkeypatch.syspath_prepend(str(path.parent))
    names = [other.stem for other in path.parent.glob("*.py")]
    ours = {name: sys.modules.pop(name) for name in names if name in sys.modules}  # tests/serve is not benchmarks/serve.py
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(ours)
    return 0


@pytest.mark.parametrize("path", WITH_FLAGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_script_says_with_help_what_it_does(path, monkeypatch, capsys):
    assert script(path, "--help", monkeypatch=monkeypatch) == 0
    out = capsys.readouterr()
    assert len(out.out.split()) >= 10
    assert out.err == ""


@pytest.mark.parametrize("name, arguments, words", [
    ("examples/generate.py", [], "required: model"), ("examples/generate.py", ["nowhere"], "nowhere does not exist"),
    ("benchmarks/tokenizer.py", [], "the folder data lacks tinyshakespeare.txt, gpt2_vocab.json, gpt2_merges.txt"),
    ("benchmarks/tokenizer.py", ["--data", "other"], "the folder other lacks tinyshakespeare.txt"),
])  # fmt: skip
def test_what_a_script_lacks_is_one_sentence(name, arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NUMLLAMA_TEST_DATA", raising=False)
    assert script(EXAMPLES.parent / name, *arguments, monkeypatch=monkeypatch) == 2
    assert words in capsys.readouterr().err
