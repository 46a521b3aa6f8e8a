"""What does each file of numllama/cpu save?  A training step or a decoded token with it, and with the op's own lines instead.

    python benchmarks/twins.py

A file of numllama/cpu is worth its lines if it saves at least 1 % of a step or of a token of one of these models. Steps run with
one thread, as in a worker of `numllama train`. Runs with and without the file take turns; the median of their ratios is reported.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from unittest.mock import patch

MODELS = {  # vocab_size, dim, layers, heads, key heads, sequences, tokens
    "small": (512, 128, 4, 4, 4, 16, 128),
    "base": (4096, 384, 6, 6, 2, 8, 256),
    "long": (512, 128, 2, 4, 2, 2, 1024),
}
STEPS = [*((name, "float32") for name in MODELS), ("base", "bfloat16"), ("long", "bfloat16")]
FOLDER = Path(__file__).parents[1] / "numllama" / "cpu"
FILES = [path.stem for path in sorted(FOLDER.glob("[a-z]*.py")) if path.stem != "doctor"]  # it computes nothing


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
    works = {f"step, {name}, {dtype}": training_step(*MODELS[name], dtype) for name, dtype in STEPS}
    works |= {"token, float32": token("float32"), "token, bfloat16": token("bfloat16")}
    print("| file | " + " | ".join(works) + " |")
    print("|---" * (len(works) + 1) + "|")
    for file in files:
        saved = []
        for work in works.values():
            ratios = []
            for _ in range(rounds):
                with_it = seconds(work)
                with without(file):
                    ratios.append(with_it / seconds(work))
            saved.append(1 - statistics.median(ratios))
        print(f"| {file} | " + " | ".join(f"{each:+.1%}" for each in saved) + " |", flush=True)


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def without(file: str) -> AbstractContextManager:
    """A context in which a file of numllama/cpu is not used."""
    from numllama import dispatch
    from numllama.cpu import attention_tiles, onednn, products

    found = dispatch._twin

    def twin(package, op):
        return None if (package, op.__module__.rpartition(".")[2]) == ("cpu", file) else found(package, op)

    parts = {  # that other files of numllama/cpu import
        "attention_tiles": patch.multiple(attention_tiles, can_run=lambda q, k: False),
        "onednn": patch.multiple(onednn, library=lambda: None),
        "products": patch.multiple(
            products,
            _is_for_onednn=lambda a, b: False,
            multiplies_bfloat16=lambda: False,
            _in_blocks=lambda a, b: a @ b.astype(a.dtype),
        ),
        "rounding": patch.multiple(onednn, can_convert=lambda x, dtype: False),
    }
    return parts.get(file) or patch.multiple(dispatch, _twin=twin)


def training_step(vocab_size, dim, n_layers, n_heads, n_kv_heads, rows, length, dtype):
    import numpy as np

    import numllama as nl
    from numllama.system.blas import one_blas_thread

    config = nl.ModelConfig(
        vocab_size=vocab_size, dim=dim, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, max_seq_len=length
    )
    model = nl.Transformer(config, seed=0, compute_dtype=dtype)
    optimizer = nl.AdamW(model.params)
    tokens = np.random.default_rng(0).integers(0, vocab_size, (rows, length))

    @one_blas_thread()
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
