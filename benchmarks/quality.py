"""How well does the default run learn?  Measures the final validation loss on tinyshakespeare, for several seeds.

    python benchmarks/quality.py --data tinyshakespeare.txt
    python benchmarks/quality.py --seeds 0 --steps 400            # a shorter run, on which the recipe's schedule ends too

The last columns say what storing the trained weights in bfloat16 or int8 adds to the loss, on this CPU: with oneDNN and units for
them the other operands of products are rounded too.

For comparison, nanoGPT's recipe of the same size and budget (GPT-2 blocks, 4 layers, 128 wide, 2000 steps of 12 x 64
characters) ends at 1.886.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numllama as nl
from numllama.data.shakespeare import shakespeare_dataset
from numllama.training import recipe

STORED = {"bfloat16 weights": dict(dtype="bfloat16"), "int8 weights": dict(store_as="int8")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="default tinyshakespeare, cached or downloaded")
    parser.add_argument("--preset", default="shakespeare-cpu")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="default: the recipe's")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data = nl.load_dataset(args.data) if args.data else shakespeare_dataset()[0]
    rows, settings = [], recipe(args.preset)
    settings = replace(settings, steps=args.steps or settings.steps)
    print(f"{args.preset} on {data.name}\n\n| seed | validation loss | seconds of training | {' | '.join(STORED)} |")
    print("|---|---|---|" + "---|" * len(STORED))
    for seed in args.seeds:
        config = nl.ModelConfig.preset(args.preset, vocab_size=data.vocab_size)
        trainer = nl.Trainer(nl.Transformer(config, seed=seed, device=args.device), data, replace(settings, seed=seed))
        start = time.perf_counter()
        reports = list(trainer)
        seconds = time.perf_counter() - start
        rows.append({"seed": seed, "validation_loss": trainer.evaluate(), "seconds": seconds, "curve": curve(reports)})
        rows[-1]["added_loss"] = added = added_losses(trainer)
        cells = "".join(f" {added[name]:+.5f} |" for name in STORED)
        print(f"| {seed} | {rows[-1]['validation_loss']:.4f} | {seconds:.1f} |{cells}", flush=True)
        trainer.close()
    mean = statistics.mean(row["validation_loss"] for row in rows)
    means = "".join(f" {statistics.mean(row['added_loss'][name] for row in rows):+.5f} |" for name in STORED)
    print(f"| mean | {mean:.4f} | |{means}")
    if args.json:
        args.json.write_text(json.dumps({"preset": args.preset, "data": data.name, "mean": mean, "runs": rows}, indent=1) + "\n")


def added_losses(trainer: nl.Trainer) -> dict[str, float]:
    """What each way of storing the weights adds to the validation loss."""

    def loss(**options: str) -> float:
        model = nl.load(folder, **options)
        batches = [(float(model.loss(*batch[:2])) * batch.count, batch.count) for batch in trainer.batches.validation()]
        total, count = map(sum, zip(*batches, strict=True))
        return total / count

    with tempfile.TemporaryDirectory() as folder:
        trainer.model.save(folder)
        exact = loss(dtype="float32")
        return {name: loss(**options) - exact for name, options in STORED.items()}


def curve(reports: list[nl.StepReport], every: int = 20) -> list[dict]:
    """Means over several steps, which the book draws as the normal band (docs/chapters/training_curve.md)."""
    parts = [reports[i : i + every] for i in range(0, len(reports), every)]
    return [
        {name: round(statistics.mean(getattr(report, name) for report in part), 4) for name in ("step", "loss", "grad_norm")}
        for part in parts
    ]


if __name__ == "__main__":
    main()
