"""How well does the default run learn?  Measures the final validation loss on tinyshakespeare, for several seeds.

    python benchmarks/quality.py --data tinyshakespeare.txt

For comparison, nanoGPT's recipe of the same size and budget (GPT-2 blocks, 4 layers, 128 wide, 2000 steps of 12 x 64
characters) ends at 1.886.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numllama as nl
from numllama.data.shakespeare import shakespeare_dataset
from numllama.training import recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="default tinyshakespeare, cached or downloaded")
    parser.add_argument("--preset", default="shakespeare-cpu")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data = nl.load_dataset(args.data) if args.data else shakespeare_dataset()[0]
    rows = []
    print(f"{args.preset} on {data.name}\n\n| seed | validation loss | seconds of training |\n|---|---|---|")
    for seed in args.seeds:
        config = nl.ModelConfig.preset(args.preset, vocab_size=data.vocab_size)
        trainer = nl.Trainer(nl.Transformer(config, seed=seed, device=args.device), data, replace(recipe(args.preset), seed=seed))
        start = time.perf_counter()
        reports = list(trainer)
        seconds = time.perf_counter() - start
        rows.append({"seed": seed, "validation_loss": trainer.evaluate(), "seconds": seconds, "curve": curve(reports)})
        print(f"| {seed} | {rows[-1]['validation_loss']:.4f} | {seconds:.1f} |", flush=True)
        trainer.close()
    mean = statistics.mean(row["validation_loss"] for row in rows)
    print(f"| mean | {mean:.4f} | |")
    if args.json:
        args.json.write_text(json.dumps({"preset": args.preset, "data": data.name, "mean": mean, "runs": rows}, indent=1) + "\n")


def curve(reports: list[nl.StepReport], every: int = 20) -> list[dict]:
    """Means over several steps, which the book draws as the normal band (docs/chapters/training_curve.md)."""
    parts = [reports[i : i + every] for i in range(0, len(reports), every)]
    return [
        {name: round(statistics.mean(getattr(report, name) for report in part), 4) for name in ("step", "loss", "grad_norm")}
        for part in parts
    ]


if __name__ == "__main__":
    main()
