"""Damaged files of runs, adapters and prepared data: one flipped byte, a cut, a file of another place; none is loaded silently.

200 of them, or `NUMLLAMA_DAMAGE`.
"""

import json
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from interop.test_chat_template import LLAMA_3
from system.commands import run as numllama

import numllama as nl
from numllama.commands.finetune_run import Tuning, _open
from numllama.errors import NumllamaError
from numllama.training import checkpoint

DAMAGED = int(os.environ.get("NUMLLAMA_DAMAGE", 200))
TEXT = "the quick brown fox jumps over the lazy dog.\n" * 60
SETTINGS = nl.TrainConfig(steps=4, batch_size=4, eval_every=2, eval_batches=1, warmup_steps=1, workers=1, keep=3)
NAMES = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"]
UNREAD = (".lock", "loss.png")  # nothing that is loaded


# ------------------------------------------------------------------------------------------------ what is damaged


def trainer_in(out, seed=0):
    book = out.parent / "book.txt"
    if not book.exists():
        book.write_text(TEXT)
    data = nl.load_dataset(book)
    config = nl.ModelConfig(data.vocab_size, dim=4, n_layers=1, n_heads=1, ffn_dim=4, max_seq_len=8)
    return nl.Trainer(nl.Transformer(config, seed=seed), data, SETTINGS, out=out)


def make_run(out, seed):
    with closing(trainer_in(out, seed)) as trainer:
        list(trainer)
    nl.load(out)


def opened_run(run, told):
    """Everything that opens a run, down to each of its checkpoints."""
    nl.Tokenizer.load(run)
    nl.load(run)
    with closing(trainer_in(run)) as trainer:
        trainer.tell = told.append
        for folder in checkpoint.step_folders(run):
            checkpoint.load_checkpoint(folder, trainer.model, trainer.optimizer)
        trainer.resume()
        list(trainer)


def make_tuned(out, seed):
    """A fine-tuned model of a small base: a run with a chat template, generation_config.json, and an adapter."""
    base, data = out.parent / "base", out.parent / "talk.jsonl"
    if not base.exists():
        model = nl.Transformer(nl.ModelConfig(261, dim=8, n_layers=1, n_heads=1, ffn_dim=8, max_seq_len=96), seed=1)
        model.generation_config = {"eos_token_id": 260}
        (out.parent / "book.txt").write_text(TEXT)
        model.save(base, nl.Tokenizer.train(out.parent / "book.txt", 261, special_tokens=NAMES))
        (base / "tokenizer_config.json").write_text(json.dumps({"chat_template": LLAMA_3, "bos_token": NAMES[0]}))
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "and"}]
        data.write_text("".join(json.dumps({"messages": talk[: 2 * i + 2]}) + "\n" for i in range(4)))
    flags = ["--data", data, "--rank", 1, "--targets", "wq", "--steps", 2, "--eval-every", 1, "--workers", 1, "--batch-size", 1]
    code, _, err = numllama("finetune", base, *flags, "--seed", seed, "--out", out)
    assert code == 0, err


def opened_tuned(run, told):
    nl.Tokenizer.load(run)
    nl.load(run)
    nl.Tokenizer.load(run / "adapter")
    nl.load(run / "adapter")
    about = json.loads((run / "config.json").read_text())
    model, data = _open(Tuning.from_dict(about["tuning"]), "cpu", None, about["train"]["seed"])
    with closing(nl.Trainer(model, data, nl.TrainConfig(**about["train"]), run)) as trainer:
        trainer.tell = told.append
        for folder in checkpoint.step_folders(run):
            checkpoint.load_checkpoint(folder, trainer.model, trainer.optimizer)
        trainer.resume()
        list(trainer)


def make_tokens(out, seed):
    book = out.parent / f"book-{seed}.txt"
    book.write_text(TEXT if seed == 0 else TEXT.replace("dog", "cat"))
    code, _, err = numllama("prepare", book, "--vocab-size", 257, "--shard-tokens", 1000, "--out", out)
    assert code == 0, err


def opened_tokens(folder, told):
    nl.Tokenizer.load(folder)
    data = nl.load_dataset(folder)
    assert len(data.train[0 : len(data.train)]) == len(data.train)


KINDS = {
    "run": (make_run, opened_run),
    "tuned": (make_tuned, opened_tuned),
    "tokens": (make_tokens, opened_tokens),
}


# ------------------------------------------------------------------------------------------------ how


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def restore(folder, whole):
    for path, content in contents(folder).items():
        if path not in whole:
            (folder / path).unlink()
        elif content != whole[path]:
            (folder / path).write_bytes(content := whole[path])
    for path in whole.keys() - contents(folder).keys():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(whole[path])


def flipped(whole, other, path, rng):
    content, at = whole[path], rng.integers(len(whole[path]))
    return {path: content[:at] + bytes([content[at] ^ 1 << rng.integers(8)]) + content[at + 1 :]}


def replaced(whole, other, path, rng):
    content, at = whole[path], rng.integers(len(whole[path]))
    return {path: content[:at] + rng.bytes(1) + content[at + 1 :]}


def cut(whole, other, path, rng):
    return {path: whole[path][: rng.integers(len(whole[path]))]}


def anothers(whole, other, path, rng):
    """What has this name in another folder of the same kind."""
    return {path: other.get(path, whole[path])}


def exchanged(whole, other, path, rng):
    """Two files have changed places, of one name in two folders or of one kind in the same folder, if there are such."""
    namesakes = [file for file in whole if file != path and file.name == path.name]
    near = namesakes or [file for file in whole if file.suffix == path.suffix]
    second = near[rng.integers(len(near))]
    return {path: whole[second], second: whole[path]}


WAYS = (flipped, replaced, cut, anothers, exchanged)


@pytest.fixture(scope="module", params=KINDS)
def two(request, tmp_path_factory):
    """Two folders of a kind, what they hold, and what opens the first."""
    make, opened = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    for seed in (0, 1):
        make(folder / f"own-{seed}", seed)
    ours, other = folder / "own-0", folder / "own-1"
    opened(ours, told := [])
    assert told == []
    keep = lambda whole: {path: content for path, content in whole.items() if "model" not in path.parts}  # noqa: E731
    return ours, keep(contents(ours)), keep(contents(other)), opened


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_no_damaged_file_is_loaded_silently(two, way):
    ours, whole, other, opened = two
    rng = np.random.default_rng(WAYS.index(way))
    files = [path for path, content in whole.items() if content and path.name not in UNREAD]
    for _ in range(DAMAGED // len(KINDS) // len(WAYS)):
        damage = way(whole, other, files[rng.integers(len(files))], rng)
        damage = {path: content for path, content in damage.items() if content != whole[path]}
        for path, content in damage.items():
            (ours / path).write_bytes(content)
        told, noticed = [], False
        try:
            opened(ours, told)
        except NumllamaError as error:
            assert "\n" not in str(error)
            noticed = True
        assert noticed or told or not damage, f"{', '.join(map(str, damage))}: {way.__name__} and loaded silently"
        restore(ours, whole)


@pytest.mark.parametrize("pair", [("step-000002", "step-000004"), ("step-000004", "step-000002")])
def test_step_folders_that_have_changed_places_are_not_loaded_silently(tmp_path, pair):
    make_run(tmp_path / "run", 0)
    for source, target in ((pair[0], "x"), (pair[1], pair[0]), ("x", pair[1])):
        (tmp_path / "run" / source).rename(tmp_path / "run" / target)
    with pytest.raises(NumllamaError, match="renamed"):
        opened_run(tmp_path / "run", [])


def test_a_copy_of_a_run_is_opened_as_the_run_itself(tmp_path):
    make_run(tmp_path / "run", 0)
    (tmp_path / "run").rename(tmp_path / "moved")
    opened_run(tmp_path / "moved", told := [])
    assert told == []
    assert Path(tmp_path / "moved" / "config.json").exists()
