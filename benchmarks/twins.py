"""What does each file of numllama/cpu save?  A training step or a decoded token with it, and with the op's own lines instead.

    python benchmarks/twins.py

A file of numllama/cpu is worth its lines if it saves at least 1 % of a step or of a token of one of these models.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

MODELS = {  # vocab_size, dim, layers, heads, key heads, sequences, tokens
    "small": (512, 128, 4, 4, 4, 16, 128),
    "base": (4096, 384, 6, 6, 2, 8, 256),
    "long": (512, 128, 2, 4, 2, 2, 1024),
}
FILES = [path.stem for path in sorted((Path(__file__).parents[1] / "numllama" / "cpu").glob("[a-z]*.py"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", choices=FILES, default=FILES)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        measure(args.only, args.rounds)
        return
    # The number of BLAS threads is the machine's own affair: variables of the shell do not count.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    sys.exit(subprocess.call([sys.executable, *sys.argv, "--here"], env=environment))


def measure(files: list[str], rounds: int) -> None:
    from numllama import dispatch

    found = dispatch._twin
    works = {f"step, {name}": training_step(*sizes) for name, sizes in MODELS.items()}
    works |= {"token, float32": token("float32"), "token, bfloat16": token("bfloat16")}
    print("| file | " + " | ".join(works) + " |")
    print("|---" * (len(works) + 1) + "|")
    for file in files:

        def without(package, op, file=file):
            return None if (package, op.__module__.rpartition(".")[2]) == ("cpu", file) else found(package, op)

        saved = []
        for work in works.values():
            times = {True: [], False: []}
            for _ in range(rounds):
                for with_it in (True, False):
                    dispatch._twin = found if with_it else without
                    start = time.perf_counter()
                    work()
                    times[with_it].append(time.perf_counter() - start)
            dispatch._twin = found
            saved.append(1 - statistics.median(times[True]) / statistics.median(times[False]))
        print(f"| {file} | " + " | ".join(f"{each:+.1%}" for each in saved) + " |", flush=True)


def training_step(vocab_size, dim, n_layers, n_heads, n_kv_heads, rows, length):
    import numpy as np

    import numllama as nl

    config = nl.ModelConfig(
        vocab_size=vocab_size, dim=dim, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, max_seq_len=length
    )
    model = nl.Transformer(config, seed=0)
    optimizer = nl.AdamW(model.params)
    tokens = np.random.default_rng(0).integers(0, vocab_size, (rows, length))

    def step():
        _, grads = model.loss_and_grads(tokens, tokens)
        nl.clip_grad_norm(grads, 1.0)
        optimizer.step(grads)

    step()
    return step


def token(dtype):
    import tempfile

    import numllama as nl

    with tempfile.TemporaryDirectory() as folder:
        nl.Transformer(nl.ModelConfig(vocab_size=4096, dim=512, n_layers=6, n_heads=8, max_seq_len=256), seed=0).save(folder)
        model = nl.load(folder, dtype=dtype)
    return lambda: nl.generate(model, [1, 2, 3, 4], 24, temperature=0.0)


if __name__ == "__main__":
    main()
