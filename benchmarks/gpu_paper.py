"""How long should a training step take on a GPU?  Counts FLOPs, bytes and launches, and predicts milliseconds by a roofline.

    python benchmarks/gpu_paper.py                                # shakespeare and 117m on a T4, A100, H100, H200
    git worktree add ../before COMMIT
    python benchmarks/gpu_paper.py --before ../before             # also for another checkout's step

No GPU is needed: the step runs with launchers that only record each launch. A launch takes the longest of

    its FLOPs / (share of the peak x the GPU's peak)     its bytes / (share of the bandwidth x the GPU's)     a minimum time

Bytes are those of each array passed to a kernel, counted once for reading and once for writing, as if nothing stayed in a
cache. The shares were measured by others on an H100: products reach 0.70 of the dense peak (cuBLAS, large matrices); attention
0.30 forward and 0.25 backward at D = 64 (FlashAttention-2 reaches 0.29 to 0.32); memory 0.85. The minimum time, 2 microseconds,
is that of an empty node of a CUDA graph. Launches are those of this project's kernels and of matrix products;
tests/cuda/real_cupy/nodes.json also counts the few launches of CuPy itself.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np

HERE = Path(__file__).parents[1]
GPUS = {  # dense TFLOP/s in bfloat16 (T4: float32, for it has no bfloat16), GB/s, capability
    "T4": (8.1, 300, 75), "A100": (312, 2039, 80), "H100": (989, 3350, 90), "H200": (989, 4800, 90),
}  # fmt: skip
BATCHES = {"shakespeare": (64, 256), "117m": (16, 1024), "345m": (8, 1024)}  # sequences, tokens of each
PRODUCTS, FORWARD, BACKWARD, MEMORY = 0.70, 0.30, 0.25, 0.85
LEAST_US = 2.0
ATTENTION = {  # FLOPs per pair of a query and a visible key, by head size; share of the peak
    "flash_attention_forward": (4, FORWARD), "flash_attention_backward": (10, BACKWARD),
    "flash_attention_dq": (6, BACKWARD), "flash_attention_dkv": (8, BACKWARD),
}  # fmt: skip
IN_PLACE = {"adamw": ("w", "m", "v"), "embedding_backward": ("dweight",)}  # what a kernel reads and writes


class Paper:
    """Replaces CuPy in numllama.cuda.launch, with NumPy arrays that are never filled."""

    def __init__(self, capability: int) -> None:
        self.capability, self.launches = capability, []

    def is_ready(self) -> bool:
        return True

    def compute_capability(self) -> int:
        return self.capability

    def owns(self, array) -> bool:
        return isinstance(array, np.ndarray | np.generic)  # a sum of arrays without axes is a number to NumPy

    def address(self, array) -> int:
        return array.ctypes.data

    def empty(self, like, shape, dtype):
        return np.empty(shape, dtype)

    def zeros(self, like, shape, dtype):
        return np.empty(shape, dtype)

    def view(self, array, shape, strides):
        return np.lib.stride_tricks.as_strided(array, shape, strides)

    def counters(self):
        return np.zeros(64, np.uint32)

    def run(self, program, name, grid, block, args, shared_bytes) -> None:
        text = re.sub(r"//.*", "", program.text)
        declared = re.search(rf"void\s+(?:__launch_bounds__\([^)]*\)\s*)?{name}\s*\(([^)]*)\)", text)[1]
        names = [part.split()[-1].strip("*") for part in declared.split(",")]
        arrays = {at: arg for at, arg in zip(names, args, strict=True) if isinstance(arg, np.ndarray)}
        size = sum(array.nbytes * (2 if at in IN_PLACE.get(name, ()) else 1) for at, array in arrays.items())
        flops = 0
        if name in ATTENTION and {"q", "k", "v"} <= arrays.keys():     # or it only adds up, and rounds
            B, H, T, D = arrays["q"].shape
            flops = ATTENTION[name][0] * D * B * H * T * (T + 1) / 2
        self.launches.append((name, flops, size, ATTENTION.get(name, (0, PRODUCTS))[1], shared_bytes))

    def gemm(self, left, right, result, M, N, K, batch, *factors) -> None:
        size = left.array.nbytes + right.array.nbytes + result.array.nbytes * (2 if factors[0] else 1)
        self.launches.append(("product", 2 * M * N * K * batch, size, PRODUCTS, 0))


def step(preset: str, capability: int) -> list[tuple]:
    """The launches of one step."""
    import numllama as nl
    from numllama.cuda import graph, launch
    from numllama.model import transformer

    paper = Paper(capability)
    config = nl.ModelConfig.preset(preset)
    launch.backend, graph.Stream = paper, SimpleNamespace
    model = nl.Transformer(config, compute_dtype="bfloat16" if capability >= 80 else "float32")
    optimizer = nl.AdamW(model.params)
    batch_size, seq_len = BATCHES[preset]
    transformer.CHUNK_LOGITS = transformer.CHUNK_LOGITS_GPU            # for arrays here are NumPy's
    with np.errstate(all="ignore"):
        whole = graph.TrainingStep(model, optimizer, batch_size, seq_len, clip=1.0, graph=False)
        whole.staged = whole._allocate()
        whole.staged.device["tokens"][...] = whole.staged.device["targets"][...] = 0
        paper.launches.clear()
        whole._launch_all()
    return paper.launches


def predicted(launches: list[tuple], gpu: str) -> tuple[float, dict[str, list[float]]]:
    """Total milliseconds, and for each kind of launch its number, ms, GFLOP, GB and KiB of dynamic shared memory."""
    peak, bandwidth, _ = GPUS[gpu]
    kinds = defaultdict(lambda: [0, 0.0, 0.0, 0.0, 0])
    for name, flops, size, share, shared in launches:
        ms = max(flops / (share * peak * 1e9), size / (MEMORY * bandwidth * 1e6), LEAST_US / 1e3)
        for i, value in enumerate((1, ms, flops / 1e9, size / 1e9)):
            kinds[name][i] += value
        kinds[name][4] = max(kinds[name][4], shared / 1024)
    return sum(values[1] for values in kinds.values()), dict(kinds)


def useful_flops(preset: str) -> float:
    """Model FLOPs: 6 per parameter and token, plus those of attention."""
    import numllama as nl
    from numllama.model.parameters import count_parameters

    config, (B, T) = nl.ModelConfig.preset(preset), BATCHES[preset]
    return 6 * B * T * count_parameters(config) + 14 * config.head_dim * config.n_heads * config.n_layers * B * T * T / 2 * 6 / 7


def other(tree: Path, presets: list[str]) -> dict:
    """The same for another checkout."""
    env = os.environ | {"PYTHONPATH": str(tree.resolve())}
    run = subprocess.run([sys.executable, __file__, "--child", *presets], env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout)


def steps(presets: list[str]) -> dict:
    return {f"{preset} {capability}": step(preset, capability) for preset in presets for capability in (75, 90)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=BATCHES, default=["shakespeare", "117m"])
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--kinds", choices=GPUS, help="also list each kind of launch on this GPU")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(steps(args.child)))
        return
    trees = {"here": steps(args.presets)}
    if args.before:
        trees = {"before": other(args.before, args.presets), **trees}
    figures = [
        figure(preset, gpu, tree, launches[f"{preset} {75 if capability < 80 else 90}"])
        for preset in args.presets for gpu, (_, _, capability) in GPUS.items() for tree, launches in trees.items()
    ]  # fmt: skip
    print("| preset | GPU | | launches | GFLOP | GB | ms | tokens/s | of the peak |\n|---|---|---|---|---|---|---|---|---|")
    for row in figures:
        form = "| {preset} | {gpu} | {tree} | {launches} | {gflop:,.0f} | {gb:.1f} | {ms:.1f} | {tokens_per_s:,.0f} | {mfu:.0%} |"
        print(form.format(**row))
    if args.kinds:
        print_kinds(figures, args.kinds, {"here": HERE, "before": args.before})
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def figure(preset: str, gpu: str, tree: str, launches: list[tuple]) -> dict:
    """A row of the table."""
    ms, kinds = predicted(launches, gpu)
    return dict(
        preset=preset, gpu=gpu, tree=tree, launches=len(launches), ms=ms, kinds=kinds,
        gflop=sum(values[2] for values in kinds.values()), gb=sum(values[3] for values in kinds.values()),
        tokens_per_s=float(1e3 * np.prod(BATCHES[preset]) / ms), mfu=useful_flops(preset) / ms / GPUS[gpu][0] / 1e9,
    )  # fmt: skip


def print_kinds(figures: list[dict], gpu: str, trees: dict[str, Path]) -> None:
    """A table of the kinds of launches, the longest first, with their maximum registers and shared memory."""
    for row in figures:
        if row["gpu"] != gpu:
            continue
        recorded = json.loads((trees[row["tree"]] / "tests" / "cuda" / "registers.json").read_text())["registers"]
        print(f"\n{row['preset']} on a {gpu}, {row['tree']}\n")
        print("| launch | times | ms | GFLOP | GB | registers | KiB shared |\n|---|---|---|---|---|---|---|")
        for name, (n, ms, gflop, gb, kib) in sorted(row["kinds"].items(), key=lambda item: -item[1][1]):
            print(f"| {name} | {n} | {ms:.3f} | {gflop:,.1f} | {gb:.2f} | {most_registers(recorded, name)} | {kib:.1f} |")


def most_registers(recorded: dict, kernel: str) -> str:
    """The maximum over all types, on sm_90."""
    found = [of["sm_90"] for name, of in recorded.items() if name.split()[0] == kernel and "sm_90" in of]
    return str(max(found, default=""))


if __name__ == "__main__":
    main()
