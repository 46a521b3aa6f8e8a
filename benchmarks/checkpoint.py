"""What does saving cost while training continues?

    python benchmarks/checkpoint.py                          # both models, about a minute
    python benchmarks/checkpoint.py --configs small --json out.json

Blocks of steps alternate in one process, A B C A B C ...: without a save, with a save that a thread writes during the next
steps, and with a save that the loop waits for. A block ends when the checkpoint is on the disk. The cost of a save is the
difference of the medians. It is also printed as a share of the time of the 250 steps between two saves.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

import numllama as nl
from numllama.training.trainer import Trainer

SHAPES = {
    "small": (dict(dim=128, n_layers=4, n_heads=4, ffn_dim=344, max_seq_len=64), 12, 30),
    "base": (dict(dim=384, n_layers=6, n_heads=6, ffn_dim=1024, max_seq_len=256), 16, 3),
}  # model, batch size, steps in a block: longer than a save takes
WAYS: dict[str, Callable[[Trainer], object]] = {
    "no save": lambda trainer: None,
    "background": lambda trainer: trainer._begin_save(None),
    "foreground": lambda trainer: trainer.save(),
}
BETWEEN = nl.TrainConfig().eval_every
VOCAB = 65


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    results = {name: measure(name, args.rounds, args.workers) for name in args.configs}
    print("| model | checkpoint | step | a save in the background | of the time | a save that is waited for | of the time |")
    print("|---|---|---|---|---|---|---|")
    for name, row in results.items():
        cells = [f"{row[way]['ms']:.0f} ms | {row[way]['percent']:.2f} %" for way in ("background", "foreground")]
        print(f"| {name} | {row['megabytes']:.0f} MB | {row['step_ms']:.1f} ms | {' | '.join(cells)} |")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(name: str, rounds: int, workers: int) -> dict:
    """Medians of the blocks of one model."""
    shape, batch_size, steps = SHAPES[name]
    tokens = np.random.default_rng(0).integers(0, VOCAB, 100_000)
    config = nl.TrainConfig(steps=10**9, batch_size=batch_size, workers=workers, eval_every=10**9)
    model = nl.Transformer(nl.ModelConfig(VOCAB, **shape))
    data = nl.Dataset(tokens, tokens, VOCAB)
    with tempfile.TemporaryDirectory() as folder, closing(Trainer(model, data, config, folder)) as trainer:
        loop, start = iter(trainer), time.perf_counter()
        while time.perf_counter() - start < 4:  # processes have taken over by then
            next(loop)
        seconds = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, begin in WAYS.items():
                start = time.perf_counter()
                begin(trainer)
                for _ in range(steps):
                    next(loop)
                trainer._writer.finish()
                seconds[way].append(time.perf_counter() - start)
        loop.close()
        size = sum(path.stat().st_size for path in trainer.save().iterdir())
    block = {way: statistics.median(values) for way, values in seconds.items()}
    step = block["no save"] / steps
    costs = {way: block[way] - block["no save"] for way in ("background", "foreground")}
    rows = {way: {"ms": 1e3 * cost, "percent": 100 * cost / (BETWEEN * step)} for way, cost in costs.items()}
    return {"megabytes": size / 1e6, "step_ms": 1e3 * step, "seconds": seconds, **rows}


if __name__ == "__main__":
    main()
