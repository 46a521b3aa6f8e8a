"""How much memory and time does loading take, and what do two-byte weights cost?

    python benchmarks/load.py                          # a 1 GB checkpoint; about a minute and 2 GB of disk
    python benchmarks/load.py --gigabytes 0.2 --json out.json

The checkpoint has random weights in Hugging Face's format, in several files, in float32 and in bfloat16. Each load runs in its
own child process with a clean environment. A thread reads the process's anonymous memory from /proc; on other systems the peak
resident memory is used, which includes the mapped file. The files are in the disk cache: the first load is not counted.

Then the same weights, in float32 and in bfloat16, run forward in turns: one token, as in decoding, and a prompt of 128 tokens.
The difference is the cost of converting bfloat16 weights at each use.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from train_step import clean_environment

LIMIT_MEMORY, LIMIT_SECONDS = 1.15, 3.0
SHAPE = dict(vocab_size=32000, dim=2048, n_heads=32, n_kv_heads=4, ffn_dim=5632, max_seq_len=2048)  # TinyLlama's
LOADS = [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16")]  # stored, requested


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the float32 checkpoint")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        {"load": child_load, "forward": child_forward}[args.child[0]](*args.child[1:])
        return
    with tempfile.TemporaryDirectory() as folder:
        size = make_checkpoints(Path(folder), args.gigabytes)
        rows = [measure(Path(folder) / stored, stored, asked, args.rounds) for stored, asked in LOADS]
        forward = run("forward", Path(folder) / "bfloat16", args.rounds)
    print(f"A checkpoint of {size / 1e9:.2f} GB in float32, in shards\n")
    print("| stored | loaded as | model MB | anonymous MB | of the model's size | seconds |\n|---|---|---|---|---|---|")
    for row in rows:
        sizes = f"{row['model'] / 1e6:.0f} | {row['anonymous'] / 1e6:.0f} | {row['anonymous'] / row['model']:.3f}"
        print(f"| {row['stored']} | {row['asked']} | {sizes} | {row['seconds']:.2f} |")
    print("\n| forward, ms | weights in float32 | in bfloat16 | takes |\n|---|---|---|---|")
    for length, seconds in forward.items():
        wide, narrow = seconds["float32"], seconds["bfloat16"]
        print(f"| {length} token(s) | {1e3 * wide:.1f} | {1e3 * narrow:.1f} | {narrow / wide:.2f} x |")
    if args.json:
        args.json.write_text(json.dumps({"bytes": size, "loads": rows, "forward_seconds": forward}, indent=1) + "\n")
    first = rows[0]
    if first["anonymous"] > LIMIT_MEMORY * first["model"] or first["seconds"] > LIMIT_SECONDS:
        sys.exit(f"more than {LIMIT_MEMORY} times the model's size, or more than {LIMIT_SECONDS} s")


def make_checkpoints(folder: Path, gigabytes: float) -> int:
    """The same random weights in float32 and in bfloat16, three shards each; returns the bytes in float32."""
    import numpy as np

    from numllama.backend import BFLOAT16
    from numllama.interop import huggingface
    from numllama.model import ModelConfig, count_parameters, parameter_shapes
    from numllama.storage.tensor_file import write_tensors

    counts = [count_parameters(ModelConfig(**SHAPE, n_layers=n)) for n in (1, 2)]
    layers = max(1, round((gigabytes * 1e9 / 4 - counts[0]) / (counts[1] - counts[0])) + 1)
    config = ModelConfig(**SHAPE, n_layers=layers)
    names, shapes = huggingface.huggingface_names(config), parameter_shapes(config)
    for dtype in (np.dtype("float32"), BFLOAT16):
        out = folder / dtype.name
        out.mkdir()
        weight_map = {}
        for i in range(3):
            file = f"model-{i + 1:05d}-of-00003.safetensors"
            part = {names[name]: shapes[name] for name in list(shapes)[i::3]}
            rng = np.random.default_rng(i)
            with open(out / file, "wb") as handle:
                tensors = ((0.02 * rng.standard_normal(shape, dtype="float32")).astype(dtype) for shape in part.values())
                write_tensors(handle, dtype, part, tensors)
            weight_map |= dict.fromkeys(part, file)
        (out / huggingface.INDEX).write_text(json.dumps({"weight_map": weight_map}))
        (out / huggingface.CONFIG).write_text(json.dumps(huggingface.config_to_huggingface(config)))
    return 4 * count_parameters(config)


def measure(folder: Path, stored: str, asked: str, rounds: int) -> dict:
    """Median time and maximum memory over several loads, after one that warms the disk cache."""
    results = [run("load", folder, asked) for _ in range(rounds + 1)][1:]
    return {
        "stored": stored,
        "asked": asked,
        "model": results[0]["model"],
        "anonymous": max(result["anonymous"] for result in results),
        "seconds": statistics.median(result["seconds"] for result in results),
    }


def run(*arguments: object) -> dict:
    """A child process of this script, without settings that would slow NumPy down."""
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    return json.loads(subprocess.run(command, env=clean_environment(), check=True, capture_output=True, text=True).stdout)


# ------------------------------------------------------------------------------------------------ inside a child


def child_load(folder: str, dtype: str) -> None:
    import numllama as nl

    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    model = nl.load(folder, dtype=dtype)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    anonymous = max(peak[0], anonymous_bytes())
    print(json.dumps({"seconds": seconds, "anonymous": anonymous, "model": model.params.flat.nbytes}))


def anonymous_bytes() -> int:
    """The anonymous memory of this process: without mapped files."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("RssAnon:")[1].split()[0])
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def child_forward(folder: str, rounds: str) -> None:
    import numpy as np

    import numllama as nl

    models = {dtype: nl.load(folder, dtype=dtype) for dtype in ("float32", "bfloat16")}
    medians = {}
    for length, repeats in ((1, 8), (128, 1)):
        tokens = np.arange(length)[None]
        times: dict[str, list[float]] = {dtype: [] for dtype in models}
        for _ in range(int(rounds) + 1):
            for dtype, model in models.items():
                start = time.perf_counter()
                for _ in range(repeats):
                    model.forward(tokens)
                times[dtype].append((time.perf_counter() - start) / repeats)
        medians[length] = {dtype: statistics.median(seconds[1:]) for dtype, seconds in times.items()}
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
