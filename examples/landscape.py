"""The loss around trained rungs of the ladder: planes through the parameters at which training ended.

    python examples/landscape.py                                      # some rungs, trained for 300 steps: some minutes
    python examples/landscape.py --rungs gpt2 qk-norm --steps 1000

numllama/learn/landscape.py says what a plane is. OUT/landscape.json holds the losses, in nats per character, on the same windows
of the validation split for all rungs. The rungs are those of llamafy.py; here they are trained for a shorter time and on shorter
windows.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from llamafy import LEARNING_RATE, RUNGS, Rung, config_of

import numllama as nl
from numllama.data.shakespeare import shakespeare_dataset
from numllama.learn.landscape import plane
from numllama.storage.files import write_text

SHOWN = ["rnn", "heads", "block", "gpt2", "swiglu", "qk-norm"]
SEQ_LEN, BATCH_SIZE, WINDOWS = 64, 16, 16


def train(rung: Rung, data: nl.Dataset, steps: int, seed: int) -> Any:
    """A rung, trained for a short time."""
    model = rung.model(config_of(rung, data.vocab_size), seed=seed)
    settings = nl.TrainConfig(
        steps=steps, batch_size=BATCH_SIZE, seq_len=SEQ_LEN, lr=LEARNING_RATE, min_lr=0.0, warmup_steps=min(50, steps // 10),
        seed=seed, compute_dtype="float32", final_eval=False,
    )  # fmt: skip
    trainer = nl.Trainer(model, data, settings)
    try:
        for _ in trainer:
            continue
    finally:
        trainer.close()
    return model


def landscape(rung: Rung, data: nl.Dataset, steps: int, at: np.ndarray, seed: int) -> dict[str, Any]:
    """One rung's plane."""
    model = train(rung, data, steps, seed)
    windows = next(iter(data.batches(WINDOWS, SEQ_LEN).validation()))
    losses = plane(model, windows.tokens, windows.targets, at.tolist(), seed)
    return {"name": rung.name, "loss": [[round(loss, 3) for loss in row] for row in losses.tolist()]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a text file; default tinyshakespeare, cached or downloaded")
    names = [rung.name for rung in RUNGS]
    parser.add_argument("--rungs", nargs="+", choices=names, default=SHOWN, help=f"default {' '.join(SHOWN)}")
    parser.add_argument("--steps", type=int, default=300, help=f"steps of {BATCH_SIZE} x {SEQ_LEN} characters; default 300")
    parser.add_argument("--points", type=int, default=25, help="points along each side of the plane, odd; default 25")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--out", type=Path, default=Path("runs/landscape"), help="default runs/landscape")
    args = parser.parse_args()
    try:
        if args.points < 3 or args.points % 2 == 0:
            raise ValueError(f"points is {args.points}, but must be an odd number of at least 3")
        data, line = (nl.load_dataset(args.data), f"DATA: {args.data}") if args.data else shakespeare_dataset()
        print(line, flush=True)
        at, planes = np.linspace(-1, 1, args.points), []
        args.out.mkdir(parents=True, exist_ok=True)
        shape = {"batch_size": BATCH_SIZE, "seq_len": SEQ_LEN, "lr": LEARNING_RATE}
        settings = {"data": data.name, "steps": args.steps, **shape, "seed": args.seed}
        for rung in (rung for rung in RUNGS if rung.name in args.rungs):
            planes.append(landscape(rung, data, args.steps, at, args.seed))
            print(f"{rung.name}: {planes[-1]['loss'][args.points // 2][args.points // 2]:.3f} in the middle", flush=True)
            whole = {"settings": settings, "at": [round(a, 4) for a in at.tolist()], "rungs": planes}
            write_text(args.out / "landscape.json", json.dumps(whole) + "\n")
    except (nl.NumllamaError, ValueError, OSError) as error:
        print(f"landscape.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
