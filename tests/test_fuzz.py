"""Commands that make no sense, or nearly: each ends with its result or with one sentence, none in Python's words."""

import io
import json
import os
import re
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from random import Random

import pytest
from generation.models import random_model
from system.commands import TINY

import numllama as nl
from numllama.cli import ORDER, app, main
from numllama.commands import train_run
from numllama.serve import server
from numllama.training import write_tokens

COMMANDS = int(os.environ.get("NUMLLAMA_FUZZ", 200))  # CI asks for 2000
AT_A_TIME = 50
LETTERS = "abcdefghijklmnop \n"
OTHERS_WORDS = re.compile(
    r"Traceback|KeyError|IndexError|AttributeError|TypeError|AssertionError|UnboundLocal|ZeroDivision|OverflowError|Errno|unpack"
    r"|object has no|NoneType|subscriptable|unsupported operand|invalid literal|could not convert|codec can't|positional argument"
    r"|unexpected keyword|(list|string|tuple|dict) index|not iterable|not callable|broadcast|cannot reshape|expected str"
    r"|recursion|<class|object at 0x|math domain|embedded null|'(int|str|float|list|dict|bool)' object|must be real number"
)
ODD = [
    "", "0", "-1", "1", "2", "3", "7", "1e400", "nan", "inf", "-inf", "1e-320", "0.5", "9" * 30, "9" * 5000, "x", "é\udcff",
    "[1]", "true", "none", "/", ".", "..", "/dev/null", "/dev/full", "nowhere/x", "a" * 300, "--", "-", "*",
]  # fmt: skip
SMALL = ["", "0", "-1", "1", "2", "3", "nan", "inf", "1e400", "x", "2.5", "none"]
VALUES = [None, True, -1, 10**400, 1e308, "x", "a" * 5000, [], [None], {}, [1, "a"], 0, 0.5, {"a": {"b": []}}, "\ud800", 2**63]
ENDLESS = {  # flags that would keep a command busy
    "steps", "max-new-tokens", "epochs", "rounds", "new-tokens", "prompt-tokens", "batch-size", "eval-batches", "keep", "shards",
    "workers", "shard-tokens", "vocab-size", "window", "n-layers", "dim", "ffn-dim", "head-dim", "max-seq-len", "n-heads",
    "n-kv-heads", "rank", "running", "waiting",
}  # fmt: skip
FEW = {  # what each command needs to come to something, and what keeps it short
    "train": ["--data", "FILE", *map(str, TINY), "--steps", "2", "--out", "OUT"],
    "plan": [], "doctor": [], "exercises": ["rmsnorm", "--out", "OUT"], "trace": [],
    "vectors": ["gqa", "--out", "OUT"], "compare": ["gqa", "FILE"], "diagnose": ["gqa", "FILE"], "grade": ["FILE"],
    "prepare": ["FILE", "--vocab-size", "260", "--workers", "1", "--out", "OUT"],
    "finetune": ["MODEL", "--data", "FILE", "--steps", "1", "--workers", "1", "--out", "OUT"],
    "generate": ["MODEL", "--prompt", "abc", "--max-new-tokens", "3"], "chat": ["MODEL", "--max-new-tokens", "3"],
    "serve": ["MODEL", "--port", "0", "--no-page"], "eval": ["MODEL", "FILE"], "inspect": ["MODEL"], "convert": ["MODEL", "OUT"],
    "bench": ["MODEL", "--prompt-tokens", "2", "--new-tokens", "2", "--rounds", "1"],
}  # fmt: skip
CHOICES = {"device": ["cpu", "cuda:9", "tpu"], "dtype": ["float64", "bfloat16", "float8"], "blank": ["forward", "both"],
           "parallel": ["threads"], "modules-to-save": ["embed", "head", "norm"],
           "host": ["127.0.0.1"], "port": ["0", "x", "99999"]}  # fmt: skip


@pytest.fixture(scope="module")
def pool(tmp_path_factory, small_run, small_text):
    """Files and models, sound and unsound, that commands are given."""
    folder = tmp_path_factory.mktemp("pool")
    tokenizer = nl.CharTokenizer(LETTERS)
    random_model("float32", vocab_size=len(LETTERS), norm_eps=1e-5, max_seq_len=16).save(folder / "model", tokenizer)
    random_model("float32", vocab_size=len(LETTERS), norm_eps=1e-5, dim=16).save(folder / "model.bin")
    random_model("float32", vocab_size=300).save(folder / "bpe", nl.Tokenizer({i: bytes([i]) for i in range(256)}, [], ["</s>"]))
    shutil.copytree(small_run, folder / "run")
    row = {"messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "dad"}]}
    (folder / "chat.jsonl").write_text(6 * (json.dumps(row) + "\n"))
    (folder / "text.txt").write_text("abc dad mama pap\n" * 40)
    (folder / "short.txt").write_text("a")
    (folder / "empty.txt").write_text("")
    (folder / "latin.txt").write_bytes(b"caf\xe9 " * 50)
    (folder / "bytes.bin").write_bytes(bytes(range(256)) * 3)
    (folder / "bytes.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00((((((((")
    (folder / "empty").mkdir()
    write_tokens(folder / "tokens.bin", [1, 2, 3, 4] * 50, 18)
    (folder / "split").mkdir()
    for name in ("train", "val"):
        write_tokens(folder / "split" / f"{name}.bin", [1, 2, 3, 4] * 50, 18)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """A server that ends when it has begun, no network, and runs that draw nothing."""
    monkeypatch.setattr(server.Server, "serve_on", lambda self, listener: None)
    monkeypatch.setattr(train_run, "shakespeare_dataset", lambda tokenizer: train_run.load_dataset("/nowhere", tokenizer))
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def flags_of(name):
    """The flags of a command."""
    found = {flag for argument in app[name].assemble_argument_collection() for flag in argument.names}
    return sorted(flag for flag in found if flag.startswith("--") and flag != "--page")


def spoilt(random, folder, path):
    """A copy of something in which a few bytes, a value or a file are wrong."""
    copy = folder / str(len(list(folder.iterdir()))) / path.name
    copy.parent.mkdir()
    shutil.copytree(path, copy) if path.is_dir() else shutil.copyfile(path, copy)
    files = sorted(file for file in copy.rglob("*") if file.is_file()) if copy.is_dir() else [copy]
    for file in random.sample(files, min(len(files), random.randint(1, 2))):
        content = file.read_bytes()
        kind = random.random()
        if kind < 0.4 and file.suffix == ".json":
            try:
                value = json.loads(content)
                place = value
                while isinstance(place, dict | list) and place:
                    key = random.choice(sorted(place) if isinstance(place, dict) else range(len(place)))
                    if not isinstance(place[key], dict | list) or random.random() < 0.3:
                        place[key] = random.choice(VALUES)
                        break
                    place = place[key]
                content = json.dumps(value).encode()
            except ValueError:
                content = b""
        elif kind < 0.6:
            content = content[: random.randint(0, len(content))]
        elif kind < 0.7:
            file.unlink()
            continue
        else:
            at = random.randint(0, max(0, len(content) - 1))
            content = content[:at] + random.randbytes(random.randint(1, 4)) + content[at + 1 :]
        file.write_bytes(content)
    return copy


def command(random, pool, folder):
    """A command that could be right, with a few things wrong in it."""
    name = random.choice(ORDER)
    models = [pool / name for name in ("model", "model", "bpe", "model.bin", "run", "run")]
    names = ("text.txt", "chat.jsonl", "tokens.bin", "split", "bytes.bin", "latin.txt", "bytes.npy", "short.txt")
    files = [pool / name for name in names]
    anything = [*models, *files, pool / "empty", pool / "empty.txt", folder / "nothing", pool / "run" / "step-000008"]

    def place(part):
        if part not in ("MODEL", "FILE", "OUT"):
            return part
        if part == "OUT":
            return str(folder / "out") if random.random() < 0.9 else random.choice([*map(str, anything), *ODD])
        path = random.choice(anything if random.random() < 0.15 else models if part == "MODEL" else files)
        return str(spoilt(random, folder, path) if random.random() < 0.5 and path.exists() else path)

    words = [place(part) for part in FEW[name]]
    for _ in range(random.choice([0, 0, 1, 1, 2, 3, 4])):
        flag = random.choice(flags_of(name))
        bare = flag.removeprefix("--")
        values = CHOICES.get(bare, SMALL if bare in ENDLESS else [*ODD, str(random.choice(anything))])
        words += [flag] if random.random() < 0.2 else [flag, random.choice(values)]
    if random.random() < 0.1:
        words[random.randrange(len(words)) if words else 0 : 0] = [random.choice(ODD)]
    if words and random.random() < 0.1:
        del words[random.randrange(len(words))]
    if name == "serve" and "--no-page" not in words:
        words.append("--no-page")
    return [name, *words]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(-(-COMMANDS // AT_A_TIME)))
def test_no_command_ends_in_pythons_words(pool, quick, tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    codes, faults = [], []
    for i in range(AT_A_TIME):
        random, folder = Random(f"{seed} {i}"), tmp_path / str(i)
        folder.mkdir()
        words = command(random, pool, folder)
        lines = [random.choice(["abc\n", "", "\n", "é\n", "x" * 5000 + "\n"]) for _ in range(3)]
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(lines)))
        out, err = io.StringIO(), io.StringIO()
        try:
            with redirect_stdout(out), redirect_stderr(err):
                main(words)
        except SystemExit as end:
            codes.append(end.code)
        except Exception as error:
            faults.append(f"{words}: {type(error).__name__}: {error}")
            continue
        said = err.getvalue()
        strange = [line for line in said.splitlines() if OTHERS_WORDS.search(line) or (line[:5] == "error" and len(line) > 1000)]
        expected = (0, 1, 2) if words[0] in ("compare", "diagnose", "grade") else (0, 2)
        if strange or codes[-1] not in expected or (codes[-1] == 2 and not said and words[0] not in ("doctor", "exercises")):
            faults.append(f"{words}: {codes[-1]}: {strange or said}")
        shutil.rmtree(folder)
    assert not faults, "\n".join(faults)
    assert {0, 2} <= set(codes) <= {0, 1, 2}
