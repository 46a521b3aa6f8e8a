"""numllama prepare: texts to token files, exactly, and on from wherever it was stopped."""

import base64
import errno
import io
import json
import os
import re
import shutil
import sys
import threading
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from moments import at_each_moment, files_no_larger_than, is_killed_at
from realdata import real_data

from numllama import CharTokenizer, ModelConfig, Tokenizer, TrainConfig, Trainer, Transformer, load_dataset
from numllama.cli import main
from numllama.data import prepare, token_files, token_writer
from numllama.errors import DataError
from numllama.tokenizer import parallel
from numllama.tokenizer.patterns import PATTERNS

FILES = ("train.bin", "train.json", "val.bin", "val.json", "tokenizer.json", "prepare.json")
TEXT = "The cat sat on the mat, and the dog sat on the cat.\nÉté 中文 😀.\n" * 60


def numllama_prepare(*arguments) -> tuple[int, str, str]:
    """Run the command in this process: exit code, output, and messages."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main(["prepare", *map(str, arguments), "--workers", "1"])
    return end.value.code, out.getvalue(), err.getvalue()


def prepared(*arguments) -> str:
    """What it printed, if it came to its end."""
    code, out, err = numllama_prepare(*arguments)
    assert code == 0, err
    return out


def refused(*arguments) -> str:
    """The one sentence, if it did not."""
    code, _, err = numllama_prepare(*arguments)
    assert code == 2, err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert err.endswith(f"{line}\n")
    return line


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(TEXT, encoding="utf-8", newline="")
    return path


@pytest.fixture
def small_parts(monkeypatch):
    """Small enough that a short text has many."""
    monkeypatch.setattr(parallel, "PART", 50)
    monkeypatch.setattr(token_writer, "PARTS_BETWEEN_SAVES", 3)


# ------------------------------------------------------------------------------------------------ what comes out


def test_the_token_files_hold_the_text_the_last_tenth_of_it_apart(book, tmp_path, small_parts):
    out = tmp_path / "tokens"
    printed = prepared(book, "--vocab-size", 285, "--out", out)
    data = load_dataset(out)
    n = int(0.9 * len(TEXT))
    assert (data.tokenizer.decode(data.train), data.tokenizer.decode(data.val)) == (TEXT[:n], TEXT[n:])
    assert data.train.tolist() == data.tokenizer.encode(TEXT[:n])
    assert isinstance(data.train, np.memmap)
    assert data.vocab_size == data.tokenizer.vocab_size == 285
    assert data.tokenizer.merges == Tokenizer.train(book, 285, progress=False).merges
    assert set(contents(out)) == {*FILES, "checksums.json"}
    counts = [f"{split}.bin: {len(tokens):,} tokens of uint16" for split, tokens in (("train", data.train), ("val", data.val))]
    assert all(count in printed for count in counts)
    assert f"vocabulary: 285; from {len(TEXT):,} characters" in printed


def test_tinyshakespeare_with_gpt2s_vocabulary(tmp_path):
    vocab, text = real_data("gpt2_vocab.json"), real_data("tinyshakespeare.txt")
    printed = prepared(text, "--tokenizer", vocab, "--out", tmp_path / "tokens")
    assert "train.bin: 301,966 tokens of uint16" in printed
    assert "val.bin: 36,059 tokens of uint16" in printed
    assert os.path.getsize(tmp_path / "tokens" / "train.bin") == 2 * 301_966


@pytest.mark.parametrize(("last", "dtype", "size"), [(2**16 - 1, "uint16", 2), (2**16, "uint32", 4)])
def test_ids_above_65535_take_four_bytes(book, tmp_path, last, dtype, size):
    vocab = {i: bytes([i]) for i in range(256)}
    Tokenizer(vocab, [], {"<x>": last}).save(tmp_path / "tokenizer")
    printed = prepared(book, "--tokenizer", tmp_path / "tokenizer", "--out", tmp_path / "tokens")
    assert f"tokens of {dtype}" in printed
    train, val = ((tmp_path / "tokens" / f"{split}.bin").stat().st_size for split in ("train", "val"))
    assert train + val == size * len(TEXT.encode())
    assert load_dataset(tmp_path / "tokens").train.dtype == dtype


def test_several_files_are_one_text_after_another(tmp_path, small_parts):
    texts = ["one two three. " * 20, "four five six. " * 30, "", "seven. " * 9]
    paths = [tmp_path / f"{i}.txt" for i in range(4)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    prepared(*paths, "--vocab-size", 270, "--out", tmp_path / "tokens")
    data = load_dataset(tmp_path / "tokens")
    assert data.tokenizer.decode(chain(data.train, data.val)) == "".join(texts)
    assert len(data.tokenizer.decode(data.train)) == int(0.9 * sum(map(len, texts)))


def test_any_number_of_workers_gives_the_same_bytes(book, tmp_path, small_parts):
    prepared(book, "--vocab-size", 300, "--out", tmp_path / "one")
    settings = dict(out=tmp_path / "two", vocab_size=300, workers=2)
    assert prepare.prepare_texts([book], **settings) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


# ------------------------------------------------------------------------------------------------ many files

FIT = dict(dim=16, n_layers=1, n_heads=2, max_seq_len=16)
TRAINING = dict(steps=6, batch_size=4, warmup_steps=2, sampling="epochs", eval_every=3, eval_batches=2, workers=1)


def reports(data):
    model = Transformer(ModelConfig(data.vocab_size, **FIT), seed=1)
    trainer = Trainer(model, data, TrainConfig(**TRAINING))
    losses = [(report.loss, report.grad_norm, report.val_loss) for report in trainer]
    trainer.close()
    return losses


@pytest.mark.parametrize("size", [97, 500, 10**6])
def test_shards_of_any_size_are_the_one_file(book, tmp_path, small_parts, size):
    one, many = tmp_path / "one", tmp_path / "many"
    prepared(book, "--vocab-size", 285, "--out", one)
    printed = prepared(book, "--vocab-size", 285, "--out", many, "--shard-tokens", size)
    whole, cut = load_dataset(one), load_dataset(many)
    for split in ("train", "val"):
        tokens = getattr(whole, split)
        n = -(-len(tokens) // size)
        files = sorted(many.glob(f"{split}*.bin"))
        names = [f"{split}-{i:05}.bin" for i in range(n)] if n > 1 else [f"{split}.bin"]
        assert [file.name for file in files] == names
        assert [file.stat().st_size // 2 for file in files[:-1]] == [size] * (n - 1)
        assert b"".join(file.read_bytes() for file in files) == (one / f"{split}.bin").read_bytes()
        assert f"{names[0]}{f' to {names[-1]}' if n > 1 else ''}: {len(tokens):,} tokens of uint16" in printed
    assert not list(many.glob("*.part"))
    assert cut.fingerprint() == whole.fingerprint()
    assert reports(cut) == reports(whole)


def test_a_missing_shard_is_named(book, tmp_path):
    prepared(book, "--vocab-size", 285, "--out", tmp_path / "tokens", "--shard-tokens", 200)
    shards = sorted((tmp_path / "tokens").glob("train-*.bin"))
    for lost in (shards[-1], shards[0], shards[2]):
        kept = lost.rename(tmp_path / "kept")
        with pytest.raises(DataError, match=rf"has {len(shards) - 1} files .* is missing: {lost.name}"):
            load_dataset(tmp_path / "tokens")
        kept.rename(lost)
    load_dataset(tmp_path / "tokens")


@pytest.mark.parametrize("after", [1, 9, 26])
def test_a_folder_of_shards_that_was_stopped_is_no_data_until_it_is_gone_on_with(book, tmp_path, small_parts, monkeypatch, after):
    arguments = (book, "--vocab-size", 285, "--shard-tokens", 100, "--out")
    prepared(*arguments, tmp_path / "straight")
    write, calls = prepare.TokenWriter.write, []

    def stop(self, text, packed):
        calls.append(text)
        write(self, text, packed)
        if len(calls) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(prepare.TokenWriter, "write", stop)
    assert numllama_prepare(*arguments, tmp_path / "stopped")[0] == 130
    with pytest.raises(DataError, match=r"has neither train\.bin"):
        load_dataset(tmp_path / "stopped")
    monkeypatch.setattr(prepare.TokenWriter, "write", write)
    prepared(*arguments, tmp_path / "stopped")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")


def test_a_kill_between_two_names_leaves_no_data_and_is_gone_on_from(book, tmp_path, monkeypatch):
    arguments = (book, "--vocab-size", 285, "--shard-tokens", 100, "--out")
    prepared(*arguments, tmp_path / "straight")
    n = len(list((tmp_path / "straight").glob("*-*.bin")))
    replace, left = os.replace, 0

    def killed(source, target):
        nonlocal left
        if Path(source).suffix == ".part":
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        return replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    for left in (1, 4, n // 2):  # noqa: B007, `killed` counts it down
        assert numllama_prepare(*arguments, tmp_path / "stopped")[0] == 130
        with pytest.raises(DataError, match=r"is missing|has neither"):
            load_dataset(tmp_path / "stopped")
    left = n
    prepared(*arguments, tmp_path / "stopped")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")


# ------------------------------------------------------------------------------------------------ documents


def test_each_file_and_each_part_that_an_end_of_text_ends_is_a_document(tmp_path, small_parts):
    end = "<|endoftext|>"
    documents = [f"This is document number {i}. It says little.\n" for i in range(40)]
    (tmp_path / "a.txt").write_text(end.join(documents[:20]))          # 19 ends inside, and the file's
    (tmp_path / "b.txt").write_text(end.join(documents[20:]) + end)    # 20 ends, the file's among them
    prepared(tmp_path / "a.txt", tmp_path / "b.txt", "--vocab-size", 280, "--documents", "--out", tmp_path / "tokens")
    data = load_dataset(tmp_path / "tokens")
    end_id = json.loads((tmp_path / "tokens" / "train.json").read_text())["end_of_text"]
    assert end_id == data.tokenizer.special_tokens[end] == data.tokenizer.vocab_size - 1
    ids = [*data.train.tolist(), *data.val.tolist()]
    assert data.tokenizer.decode(ids).split(end) == [*documents, ""]
    assert ids.count(end_id) == 40
    assert data.train[-1] == end_id  # no document lies in both splits
    assert 0.04 < len(data.val) / len(ids) < 0.1


def test_without_documents_an_end_of_text_in_a_text_is_text(tmp_path):
    text = "abc<|endoftext|>def\n" * 20
    (tmp_path / "a.txt").write_text(text)
    Tokenizer({i: bytes([i]) for i in range(256)}, [], ["<|endoftext|>"]).save(tmp_path / "tokenizer")
    prepared(tmp_path / "a.txt", "--tokenizer", tmp_path / "tokenizer", "--out", tmp_path / "tokens")
    assert load_dataset(tmp_path / "tokens").train.max() < 256


def test_one_document_is_cut_after_nine_tenths(book, tmp_path):
    prepared(book, "--vocab-size", 300, "--documents", "--out", tmp_path / "tokens")
    data = load_dataset(tmp_path / "tokens")
    assert data.tokenizer.decode(data.train) == TEXT[: int(0.9 * len(TEXT))]
    assert data.tokenizer.decode(data.val) == TEXT[int(0.9 * len(TEXT)) :] + "<|endoftext|>"


def test_documents_need_a_tokenizer_that_can_end_them(book, tmp_path):
    Tokenizer({i: bytes([i]) for i in range(256)}, [], ["<x>"]).save(tmp_path / "tokenizer")
    sentence = refused(book, "--tokenizer", tmp_path / "tokenizer", "--documents", "--out", tmp_path / "tokens")
    assert "<|endoftext|>, <|end_of_text|>, </s>" in sentence


# ------------------------------------------------------------------------------------------------ going on


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("after", [1, 5, 17, 30])
def test_what_was_stopped_goes_on_and_ends_with_the_same_bytes(book, tmp_path, small_parts, monkeypatch, after, error):
    documents = tmp_path / "more.txt"
    documents.write_text("Some more.<|endoftext|>" * 30)
    arguments = (book, documents, "--vocab-size", 300, "--documents", "--out")
    prepared(*arguments, tmp_path / "straight")
    write, left = prepare.TokenWriter.write, after

    def stop_after_a_while(self, text, packed):
        nonlocal left
        if not left:
            self._files["train"].write(b"half a pa")  # never to be seen again
            raise error
        left -= 1
        write(self, text, packed)

    monkeypatch.setattr(prepare.TokenWriter, "write", stop_after_a_while)
    assert numllama_prepare(*arguments, tmp_path / "stopped")[0] in (2, 130)
    assert not list((tmp_path / "stopped").glob("*.bin"))
    monkeypatch.setattr(prepare.TokenWriter, "write", write)
    prepared(*arguments, tmp_path / "stopped")
    same = contents(tmp_path / "stopped") == contents(tmp_path / "straight")
    assert same


def test_what_is_done_is_not_done_again(book, tmp_path, monkeypatch):
    arguments = (book, "--vocab-size", 300, "--out", tmp_path / "tokens")
    printed, files = prepared(*arguments), contents(tmp_path / "tokens")
    monkeypatch.setattr(parallel.ParallelEncoder, "pack_stream", None)
    monkeypatch.setattr(Tokenizer, "train", None)
    assert prepared(*arguments) == printed
    assert contents(tmp_path / "tokens") == files


def test_another_text_or_setting_does_not_go_on_in_the_same_folder(book, tmp_path):
    prepared(book, "--vocab-size", 300, "--out", tmp_path / "tokens")
    files = contents(tmp_path / "tokens")
    assert "vocab_size differ" in refused(book, "--vocab-size", 301, "--out", tmp_path / "tokens")
    book.write_text("Another text. " * 50)
    assert "texts differ" in refused(book, "--vocab-size", 300, "--out", tmp_path / "tokens")
    assert contents(tmp_path / "tokens") == files


@pytest.mark.parametrize("name", ["train.bin", "tokenizer.json"])
def test_a_folder_of_somebody_else_is_left_alone(book, tmp_path, name):
    (tmp_path / name).write_bytes(b"precious")
    assert f"already holds {name}" in refused(book, "--vocab-size", 300, "--out", tmp_path)
    assert (tmp_path / name).read_bytes() == b"precious"


def test_a_full_disk_is_one_sentence_and_can_be_gone_on_from(book, tmp_path, small_parts, monkeypatch):
    full = [False]
    fsync = os.fsync

    def full_fsync(handle):
        if full[0]:
            raise OSError(28, "No space left on device")
        fsync(handle)

    write = prepare.TokenWriter.write

    def fill_up(self, text, packed):
        full[0] = self.done > 1000
        write(self, text, packed)

    monkeypatch.setattr(os, "fsync", full_fsync)
    monkeypatch.setattr(prepare.TokenWriter, "write", fill_up)
    arguments = (book, "--vocab-size", 300, "--out", tmp_path / "tokens")
    assert "could not be written: No space left on device" in refused(*arguments)
    monkeypatch.undo()
    prepared(*arguments)
    prepared(*arguments[:-1], tmp_path / "straight")
    assert contents(tmp_path / "tokens") == contents(tmp_path / "straight")


DAMAGE = {"train-00000.bin.part": lambda path: os.truncate(path, 3), "prepare.json": lambda path: path.write_text("{")}


@pytest.mark.parametrize(("name", "damage"), DAMAGE.items())
def test_a_damaged_folder_is_not_gone_on_from(book, tmp_path, small_parts, monkeypatch, name, damage):
    write = prepare.TokenWriter.write

    def stop(self, text, packed):
        if self.done > 1000:
            raise KeyboardInterrupt
        write(self, text, packed)

    monkeypatch.setattr(prepare.TokenWriter, "write", stop)
    arguments = (book, "--vocab-size", 300, "--out", tmp_path / "tokens")
    assert numllama_prepare(*arguments)[0] == 130
    damage(tmp_path / "tokens" / ".prepare" / name)
    assert "choose another --out" in refused(*arguments)


# ------------------------------------------------------------------------------------------------ whole or not at all


@pytest.fixture
def stopped(monkeypatch):
    """Call to have the next prepare stopped after some parts; `stopped.undo()` lets it run to its end."""
    write = prepare.TokenWriter.write

    def stop_after(n, error=KeyboardInterrupt):
        def stop(self, text, packed):
            nonlocal n
            n -= 1
            if n < 0:
                raise error
            write(self, text, packed)

        monkeypatch.setattr(prepare.TokenWriter, "write", stop)

    stop_after.undo = monkeypatch.undo
    return stop_after


@pytest.mark.parametrize("size", [100, 10**6])
def test_at_every_moment_a_folder_holds_all_of_the_data_or_none(book, tmp_path, monkeypatch, size):
    monkeypatch.setattr(parallel, "PART", 500)
    out, seen = tmp_path / "tokens", []
    with at_each_moment(lambda: seen.append({p.name for p in out.iterdir() if p.name[0] != "."} if out.exists() else set())):
        prepared(book, "--vocab-size", 285, "--shard-tokens", size, "--out", out)
    assert {frozenset(names) for names in seen} == {frozenset(), frozenset(contents(out))}
    assert len(seen) > 30


@pytest.mark.parametrize("more", [(), ("--documents",), ("--errors", "replace")])
def test_of_two_prepares_into_one_folder_the_second_is_refused_and_the_data_are_right(
    book, tmp_path, small_parts, monkeypatch, more
):
    prepared(book, "--vocab-size", 285, "--out", tmp_path / "alone")
    write, second = prepare.TokenWriter.write, []

    def write_while_another_tries(self, text, packed):
        write(self, text, packed)
        if len(second) < 3:
            second.append(refused(book, "--vocab-size", 285, *more, "--out", tmp_path / "both"))

    monkeypatch.setattr(prepare.TokenWriter, "write", write_while_another_tries)
    prepared(book, "--vocab-size", 285, "--out", tmp_path / "both")
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")
    assert len(second) == 3
    assert all("both is in use: another process writes there" in sentence for sentence in second)


def test_what_was_killed_does_not_continue_with_other_settings(book, tmp_path, small_parts, stopped):
    arguments = (book, "--out", tmp_path / "tokens")
    stopped(5)
    assert numllama_prepare(*arguments, "--vocab-size", 285)[0] == 130
    stopped.undo()
    assert "vocab_size differ" in refused(*arguments, "--vocab-size", 290)
    assert "special_tokens differ" in refused(*arguments, "--vocab-size", 285, "--special-token", "<x>")
    shutil.rmtree(tmp_path / "tokens")
    prepared(*arguments, "--vocab-size", 290)
    assert load_dataset(tmp_path / "tokens").vocab_size == 290


@pytest.mark.parametrize("room", [0, 100, 1000, 2500, 4000])
def test_a_disk_that_is_full_at_any_place_is_one_sentence_and_can_be_gone_on_from(book, tmp_path, small_parts, room):
    arguments = (book, "--vocab-size", 300, "--out")
    prepared(*arguments, tmp_path / "straight")
    with files_no_larger_than(room):
        assert f"could not be written: {os.strerror(errno.EFBIG)}" in refused(*arguments, tmp_path / "tokens")
        assert not (tmp_path / "tokens").exists() or [p.name for p in (tmp_path / "tokens").iterdir()] == [".prepare"]
    prepared(*arguments, tmp_path / "tokens")
    assert contents(tmp_path / "tokens") == contents(tmp_path / "straight")


@pytest.mark.parametrize("kills", [[3, 14, 25, 31], pytest.param(range(1, 100), marks=pytest.mark.soak)])
def test_a_kill_at_any_moment_leaves_nothing_or_all_and_the_next_prepare_comes_to_the_same_end(book, tmp_path, kills):
    arguments = (book, "--vocab-size", 270, "--shard-tokens", 2000, "--out")
    prepared(*arguments, tmp_path / "straight")
    expected, killed = contents(tmp_path / "straight"), 0
    for n in kills:
        out = tmp_path / f"tokens-{n}"
        killed += is_killed_at(n, "prepare", *arguments, out, "--workers", 1)
        left = {path.name: path.read_bytes() for path in out.iterdir() if path.name[0] != "."} if out.exists() else {}
        assert left in ({}, expected)
        prepared(*arguments, out)
        assert contents(out) == expected
    assert killed > 2
    assert {path.name for path in tmp_path.iterdir()} == {"book.txt", "straight", *(f"tokens-{n}" for n in kills)}


# ------------------------------------------------------------------------------------------------ what has changed since


NUMBERED = "".join(f"The cat number {i:03} sat on the mat.\nÉté 中文 😀.\n" for i in range(80))


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A folder of prepared data, one file or many for a split, to be changed."""
    made = tmp_path_factory.mktemp("made")
    (made / "book.txt").write_text(NUMBERED, encoding="utf-8")
    (made / "other.txt").write_text(NUMBERED[::-1], encoding="utf-8")
    for name in ("book", "other"):
        for size in (500, 10**6):
            prepared(made / f"{name}.txt", "--vocab-size", 285, "--shard-tokens", size, "--out", made / f"{name}-{size}")
    return lambda target, name="book", size=10**6: shutil.copytree(made / f"{name}-{size}", target)


@pytest.mark.parametrize("size", [500, 10**6])
def test_a_wrong_byte_in_any_file_is_noticed(folder_of, tmp_path, size):
    folder, rng = folder_of(tmp_path / "x", size=size), np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for at in {0, len(content) - 1, *rng.integers(0, len(content), 12).tolist()}:
            changed = bytearray(content)
            changed[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            with pytest.raises(DataError, match=re.escape(str(folder))):
                load_dataset(folder)
        path.write_bytes(content)
    load_dataset(folder)


@pytest.mark.parametrize("names", ["train.bin", "train.bin train.json", "tokenizer.json", "val.json", "prepare.json"])
def test_files_of_another_folder_are_refused(folder_of, tmp_path, names):
    folder, other = folder_of(tmp_path / "x"), folder_of(tmp_path / "y", "other")
    for name in names.split():
        shutil.copyfile(other / name, folder / name)
    with pytest.raises(DataError, match=r"its checksum is|not its own"):
        load_dataset(folder)


def test_files_that_have_changed_their_places_are_refused(folder_of, tmp_path):
    folder = folder_of(tmp_path / "x", size=500)
    for suffix in (".bin", ".json"):
        one, two = folder / f"train-00000{suffix}", folder / f"train-00001{suffix}"
        kept = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(kept)
        with pytest.raises(DataError, match=r"its checksum is|not its own"):
            load_dataset(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "prepare.json"])
def test_a_file_that_is_gone_is_named(folder_of, tmp_path, name):
    folder = folder_of(tmp_path / "x")
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is not there, but .*checksums\.json lists it"):
        load_dataset(folder)


def test_folders_of_older_versions_which_have_no_checksums_open(folder_of, tmp_path):
    folder = folder_of(tmp_path / "x")
    (folder / "checksums.json").unlink()
    for split in ("train", "val"):
        path = folder / f"{split}.json"
        about = json.loads(path.read_text())
        del about["checksum"]
        path.write_text(json.dumps(about))
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    data = load_dataset(folder)
    assert data.tokenizer.decode(chain(data.train, data.val)) == NUMBERED


def test_of_a_large_file_pieces_are_checked_when_it_is_opened_and_all_of_it_by_prepare(book, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "CHECKED_PIECES", 4)
    monkeypatch.setattr(token_files, "CHECKED_PIECE", 10)
    monkeypatch.setattr(token_files, "OPENED_PIECES", 3)
    monkeypatch.setattr(token_writer, "OPENED_PIECES", 3)
    arguments = (book, "--vocab-size", 285, "--out", tmp_path / "x")
    prepared(*arguments)
    path = tmp_path / "x" / "train.bin"
    content = bytearray(path.read_bytes())
    for at, seen in ((0, True), (len(content) - 2, True), (40, False)):
        changed = content.copy()
        changed[at] ^= 1
        path.write_bytes(changed)
        if seen:
            with pytest.raises(DataError, match="is damaged or not its own"):
                load_dataset(tmp_path / "x")
        else:
            load_dataset(tmp_path / "x")
        assert "train.bin is not what was written" in refused(*arguments)


# ------------------------------------------------------------------------------------------------ pipes and special tokens


@contextmanager
def standard_input(content):
    """What the command reads from standard input."""
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(content))
    try:
        yield
    finally:
        sys.stdin = before


def fed(path, content):
    """A pipe into which somebody writes."""
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(content,), daemon=True).start()
    return path


def test_a_pipe_and_standard_input_give_what_files_give(book, tmp_path):
    (tmp_path / "more.txt").write_text("More of it. " * 50)
    prepared(book, tmp_path / "more.txt", "--vocab-size", 285, "--out", tmp_path / "files")
    for _ in range(2):  # done is done: it is compared with what comes, and not done again
        pipe = fed(tmp_path / "pipe", book.read_bytes())
        with standard_input((tmp_path / "more.txt").read_bytes()):
            printed = prepared(pipe, "-", "--vocab-size", 285, "--out", tmp_path / "pipes")
        pipe.unlink()
        assert "vocabulary: 285" in printed
    one, two = contents(tmp_path / "files"), contents(tmp_path / "pipes")
    assert one.keys() == two.keys()
    assert {name for name in one if one[name] != two[name]} == {"prepare.json", "checksums.json"}


def test_what_was_stopped_continues_if_the_same_comes_through_the_pipe(tmp_path, small_parts, stopped):
    arguments = ("-", "--vocab-size", 285, "--out", tmp_path / "x")
    stopped(9)
    with standard_input(TEXT.encode()):
        assert numllama_prepare(*arguments)[0] == 130
    assert [path.name for path in (tmp_path / "x").iterdir()] == [".prepare"]
    stopped.undo()
    with standard_input(TEXT.replace("cat", "cow").encode()):
        assert "texts differ" in refused(*arguments)
    with standard_input(TEXT.encode()):
        prepared(*arguments)
    data = load_dataset(tmp_path / "x")
    assert data.tokenizer.decode(chain(data.train, data.val)) == TEXT


def test_what_is_wrong_with_a_pipe_is_one_sentence_that_names_it(book, tmp_path, monkeypatch):
    arguments = ("--vocab-size", 285, "--out", tmp_path / "x")
    with standard_input(b""):
        assert refused("-", *arguments) == "error: - is empty"
    with standard_input(b"caf\xe9 noir"):
        assert "error: - is not UTF-8 text: byte 3 is 0xe9" in refused("-", *arguments)
        assert "but it is named twice" in refused("-", book, "-", *arguments)
    assert "error: /dev/zero is a device" in refused("/dev/zero", *arguments)
    assert f"error: {tmp_path} is a folder" in refused(tmp_path, *arguments)
    assert f"{'x' * 300} cannot be read: " in refused("x" * 300, *arguments)
    assert "there is no option --vocab-siz" in refused(book, "--vocab-siz", 285, "--out", tmp_path / "x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is a pipe, which can be read only once"):
        Tokenizer.train(tmp_path / "pipe", 285)
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is closed" in refused("-", *arguments)
    assert not (tmp_path / "x").exists()


def test_special_tokens_are_one_token_where_they_stand(tmp_path, small_parts):
    text = "".join(f"<|user|>Hello there {i}.<|bot|>Hi, it is nice. <|user|> <|other|>" for i in range(60))
    (tmp_path / "a.txt").write_text(text)
    special = ("--special-token", "<|user|>", "--special-token", "<|bot|>")
    prepared(tmp_path / "a.txt", "--vocab-size", 290, *special, "--out", tmp_path / "x")
    data = load_dataset(tmp_path / "x")
    assert data.tokenizer.special_tokens == {"<|user|>": 288, "<|bot|>": 289}
    ids = [*data.train.tolist(), *data.val.tolist()]
    n = int(0.9 * len(text))
    assert ids == [i for part in (text[:n], text[n:]) for i in data.tokenizer.encode(part, allowed_special="all")]
    assert (ids.count(288), ids.count(289)) == (119, 60)  # the end of the training split cuts one in two
    prepared(tmp_path / "a.txt", "--tokenizer", tmp_path / "x", *special[:2], "--out", tmp_path / "y")
    ids = np.concatenate([load_dataset(tmp_path / "y").train, load_dataset(tmp_path / "y").val]).tolist()
    assert (ids.count(288), ids.count(289)) == (119, 0)
    assert "special_token is '<|no|>'" in refused(
        tmp_path / "a.txt", "--tokenizer", tmp_path / "x", "--special-token", "<|no|>", "--out", tmp_path / "z"
    )


@pytest.mark.parametrize(("special", "expected"), [
    (["<|end|>=300"], {"<|end|>": 300}), (["none"], {}), (["<a>=260", "<b>=261"], {"<a>": 260, "<b>": 261}),
])  # fmt: skip
def test_pattern_and_special_say_what_a_rank_file_does_not(book, tmp_path, special, expected):
    path = tmp_path / "ranks.tiktoken"
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(bytes([i])), i) for i in range(256)))
    flags = [part for text in special for part in ("--special", text)]
    prepared(book, "--tokenizer", path, "--pattern", "llama3", *flags, "--out", tmp_path / "x")
    made = Tokenizer.load(tmp_path / "x")
    assert made.special_tokens == expected
    assert made.pattern == PATTERNS["llama3"]


def test_a_rank_file_asks_for_pattern_and_special(book, tmp_path):
    path = tmp_path / "ranks.tiktoken"
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(bytes([i])), i) for i in range(256)))
    tokens = ("--tokenizer", path, "--out", tmp_path / "x")
    for flags in ((), ("--pattern", "llama3"), ("--special", "none")):
        assert "a rank file, which says neither how to split a text nor which special" in refused(book, *tokens, *flags)
    assert "special is '<a>', but must be a token and its id" in refused(book, *tokens, "--pattern", "gpt2", "--special", "<a>")
    assert "special is for a rank file" in refused(book, "--vocab-size", 300, "--special", "none", "--out", tmp_path / "x")


# ------------------------------------------------------------------------------------------------ what cannot be


def test_a_text_that_is_not_utf_8_says_where_and_errors_replace_helps(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9 noir, " * 50)
    arguments = (path, "--vocab-size", 270, "--out", tmp_path / "tokens")
    assert re.search(r"latin\.txt is not UTF-8 text: byte 3 is 0xe9; .*--errors replace", refused(*arguments))
    prepared(*arguments, "--errors", "replace")
    data = load_dataset(tmp_path / "tokens")
    assert data.tokenizer.decode(chain(data.train, data.val)) == "caf\ufffd noir, " * 50


def test_impossible_settings_are_one_sentence(book, tmp_path):
    out = ("--out", tmp_path / "tokens")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "one.txt").write_text("x")
    CharTokenizer("abc").save(tmp_path)
    assert "either vocab_size or tokenizer" in refused(book, *out)
    assert "either vocab_size or tokenizer" in refused(book, "--vocab-size", 300, "--tokenizer", book, *out)
    assert "vocab_size is 255" in refused(book, "--vocab-size", 255, *out)
    assert "files is empty" in refused("--vocab-size", 300, *out)
    assert "empty.txt is empty" in refused(tmp_path / "empty.txt", "--vocab-size", 300, *out)
    assert "too short" in refused(tmp_path / "one.txt", "--vocab-size", 300, *out)
    assert "does not exist" in refused(tmp_path / "no.txt", "--vocab-size", 300, *out)
    assert "does not exist" in refused(book, "--tokenizer", tmp_path / "no.json", *out)
    assert "a character tokenizer" in refused(book, "--tokenizer", tmp_path / "tokenizer.json", *out)
    assert "pattern is '('" in refused(book, "--vocab-size", 300, "--pattern", "(", *out)
    prepared(book, "--vocab-size", 300, *out)  # nothing that was refused is in the way
