"""Where does the time of a training step go?  Measures the share of every op in real steps, with all workers running.

    python benchmarks/breakdown.py                     # all configurations of train_step.py
    python benchmarks/breakdown.py --configs base --workers 1

Each op of `numllama.ops` is timed by its processor time in this process. All processes run the same number of shards, so the
rows add up to the step. "Waiting" is the time without work: waiting to add to a gradient, and waiting for the others at the end
of a step. The lower bound of train_step.py is printed for comparison.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from train_step import CONFIGS, clean_environment

from numllama.cpu import onednn

PRODUCTS = {  # who computes them: how train_step_peers.py makes our step, and which floor belongs to it
    "numpy": ({"onednn": False}, "numpy"),
    "onednn": ({}, "float32"),
    "bfloat16": ({"compute_dtype": "bfloat16"}, "bfloat16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=["small", "base", "gqa"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--products", choices=list(PRODUCTS), default="onednn" if onednn.library() else "numpy",
                        help="who computes the matrix products (default: oneDNN if it is installed)")  # fmt: skip
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.configs[0], args.workers, args.seconds, args.products)))
        return
    results = {}
    for name in args.configs:
        command = [sys.executable, __file__, "--child", "--configs", name, "--workers", str(args.workers)]
        command += ["--seconds", str(args.seconds), "--products", args.products]
        answer = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True)
        results[name] = json.loads(answer.stdout)
        print(table(name, args.workers, results[name]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(name: str, workers: int, seconds: float, products: str) -> dict:
    """Milliseconds per step of every op, in one process."""
    from train_step_peers import floor_step, numllama_step

    from numllama import ops
    from numllama.model import Transformer
    from numllama.parallel.shards import Workers

    clock, local, lock = Counter(), threading.local(), threading.Lock()

    def timed(function, label):
        def run(*args, **kwargs):
            outer = getattr(local, "depth", 0)
            local.depth = outer + 1
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                local.depth = outer
                if not outer:  # an op inside an op is part of it
                    with lock:
                        clock[label] += time.thread_time() - start
        return run

    def whole(function, label, now):
        def run(*args, **kwargs):
            start = now()
            try:
                return function(*args, **kwargs)
            finally:
                with lock:
                    clock[f"({label})"] += now() - start
        return run

    how, floor_dtype = PRODUCTS[products]
    step, _ = numllama_step(CONFIGS[name], workers, **how)
    for label in [n for n in vars(ops) if n.endswith(("_forward", "_backward"))]:
        setattr(ops, label, timed(getattr(ops, label), label))
    outside = [
        (Workers, "loss_and_grads", "all shards", time.perf_counter),
        (Transformer, "loss_and_grads", "a shard", time.thread_time),
        (Workers, "step", "AdamW", time.perf_counter),
        (Workers, "clip", "clipping", time.perf_counter),
    ]
    for where, name_there, label, now in outside:
        setattr(where, name_there, whole(getattr(where, name_there), label, now))
    step(), step()
    clock.clear()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    per_step = {label: 1e3 * value / len(times) for label, value in clock.items()}
    ops_ms = {label: value for label, value in per_step.items() if not label.startswith("(")}
    only_products, _ = floor_step(CONFIGS[name], workers, floor_dtype)
    only_products()
    floor = []
    for _ in range(5):
        start = time.perf_counter()
        only_products()
        floor.append(1e3 * (time.perf_counter() - start))
    return {
        "step": statistics.mean(times),
        "ops": dict(sorted(ops_ms.items(), key=lambda item: -item[1])),
        "between ops": per_step["(a shard)"] - sum(ops_ms.values()),
        "waiting": per_step["(all shards)"] - per_step["(a shard)"],
        "clipping": per_step["(clipping)"],
        "AdamW": per_step["(AdamW)"],
        "the floor": statistics.median(floor),
    }


def table(name: str, workers: int, result: dict) -> str:
    """One configuration as Markdown."""
    rows = {**result["ops"], **{key: result[key] for key in ("between ops", "waiting", "clipping", "AdamW")}}
    rows["(the floor)"] = result["the floor"]
    lines = [f"### {name}, {workers} workers: {result['step']:.1f} ms a step", "", "| | ms | % |", "|---|---|---|"]
    lines += [f"| {label} | {value:.2f} | {100 * value / result['step']:.1f} |" for label, value in rows.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
