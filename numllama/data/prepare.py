"""Texts of any size to token files: ``train.bin``, ``val.bin``, and the tokenizer beside them.

A split that is too large for one file is cut into shards, ``train-00000.bin``, ``train-00001.bin`` and so on, all of one size but
the last, and each file's ``.json`` says of how many it is one.

The work is done in ``OUT/.prepare``, whose files appear in OUT at once when all are written, with a ``checksums.json``. The
``prepare.json`` among them says what they are made of, and how far that has come: whatever stops the work, running it again
continues from there, and ends with the same bytes.
"""

import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from numllama.data.dataset import VAL_FRACTION
from numllama.data.token_files import OPENED_PIECES, checksum, describe_tokens
from numllama.errors import DataError, shown
from numllama.storage.checksums import CHECKSUMS, check_files, write_checksums
from numllama.storage.files import part_of, read_json, remove, write_json
from numllama.storage.folders import locked, publish
from numllama.system.processes import available_cores
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.tokenizer.cutting import SpecialTokens
from numllama.tokenizer.parallel import ParallelEncoder
from numllama.tokenizer.text_files import BLOCK, as_paths, file_kind, not_empty, read_parts
from numllama.tokenizer.train_bpe import WORTH_A_WORKER

WORK = ".prepare"
ABOUT = "prepare.json"
SPLITS = ("train", "val")
END_OF_TEXT = "<|endoftext|>"
ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>")  # GPT-2's and ours, Llama 3's, Llama 2's
PARTS_BETWEEN_SAVES = 16
NO_SPECIAL = "none"  # which a rank file may really have
SHARD_TOKENS = 100_000_000
STANDARD_INPUT = Path("-")


def prepare_texts(
    texts: list[Path],
    out: Path,
    vocab_size: int | None = None,
    tokenizer: Path | None = None,
    pattern: str | None = None,
    documents: bool = False,
    errors: str = "strict",
    workers: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    special_tokens: tuple[str, ...] = (),
    special: tuple[str, ...] = (),
) -> int:
    """Train or load a tokenizer, encode the texts, print the exact counts; returns the exit code.

    See `numllama prepare --help` for the parameters.
    """
    if (vocab_size is None) == (tokenizer is None):
        raise ValueError("either vocab_size or tokenizer is needed: a vocabulary to learn, or one that is there already")
    if special and tokenizer is None:
        raise ValueError("special is for a rank file that is given as tokenizer; special_token adds one to a vocabulary to learn")
    if shard_tokens < 1:
        raise ValueError(f"shard_tokens is {shard_tokens}, but must be at least 1")
    pipes = _pipes(texts)
    with locked(out, DataError), ExitStack() as stack:
        paths, named = _regular(texts, pipes, out, stack)
        settings = {
            "texts": named,
            "vocab_size": vocab_size,
            "tokenizer": str(tokenizer.resolve()) if tokenizer else None,
            "pattern": pattern or ("gpt2" if tokenizer is None else None),
            "documents": documents,
            "errors": errors,
            "shard_tokens": shard_tokens,
            "special_tokens": list(special_tokens),
            "special": list(special),
        }
        try:
            _prepare(paths, out, settings, workers)
        except DataError as error:  # people know a pipe by their own name for it
            names = {str(path): str(text) for path, text in zip(paths, texts, strict=True) if path != text}
            raise DataError(_renamed(str(error), names)) from error
    return 0


def _prepare(paths: list[Path], out: Path, settings: dict[str, Any], workers: int | None) -> None:
    not_empty(paths)
    if state := _finished(out, settings):
        check_files(out, DataError)
        _print(out, state, Tokenizer.load(out))
        return
    work, errors = out / WORK, settings["errors"]
    state = _state(out, settings)
    if workers is None:
        workers = max(1, min(available_cores(), sum(path.stat().st_size for path in paths) // WORTH_A_WORKER))
    if "characters" not in state:  # read all before anything is made: what is not UTF-8 is found now
        state["characters"] = [sum(map(len, read_parts(path, errors))) for path in paths]
        if sum(state["characters"]) < 2:
            raise DataError(f"{paths[0]} has a single character, which is too short to learn from")
    made = _tokenizer(work, paths, state, workers)
    end = _end_of_text(made) if settings["documents"] else None
    special = {*settings["special_tokens"], *([end] if end else [])}
    if "val_from" not in state:
        state["val_from"] = _val_from(paths, state["characters"], made, end, errors)
        write_json(work / ABOUT, state, DataError)
    with ParallelEncoder(made, workers) as encoder, _Writer(work, state, made) as writer:
        _encode(paths, errors, encoder, end, special, writer)
    writer.finish(made, end)
    try:
        publish(work, out, entry=_names(out, "val", state["tokens"]["val"], settings["shard_tokens"])[-1].name)
    except OSError as error:
        raise DataError(f"{out} could not be written: {error.strerror or error}") from error
    _print(out, state, made)


def _print(out: Path, state: dict[str, Any], tokenizer: Tokenizer) -> None:
    for split, n in state["tokens"].items():
        first, *others = _names(out, split, n, state["settings"]["shard_tokens"])
        many = f" to {others[-1].name}" if others else ""
        print(f"{first}{many}: {n:,} tokens of {tokenizer.dtype.name}")
    print(f"vocabulary: {tokenizer.vocab_size:,}; from {sum(state['characters']):,} characters", flush=True)


# ------------------------------------------------------------------------------------------------ the texts


def _pipes(texts: list[Path]) -> list[bool]:
    """Which of the texts are pipes; the others are files."""
    if texts.count(STANDARD_INPUT) > 1:
        raise ValueError("- is standard input, which can be read only once, but it is named twice")
    if STANDARD_INPUT in texts and sys.stdin is None:
        raise ValueError("- is standard input, but that is closed")
    pipes = [text == STANDARD_INPUT or file_kind(text) == stat.S_IFIFO for text in texts]
    files = [text for text, pipe in zip(texts, pipes, strict=True) if not pipe]
    if files or not texts:
        as_paths(files)
    return pipes


def _regular(texts: list[Path], pipes: list[bool], out: Path, stack: ExitStack) -> tuple[list[Path], list[list]]:
    """The texts as files that can be read many times, and what tells each from others; pipes are copied into `out`."""
    paths, named = [], []
    for text, pipe in zip(texts, pipes, strict=True):
        if pipe:
            paths.append(part_of(out / "text"))
            stack.callback(remove, paths[-1])
            digest = _copy_pipe(text, paths[-1])
            named.append([str(text), paths[-1].stat().st_size, digest])
        else:
            paths.append(text)
            named.append([str(text.resolve()), text.stat().st_size, text.stat().st_mtime_ns])
    return paths, named


def _copy_pipe(text: Path, copy: Path) -> str:
    """Read a pipe to its end; returns the checksum of what came."""
    digest = hashlib.sha256()
    try:
        with ExitStack() as stack:
            source = sys.stdin.buffer if text == STANDARD_INPUT else stack.enter_context(open(text, "rb"))
            target = stack.enter_context(open(copy, "wb"))
            while block := source.read(BLOCK):
                digest.update(block)
                target.write(block)
    except OSError as error:
        raise DataError(f"{text} could not be copied into {copy.parent}: {error.strerror or error}") from error
    return digest.hexdigest()


def _renamed(sentence: str, names: dict[str, str]) -> str:
    for path, name in names.items():
        sentence = sentence.replace(path, name)
    return sentence


# ------------------------------------------------------------------------------------------------ the folder


def _finished(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What a folder that was prepared before holds; DataError if it is of other settings, or holds other data."""
    if (out / ABOUT).exists() and any(out.glob("val*.bin")):
        state = _read(out / ABOUT)
        _check_same(out, state, settings)
        return state
    taken = sorted(path.name for pattern in ("train*.bin", "val*.bin", "tokenizer.json") for path in out.glob(pattern))
    if taken:
        raise DataError(f"{out} holds a {taken[0]} already: choose another --out")
    return None


def _state(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What has been done so far."""
    work = out / WORK
    if (work / ABOUT).exists() and (work / "tokenizer.json").exists():
        state = _read(work / ABOUT)
        _check_same(out, state, settings)
        return state
    remove(work)  # it did not come far enough to be worth anything
    return {"settings": settings, "done": 0, "tokens": dict.fromkeys(SPLITS, 0)}


def _check_same(out: Path, state: dict[str, Any], settings: dict[str, Any]) -> None:
    old = {"special_tokens": [], "special": [], **state["settings"]}  # which older versions did not have
    if settings["pattern"] is None and old.get("pattern") == "gpt2":  # nor this, where it means nothing
        old["pattern"] = None
    if old != settings:
        changed = ", ".join(name for name in settings if old.get(name) != settings[name])
        raise DataError(f"{out} is made from other settings ({changed} differ): choose another --out, or delete it")


def _read(path: Path) -> dict[str, Any]:
    try:
        state = read_json(path, DataError)
        state["settings"]["shard_tokens"], state["done"], state["tokens"]["train"], state["tokens"]["val"]
    except (DataError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: delete its folder, or choose another --out") from error
    return state


def _tokenizer(work: Path, paths: list[Path], state: dict[str, Any], workers: int) -> Tokenizer:
    """The folder's tokenizer, trained or copied at the first time."""
    settings = state["settings"]
    if not (work / "tokenizer.json").exists():
        special = settings["special_tokens"]
        if settings["tokenizer"]:
            made = Tokenizer.load(settings["tokenizer"], settings["pattern"], _ids(settings["special"]))
        else:
            all_special = list(dict.fromkeys([*special, *([END_OF_TEXT] if settings["documents"] else [])]))
            made = Tokenizer.train(
                paths, settings["vocab_size"], all_special, settings["pattern"], workers=workers, errors=settings["errors"]
            )
        if isinstance(made, CharTokenizer):
            raise ValueError(f"tokenizer is {settings['tokenizer']}, but one of characters cannot encode every text: use BPE")
        if unknown := [token for token in special if token not in made.special_tokens]:
            raise ValueError(f"special_token is {unknown[0]!r}, which the tokenizer {settings['tokenizer']} does not have")
        if settings["documents"]:
            _end_of_text(made)  # before anything is written
        try:
            work.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"the folder {work} cannot be written: {error.strerror}") from error
        write_json(work / ABOUT, state, DataError)
        made.save(work)
    return Tokenizer.load(work)


def _ids(special: list[str]) -> dict[str, int] | None:
    """Special tokens and their ids from texts such as <|x|>=7; None where none are given."""
    if special in ([], [NO_SPECIAL]):
        return {} if special else None
    parts = [text.rpartition("=") for text in special]
    if wrong := [text for text, (name, _, i) in zip(special, parts, strict=True) if not (name and i.isascii() and i.isdigit())]:
        raise ValueError(f"special is {shown(wrong[0])}, but must be a token and its id, such as <|end|>=50256, or {NO_SPECIAL}")
    return {name: int(i) for name, _, i in parts}


def _end_of_text(tokenizer: Tokenizer) -> str:
    found = next((token for token in ENDS_OF_TEXT if token in tokenizer.special_tokens), None)
    if found is None:
        raise ValueError(f"documents needs a tokenizer with one of the special tokens {', '.join(ENDS_OF_TEXT)}")
    return found


# ------------------------------------------------------------------------------------------------ encoding


def _val_from(paths: list[Path], lengths: list[int], tokenizer: Tokenizer, end: str | None, errors: str) -> int:
    """The character at which the validation split begins: after nine tenths, or where the next document does, if it is near."""
    total = sum(lengths)
    at = max(1, int(total * (1 - VAL_FRACTION)))
    if end:
        i = next(i for i, stop in enumerate(accumulate(lengths)) if stop > at)
        begin = sum(lengths[:i])
        boundaries = (begin + stop for stop in _ends_of_documents(read_parts(paths[i], errors), tokenizer, end))
        boundary = next((stop for stop in boundaries if stop >= at), begin + lengths[i])
        at = boundary if total - boundary > (total - at) / 2 else at
    return at


def _ends_of_documents(texts: Iterator[str], tokenizer: Tokenizer, end: str) -> Iterator[int]:
    special, done = SpecialTokens([end]), 0
    for chunk in tokenizer.chunks(texts):
        yield from (done + stop for _, stop in special.spans(chunk))
        done += len(chunk)


def _encode(
    paths: list[Path], errors: str, encoder: ParallelEncoder, end: str | None, special: set[str], writer: "_Writer"
) -> None:
    """Continue from the writer's place to the end of all texts."""
    how = {"allowed_special": special, "disallowed_special": ()}
    end_id = encoder.tokenizer.encode_array(end, {end}).tobytes() if end else b""
    stop = 0
    for path, length in zip(paths, writer.state["characters"], strict=True):
        start, stop = stop, stop + length
        for limit in sorted({min(max(writer.val_from, start), stop), stop}):  # a file may hold the end of one split
            begin = max(start, writer.done)
            if begin >= limit:
                continue
            texts = _between(read_parts(path, errors), begin - start, limit - start)
            for text, packed in encoder.pack_stream(texts, **how, begins=begin in (start, writer.val_from)):
                ended = end and writer.done + len(text) == stop and not text.rstrip().endswith(end)
                writer.write(text, packed + end_id if ended else packed)


def _between(texts: Iterator[str], begin: int, end: int) -> Iterator[str]:
    """The characters of a stream from `begin` to `end`."""
    done = 0
    for text in texts:
        if done >= end:
            break
        if done + len(text) > begin:
            yield text[max(begin - done, 0) : end - done]
        done += len(text)


def _names(folder: Path, split: str, size: int, limit: int) -> list[Path]:
    """The files of a split of some size, in pieces of at most so much."""
    n = max(1, -(-size // limit))
    return [folder / f"{name}.bin" for name in ([split] if n == 1 else [f"{split}-{i:05}" for i in range(n)])]


class _Shards:
    """The token files of a split, while they are written.

    Parameters
    ----------
    out : path
    split : str
    limit : int
        Bytes of a file, of all but the last.
    size : int
        Bytes that are safely on the disk; what came after them may be half a part, and is written again.
    """

    def __init__(self, out: Path, split: str, limit: int, size: int) -> None:
        self._out, self._split, self._limit, self._size = out, split, limit, size
        self._file: BinaryIO | None = None
        for i, path in enumerate(self.paths()):
            part, needed = self._part(i), min(limit, size - i * limit)
            if not path.exists() and needed > (part.stat().st_size if part.exists() else 0):
                raise DataError(f"{part} is shorter than {ABOUT} says: delete the folder, or choose another --out")

    def paths(self) -> list[Path]:
        """The files' names in the end."""
        return _names(self._out, self._split, self._size, self._limit)

    def _part(self, i: int) -> Path:
        return self._out / f"{self._split}-{i:05}.bin.part"

    def write(self, content: bytes) -> None:
        """Append to the file in hand, and to another one when it is full."""
        while content:
            i, written = divmod(self._size, self._limit)
            if self._file is None:
                self._file = open(self._part(i), "ab")  # noqa: SIM115
                self._file.truncate(written)
            room = self._limit - written
            some, content = content[:room], content[room:]
            self._file.write(some)
            self._size += len(some)
            if len(some) == room:
                self.close()

    def flush(self) -> None:
        """Return when all of it is on the disk."""
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the file in hand."""
        file, self._file = self._file, None
        if file:
            with file:
                file.flush()
                os.fsync(file.fileno())

    def name(self, describe: Callable[..., None]) -> None:
        """Give the files their names; each is described before, by ``describe(path, the file as yet, shards=how many)``."""
        paths = self.paths()
        more = {"shards": len(paths)} if len(paths) > 1 else {}
        for i, path in enumerate(paths):
            if not path.exists():
                with open(self._part(i), "ab") as file:  # of a split without tokens there is none yet
                    file.truncate(min(self._limit, self._size - i * self._limit))
                describe(path, self._part(i), **more)
                self._part(i).replace(path)


class _Writer:
    """Appends to the token files, and keeps `prepare.json` at what is safely on the disk."""

    def __init__(self, out: Path, state: dict[str, Any], tokenizer: Tokenizer) -> None:
        self.out, self.state = out, state
        self.val_from = state["val_from"]
        self._size = tokenizer.dtype.itemsize
        self._written = state["done"], state["tokens"]  # one value: an interrupt sees it as it was or as it will be
        self._unsaved = 0
        limit = state["settings"]["shard_tokens"] * self._size
        self._files = {split: _Shards(out, split, limit, n * self._size) for split, n in state["tokens"].items()}

    @property
    def done(self) -> int:
        """Characters that are encoded."""
        return self._written[0]

    def __enter__(self) -> "_Writer":
        total = sum(self.state["characters"])
        self._bar = tqdm(total=total, initial=self.done, unit=" characters", unit_scale=True, desc="encoding")
        return self

    def write(self, text: str, packed: bytes) -> None:
        """Append the ids of a part of the text."""
        done, tokens = self._written
        split = SPLITS[done >= self.val_from]
        try:
            self._files[split].write(packed)
        except OSError as error:
            raise self._failed(error) from error
        self._written = done + len(text), {**tokens, split: tokens[split] + len(packed) // self._size}
        self._bar.update(len(text))
        self._unsaved += 1
        if self._unsaved >= PARTS_BETWEEN_SAVES:
            self._save()

    def _save(self) -> None:
        try:
            for files in self._files.values():
                files.flush()
        except OSError as error:
            raise self._failed(error) from error
        self.state["done"], self.state["tokens"] = self._written
        write_json(self.out / ABOUT, self.state, DataError)
        self._unsaved = 0

    def _failed(self, error: OSError) -> DataError:
        return DataError(f"the token files in {self.out} could not be written: {error.strerror}")

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        try:
            self._save()
        finally:
            for files in self._files.values():
                with suppress(OSError):
                    files.close()

    def finish(self, tokenizer: Tokenizer, end: str | None) -> None:
        """Give the files their names, say what they hold, and write checksums."""
        more = {"tokenizer": "tokenizer.json"} | ({"end_of_text": tokenizer.special_tokens[end]} if end else {})

        def describe(path: Path, part: Path, **shards: int) -> None:
            dtype = tokenizer.dtype.newbyteorder("<")
            tokens = np.memmap(part, dtype, "r") if part.stat().st_size else np.empty(0, dtype)
            about = more | {"checksum": checksum(tokens, OPENED_PIECES)} | shards
            describe_tokens(path, len(tokens), tokenizer.vocab_size, **about)

        try:
            for files in self._files.values():
                files.name(describe)
        except OSError as error:
            raise self._failed(error) from error
        names = {path.name for path in self.out.iterdir() if not path.name.startswith(".")} - {CHECKSUMS}
        write_checksums(self.out, names, DataError)
