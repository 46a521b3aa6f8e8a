"""Fine-tuning from the command line: what is learnt, what lies on the disk, stopped and gone on with."""

import io
import json
import os
import re
import shutil
import signal
import sys
from contextlib import closing, redirect_stderr, redirect_stdout

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from interop.test_chat_template import LLAMA_3

import numllama as nl
from numllama.cli import main
from numllama.commands.finetune_run import Tuning, _recipe
from numllama.data.batches import counted
from numllama.data.conversations import ConversationBatches, Conversations, Documents
from numllama.errors import CheckpointError
from numllama.generation.chat import Chat, has_chat_template
from numllama.parallel import shards
from numllama.parallel.shards import ShardPlan, Workers
from numllama.training import checkpoint
from numllama.training.config import tuning_lr

NAMES = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"]
EOT, END_OF_TEXT = 259, 260
SHAPE = dict(vocab_size=261, dim=32, n_layers=1, n_heads=2, max_seq_len=96, init_std=0.2)
QUICK = ("--workers", 1, "--batch-size", 3)
ENDS = ("--modules-to-save", "embed", "--modules-to-save", "head")


def numllama(*arguments):
    """Run a command in this process: its exit code, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    return end.value.code, out.getvalue(), err.getvalue()


def finetune(*arguments, code=0):
    """The command's standard output; it ends with this exit code."""
    actual, out, err = numllama("finetune", *arguments)
    assert actual == code, err
    assert "Traceback" not in err
    return out if code in (0, 130) else err


def write(path, n=12):
    """Conversations in which a letter is said, and answered with "and"."""
    with open(path, "w", encoding="utf-8") as file:
        for i in range(n):
            messages = [{"role": "user", "content": "abcd"[i % 4]}, {"role": "assistant", "content": "and"}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Hugging Face folder with a chat template, whose generation config does not know the end of a turn."""
    folder = tmp_path_factory.mktemp("base")
    model = nl.Transformer(nl.ModelConfig(**SHAPE), seed=1)
    model.generation_config = {"eos_token_id": END_OF_TEXT}
    model.save(folder, tokenizer=nl.Tokenizer({i: bytes([i]) for i in range(256)}, [], NAMES))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": NAMES[0], "chat_template": LLAMA_3}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "chat.jsonl")


@pytest.fixture(scope="module")
def tuned(base, data, tmp_path_factory):
    """The folder of a finished run with an adapter, and what it printed."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    return out, finetune(base, "--data", data, "--out", out, *QUICK, "--steps", 40, "--lr", "1e-2", "--rank", 4)


def answers(model, folder):
    """What a chat says to each letter."""
    tokenizer = nl.Tokenizer.load(folder)
    assert has_chat_template(tokenizer)
    return ["".join(Chat(model, tokenizer, temperature=0, max_new_tokens=5).say(letter)) for letter in "abc"]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ------------------------------------------------------------------------------------------------ what comes out


def test_the_model_says_what_it_was_taught_and_stops(tuned, base):
    out, printed = tuned
    assert re.search(r"\nvalidation loss: 0\.\d{4}\n$", printed)
    model = nl.load(out / "model")
    assert answers(model, out / "model") == ["and"] * 3
    assert model.stop_ids == (END_OF_TEXT, EOT)  # the base model's own, and the one that the data end answers with
    assert answers(nl.load(base), base) != ["and"] * 3


def test_the_adapter_the_merged_model_and_the_run_are_one_model(tuned, base):
    out, _ = tuned
    paths = dict(path=out / "model"), dict(path=out / "adapter"), dict(path=base, adapter=out / "adapter"), dict(path=out)
    models = [nl.load(**path, dtype="float64") for path in paths]
    assert [model.adapter is None for model in models] == [True, False, False, False]
    tokens = np.arange(90)[None]
    for model in models[1:]:
        assert_close(model.forward(tokens), models[0].forward(tokens), rtol=1e-6)
        assert_same_bits(model.params.flat, nl.load(base, dtype="float64").params.flat)  # frozen
    assert answers(models[1], out / "adapter") == answers(models[3], out) == ["and"] * 3
    kept = nl.load(out, dtype="bfloat16")
    assert kept.adapter is None and kept.params.flat.dtype == "bfloat16"


def test_the_embedding_and_the_head_are_trained_whole_beside_the_updates(base, data, tmp_path):
    out = tmp_path / "run"
    printed = finetune(base, "--data", data, "--out", out, *QUICK, "--steps", 20, "--lr", "1e-2", "--rank", 2, *ENDS)
    paths = dict(path=out / "model"), dict(path=out / "adapter"), dict(path=base, adapter=out / "adapter"), dict(path=out)
    merged, *others = [nl.load(**path, dtype="float64") for path in paths]
    below, tokens = nl.load(base, dtype="float64"), np.arange(90)[None]
    for model in others:
        assert model.adapter.config.modules_to_save == ("embed", "head")
        assert_close(model.forward(tokens), merged.forward(tokens), rtol=1e-6)
        assert_same_bits(model.params.flat, below.params.flat)  # frozen
    for name in ("embed", "head"):
        moved = np.abs(merged.params[name] - below.params[name]).max()
        assert moved > 1e-3
        assert_same_bits(others[0].adapter.params[name], merged.params[name])
    size = others[0].adapter.params.flat.size
    assert f"trainable: {size:,} parameters of an adapter, 7 matrices per layer and all of embed and head\n" in printed
    assert answers(others[0], out / "adapter") == ["and"] * 3


def test_one_matrix_for_embedding_and_head_is_not_trained_beside_updates(base, data, tmp_path):
    nl.Transformer(nl.ModelConfig(**SHAPE, tie_embeddings=True)).save(tmp_path / "tied", tokenizer=nl.Tokenizer.load(base))
    err = finetune(tmp_path / "tied", "--data", data, "--out", tmp_path / "run", *QUICK, *ENDS, code=2)
    assert err == "error: modules_to_save is ('embed', 'head'), but the model's embedding and head are one matrix\n"
    assert not (tmp_path / "run").exists()


def test_chat_and_generate_open_all_of_them(tuned, monkeypatch):
    out, _ = tuned
    for folder in (out / "model", out / "adapter", out):
        monkeypatch.setattr("sys.stdin", io.StringIO("a\n"))
        code, said, _ = numllama("chat", folder, "--temperature", "0.01", "--seed", 0, "--max-new-tokens", 5)
        assert code == 0 and said == "> and\n> \n"
        assert numllama("generate", folder, "--prompt", "a", "--max-new-tokens", 1)[0] == 0


def test_checkpoints_hold_the_adapter_alone(tuned, base):
    out, printed = tuned
    folder = checkpoint.find_step(out)
    adapter = nl.load(out / "adapter").adapter.params.flat
    assert (folder / "weights.safetensors").stat().st_size < 1.2 * adapter.nbytes + 4000
    assert (folder / "optimizer.safetensors").stat().st_size < 2.2 * adapter.nbytes + 8000
    assert f"trainable: {adapter.size:,} parameters of an adapter, 7 matrices per layer" in printed


def test_all_weights_are_learnt_with_full(base, data, tmp_path):
    printed = finetune(base, "--data", data, "--out", tmp_path / "run", *QUICK, "--steps", 30, "--lr", "3e-3", "--full")
    assert "adapter" not in printed
    assert not (tmp_path / "run" / "adapter").exists()
    assert answers(nl.load(tmp_path / "run" / "model"), tmp_path / "run" / "model") == ["and"] * 3
    assert not np.array_equal(nl.load(tmp_path / "run").params["embed"], nl.load(base).params["embed"])


def test_a_run_of_our_own_is_tuned_with_paragraphs(data, tmp_path):
    (tmp_path / "book.txt").write_text("a, b, c and d.\n\n" * 40)
    shape = ("--dim", 32, "--n-layers", 1, "--n-heads", 2, "--max-seq-len", 16, "--init-std", 0.2)
    assert numllama("train", "--data", tmp_path / "book.txt", *shape, "--steps", 2, *QUICK, "--out", tmp_path / "base")[0] == 0
    out = tmp_path / "run"
    finetune(tmp_path / "base", "--data", data, "--out", out, *QUICK, "--steps", 40, "--lr", "1e-2")
    model, tokenizer = nl.load(out / "model"), nl.Tokenizer.load(out / "model")
    assert not has_chat_template(tokenizer)
    assert "".join(Chat(model, tokenizer, temperature=0, max_new_tokens=6).say("a")) == "and"
    assert nl.load(out / "adapter").config == nl.load(tmp_path / "base").config


def test_a_template_of_ones_own_goes_with_the_model(base, data, tmp_path):
    template = tmp_path / "mine.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )
    out = tmp_path / "run"
    finetune(base, "--data", data, "--chat-template", template, "--out", out, *QUICK, "--steps", 1)
    for folder in (out, out / "model", out / "adapter"):
        ids = nl.Tokenizer.load(folder).apply_chat_template([{"role": "user", "content": "x"}])
        assert ids == [*b"u:x", EOT, *b"a:"]


def test_an_adapter_can_be_tuned_further_and_is_then_part_of_the_model_below(tuned, data, tmp_path):
    out, _ = tuned
    finetune(out / "adapter", "--data", data, "--out", tmp_path / "run", *QUICK, "--steps", 1, "--lr", "1e-9", "--full")
    tokens = np.arange(90)[None]
    assert_close(nl.load(tmp_path / "run" / "model").forward(tokens), nl.load(out / "model").forward(tokens), rtol=1e-5)


@pytest.mark.parametrize("below", ["adapter", "."], ids=["adapter", "run"])
def test_an_adapter_over_an_adapter_opens_as_all_others_do(tuned, data, tmp_path, below):
    out, tokens = tmp_path / "run", np.arange(90)[None]
    finetune(tuned[0] / below, "--data", data, "--out", out, *QUICK, "--steps", 2, "--lr", "1e-2")
    finetune("--resume", "--out", out, "--steps", 4)
    expected = nl.load(out / "model", dtype="float64").forward(tokens)
    for path in (out, out / "adapter"):
        assert_close(nl.load(path, dtype="float64").forward(tokens), expected, rtol=1e-5)


# ------------------------------------------------------------------------------------------------ how it goes


def test_defaults_are_three_epochs_of_rows_and_nothing_that_pulls_towards_zero(base, data, tmp_path):
    finetune(base, "--data", data, "--out", tmp_path / "run", "--batch-size", 2, "--workers", 1, "--seq-len", 30)
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
    assert (settings["steps"], settings["eval_every"]) == (15, 5)  # ten conversations, of which no two fit a row
    assert (settings["lr"], settings["weight_decay"], settings["seq_len"]) == (4.3e-3, 0.0, 30)
    lora = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (lora["r"], lora["lora_alpha"], len(lora["target_modules"])) == (8, 16, 7)


@pytest.mark.parametrize(
    ("dim", "lora", "full"), [(16, 4.3e-3, 4.3e-4), (128, 4.3e-3, 4.3e-4), (2000, 5e-4, 5e-5), (4096, 2.9e-4, 2.9e-5)]
)
def test_narrow_models_take_larger_steps_and_adapters_ten_times_those_of_all_weights(dim, lora, full):
    assert (tuning_lr(dim, full=False), tuning_lr(dim, full=True)) == (lora, full)


@pytest.mark.parametrize(
    ("rows", "longest", "expected"),
    [(10, 40, (40, 1)), (200, 40, (40, 12)), (100_000, 40, (40, 8192 // 40)), (200, 90, (90, 12)), (200, 5000, (96, 12))],
)
def test_few_or_short_conversations_make_small_batches(base, rows, longest, expected):
    ids, said = np.zeros(longest + 1, np.int64), np.ones(longest + 1, bool)
    documents = Documents([(ids, said)] * rows)
    model = nl.load(base)
    config = _recipe(Tuning(base, base), model, Conversations(documents, documents, None, "x"), 3.0, {})
    assert (config.seq_len, config.batch_size) == expected
    assert config.steps == -(-3 * rows // config.batch_size)


@pytest.mark.parametrize("flags", [(), ("--full",)])
def test_two_hundred_conversations_are_learnt_with_the_defaults(base, tmp_path, flags):
    data = write(tmp_path / "chat.jsonl", 200)
    printed = finetune(base, "--data", data, "--out", tmp_path / "run", "--workers", 1, *flags)
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert float(printed.split()[-1]) < first / 2


@pytest.mark.parametrize("flags", [("--steps", 0), ("--lr", -1), ("--optimizer", "adam"), ("--epochs", 0)])
def test_flags_are_checked_before_the_model_is_read(base, data, tmp_path, monkeypatch, flags):
    monkeypatch.setattr(sys.modules["numllama.interop.load"], "load", lambda *_, **__: pytest.fail("it was read"))
    finetune(base, "--data", data, "--out", tmp_path / "run", *flags, code=2)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_says_so_and_a_longer_schedule_what_it_does_to_the_learning_rate(base, data, tmp_path):
    out = tmp_path / "run"
    finetune(base, "--data", data, "--out", out, *QUICK, "--steps", 4, "--lr", 1e-3)
    assert f"run: {out}, 4 of 4 steps are done: nothing is left to train" in finetune("--resume", "--out", out)
    said = finetune("--resume", "--out", out, "--steps", 6)
    rates = [json.loads(line)["lr"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    words = f"the learning rate goes from {rates[3]:.2e} in step 4 to {rates[4]:.2e} in step 5"
    assert f"the schedule now ends at step 6, not 4: {words}\n" in said


LLAMA_SAYS = """\
      | <|begin_of_text|><|start_header_id|>user<|end_header_id|>⏎
      | ⏎
      | a<|eot_id|><|start_header_id|>assistant<|end_header_id|>⏎
      | ⏎
train | an"""
MARKED = "[user] {{ messages[0].content }}\n[assistant] {% generation %}{{ messages[1].content }}!{% endgeneration %}."
MARKED_SAYS = """\
      | [user] a⏎
      | [assistant] \n\
train | and!
      | .
"""
SHOWN = [
    (None, (), f"conversation 1: 28 tokens, 4 of them trained on\n{LLAMA_SAYS}d<|eot_id|>\n"),
    (None, ("--seq-len", 25), f"conversation 1: 28 tokens, 2 of them trained on\n{LLAMA_SAYS}\n(cut off here: seq_len is 25)\n"),
    (MARKED, (), f"conversation 1: 26 tokens, 4 of them trained on\n{MARKED_SAYS}"),
    ("", (), "conversation 1: 8 tokens, 5 of them trained on\n      | a⏎\n      | ⏎\ntrain | and⏎\ntrain | ⏎\n"),
]


@pytest.mark.parametrize(("template", "flags", "expected"), SHOWN, ids=["a template", "cut off", "marked", "no template"])
def test_conversations_are_shown_as_the_model_sees_them(base, data, tmp_path, template, flags, expected):
    if template == "":
        shutil.copytree(base, tmp_path / "base", ignore=shutil.ignore_patterns("tokenizer_config.json"))
        base = tmp_path / "base"
    elif template:
        (tmp_path / "marked.jinja").write_text(template)
        flags = (*flags, "--chat-template", tmp_path / "marked.jinja")
    before = set(tmp_path.rglob("*"))
    assert finetune(base, "--data", data, "--show", 1, *flags, "--out", tmp_path / "run") == expected
    assert set(tmp_path.rglob("*")) == before


def test_as_many_conversations_are_shown_as_are_asked_for_and_those_that_are_left_out_say_so(base, tmp_path):
    path = write(tmp_path / "chat.jsonl", 5)
    path.write_text(path.read_text().replace('"a"', f'"{"long " * 9}"', 1))
    printed = finetune(base, "--data", path, "--show", 99, "--seq-len", 30)
    assert re.findall(r"conversation (\d): \d+ tokens, (\d) of them trained on", printed) == [*zip("1234", "0444", strict=True)]
    assert printed.count("(left out: seq_len is 30)") == 1
    assert "show is -1, but must be" in finetune(base, "--data", path, "--show", -1, code=2)


def test_what_a_terminal_would_obey_is_shown_as_a_number(base, tmp_path):
    path = write(tmp_path / "chat.jsonl")
    path.write_text(path.read_text().replace('"a"', json.dumps("\x1b[31m\r\x00")))
    assert "\n      | \\x1b[31m\\x0d\\x00<|eot_id|>" in finetune(base, "--data", path, "--show", 1)


def test_conversations_that_spell_special_tokens_are_counted(base, tmp_path):
    path = write(tmp_path / "chat.jsonl")
    path.write_text(path.read_text().replace('"a"', '"<|eot_id|>"'))
    printed = finetune(base, "--data", path, "--out", tmp_path / "run", *QUICK, "--steps", 1)
    assert "\n3 of them spell special tokens, which are read as plain text\n" in printed


def test_what_is_too_long_is_cut_off_and_said(base, data, tmp_path):
    printed = finetune(base, "--data", data, "--out", tmp_path / "run", *QUICK, "--steps", 1, "--seq-len", 26)
    assert "12 of them are longer than seq_len, 26 tokens, and are cut off" in printed


def test_what_is_left_out_is_counted_apart_from_what_is_cut_off(base, tmp_path):
    def line(question, answer):
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return json.dumps({"messages": messages}) + "\n"

    path = tmp_path / "long.jsonl"
    path.write_text(line("q", "yes") * 3 + line("long " * 40, "yes") * 4 + line("q", "yes " * 40) * 2)
    printed = finetune(base, "--data", path, "--val-data", path, "--out", tmp_path / "run", *QUICK, "--steps", 1, "--seq-len", 32)
    assert "\n4 of them are longer than seq_len, 32 tokens, and are cut off\n" in printed  # two in each split
    assert "\n8 of them are left out, because no answer begins in their first 32 tokens (see --seq-len)\n" in printed


HOW = {"lora": (), "lora and whole matrices": ENDS, "full": ("--full",)}


@pytest.mark.parametrize("how", HOW)
def test_ctrl_c_saves_and_resume_comes_to_the_same_end(base, data, tmp_path, monkeypatch, how):
    arguments = (base, "--data", data, *QUICK, "--steps", 6, "--lr", "1e-2", *HOW[how])
    finetune(*arguments, "--out", tmp_path / "straight")
    plain = ConversationBatches.batch

    def batch(self, position, rows=None):
        if position.step == 3:
            signal.raise_signal(signal.SIGINT)
        return plain(self, position, rows)

    with monkeypatch.context() as patch:
        patch.setattr(ConversationBatches, "batch", batch)
        printed = finetune(*arguments, "--out", tmp_path / "stopped", code=130)
    assert f"interrupted after step 3: saved as {tmp_path / 'stopped' / 'step-000003'}" in printed
    assert not (tmp_path / "stopped" / "model").exists()
    finetune("--resume", "--out", tmp_path / "stopped")
    for folder in ("model", "step-000006") + (() if how == "full" else ("adapter",)):
        assert files(tmp_path / "stopped" / folder) == files(tmp_path / "straight" / folder)


def test_a_run_that_goes_on_with_another_batch_size_leaves_out_no_row_and_takes_none_twice(base, tmp_path, monkeypatch):
    data, seen, plain = write(tmp_path / "chat.jsonl", 34), [], Documents.batch
    note = lambda self, rows, seq_len: (seen.extend(map(tuple, rows)), plain(self, rows, seq_len))[1]  # noqa: E731
    settings = ("--val-data", data, "--seq-len", 30, "--eval-batches", 1)
    with monkeypatch.context() as patch:
        patch.setattr(ConversationBatches, "validation", lambda *_: iter(()))
        patch.setattr(Documents, "batch", note)
        finetune(base, "--data", data, *settings, "--out", tmp_path / "run", "--workers", 1, "--batch-size", 4, "--steps", 3)
        finetune("--resume", "--out", tmp_path / "run", "--batch-size", 2, "--steps", 14)
    assert len(seen) == 3 * 4 + 11 * 2 == len(set(seen)) == 34


@pytest.fixture
def stopped(base, data, tmp_path):
    """A run with one checkpoint of two steps, to be gone on with."""
    out = tmp_path / "run"
    finetune(base, "--data", data, "--out", out, *QUICK, "--steps", 2)
    return out


def test_a_kill_before_the_first_pointer_loses_nothing(stopped):
    for name in ("latest", "best"):
        (stopped / f"{name}.json").unlink()
    before = files(stopped / "step-000002")
    assert "steps 3 to 3 of" in finetune("--resume", "--out", stopped, "--steps", 3)
    assert files(stopped / "step-000002") == before


def test_a_wrong_byte_in_the_settings_is_noticed(stopped):
    path = stopped / "config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"lr": 0.0043', '"lr": 0.0042'), encoding="utf-8")
    assert f"{path} is damaged: its checksum is wrong" in finetune("--resume", "--out", stopped, "--steps", 3, code=2)
    with pytest.raises(CheckpointError, match="its checksum is wrong"):
        nl.load(stopped)


def test_an_adapter_whose_model_has_changed_below_it_is_refused(base, data, tmp_path):
    """As a training run that went on has."""
    own, out = tmp_path / "own", tmp_path / "run"
    shutil.copytree(base, own)
    finetune(own, "--data", data, "--out", out, *QUICK, "--steps", 2)
    model = nl.load(own)
    model.params.flat[...] *= 1.01
    model.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", own / "model.safetensors")
    before = files(out / "step-000002")
    sentence = f"{out / 'step-000002'} holds an adapter that was trained on other base weights"
    assert sentence in finetune("--resume", "--out", out, "--steps", 3, code=2)
    assert files(out / "step-000002") == before
    with pytest.raises(CheckpointError, match="other base weights"):
        nl.load(out)


@pytest.mark.parametrize("resume", [False, True])
def test_a_signal_to_end_ends_in_good_order_where_there_is_nothing_to_save(base, data, stopped, monkeypatch, resume):
    """While the model is opened, say, or while it is written at the end."""
    monkeypatch.setattr(sys.modules["numllama.interop.load"], "load", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    fresh = (base, "--data", data, "--out", stopped.with_name("fresh"), *QUICK)
    assert numllama("finetune", *(("--resume", "--out", stopped) if resume else fresh)) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system shares no memory by file descriptors")
@pytest.mark.parametrize("modules", [(), ("embed", "head")], ids=["updates", "whole_matrices_too"])
def test_processes_give_an_adapter_the_same_bits_as_one_worker(monkeypatch, modules):
    monkeypatch.setattr(shards, "PROCESSES_AFTER", -1.0)
    rng = np.random.default_rng(0)
    tokens, segments = rng.integers(0, 50, (2, 5, 12)), np.sort(rng.integers(0, 3, (5, 12)), 1)
    batch, results = counted(*tokens, segments), []
    for workers in (1, 2):
        model = nl.Transformer(nl.ModelConfig(50, 16, 2, 2, max_seq_len=12, dropout=0.2))
        model.add_adapter(nl.LoraConfig(rank=3, modules_to_save=modules), seed=2)
        with closing(Workers(model, workers, processes=True)) as group:
            for step in range(2):
                loss, grads = group.loss_and_grads(batch, ShardPlan(5, 4), key=(0, step))
                nl.AdamW(model.trainable, lr=0.1).step(grads)
            assert len(group.pids) == workers - 1
            results.append((loss, group.mean_loss([batch]), grads.flat.copy(), model.trainable.flat.copy()))
    assert results[0][:2] == results[1][:2]
    for one, many in zip(results[0][2:], results[1][2:], strict=True):
        assert_same_bits(one, many)


# ------------------------------------------------------------------------------------------------ what cannot be


def test_a_checkpoint_is_of_an_adapter_or_of_a_model(tuned, base):
    out, _ = tuned
    model = nl.load(base)
    with pytest.raises(CheckpointError, match="holds a model with another adapter, or with none"):
        checkpoint.load_checkpoint(checkpoint.find_step(out), model)


def test_a_run_whose_model_has_gone_says_so(base, data, tmp_path):
    moved = tmp_path / "base"
    moved.mkdir()
    for name, content in files(base).items():
        (moved / name).write_bytes(content)
    finetune(moved, "--data", data, "--out", tmp_path / "run", *QUICK, "--steps", 1)
    moved.rename(tmp_path / "elsewhere")
    for folder in ("run", "run/adapter"):
        with pytest.raises(CheckpointError, match=r"adapter for (the model )?'?.*base'?, which is not"):
            nl.load(tmp_path / folder)
    assert nl.load(tmp_path / "elsewhere", adapter=tmp_path / "run" / "adapter").adapter


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["MODEL"], "a model and --data are needed, or --resume with --out"),
        (["--data", "DATA"], "a model and --data are needed, or --resume with --out"),
        (["none", "--data", "DATA"], "none does not exist"),
        (["MODEL", "--data", "none.jsonl"], "none.jsonl does not exist"),
        (["MODEL", "--data", "DATA", "--full", "--rank", 8], "--full trains all weights without an adapter, so rank cannot"),
        (["MODEL", "--data", "DATA", "--rank", 0], "rank is 0, but must be a whole number of at least 1"),
        (["MODEL", "--data", "DATA", "--targets", "head"], "targets is ('head',), but must be some of wq, wk"),
        (["MODEL", "--data", "DATA", "--modules-to-save", "norm"], "modules_to_save is ('norm',), but must be some of embed"),
        (["MODEL", "--data", "DATA", "--full", *ENDS], "--full trains all weights without an adapter, so modules-to-save cannot"),
        (["--resume", "--out", "none", *ENDS], "a resumed run keeps its settings, so modules-to-save cannot change"),
        (["MODEL", "--data", "DATA", "--epochs", 0], "epochs is 0.0, but must be a positive number"),
        (["MODEL", "--data", "DATA", "--chat-template", "none.jinja"], "the chat template none.jinja does not exist"),
        (["MODEL", "--data", "DATA", "--full", "--dtype", "bfloat16"], "weights in two bytes cannot be trained"),
        (["MODEL", "--data", "DATA", "--parallel", "mpi"], "parallel is 'mpi', but fine-tuning runs in one process"),
        (["MODEL", "--data", "DATA", "--seq-len", 3], "no answer in the train split of"),
        (["MODEL", "--data", "DATA", "--seq-len", 500], "seq_len is 500, but the model's max_seq_len is 96"),
        (["--resume"], "--resume needs --out, the folder of the run"),
        (["--resume", "--out", "none"], "none has no config.json"),
        (["MODEL", "--resume", "--out", "none"], "a resumed run keeps its settings, so model cannot change"),
    ],
)
def test_what_cannot_be_is_one_sentence(base, data, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    known = {"MODEL": base, "DATA": data}
    err = finetune(*(known.get(argument, argument) for argument in arguments), code=2)
    assert err.startswith("error: ") and err.count("\n") == 1
    assert sentence in err
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_written_over(tuned, base, data):
    assert "already holds a run: use --resume" in finetune(base, "--data", data, "--out", tuned[0], code=2)


def test_a_bad_line_is_named_on_the_command_line(base, tmp_path):
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user"}]}\n')
    err = finetune(base, "--data", tmp_path / "chat.jsonl", "--out", tmp_path / "run", code=2)
    assert err == f'error: {tmp_path / "chat.jsonl"}, line 1: message 1 must be an object whose "content" is a text\n'


def test_weights_in_two_bytes_can_be_below_an_adapter(base, data, tmp_path):
    finetune(base, "--data", data, "--out", tmp_path / "run", *QUICK, "--steps", 2, "--dtype", "bfloat16")
    assert nl.load(tmp_path / "run" / "adapter").adapter.params.flat.any()
