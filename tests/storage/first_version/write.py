"""Writes the files of this folder, as commit 1734a78 does: run it in a checkout of that commit.

    git worktree add --detach /tmp/first 1734a78
    cd /tmp/first && PYTHONPATH=. python PATH/TO/write.py

``run``, ``play`` and ``tuned`` are stopped half-way by Ctrl-C. ``expected.json`` has the losses that the same commit gets when it
resumes them, and the logits of the token after ``prompt``. Paths into this folder are written as FOLDER: see `places.py`.
"""

import json
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
from numllama.training.data import write_tokens
from places import move

import numllama as nl
from numllama.cli import main
from numllama.training.trainer import Trainer

HERE = Path(__file__).resolve().parent
TEXT = "".join(
    f"The {a} {b} {c} {d}.\n"
    for a in ("quick", "lazy", "small", "loud")
    for b in ("fox", "dog", "cat")
    for c in ("jumps over", "looks at", "runs from")
    for d in ("the fence", "a river", "my house", "an old stone")
)
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|user|>", "<|assistant|>", "<|end|>"]
SHAPE = dict(dim=8, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=16, max_seq_len=32, tie_embeddings=True)
SIZES = [f"--{name.replace('_', '-')}={value}" for name, value in SHAPE.items() if name != "tie_embeddings"]
STEPS, HALF = 10, 5
LOOP = [
    f"--steps={STEPS}", "--batch-size=4", "--workers=1", "--shards=2", f"--eval-every={HALF}", "--eval-batches=2",
    "--warmup-steps=2", "--keep=1", "--seed=3",
]  # fmt: skip


def command(*arguments: object) -> None:
    """One command in this process."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        assert end.code in (0, None, 130), arguments


def stopped(*arguments: object) -> None:
    """The same, with a Ctrl-C in the middle."""
    step = Trainer._step

    def interrupted(self: Trainer) -> object:
        if self.step == HALF - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    Trainer._step = interrupted
    try:
        command(*arguments)
    finally:
        Trainer._step = step


def losses(run: Path) -> list[float]:
    """What a run's log says."""
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def make(folder: Path) -> None:
    """All that is committed but for the losses."""
    book, talk = folder / "book.txt", folder / "talk.jsonl"
    book.write_text(TEXT)
    pairs = [("Who jumps?", "The fox."), ("Who looks?", "The cat."), ("And then?", "The dog runs.")] * 4
    lines = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs]
    talk.write_text("".join(json.dumps(line) + "\n" for line in lines))

    tokenizer = nl.Tokenizer.train(book, 280, SPECIAL)
    tokenizer.save(folder / "tokenizer")
    ids = tokenizer.encode_array(TEXT)
    (folder / "tokens").mkdir()
    for name, part in (("train", ids[:-200]), ("val", ids[-200:])):
        write_tokens(folder / "tokens" / f"{name}.bin", part, tokenizer.vocab_size)
    np.save(folder / "tokens" / "ids.npy", ids[:50].astype(np.uint16))

    model = nl.Transformer(nl.ModelConfig(tokenizer.vocab_size, **SHAPE), seed=1)
    model.generation_config = {"eos_token_id": tokenizer.special_tokens["<|end|>"]}
    model.save(folder / "model", tokenizer)
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))

    flags = [*SIZES, "--tie-embeddings", *LOOP]
    stopped("train", "--data", book, "--tokenizer", folder / "tokenizer", *flags, "--out", folder / "run")
    stopped("train", "--data", "stand-in", *flags, "--out", folder / "play")
    tune = ["finetune", folder / "model", "--data", talk, "--rank", 2, "--lr", 0.02, *LOOP]
    stopped(*tune, "--out", folder / "tuned")
    command(*tune, "--out", folder / "tuned-to-the-end")
    shutil.move(folder / "tuned-to-the-end" / "adapter", folder / "adapter")
    shutil.rmtree(folder / "tuned-to-the-end")


def measured(folder: Path) -> dict[str, object]:
    """What this commit makes of its own files."""
    command("train", "--resume", "--out", folder / "run")
    command("train", "--resume", "--out", folder / "play")
    command("finetune", "--resume", "--out", folder / "tuned")
    tokenizer = nl.Tokenizer.load(folder / "model")
    prompt = np.array([tokenizer.encode("The quick fox jumps over")])
    return {
        **{name: losses(folder / name) for name in ("run", "play", "tuned")},
        "prompt": prompt[0].tolist(),
        "logits": {name: nl.load(folder / name).forward(prompt)[0, -1].tolist() for name in ("model", "adapter")},
    }


def write() -> None:
    """Everything, into the folder of this script."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, other = Path(temporary).resolve() / "made", Path(temporary).resolve() / "resumed"
        folder.mkdir()
        make(folder)
        move(folder, str(folder), "FOLDER")
        for path in folder.rglob(".lock"):
            path.unlink()
        shutil.copytree(folder, other)
        move(other, "FOLDER", str(other))
        values = measured(other)
        text = json.dumps(values, indent=1)
        (folder / "expected.json").write_text(re.sub(r",\s+(?=[-\d])", ", ", text) + "\n")
        shutil.copytree(folder, HERE, dirs_exist_ok=True)


if __name__ == "__main__":
    write()
