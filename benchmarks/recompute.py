"""What does --recompute save, and cost?  Peak memory and time of forward and backward of a 12-layer model.

    python benchmarks/recompute.py

Memory is what NumPy's arrays take at most beyond weights and gradients; times are medians of alternating steps.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

from train_step import clean_environment

SHAPES = {
    "12 layers of 256, 8 x 128 tokens": dict(vocab_size=256, dim=256, n_layers=12, n_heads=4, max_seq_len=128, batch=8),
    "12 layers of 384, 4 x 256 tokens": dict(vocab_size=1024, dim=384, n_layers=12, n_heads=6, max_seq_len=256, batch=4),
}
ROUNDS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(SHAPES[args.child])))
        return
    results = {}
    lines = ["| | activations, MB | with recompute | falls | step grows |", "|---|---|---|---|---|"]
    for name in SHAPES:
        command = [sys.executable, __file__, "--child", name]
        answer = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True)
        r = results[name] = json.loads(answer.stdout)
        (plain, less), (fast, slow) = r["peak_mb"], r["median_ms"]
        lines.append(f"| {name} | {plain:.0f} | {less:.0f} | {plain / less:.1f} times | {100 * (slow / fast - 1):.0f} % |")
    print("\n".join(lines))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(shape: dict) -> dict:
    """Peak megabytes and median milliseconds, without and with recompute."""
    import numpy as np

    import numllama as nl
    from numllama.training.parallel import training_settings

    config = {name: value for name, value in shape.items() if name != "batch"}
    model = nl.Transformer(nl.ModelConfig(**config))
    tokens = np.random.default_rng(0).integers(0, shape["vocab_size"], (shape["batch"], shape["max_seq_len"] + 1))
    grads, peaks, times = model.params.zeros_like(), [], ([], [])

    def step(recompute: bool) -> None:
        model.loss_and_grads(tokens[:, :-1], tokens[:, 1:], grads=grads, recompute=recompute)

    for recompute in (False, True):
        tracemalloc.start()
        step(recompute)
        peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
    with training_settings("cpu"):
        for _ in range(ROUNDS):
            for recompute in (False, True):
                start = time.perf_counter()
                step(recompute)
                times[recompute].append(1e3 * (time.perf_counter() - start))
    return {"peak_mb": peaks, "median_ms": [statistics.median(t) for t in times]}


if __name__ == "__main__":
    main()
