"""Encode texts of any size into token files: ``train.bin``, ``val.bin`` and a tokenizer.

A large split is cut into shards, ``train-00000.bin``, ``train-00001.bin`` and so on, of equal size except the last; each file's
``.json`` holds the number of shards.

The work is done in ``OUT/.prepare``; when it is finished, all files appear in OUT together, with a ``checksums.json``. One of
them, ``prepare.json``, records the settings and the progress: if the work is stopped, running the command again resumes it, and
the final bytes are the same.
"""

import hashlib
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Any

from numllama.data.dataset import VAL_FRACTION
from numllama.data.token_writer import SPLITS, STATE, TokenWriter, file_names
from numllama.errors import DataError, shown
from numllama.storage.checksums import check_files
from numllama.storage.fields import OBJECT, check, require, whole
from numllama.storage.files import part_of, read_json, remove, write_json
from numllama.storage.folders import locked, publish
from numllama.system.processes import available_cores
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.tokenizer.cutting import SpecialTokens
from numllama.tokenizer.parallel import ParallelEncoder
from numllama.tokenizer.text_files import BLOCK, as_paths, file_kind, not_empty, read_parts
from numllama.tokenizer.train_bpe import WORTH_A_WORKER

WORK = ".prepare"
END_OF_TEXT = "<|endoftext|>"
ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>")  # GPT-2's and ours, Llama 3's, Llama 2's
NO_SPECIAL = "none"  # for a rank file without special tokens
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
    """Train or load a tokenizer, encode the texts and print the token counts; returns the exit code.

    See `numllama prepare --help` for the parameters.
    """
    if (vocab_size is None) == (tokenizer is None):
        raise ValueError("either vocab_size or tokenizer is needed: the size of a new vocabulary, or an existing one")
    if special and tokenizer is None:
        raise ValueError("special is for a rank file given as tokenizer; special_token adds a token to a new vocabulary")
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
        except DataError as error:  # name a pipe as the user did, not by its copy
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
    if "characters" not in state:  # read all texts first, so that invalid UTF-8 is found early
        state["characters"] = [sum(map(len, read_parts(path, errors))) for path in paths]
        if sum(state["characters"]) < 2:
            raise DataError(f"{paths[0]} has a single character, which is too short to train on")
    made = _tokenizer(work, paths, state, workers)
    end = _end_of_text(made) if settings["documents"] else None
    special = {*settings["special_tokens"], *([end] if end else [])}
    if "val_from" not in state:
        state["val_from"] = _val_from(paths, state["characters"], made, end, errors)
        write_json(work / STATE, state, DataError)
    with ParallelEncoder(made, workers) as encoder, TokenWriter(work, state, made) as writer:
        _encode(paths, errors, encoder, end, special, writer)
    writer.finish(made, end)
    try:
        publish(work, out, entry=file_names(out, "val", state["tokens"]["val"], settings["shard_tokens"])[-1].name)
    except OSError as error:
        raise DataError(f"{out} could not be written: {error.strerror or error}") from error
    _print(out, state, made)


def _print(out: Path, state: dict[str, Any], tokenizer: Tokenizer) -> None:
    for split, n in state["tokens"].items():
        first, *others = file_names(out, split, n, state["settings"]["shard_tokens"])
        many = f" to {others[-1].name}" if others else ""
        print(f"{first}{many}: {n:,} tokens of {tokenizer.dtype.name}")
    print(f"vocabulary: {tokenizer.vocab_size:,}; from {sum(state['characters']):,} characters", flush=True)


# ------------------------------------------------------------------------------------------------ the texts


def _pipes(texts: list[Path]) -> list[bool]:
    """For each text, whether it is a pipe."""
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
    """The texts as regular files, and each one's identity; pipes are copied into `out`."""
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
    """Copy a pipe to its end; returns the checksum of its content."""
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
    """The state of an already prepared folder, or None; DataError if its settings differ or it holds other data."""
    if (out / STATE).exists() and any(out.glob("val*.bin")):
        state = _read(out / STATE)
        _check_same(out, state, settings)
        return state
    taken = sorted(path.name for pattern in ("train*.bin", "val*.bin", "tokenizer.json") for path in out.glob(pattern))
    if taken:
        raise DataError(f"{out} already holds {taken[0]}: choose another --out")
    return None


def _state(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The progress so far."""
    work = out / WORK
    if (work / STATE).exists() and (work / "tokenizer.json").exists():
        state = _read(work / STATE)
        _check_same(out, state, settings)
        return state
    remove(work)  # nothing worth resuming
    return {"settings": settings, "done": 0, "tokens": dict.fromkeys(SPLITS, 0)}


def _check_same(out: Path, state: dict[str, Any], settings: dict[str, Any]) -> None:
    old = {"special_tokens": [], "special": [], **state["settings"]}  # older versions lack these
    if settings["pattern"] is None and old.get("pattern") == "gpt2":  # older versions recorded it where it had no effect
        old["pattern"] = None
    if old != settings:
        changed = ", ".join(name for name in settings if old.get(name) != settings[name])
        raise DataError(f"{out} was made with other settings ({changed} differ): choose another --out, or delete it")


def _read(path: Path) -> dict[str, Any]:
    try:
        state = read_json(path, DataError)
        require(state, ("settings", "done", "tokens"))
        check(state, {"settings": OBJECT, "done": whole(), "tokens": OBJECT})
        require(state["settings"], ("shard_tokens",))
        require(state["tokens"], SPLITS)
    except (DataError, ValueError) as error:
        raise DataError(f"{path} is damaged: delete its folder, or choose another --out") from error
    return state


def _tokenizer(work: Path, paths: list[Path], state: dict[str, Any], workers: int) -> Tokenizer:
    """The folder's tokenizer, trained or copied the first time."""
    settings = state["settings"]
    if not (work / "tokenizer.json").exists():
        special = settings["special_tokens"]
        if settings["tokenizer"]:
            made = Tokenizer.load(settings["tokenizer"], pattern=settings["pattern"], special_tokens=_ids(settings["special"]))
        else:
            all_special: list[str] = [*special, *([END_OF_TEXT] if settings["documents"] else [])]
            made = Tokenizer.train(
                paths,
                settings["vocab_size"],
                special_tokens=list(dict.fromkeys(all_special)),
                pattern=settings["pattern"],
                workers=workers,
                errors=settings["errors"],
            )
        if isinstance(made, CharTokenizer):
            raise ValueError(f"tokenizer is {settings['tokenizer']}, but a character tokenizer cannot encode every text: use BPE")
        if unknown := [token for token in special if token not in made.special_tokens]:
            raise ValueError(f"special_token is {unknown[0]!r}, which the tokenizer {settings['tokenizer']} does not have")
        if settings["documents"]:
            _end_of_text(made)  # before anything is written
        try:
            work.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"the folder {work} cannot be written: {error.strerror}") from error
        write_json(work / STATE, state, DataError)
        made.save(work)
    return Tokenizer.load(work)


def _ids(special: list[str]) -> dict[str, int] | None:
    """Special tokens and their ids, from texts such as <|x|>=7; None if there are none."""
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
    """Index of the character at which the validation split begins: after nine tenths, or at the next document if it is near."""
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
    paths: list[Path], errors: str, encoder: ParallelEncoder, end: str | None, special: set[str], writer: TokenWriter
) -> None:
    """Encode everything after the writer's position."""
    how = {"allowed_special": special, "disallowed_special": ()}
    end_id = encoder.tokenizer.encode_array(end, {end}).tobytes() if end else b""
    stop = 0
    for path, length in zip(paths, writer.state["characters"], strict=True):
        start, stop = stop, stop + length
        for limit in sorted({min(max(writer.val_from, start), stop), stop}):  # a split may end inside a file
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
