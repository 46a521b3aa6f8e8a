"""What does a small model in your own loop gain from limiting BLAS to one thread (numllama/system/blas.py)?

    python benchmarks/own_loop.py

A step is loss_and_grads and AdamW. Steps with BLAS's default threads and with the limit alternate, and the medians are
reported. This is done twice: on an idle machine, and with a busy process per core, which makes BLAS's threads wait. Larger
models keep all threads, so their two columns differ only by noise.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from numllama.system.processes import available_cores

SHAPES = {
    "C64 L2, 16 x 32 tokens": dict(dim=64, n_layers=2, n_heads=2, max_seq_len=32, batch=16),
    "C128 L4, 12 x 64 tokens (shakespeare-cpu)": dict(dim=128, n_layers=4, n_heads=4, max_seq_len=64, batch=12),
    "C256 L4, 1 x 64 tokens": dict(dim=256, n_layers=4, n_heads=4, max_seq_len=64, batch=1),
    "C256 L2, 8 x 128 tokens": dict(dim=256, n_layers=2, n_heads=8, max_seq_len=128, batch=8),
    "C512 L2, 4 x 128 tokens": dict(dim=512, n_layers=2, n_heads=8, max_seq_len=128, batch=4),
}
HEAD = "| model | default threads, ms | with the limit, ms | ratio |\n|---|---|---|---|"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    results = {}
    for load in (0, available_cores()):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
        try:
            print(f"\n{available_cores()} cores, {load} other busy processes\n\n{HEAD}", flush=True)
            results[load] = {name: compare(name, shape, args.rounds) for name, shape in SHAPES.items()}
        finally:
            for process in busy:
                process.kill()
                process.wait()
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def compare(name: str, shape: dict, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each step, without and with the limit."""
    import numllama as nl
    from numllama.system import blas

    config = nl.ModelConfig(vocab_size=65, **{key: value for key, value in shape.items() if key != "batch"})
    model, bound = nl.Transformer(config), blas.SMALL_MODEL
    optimizer = nl.AdamW(model.params)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (shape["batch"], config.max_seq_len + 1))
    times: dict[str, list[float]] = {"before": [], "now": []}
    for _ in range(rounds + 1):
        for kind, limit in (("before", 0), ("now", bound)):
            blas.SMALL_MODEL = limit
            start = time.perf_counter()
            _, grads = model.loss_and_grads(tokens[:, :-1], tokens[:, 1:])
            optimizer.step(grads, 1e-3)
            times[kind].append(1e3 * (time.perf_counter() - start))
    blas.SMALL_MODEL = bound
    times = {kind: values[1:] for kind, values in times.items()}  # the first of each is warm-up
    before, now = (statistics.median(values) for values in times.values())
    print(f"| {name} | {before:.1f} | {now:.1f} | {before / now:.2f} |", flush=True)
    return times


if __name__ == "__main__":
    main()
