"""How fast is numllama on a GPU?  Compares every kernel with its lower bound, and training and attention with PyTorch.

    python benchmarks/gpu.py                                    # everything that fits into --seconds
    python benchmarks/gpu.py --parts kernels attention          # some parts; other figures in the file stay
    python benchmarks/gpu.py --table benchmarks/results/nvidia-h200.json

Needs CuPy, and PyTorch (2.5 or later) for the comparison. Each part is a child process with a time limit. Each figure is
written to ``benchmarks/results/<gpu>.json`` as soon as it is measured, so an error, a crash or a time limit loses nothing. The
contestants of a comparison take turns within one process, and the medians are reported.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
# Part -> its time limit in seconds. Comparisons come after the parts they rely on; the long ones last.
PARTS = {"machine": 60, "same": 90, "kernels": 120, "products": 60, "attention": 120, "shakespeare": 150, "decode": 90}
PARTS |= {f"training {model} {T}": 240 for model in ("shakespeare", "117m", "345m") for T in (256, 1024, 2048)}
del PARTS["training shakespeare 1024"], PARTS["training shakespeare 2048"]  # its texts are 256 long
LEAST = 20  # seconds; with less time left, a part is not started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), help=f"beginnings of: {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=570, help="for all parts together")
    parser.add_argument("--data", type=Path, help="text for the part `shakespeare`; default: tinyshakespeare, downloaded")
    parser.add_argument("--json", type=Path, help="file for the results; default benchmarks/results/<gpu>.json")
    parser.add_argument("--table", type=Path, metavar="JSON", help="only print the table of an existing file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table:
        print(table(read(args.table)))
        return 0
    if args.child:
        sys.path[:0] = [str(HERE.parent), str(HERE)]
        import gpu_parts

        gpu_parts.run(args.child, args.rows, args.data)
        return 0
    parts = [part for part in PARTS if any(part.startswith(begin) for begin in args.parts)]
    if not parts:
        parser.error(f"no part begins with {' or '.join(args.parts)}")
    path = args.json or RESULTS / f"{gpu_name()}.json"
    results = measure(parts, path, args.seconds, ["--data", str(args.data)] if args.data else [])
    print(table(results))
    failed = {part: why for part, why in results["failed"].items() if part in parts}
    for part, why in failed.items():
        print(f"{part}: {why}", file=sys.stderr)
    return 1 if failed else 0


def gpu_name() -> str:
    """As a file's name: nvidia-h200."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"no GPU was found: {error}")
    return "-".join(said.splitlines()[0].lower().split())


# ------------------------------------------------------------------------------------------------ one part after another


def measure(parts: Iterable[str], path: Path, seconds: float, options: list[str], child: Path = Path(__file__)) -> dict:
    """Run parts in child processes, and write all their figures to a file."""
    end = time.monotonic() + seconds
    results = read(path)
    for part in parts:
        left = end - time.monotonic()
        if left < LEAST:
            results["failed"][part] = "no time was left; run it with --parts"
            continue
        print(f"{part} ...", end=" ", file=sys.stderr, flush=True)
        start = time.monotonic()
        rows, why = run_part(part, min(left, PARTS.get(part, left)), options, child)
        print(f"{len(rows)} figures in {time.monotonic() - start:.0f} s{why and ', ' + why}", file=sys.stderr, flush=True)
        results["failed"].pop(part, None)
        if why:
            results["failed"][part] = why
        if rows and not why:
            results["figures"] = [row for row in results["figures"] if row["part"] != part]
        known = {(row["part"], row["name"]) for row in rows}
        kept = [row for row in results["figures"] if (row["part"], row["name"]) not in known]
        results["figures"] = kept + rows
        write(path, results)
    write(path, results)
    return results


def run_part(part: str, limit: float, options: list[str], child: Path) -> tuple[list[dict], str]:
    """The figures of a part until it ended, failed or was stopped; and the reason, unless it ended normally."""
    why = ""
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder) / "rows", Path(folder) / "log"
        command = [sys.executable, str(child), "--child", part, "--rows", str(rows), *options]
        with open(log, "w", encoding="utf-8") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code, why = None, f"stopped after {limit:.0f} s"
        if code:
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            why = f"failed: {said[-1] if said else f'exit code {code}'}"[:500]
        lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    found = []
    for line in lines:
        try:
            found.append({"part": part, **json.loads(line)})
        except ValueError:  # the last one, cut off
            break
    return list({row["name"]: row for row in found}.values()), why  # of a figure that is measured repeatedly, the last


def read(path: Path) -> dict:
    """Results of a file, or none."""
    if not path.exists():
        return {"figures": [], "failed": {}}
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, results: dict) -> None:
    """Write the file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


# ------------------------------------------------------------------------------------------------ the table


def table(results: dict) -> str:
    """All figures as Markdown; missing figures are empty cells or left out."""
    by_part: dict[str, dict[str, dict]] = {}
    for row in results["figures"]:
        by_part.setdefault(row["part"], {})[row["name"]] = row
    sections = [about(by_part.get("machine", {})), trained(by_part), attended(by_part.get("attention", {}))]
    sections += [ran(by_part.get("kernels", {})), multiplied(by_part.get("products", {})), others(by_part)]
    return "\n\n".join(filter(None, sections))


def about(rows: dict[str, dict]) -> str:
    """One sentence about the machine."""
    m = rows.get("machine", {})
    if not m:
        return ""
    speeds = f"a copy moves {m['copy_gbs']:,.0f} GB/s, a bfloat16 product runs at {m['product_tflops']:,.0f} TFLOP/s"
    return f"{m['gpu']}, driver {m['driver']}, CuPy {m['cupy']}, PyTorch {m['torch']}, NumPy {m['numpy']}: {speeds}."


CONTESTANTS = ("numllama", "numllama without graph", "torch eager", "torch compile", "torch compile cudnn")


def trained(by_part: dict) -> str:
    """Training: tokens/s of each contestant; for numllama also MFU, memory, and the ratio to PyTorch."""
    lines = []
    for part in PARTS:
        rows = by_part.get(part, {})
        if not part.startswith("training") or not rows:
            continue
        _, model, T = part.split()
        cells = [cell(rows.get(name), "tokens_per_s", "{:,.0f}") for name in CONTESTANTS]
        ours, best = rows.get("numllama"), rows.get("torch compile")
        cells += [cell(ours, "mfu", "{:.0%}"), cell(ours, "memory_mb", "{:,.0f}"), cell(best, "memory_mb", "{:,.0f}")]
        cells.append(f"{ours['tokens_per_s'] / best['tokens_per_s']:.2f}" if ours and best else "")
        lines.append(f"| {model} | {T} | " + " | ".join(cells) + " |")
    titles = ["model", "T", *CONTESTANTS, "MFU", "MB", "MB, torch compile", "ratio to torch compile"]
    return grid("tokens/s in training, bfloat16", titles, lines)


def attended(rows: dict[str, dict]) -> str:
    """Attention: TFLOP/s forward and backward, and as a share of FlashAttention-2's."""
    lines = []
    for name, row in rows.items():
        cells = [cell(row, key, "{:,.0f}") for key in ("numllama", "flash", "cudnn")]
        share = f"{row['numllama'] / row['flash']:.0%}" if row.get("numllama") and row.get("flash") else ""
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {share} |")
    return grid("attention, causal, bfloat16, TFLOP/s", ["", "numllama", "FlashAttention-2", "cuDNN", "share"], lines)


def ran(rows: dict[str, dict]) -> str:
    """Memory-bound kernels: GB/s, and as a share of a copy's."""
    lines = [f"| {name} | {r['us']:,.0f} | {r['gbs']:,.0f} | {r['share']:.0%} |" for name, r in rows.items()]
    return grid("kernels, bfloat16", ["", "us", "GB/s", "share of a copy's"], lines)


def multiplied(rows: dict[str, dict]) -> str:
    """Products of a training step: TFLOP/s, and PyTorch's for the same."""
    lines = [f"| {name} | {cell(r, 'numllama', '{:,.0f}')} | {cell(r, 'torch', '{:,.0f}')} |" for name, r in rows.items()]
    return grid("products, TFLOP/s", ["", "numllama", "PyTorch"], lines)


def others(by_part: dict) -> str:
    """The figures that are a sentence each."""
    rows = [row for part in ("same", "shakespeare", "decode") for row in by_part.get(part, {}).values()]
    return "\n".join(f"- {row['name']}: {row['says']}" for row in rows)


def cell(row: dict | None, key: str, form: str) -> str:
    return form.format(row[key]) if row and row.get(key) is not None else ""


def grid(title: str, titles: list[str], lines: list[str]) -> str:
    """A Markdown table; nothing if it has no lines."""
    if not lines:
        return ""
    return "\n".join([f"**{title}**", "", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *lines])


if __name__ == "__main__":
    sys.exit(main())
