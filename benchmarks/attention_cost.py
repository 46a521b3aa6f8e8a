"""What does attention cost as the text grows?  Times one layer's parts, and a token with a KV cache, for longer and longer texts.

    python benchmarks/attention_cost.py
    python benchmarks/attention_cost.py --json docs/chapters/attention_cost.json

All on one core in float32. The contestants take turns, and each figure is the fastest of all rounds: whatever else runs on the
machine only ever adds time. Peaks are of arrays that NumPy allocates, counted by tracemalloc in a run of its own.
docs/chapters/attention_cost.md shows the file that --json writes.
"""

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from train_step import machine

import numllama as nl
from numllama import ops
from numllama.system.blas import one_blas_thread

LAYER = dict(vocab_size=512, dim=512, n_layers=1, n_heads=8, ffn_dim=1376, max_seq_len=8192)
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
DECODER = LAYER | dict(n_layers=8, max_seq_len=16384)
CACHED = (128, 1024, 2048, 4096)
CACHES = {"8 key heads": {}, "2 key heads": dict(n_kv_heads=2), "8 key heads, window 1024": dict(sliding_window=1024)}
BATCHES = (1, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    with one_blas_thread():
        parts, token = parts_of_a_layer(args.rounds), token_with_a_cache(args.rounds)
    results = {
        "machine": machine(1), "layer": LAYER, "lengths": LENGTHS, "parts": parts,
        "decoder": DECODER, "cached": CACHED, "token": token,
    }  # fmt: skip
    print(table("| ms for a text of | ", LENGTHS, {name: row["ms"] for name, row in results["parts"].items()}))
    print(table("| peak MB | ", LENGTHS, {name: row["peak_mb"] for name, row in results["parts"].items()}))
    print(table("| ms for a token after | ", CACHED, results["token"]))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def parts_of_a_layer(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds and peak megabytes of each part of a layer's forward, for each length of a text."""
    c, rng = nl.ModelConfig(**LAYER), np.random.default_rng(0)
    w = {name: array[:] for name, array in nl.Transformer(c, seed=0).params.blocks[0].items()}
    found: dict[str, dict[str, list[float]]] = {}
    for T in LENGTHS:
        x = rng.standard_normal((T, c.dim), np.float32)
        q, k, v = (rng.standard_normal((1, c.n_heads, T, c.head_dim), np.float32) for _ in range(3))
        contestants = {
            "projections": lambda x=x: [ops.linear_forward(x, w[name])[0] for name in ("wq", "wk", "wv", "wo")],
            "feed-forward": lambda x=x: feed_forward(x, w),
            "attention, all scores at once": lambda q=q, k=k, v=v: ops.attention_forward(q, k, v),
            "flash attention": lambda q=q, k=k, v=v: ops.flash_attention_forward(q, k, v),
        }
        for name, ms in fastest(contestants, rounds).items():
            row = found.setdefault(name, {"ms": [], "peak_mb": []})
            row["ms"].append(ms)
            row["peak_mb"].append(peak_mb(contestants[name]))
    return found


def feed_forward(x: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    gate, up = (ops.linear_forward(x, w[name])[0] for name in ("w_gate", "w_up"))
    return ops.linear_forward(ops.swiglu_forward(gate, up)[0], w["w_down"])[0]


def token_with_a_cache(rounds: int) -> dict[str, list[float]]:
    """Milliseconds of one more token for each of B texts, after so much text; the keys of the text are random."""
    found: dict[str, list[float]] = {}
    for length in CACHED:
        contestants = {}
        for name, changes in CACHES.items():
            model = nl.Transformer(nl.ModelConfig(**DECODER | changes), seed=0)
            for B in BATCHES:
                contestants[f"{name}, batch {B}"] = one_token(model, B, length)
        for name, ms in fastest(contestants, rounds).items():
            found.setdefault(name, []).append(ms)
    return found


def one_token(model: nl.Transformer, B: int, length: int) -> Callable[[], object]:
    """A function that computes the token after `length` others, each time from the same cache."""
    kept = min(length, model.config.sliding_window or length)
    cache = nl.KVCache(model, batch_size=B, capacity=kept + 1)
    rng = np.random.default_rng(0)
    for array in (cache.keys, cache.values):
        array[...] = rng.standard_normal(array.shape, np.float32)
    cache.tokens = np.zeros((B, length + 1), int)

    def run() -> object:
        cache.length, cache.dropped = length, length - kept
        return model.forward(np.zeros((B, 1), int), kv_cache=cache)

    return run


def fastest(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each contestant's fastest run."""
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(rounds + 1):
        for name, run in contestants.items():
            begin = time.perf_counter()
            run()
            best[name] = min(best[name], 1000 * (time.perf_counter() - begin))
    return {name: float(f"{ms:.4g}") for name, ms in best.items()}


def peak_mb(run: Callable[[], object]) -> float:
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return float(f"{peak / 2**20:.4g}")


def table(corner: str, columns: tuple[int, ...], rows: dict[str, list[float]]) -> str:
    head = [corner + " | ".join(f"{n:,}" for n in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    body = [f"| {name} | " + " | ".join(f"{value:.3g}" for value in row) + " |" for name, row in rows.items()]
    return "\n".join(head + body) + "\n"


if __name__ == "__main__":
    main()
