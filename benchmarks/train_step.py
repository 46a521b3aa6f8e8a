"""How long does a training step take?  Compares numllama with PyTorch, JAX and a lower bound, on this CPU.

    python benchmarks/train_step.py                               # every configuration and every peer that is installed
    python benchmarks/train_step.py --configs base --peers numllama torch-eager floor --json out.json
    python benchmarks/train_step.py --configs T256 T512 T1024 T2048 T4096     # base's model, longer and longer sequences

Each contestant is a child process with a clean environment (no OPENBLAS_*, OMP_* or MKL_* settings), pinned to the same
cores. They are all started and warmed up, then take turns, A B C A B C ..., a few steps at a time, so that a slow moment of
the machine affects all of them. The medians are reported; ratios are more reliable than milliseconds. Every contestant trains the
same Llama from the same weights on the same batches: forward, backward, clipping and AdamW. Their losses are compared.

PyTorch's MKL withholds its AVX-512 kernels from processors that are not Intel's. Where that matters, there are two rows for each
PyTorch contestant: as installed, and "unlocked" with a preloaded library that lets MKL use these kernels (it needs gcc).

The *floor*, a lower bound, is the step's matrix products only, with dense attention, at NumPy's full speed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIGS = {
    "small": dict(vocab_size=65, dim=128, n_layers=4, n_heads=4, ffn_dim=344, max_seq_len=64, batch=12),
    "base": dict(vocab_size=65, dim=384, n_layers=6, n_heads=6, ffn_dim=1024, max_seq_len=256, batch=16),
    "gqa": dict(vocab_size=4096, dim=512, n_layers=8, n_heads=8, n_kv_heads=2, ffn_dim=1376, max_seq_len=256, batch=4),
}
USUAL = list(CONFIGS)
CONFIGS |= {f"T{T}": dict(CONFIGS["base"], max_seq_len=T, batch=8192 // T) for T in (256, 512, 1024, 2048, 4096)}
PEERS = (
    "numllama", "numllama-onednn", "numllama-bf16", "torch-eager", "torch-compile", "torch-compile-bf16", "jax",
    "floor", "floor-onednn", "floor-bf16",
)  # fmt: skip
UNLOCKED = "+unlocked"
SECONDS_PER_TURN = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=USUAL, choices=list(CONFIGS))
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--rounds", type=int, default=9, help="rounds per contestant")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, CONFIGS[args.configs[0]], args.cores)
        return
    results = {"machine": machine(args.cores), "configs": {}}
    print(f"{results['machine']['cpu']}, {args.cores} cores\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        unlock = unlock_library(Path(folder))
        for name in args.configs:
            results["configs"][name] = compare(name, args.peers, unlock, args.rounds, args.cores)
            print(table(name, results["configs"][name]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------ the contest


def compare(name: str, peers: list[str], unlock: Path | None, rounds: int, cores: int) -> dict:
    """Start all contestants of one configuration, let them take turns, and collect their figures."""
    contestants = {}
    for peer in peers:
        variants = [peer] + ([peer + UNLOCKED] if unlock and peer.startswith("torch") else [])
        for variant in variants:
            process = Contestant(variant, name, unlock if variant.endswith(UNLOCKED) else None, cores)
            if process.ready:
                contestants[variant] = process
            else:
                print(f"{variant}: not taking part ({process.why})", file=sys.stderr, flush=True)
    for _ in range(rounds):
        for contestant in contestants.values():
            contestant.turn()
    return {variant: contestant.finish() for variant, contestant in contestants.items()}


def clean_environment() -> dict[str, str]:
    """The environment of a contestant, without settings that would slow its matrix products down."""
    settings = ("OPENBLAS_", "OMP_", "MKL_", "NVPL_", "KMP_", "GOTO_", "BLIS_")
    return {key: value for key, value in os.environ.items() if not key.startswith(settings)}


class Contestant:
    """A child process that trains on request."""

    def __init__(self, variant: str, config: str, unlock: Path | None, cores: int) -> None:
        env = clean_environment()
        if unlock:
            env["LD_PRELOAD"] = str(unlock)
        peer = variant.removesuffix(UNLOCKED)
        command = [sys.executable, __file__, "--child", peer, "--configs", config, "--cores", str(cores)]
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        first = self.process.stdout.readline()
        self.ready = first.startswith("{")
        self.why = "" if self.ready else (self.process.stderr.read().strip().splitlines() or ["it died"])[-1]
        self.about = json.loads(first) if self.ready else {}
        self.milliseconds: list[float] = []
        self.losses: list[float] = []
        self.steps = max(1, round(SECONDS_PER_TURN / self.about["seconds"])) if self.ready else 0

    def turn(self) -> None:
        answer = self._ask(f"{self.steps}")
        self.milliseconds += answer["milliseconds"]
        self.losses += answer["losses"]

    def finish(self) -> dict:
        peak = self._ask("end")["peak_mb"]
        self.process.wait()
        return {
            "median_ms": statistics.median(self.milliseconds),
            "fastest_ms": min(self.milliseconds),
            "steps": len(self.milliseconds),
            "peak_mb": peak,
            "first_losses": self.about["losses"],
            "libraries": self.about["libraries"],
        }

    def _ask(self, line: str) -> dict:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a contestant died: {self.process.stderr.read()[-2000:]}")
        return json.loads(answer)


def table(name: str, rows: dict) -> str:
    """One configuration as Markdown."""
    c = CONFIGS[name]
    ours = rows.get("numllama", {}).get("median_ms")
    shape = " ".join(f"{key}={value}" for key, value in c.items())
    lines = [
        f"### {name}: {shape}",
        "",
        "| contestant | median ms | fastest ms | numllama's relative time | peak MB | libraries |",
        "|---|---|---|---|---|---|",
    ]
    for variant, row in rows.items():
        ratio = f"{ours / row['median_ms']:.2f} x" if ours else ""
        median, fastest, peak = f"{row['median_ms']:.1f}", f"{row['fastest_ms']:.1f}", f"{row['peak_mb']:.0f}"
        lines.append(f"| {variant} | {median} | {fastest} | {ratio} | {peak} | {row['libraries']} |")
    return "\n".join([*lines, "", *compare_losses(rows), ""])


def compare_losses(rows: dict) -> list[str]:
    """Whether all contestants trained the same model: the largest relative difference of the first losses."""
    if "numllama" not in rows:
        return []
    ours = rows["numllama"]["first_losses"]
    words = []
    for variant, row in rows.items():
        if variant not in ("numllama", "floor"):
            difference = max(abs(a - b) / abs(a) for a, b in zip(ours, row["first_losses"], strict=True))
            words.append(f"{variant} {difference:.1e}")
    return [f"Losses of the first {len(ours)} steps differ from numllama's by at most: {', '.join(words)}."] if words else []


# ------------------------------------------------------------------------------------------------ the machine


def machine(cores: int) -> dict:
    """The machine on which the figures were measured."""
    from numllama.cpu.doctor import cpu_fields

    cpu, fields = platform.processor(), cpu_fields()
    if fields:
        cpu = f"{fields.get('model name', cpu)} (family {fields.get('cpu family')}, model {fields.get('model')})"
    return {"cpu": cpu, "cores": cores, "python": platform.python_version(), "system": platform.platform()}


def unlock_library(folder: Path) -> Path | None:
    """Build the library that lets MKL use AVX-512, if this processor has it and is not Intel's."""
    if "GenuineIntel" in (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "GenuineIntel"):
        return None
    source, library = folder / "unlock.c", folder / "unlock.so"
    source.write_text("int mkl_serv_intel_cpu_true(void) { return 1; }\n")
    try:
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        print("gcc is missing, so MKL cannot be unlocked: PyTorch runs as installed only", file=sys.stderr)
        return None
    return library


# ------------------------------------------------------------------------------------------------ inside a child


def child(peer: str, config: dict, cores: int) -> None:
    """Create a contestant, warm it up, then train the number of steps on each line of standard input."""
    import time

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    sys.path.insert(0, str(Path(__file__).parent))
    import train_step_peers

    step, libraries = train_step_peers.make(peer, config, cores)
    losses = [step() for _ in range(3)]
    warm = []
    for _ in range(3):
        start = time.perf_counter()
        step()
        warm.append(time.perf_counter() - start)
    print(json.dumps({"losses": losses, "seconds": min(warm), "libraries": libraries}), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            print(json.dumps({"peak_mb": getattr(step, "peak_mb", peak_mb)()}), flush=True)
            break
        milliseconds, losses = [], []
        for _ in range(int(line)):
            start = time.perf_counter()
            losses.append(step())
            milliseconds.append(1e3 * (time.perf_counter() - start))
        print(json.dumps({"milliseconds": milliseconds, "losses": losses}), flush=True)
    os._exit(0)  # some contestants keep threads that never end


def peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main()
