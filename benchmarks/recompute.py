"""What does --recompute save, and what does it cost?  Measures memory and time of a 12-layer model's training step.

    python benchmarks/recompute.py

Memory is the peak of NumPy's arrays in forward and backward of the whole batch, without weights and gradients. A timed step is
a training step: forward and backward on two workers, clipping, AdamW. Steps without and with recompute alternate, and the
longer step is the median over the pairs.
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
ROUNDS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(SHAPES[args.child])))
        return
    results = {}
    lines = ["| model | activations, MB | with recompute, MB | memory saved | longer step |", "|---|---|---|---|---|"]
    for name in SHAPES:
        command = [sys.executable, __file__, "--child", name]
        answer = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True)
        r = results[name] = json.loads(answer.stdout)
        plain, less = r["peak_mb"]
        growth = statistics.median(slow / fast for fast, slow in zip(*r["step_ms"], strict=True)) - 1
        lines.append(f"| {name} | {plain:.0f} | {less:.0f} | {plain / less:.1f} times | {100 * growth:.0f} % |")
    print("\n".join(lines))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(shape: dict) -> dict:
    """Peak megabytes and milliseconds of each step, without and with recompute."""
    import numpy as np

    import numllama as nl
    from numllama.data.batches import counted
    from numllama.parallel.shards import ShardPlan, Workers
    from numllama.system.machine import training_settings

    config = {name: value for name, value in shape.items() if name != "batch"}
    model = nl.Transformer(nl.ModelConfig(**config))
    tokens = np.random.default_rng(0).integers(0, shape["vocab_size"], (shape["batch"], shape["max_seq_len"] + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    grads, peaks, times = model.params.zeros_like(), [], ([], [])
    for recompute in (False, True):
        tracemalloc.start()
        model.loss_and_grads(inputs, targets, grads=grads, recompute=recompute)
        peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
    workers, optimizer = Workers(model, 2), nl.AdamW(model.params)
    batch, plan = counted(inputs, targets), ShardPlan(len(inputs), 2)

    def step(recompute: bool) -> None:
        _, total = workers.loss_and_grads(batch, plan, recompute=recompute)
        nl.clip_grad_norm(total, 1.0)
        optimizer.step(total)

    with training_settings("cpu"):
        step(False)  # everything that is created only once exists now
        for _ in range(ROUNDS):
            for recompute in (False, True):
                start = time.perf_counter()
                step(recompute)
                times[recompute].append(1e3 * (time.perf_counter() - start))
    return {"peak_mb": peaks, "step_ms": times}


if __name__ == "__main__":
    main()
