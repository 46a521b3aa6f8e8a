"""`numllama generate` and `numllama chat`, from the flags to what is on the terminal."""

import builtins
import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
from generation.models import random_model
from generation.test_text import STORY
from realdata import real_data

import numllama as nl
from numllama.cli import main
from numllama.commands import generate_run
from numllama.generation.chat import PARAGRAPH

SPEED = r"^\d+ prompt tokens in \d+\.\d\d s, (\d+) new ones(, [\d,]+ tokens/s)?\n$"
NAMES = ["<|begin|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pause|>"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"


class Result(NamedTuple):
    code: int
    out: str
    err: str


def numllama(*arguments, lines=None) -> Result:
    """Run the command in this process; `lines` are what the user types, and an exception is Ctrl-C."""
    out, err, typed = io.StringIO(), io.StringIO(), iter(lines or ())

    def read(prompt=""):
        print(prompt, end="")
        line = next(typed, None)
        if line is None:
            raise EOFError
        if isinstance(line, BaseException):
            raise line
        return line

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        patch.setattr(builtins, "input", read)
        main([str(argument) for argument in arguments])
    return Result(end.value.code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """A small random model of bytes with a chat template, as Hugging Face's folders are."""
    folder = tmp_path_factory.mktemp("chatty")
    model = random_model("float32", vocab_size=261, max_seq_len=300)
    model.generation_config = {"bos_token_id": 256, "eos_token_id": [259, 260]}
    model.save(folder, nl.Tokenizer({i: bytes([i]) for i in range(256)}, [], NAMES))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|begin|>"}')
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few steps on a book of three letters and spaces."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "book.txt").write_text("abc cab\n\nbac bca\n" * 100)
    flags = "--dim 16 --n-layers 1 --n-heads 2 --ffn-dim 16 --max-seq-len 16 --steps 4 --batch-size 4 --workers 1"
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), pytest.raises(SystemExit) as end:
        main(["train", "--data", str(folder / "book.txt"), *flags.split(), "--out", str(folder / "run")])
    assert end.value.code == 0
    return folder / "run"


# ------------------------------------------------------------------------------------------------ generate


def test_the_real_model_tells_its_story():
    story = numllama("generate", real_data("stories260K.bin"), "--tokenizer", real_data("tok512.bin"), "--temperature", 0)
    assert (story.code, story.out) == (0, STORY + "\n")
    assert re.match(SPEED, story.err)[1] == "256"


def test_the_text_follows_its_prompt_at_once(trained):
    result = numllama("generate", trained, "--prompt", "abc", "--seed", 5, "--max-new-tokens", 12)
    model, tokenizer = nl.load(trained), nl.Tokenizer.load(trained)
    new = nl.complete(model, tokenizer, "abc", 12, temperature=0.8, seed=5)
    assert (result.code, result.out) == (0, f"abc{new}\n")
    assert re.match(SPEED, result.err)[1] == "12"


@pytest.mark.parametrize(("flags", "settings"), [
    (["--temperature", 0], dict(temperature=0, window=16)),
    (["--temperature", 2, "--top-k", 3, "--top-p", 0.7, "--min-p", 0.1, "--repetition-penalty", 1.5],
     dict(temperature=2.0, top_k=3, top_p=0.7, min_p=0.1, repetition_penalty=1.5, window=16)),
    (["--top-k", 0, "--top-p", 1, "--max-new-tokens", 9], dict(temperature=0.8, max_new_tokens=9)),
    (["--top-k", 999, "--top-p", 0, "--max-new-tokens", 16], dict(temperature=0, max_new_tokens=16)),
    (["--window", 7, "--max-new-tokens", 40], dict(temperature=0.8, window=7, max_new_tokens=40)),
    (["--stop", "c", "--stop", "ba"], dict(temperature=0.8, stop=["c", "ba"], window=16)),
])  # fmt: skip
def test_flags_are_the_settings_of_complete(trained, flags, settings):
    model, tokenizer = nl.load(trained), nl.Tokenizer.load(trained)
    result = numllama("generate", trained, "--prompt", "a", "--seed", 1, *flags)
    assert result.out == "a" + nl.complete(model, tokenizer, "a", seed=1, **settings) + "\n"


def test_one_step_of_a_run_finds_the_runs_tokenizer(trained):
    (step,) = trained.glob("step-*")
    whole = numllama("generate", trained, "--prompt", "a", "--seed", 1)
    assert numllama("generate", step, "--prompt", "a", "--seed", 1).out == whole.out


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"store_as": "int8"}], ids=str)
def test_weights_in_fewer_bytes(chatty, options):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    result = numllama("generate", chatty, "--prompt", "Hello", *flags, "--temperature", 0, "--max-new-tokens", 9)
    model = nl.load(chatty, **options)
    assert result.out == "Hello" + nl.complete(model, nl.Tokenizer.load(chatty), "Hello", 9, temperature=0) + "\n"


def test_the_terminal_gets_each_piece_as_it_is_made(trained):
    """Another process: what has come when the text is half done is what is on the pipe."""
    command = [sys.executable, "-m", "numllama.cli", "generate", trained, "--prompt", "abc", "--window", "16", "--seed", "1"]
    path = str(Path(nl.__file__).parents[1])
    process = subprocess.Popen(
        [*command, "--max-new-tokens", "100000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    try:
        assert process.stdout.read(100).startswith(b"abc")
        assert process.poll() is None  # a model without a stop id goes on
    finally:
        process.kill()
        process.communicate()


def test_a_first_model_goes_on_beyond_its_context(trained):
    model, tokenizer = nl.load(trained), nl.Tokenizer.load(trained)
    result = numllama("generate", trained, "--prompt", "abc", "--seed", 5)
    assert result.out == "abc" + nl.complete(model, tokenizer, "abc", 256, temperature=0.8, seed=5, window=16) + "\n"
    assert re.match(SPEED[:-3], result.err)[1] == "256"
    assert result.err.splitlines()[1:] == [
        "the text is longer than max_seq_len, so each token sees only 16 tokens, as with --window 16"
    ]
    short = numllama("generate", trained, "--prompt", "abc", "--seed", 5, "--max-new-tokens", 14)
    assert short.out == "abc" + nl.complete(model, tokenizer, "abc", 14, temperature=0.8, seed=5) + "\n"
    assert len(short.err.splitlines()) == 1


def test_learned_positions_end_where_their_table_does(tmp_path):
    model = random_model("float32", vocab_size=3, positions="learned", max_seq_len=16)
    model.save(tmp_path, nl.CharTokenizer("abc"))
    result = numllama("generate", tmp_path, "--prompt", "abc", "--seed", 5)
    assert re.match(SPEED, result.err)[1] == "14"
    refused(numllama("generate", tmp_path, "--prompt", "abc", "--max-new-tokens", 15), "do not fit: max_seq_len is 16")
    assert "window" not in numllama("generate", tmp_path, "--prompt", "abc", "--max-new-tokens", 15).err


@pytest.mark.parametrize("how", ["positional", "--prompt", "--prompt-file"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_prompt_from_standard_input_or_a_file(trained, tmp_path, monkeypatch, how, end):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"abc\n\ncab{end}".encode())))
    flags = ["-"] if how == "positional" else [how, "-"]
    expected = numllama("generate", trained, "--prompt", "abc\n\ncab", "--seed", 1, "--max-new-tokens", 5).out
    assert numllama("generate", trained, *flags, "--seed", 1, "--max-new-tokens", 5).out == expected
    (tmp_path / "prompt").write_bytes(f"abc\n\ncab{end}".encode())
    assert numllama("generate", trained, "--prompt-file", tmp_path / "prompt", "--seed", 1, "--max-new-tokens", 5).out == expected
    assert numllama("generate", trained, "abc\n\ncab", "--seed", 1, "--max-new-tokens", 5).out == expected


def test_a_prompt_that_cannot_be_read_is_named(trained, tmp_path, monkeypatch):
    refused(numllama("generate", trained, "--prompt-file", tmp_path / "nowhere"), "does not exist")
    refused(numllama("generate", trained, "--prompt-file", tmp_path), "a folder")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    refused(numllama("generate", trained, "-"), "standard input is not UTF-8 text: byte 2")
    assert "--promp is not an option" in numllama("generate", trained, "--promp", "abc").err
    assert "-x is not an option" in numllama("generate", trained, "-x").err


def test_several_texts_are_those_of_the_following_seeds(trained):
    one_by_one = [numllama("generate", trained, "--prompt", "ab", "--seed", seed).out for seed in (7, 8, 9)]
    result = numllama("generate", trained, "--prompt", "ab", "--seed", 7, "-n", 3)
    assert result.out == "-----\n".join(one_by_one)
    assert re.match(SPEED[:-3], result.err)[1] == str(3 * 256)


def test_texts_as_json(trained):
    plain = numllama("generate", trained, "--prompt", "ab", "--seed", 7, "--max-new-tokens", 9, "-n", 2, "--stop", "c").out
    result = numllama("generate", trained, "--prompt", "ab", "--seed", 7, "--max-new-tokens", 9, "-n", 2, "--stop", "c", "--json")
    values = json.loads(result.out)
    assert ["ab" + one["text"] for one in values["texts"]] == [text.removesuffix("\n") for text in plain.split("-----\n")]
    assert (values["prompt"], values["prompt_tokens"]) == ("ab", 2)
    assert {one["finish_reason"] for one in values["texts"]} <= {"stop", "length"}
    assert all((one["finish_reason"] == "length") == (one["new_tokens"] == 9) for one in values["texts"])
    assert values["settings"]["temperature"] == 0.8
    assert values["settings"]["seed"] == 7


@pytest.fixture(scope="module")
def settled(tmp_path_factory):
    """A model whose checkpoint says how it is to be sampled."""
    folder = tmp_path_factory.mktemp("settled")
    model = random_model("float32", vocab_size=261, max_seq_len=300)
    model.generation_config = {"do_sample": True, "temperature": 0.3, "top_k": 7, "top_p": 0.95}
    model.save(folder, nl.Tokenizer({i: bytes([i]) for i in range(256)}, [], NAMES))
    return folder


def test_the_checkpoints_settings_are_told_and_lie_below_the_flags(settled):
    model, tokenizer = nl.load(settled), nl.Tokenizer.load(settled)
    result = numllama("generate", settled, "--prompt", "Hello", "--seed", 1, "--max-new-tokens", 30)
    own = dict(temperature=0.3, top_k=7, top_p=0.95)
    assert result.out == "Hello" + nl.complete(model, tokenizer, "Hello", 30, seed=1, **own) + "\n"
    assert result.err.splitlines()[0] == "from generation_config.json: temperature 0.3, top_k 7, top_p 0.95"
    flags = ["--max-new-tokens", 30, "--temperature", 1, "--top-k", 0]
    result = numllama("generate", settled, "--prompt", "Hello", "--seed", 1, *flags)
    assert result.out == "Hello" + nl.complete(model, tokenizer, "Hello", 30, seed=1, temperature=1, top_k=0, top_p=0.95) + "\n"
    assert result.err.splitlines()[0] == "from generation_config.json: top_p 0.95"
    talk = numllama("chat", settled, "--seed", 1, "--max-new-tokens", 30, lines=["Hello"])
    assert talk.err.splitlines()[0] == "from generation_config.json: temperature 0.3, top_k 7, top_p 0.95"
    assert talk.out == f"> {nl.complete(model, tokenizer, 'Hello' + PARAGRAPH, 30, seed=1, stop=PARAGRAPH, **own)}\n> \n"


@pytest.mark.parametrize("prompt", ["<|begin|>hi", "<|user|>hi<|end|>", "<|pause|>"])
def test_special_tokens_of_a_prompt_are_those_tokens_or_text(chatty, prompt):
    model, tokenizer = nl.load(chatty), nl.Tokenizer.load(chatty)
    for flags, settings in ([], {}), (["--no-special"], dict(special=False)), (
        ["--no-skip-special-tokens"], dict(skip_special_tokens=False),
    ):  # fmt: skip
        result = numllama("generate", chatty, "--prompt", prompt, "--seed", 1, "--max-new-tokens", 20, *flags)
        assert result.code == 0
        expected = nl.complete(model, tokenizer, prompt, 20, seed=1, temperature=0.8, **settings)
        assert result.out == f"{prompt}{expected}\n"


def test_logits_that_are_no_numbers_are_one_sentence(chatty, tmp_path):
    model = nl.load(chatty)
    model.params["blocks.0.w_up"][0, 0] = float("nan")
    model.save(tmp_path, nl.Tokenizer.load(chatty))
    for flags in ([], ["--temperature", 0], ["--top-k", 5], ["--json"]):
        result = numllama("generate", tmp_path, "--prompt", "hi", *flags)
        refused(result, "the model's logits hold NaN, because its parameter blocks.0.w_up is not finite")
    assert "w_up is not finite" in numllama("chat", tmp_path, lines=["hi"]).err


# ------------------------------------------------------------------------------------------------ chat


def answers_of(chatty, lines, **settings):
    """What a conversation should be, turn by turn, without any memory."""
    model, tokenizer = nl.load(chatty), nl.Tokenizer.load(chatty)
    messages, answers = [], []
    for line in lines:
        messages.append({"role": "user", "content": line})
        ids = nl.generate(model, tokenizer.apply_chat_template(messages), stop_ids=model.stop_ids, **settings)
        answers.append(tokenizer.decode(ids))
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def test_a_conversation(chatty):
    lines = ["Hello", "", "   ", "And you?"]
    result = numllama("chat", chatty, "--seed", 4, "--max-new-tokens", 25, lines=lines)
    first, second = answers_of(chatty, ["Hello", "And you?"], max_new_tokens=25, temperature=0.8, seed=4)
    assert (result.code, result.out) == (0, f"> {first}\n> > > {second}\n> \n")
    assert re.match(SPEED, result.err)


def test_a_base_model_goes_on_to_the_end_of_a_paragraph(trained):
    result = numllama("chat", trained, "--seed", 0, "--window", 16, "--max-new-tokens", 50, lines=["abc"])
    model, tokenizer = nl.load(trained), nl.Tokenizer.load(trained)
    answer = nl.complete(model, tokenizer, "abc\n\n", 50, temperature=0.8, seed=0, window=16, stop="\n\n")
    assert result.out == f"> {answer}\n> \n"


def test_a_line_that_cannot_be_said_is_told_and_the_talk_goes_on(trained):
    result = numllama("chat", trained, "--seed", 0, "--window", 16, lines=["xyz", "abc"])
    assert result.code == 0
    assert result.err.startswith("error: character 'x' at position 0 is not among the 5 that this tokenizer knows\n")
    assert result.out == numllama("chat", trained, "--seed", 0, "--window", 16, lines=["abc"]).out.replace("> ", "> > ", 1)


def test_ctrl_c_ends_the_talk(chatty):
    result = numllama("chat", chatty, lines=[KeyboardInterrupt()])
    assert (result.code, result.out) == (130, "> \n")
    assert result.err == "0 prompt tokens in 0.00 s, 0 new ones\n"


def test_ctrl_c_in_an_answer_ends_the_answer(chatty, monkeypatch):
    shown = []
    plain = generate_run.show

    def show(pieces):
        shown.append(1)
        if len(shown) > 1:
            return plain(pieces)
        print(next(pieces), end="")
        raise KeyboardInterrupt

    monkeypatch.setattr(generate_run, "show", show)
    result = numllama("chat", chatty, "--seed", 4, "--max-new-tokens", 25, lines=["Hello", "Go on"])
    assert result.code == 0
    assert len(shown) == 2
    assert result.out.count("> ") >= 3


# ------------------------------------------------------------------------------------------------ what cannot be


WRONG = {
    "top_p": (["--top-p", -1], r"top_p is -1.0, but must be a number in [0, 1]"),
    "top_p 2": (["--top-p", 2], "top_p is 2.0"),
    "temperature": (["--temperature", -1], "temperature is -1.0, but must be a number that is not negative"),
    "top_k": (["--top-k", -2], "top_k is -2, but must be a whole number of at least 1, or 0 or -1 for all"),
    "min_p": (["--min-p", 1.5], "min_p is 1.5"),
    "penalty": (["--repetition-penalty", 0], "repetition_penalty is 0.0"),
    "window": (["--window", 301], "window is 301, but must be a whole number in 1..300"),
    "new tokens": (["--max-new-tokens", -1], "max_new_tokens is -1, but must be a whole number that is not negative"),
    "n": (["-n", 0], "n is 0, but must be a whole number of at least 1"),
    "two prompts": (["--prompt-file", "nowhere"], "prompt and prompt_file are both given, but only one is allowed"),
    "dtype": (["--dtype", "int8"], "dtype is 'int8', but must be one of"),
    "store_as": (["--store-as", "int4"], "store_as is 'int4', but must be 'int8'"),
    "device": (["--device", "tpu"], "device is 'tpu'"),
    "tokenizer": (["--tokenizer", "nowhere"], "the tokenizer nowhere does not exist"),
}


def refused(result, sentence):
    assert result.code == 2, result
    assert [line for line in result.err.splitlines() if sentence in line and line.startswith("error: ")], result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(("flags", "sentence"), WRONG.values(), ids=WRONG)
def test_an_impossible_flag_is_one_sentence(chatty, flags, sentence):
    result = numllama("generate", chatty, "--prompt", "Hello", *flags)
    refused(result, sentence)
    assert result.out == ""


@pytest.mark.parametrize("name", ["top_p 2", "top_k", "temperature", "window", "dtype"])
def test_so_it_is_in_a_chat_before_anything_is_said(chatty, name):
    flags, sentence = WRONG[name]
    result = numllama("chat", chatty, *flags, lines=["Hello"])
    refused(result, sentence)
    assert result.out == ""


def test_a_prompt_that_is_empty_or_too_long(trained, chatty):
    refused(numllama("generate", trained), "the prompt is empty, but at least one token is needed to begin with")
    assert numllama("generate", trained, "--prompt", "a" * 20, "--max-new-tokens", 3).code == 0   # a window slides over it
    refused(numllama("generate", trained, "--prompt", "x"), "character 'x' at position 0")
    assert numllama("generate", chatty, "--max-new-tokens", 3).code == 0   # there is a token to begin with


def test_a_model_that_is_not_there(tmp_path):
    for command in ("generate", "chat"):
        refused(numllama(command, tmp_path / "nowhere"), "does not exist (nothing is downloaded: name a folder or a file)")
        refused(numllama(command, tmp_path), str(tmp_path))


def test_a_model_without_a_tokenizer(tmp_path):
    random_model("float32").save(tmp_path / "model")
    refused(numllama("generate", tmp_path / "model", "--prompt", "a"), "holds no tokenizer")


def test_a_tokenizer_of_another_model(chatty, tmp_path):
    random_model("float32", vocab_size=19).save(tmp_path / "model")
    refused(numllama("generate", tmp_path / "model", "--tokenizer", chatty, "--prompt", "a"), "tokens holds 97")


def test_the_help_names_every_flag():
    sampling = ["temperature", "top-k", "top-p", "min-p", "repetition-penalty"]
    shared = ["max-new-tokens", "window", "seed", "device", "dtype", "tokenizer", *sampling]
    for command, own in (("generate", ["prompt", "stop", "prompt-file", "json", "no-special"]), ("chat", ["system"])):
        out = numllama(command, "--help").out
        assert not [name for name in [*own, *shared] if f"--{name}" not in out]
