"""Folders of models with something wrong in one of their files, and what opening them does.

    python tests/interop/mutations.py ORIGINALS FIRST LAST          # prints a line of JSON for each that is not as it should be

Each mutation is a function of its number. It is opened in a process that may take so much processor time and memory and no more;
whoever started it kills it where it hangs.
"""

import json
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

SECONDS, BYTES = 5.0, 2 * 10**9  # of a processor; of memory
LONGEST = 1200  # characters of a sentence
DEEP = 5000
ODD = [
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, -1e400, float("nan"), 2**31, 2**63, 10**12, 10**400, -(10**400),
    "", "a", "1", "x" * 300, "y" * 10_000, "a\0b", "\ud800", "../x", "/dev/zero", "{{ x", "(", "(?R)", "deep list", "deep object",
    [], [None], [0], [-1], ["a"], [[1, 2]], [10**400], list(range(300)), [{}],
    {}, {"": None}, {"a": 1}, {"a": {"b": []}}, {"content": 3}, {"type": "x"},
]  # fmt: skip
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
OTHER_NAMES = ["adapter_config.json", "model.safetensors", "tokenizer.model", "state.json"]
CONTENTS = {"empty": b"", "pickle": b"\x80\x04\x95", "zip": b"PK\x03\x04 and so on", "text": b"a text\n" * 20}


# ------------------------------------------------------------------------------------------------ what is mutated


def originals(folder: Path) -> None:
    """Folders of every kind, all of them good."""
    import numpy as np

    import numllama as nl
    from numllama.data.token_files import write_tokens

    shape = dict(vocab_size=264, dim=16, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=24, max_seq_len=32)
    tokens = {**{i: bytes([i]) for i in range(256)}, 256: b"he", 257: b"ll", 258: b"hell"}
    byte_pairs = nl.Tokenizer(tokens, [(b"h", b"e"), (b"l", b"l"), (b"he", b"ll")], {"<s>": 259, "</s>": 260})

    def new(name: str, **changes: Any) -> Any:
        model = nl.Transformer(nl.ModelConfig(**shape | changes), seed=1)
        model.generation_config = {"bos_token_id": 259, "eos_token_id": [260], "temperature": 0.7, "top_k": 5}
        model.save(folder / name, byte_pairs)
        settings = {"chat_template": TEMPLATE, "bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / name / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
        return model

    new("llama", rope_scaling=dict(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8))
    new("other", norm="layernorm", positions="learned", ffn="gelu", bias=True, tie_embeddings=True)
    new("sharded", tie_embeddings=True)
    shard(folder / "sharded")
    base = new("base", rope_layout="interleaved")
    (folder / "binary").mkdir()
    base.save(folder / "binary" / "model.bin")
    (folder / "binary" / "tokenizer.bin").write_bytes(llama2c_tokenizer())
    base.add_adapter(nl.LoraConfig(rank=4, alpha=8.0, targets=("wq", "w_up")), seed=3)
    base.save_adapter(folder / "adapter", base=folder / "base")
    byte_pairs.save(folder / "adapter")

    ids = np.arange(300) % 200
    (folder / "data").mkdir()
    for name in ("train.bin", "val-00000.bin", "val-00001.bin"):
        write_tokens(folder / "data" / name, ids, byte_pairs.vocab_size)
    np.save(folder / "data" / "ids.npy", ids)
    byte_pairs.save(folder / "data")

    data = nl.Dataset(ids, ids, 264, byte_pairs)
    config = nl.TrainConfig(steps=2, batch_size=2, seq_len=8, eval_every=1, workers=1)
    trainer = nl.Trainer(nl.Transformer(nl.ModelConfig(**shape)), data, config, folder / "run")
    for _ in trainer:
        trainer.save()
    trainer.close()
    byte_pairs.save(folder / "run")


def shard(folder: Path) -> None:
    """The same weights in two files and an index."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == shard}, folder / shard, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def llama2c_tokenizer() -> bytes:
    """tokenizer.bin: the longest token's length; then of each token its score, its length, and it."""
    pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{i:02X}>" for i in range(256)), " ", "h", "e", "he", " h"]
    parts = [struct.pack("<fi", -float(i), len(piece.encode())) + piece.encode() for i, piece in enumerate(pieces)]
    return struct.pack("<i", 7) + b"".join(parts)


# ------------------------------------------------------------------------------------------------ mutations


def mutate(random: Random, folder: Path) -> str:
    """Change one file of a folder, or two; returns what was done."""
    done = []
    if random.random() < 0.8:  # else that is all that is ever noticed
        (folder / "checksums.json").unlink(missing_ok=True)
    for _ in range(random.choice([1, 1, 1, 2])):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        if not files:
            break
        path = random.choice(files)
        kinds = [replace_file, damage_bytes, damage_bytes]
        if path.suffix in (".json", ".jsonl", ".model"):
            kinds += [damage_json] * 9
        elif path.suffix == ".safetensors":
            kinds += [damage_header] * 6
        elif path.suffix in (".bin", ".npy"):
            kinds += [damage_numbers] * 4
        what = random.choice(kinds)
        done.append(f"{what.__name__} {path.relative_to(folder)}: {what(random, path)}")
    return "; ".join(done)


def replace_file(random: Random, path: Path) -> str:
    """Something else under its name, or nothing."""
    content = path.read_bytes()
    path.unlink()
    what = random.choice(["gone", "folder", "pipe", "device", "loop", "other", *CONTENTS])
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "other":
        path.with_name(random.choice(OTHER_NAMES)).write_bytes(content)
    elif what != "gone":
        path.write_bytes(CONTENTS[what])
    return what


def damage_bytes(random: Random, path: Path) -> str:
    """Flip, cut, insert or repeat bytes."""
    content = bytearray(path.read_bytes())
    what = random.choice(["flip", "flip", "flips", "cut", "cut_front", "insert", "repeat", "zeros"])
    at = random.randrange(len(content) + 1)
    if what == "flip" and content:
        content[at % len(content)] ^= 1 << random.randrange(8)
    elif what == "flips" and content:
        for _ in range(random.randint(2, 60)):
            content[random.randrange(len(content))] = random.randrange(256)
    elif what == "cut":
        del content[at:]
    elif what == "cut_front":
        del content[:at]
    elif what == "insert":
        content[at:at] = random.randbytes(random.randint(1, 40))
    elif what == "repeat":
        content += content[at:]
    elif what == "zeros":
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    path.write_bytes(content)
    return f"{what} at {at}"


def damage_json(random: Random, path: Path) -> str:
    """Replace, remove, repeat or rename values in a JSON file, and now and then bring its checksum up to date."""
    try:
        values = json.loads(path.read_text(encoding="utf-8").splitlines()[0] if path.suffix == ".jsonl" else path.read_bytes())
    except (ValueError, IndexError, OSError, RecursionError):
        return damage_bytes(random, path)
    values, what = damaged_values(random, values)
    if isinstance(values, dict) and "seal" in values and random.random() < 0.8:
        from numllama.storage.checksums import with_checksum
        from numllama.storage.files import json_bytes

        values.pop("seal")
        try:
            path.write_bytes(json_bytes(with_checksum(values)))
            return f"{what}, with its checksum"
        except (ValueError, TypeError, RecursionError):
            pass
    path.write_bytes(as_text(values))
    return what


def damaged_values(random: Random, values: Any) -> tuple[Any, str]:
    """JSON values with something wrong in them at some place."""
    place = random.choice(places(values))
    kind = random.choice(["replace", "replace", "replace", "remove", "twice", "rename", "wrap"])
    odd = random.choice(ODD)
    if not place:
        return odd, f"{str(odd)[:40]!r} in its place"
    owner = values
    for step in place[:-1]:
        owner = owner[step]
    last, value = place[-1], owner[place[-1]]
    if kind == "remove":
        del owner[last]
    elif kind == "twice" and isinstance(owner, dict):
        owner[Twice(last)] = odd
    elif kind == "rename" and isinstance(owner, dict):
        owner[random.choice(["x" * 5000, "", "size", "a\0", *owner])] = owner.pop(last)
    elif kind == "wrap":
        owner[last] = random.choice([[value], {"a": value}, str(value), [value, value], [value] * 500])
    else:
        owner[last] = odd
    return values, f"{kind} {'/'.join(map(str, place))[:80]} by {str(odd)[:40]!r}"


class Twice(str):
    """A key that stands beside another of the same name."""

    def __hash__(self) -> int:
        return hash(str(self)) + 1

    def __eq__(self, other: object) -> bool:
        return self is other


def places(values: Any, below: tuple = (), depth: int = 0) -> list[tuple]:
    """Where something stands; of a large list or object only some."""
    found = [below]
    items = list(values.items()) if isinstance(values, dict) else list(enumerate(values)) if isinstance(values, list) else []
    for key, value in items if len(items) < 60 else items[:: len(items) // 30]:
        found += places(value, (*below, key), depth + 1)
    return found


def as_text(values: Any) -> bytes:
    """JSON, with NaN, infinities and what is nested deeply, which `json` would not write."""
    text = json.dumps(values, ensure_ascii=True)
    text = text.replace('"deep list"', "[" * DEEP + "]" * DEEP).replace('"deep object"', '{"a":' * DEEP + "1" + "}" * DEEP)
    return text.encode()


def damage_header(random: Random, path: Path) -> str:
    """The header of a safetensors file, with its length."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        values, what = damaged_values(random, json.loads(content[8 : 8 + length]))
    except (ValueError, RecursionError):
        return damage_bytes(random, path)
    header = as_text(values)
    length = random.choice([len(header)] * 8 + [0, 2**40, 2**63, len(header) - 1])
    path.write_bytes(length.to_bytes(8, "little") + header + content[8 + int.from_bytes(content[:8], "little") :])
    return what


def damage_numbers(random: Random, path: Path) -> str:
    """One of the first numbers of a binary file."""
    content = bytearray(path.read_bytes())
    at = 4 * random.randrange(10)
    number = random.choice([0, 1, -1, 2, 3, 7, 2**15, 2**24, 2**31 - 1, -(2**31), 0x616B3432, random.randrange(300)])
    content[at : at + 4] = struct.pack("<i", number)
    path.write_bytes(content)
    return f"{number} at {at}"


# ------------------------------------------------------------------------------------------------ opening


def actions(kind: str, folder: Path) -> list[Callable[[], Any]]:
    """What a user might do with it, each beginning from nothing."""
    import numllama as nl
    from numllama.data.dataset import load_dataset
    from numllama.interop.inspect import as_text, inspect

    path = folder / "model.bin" if kind == "binary" else folder
    words = folder / "tokenizer.bin" if kind == "binary" else folder
    chat = [{"role": "user", "content": "hello"}]

    def model() -> None:
        opened = nl.load(path)
        as_text(inspect(opened))
        nl.generate(opened, [1, 2], 3, temperature=0)

    def tokenizer() -> None:
        opened = nl.Tokenizer.load(words)
        opened.decode(opened.encode("hello"))
        if kind in ("llama", "other"):
            opened.apply_chat_template(chat, add_generation_prompt=True)

    def both() -> None:
        nl.complete(nl.load(path), nl.Tokenizer.load(words), "he", 2, seed=0)

    if kind == "data":
        return [lambda: load_dataset(path).check(264, 8), lambda: load_dataset(path / "ids.npy"), lambda: nl.Tokenizer.load(path)]
    return [model, tokenizer, both]


def wrong_with(action: Callable[[], Any]) -> str | None:
    """None if it worked, or ended in one sentence of the package; else what was wrong with it."""
    from numllama.errors import NumllamaError

    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        action()
    except (NumllamaError, ValueError, TypeError) as error:
        if not isinstance(error, NumllamaError) and not raised_here(error):
            return "".join(traceback.format_exception(error)[-4:])
        sentence = str(error)
        if "\n" in sentence or not 10 < len(sentence) < LONGEST:
            return f"a sentence of {len(sentence)} characters: {sentence[:200]!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error)[-4:])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def raised_here(error: BaseException) -> bool:
    """Whether a line of the package said `raise`: what Python says of its own accord is no sentence for a user."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{os.sep}numllama{os.sep}" in last.filename and (last.line or "").lstrip().startswith("raise")


def one(source: Path, number: int) -> list[dict]:
    """Make a mutation and open it; what was wrong."""
    random = Random(number)
    kind = random.choice(["llama", "llama", "llama", "other", "sharded", "binary", "adapter", "adapter", "run", "run", "data"])
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / kind
        shutil.copytree(source / kind, folder)
        what = f"{kind}: {mutate(random, folder)}"
        print(json.dumps({"began": number, "what": what}), flush=True)
        for i, action in enumerate(actions(kind, folder)):
            began = time.process_time()
            wrong = wrong_with(action)
            if wrong or time.process_time() - began > SECONDS:
                found.append({"number": number, "what": what, "action": i, "wrong": wrong or "took too long"})
    return found


def main(source: str, first: str, last: str) -> None:
    """Open mutations `first` to `last`; what each one is, is said before it is opened."""
    import numllama as nl

    nl.generate(nl.load(Path(source) / "llama"), [1], 1)  # all that is imported and compiled once
    warnings.simplefilter("ignore")  # weights of a flipped bit overflow
    signal.signal(signal.SIGPROF, lambda *_: (_ for _ in ()).throw(TimeoutError(f"more than {SECONDS} s")))
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    for number in range(int(first), int(last)):
        for found in one(Path(source), number):
            print(json.dumps(found), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"ended": int(last), "peak": peak}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
