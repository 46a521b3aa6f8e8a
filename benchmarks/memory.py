"""Does every phase of a run fit into the memory of training?  Measures peaks of training, of the whole run, and of `eval`.

    python benchmarks/memory.py

The batch has 2048 sequences in 256 small shards. Measured are four training steps; the rest of the run, with two evaluations of
several batches, the final evaluation and the sample; and `numllama eval` on a similar text. Peaks are of resident memory,
summed over all processes of a run, with shared memory counted once. "reported" is `memory_mb` of the last line of
metrics.jsonl.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from train_step import clean_environment

SHAPES = {
    "C128 L4 T64": dict(dim=128, n_layers=4, n_heads=4, max_seq_len=64),
    "C8 L1 T4": dict(dim=8, n_layers=1, n_heads=1, max_seq_len=4),
}
RUN = dict(batch_size=2048, shards=256, steps=6, eval_every=4, eval_batches=4, warmup_steps=0)
MOST = 1.5
CHILD = """
import os
import sys
cores = int(sys.argv.pop(1))
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])  # `eval` takes all cores that it has
from numllama.cli import app
from numllama.system.processes import peak_memory_mb
from numllama.parallel import shards
from numllama.training.trainer import Trainer
shards.PROCESSES_AFTER = 0.0  # processes from the second step on, however short the run
plain_step, plain_close, peaks = Trainer._step, shards.Workers.close, []
def step(trainer):
    report = plain_step(trainer)
    peaks.append(peak_memory_mb(trainer.workers.pids))
    return report
def close(workers):
    peaks.append(peak_memory_mb(workers.pids))
    plain_close(workers)
Trainer._step, shards.Workers.close = step, close
code = app(sys.argv[1:], result_action="return_value")
print(code, peaks[3] if len(peaks) > 3 else 0, max(peaks[-1], peak_memory_mb()))  # after four steps nothing was evaluated yet
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    lines = ["| | workers | training, MB | whole run | times | reported | eval | times |", "|---|---|---|---|---|---|---|---|"]
    results, worst = {}, 0.0
    for name, shape in SHAPES.items():
        for workers in args.workers:
            r = results[f"{name}, {workers} workers"] = measure(shape, workers)
            times = r["run"] / r["training"], r["eval"] / r["training"]
            worst = max(worst, *times)
            lines.append(
                f"| {name} | {workers} | {r['training']:.0f} | {r['run']:.0f} | {times[0]:.2f} | {r['reported']:.0f} "
                f"| {r['eval']:.0f} | {times[1]:.2f} |"
            )
    print("\n".join(lines))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    if worst > MOST:
        raise SystemExit(f"a phase takes {worst:.2f} times the memory of training, but at most {MOST} are promised")


def measure(shape: dict, workers: int) -> dict:
    """Peaks in MB."""
    settings = {**shape, **RUN, "workers": workers}
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    from numllama.data.synthetic import write_play

    with tempfile.TemporaryDirectory() as folder:
        out, text = Path(folder) / "run", Path(folder) / "text.txt"
        training, run = peaks(workers, "train", "--data", "stand-in", *flags, "--out", out)
        text.write_text(write_play(), encoding="utf-8")
        _, evaluation = peaks(workers, "eval", out, text)
        last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return {"training": training, "run": run, "reported": last["memory_mb"], "eval": evaluation}


def peaks(cores: int, *arguments: object) -> tuple[float, float]:
    """The peak memory of a command on some cores, during training and overall."""
    command = [sys.executable, "-c", CHILD, str(cores), *map(str, arguments)]
    answer = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True)
    code, *found = answer.stdout.splitlines()[-1].split()
    if code != "0":
        raise SystemExit(answer.stderr)
    return tuple(map(float, found))


if __name__ == "__main__":
    main()
