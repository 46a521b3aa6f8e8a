"""What does each technique gain?  Compares a whole training step with steps in which one technique is left out.

    python benchmarks/techniques.py
    python benchmarks/techniques.py --configs base --rounds 9 --json out.json

Contestants take turns as in train_step.py, with the same configurations.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import train_step

WITHOUT = "numllama-without-"


def processes() -> None:
    """Threads only, no processes."""
    from numllama.parallel.shared_memory import SharedMemoryWorkers

    SharedMemoryWorkers.possible = staticmethod(lambda model: False)


def workers() -> None:
    """One worker, with BLAS on all cores."""
    from numllama.parallel import shards
    from numllama.system import blas, machine

    processes()
    machine.one_blas_thread, blas.SMALL_MODEL = nullcontext, 0
    begin = shards.Workers.__init__
    shards.Workers.__init__ = lambda self, model, workers=None, **options: begin(self, model, 1, **options)


def keep_freed_memory() -> None:
    """The C library returns large arrays to the system."""
    from numllama.system import machine

    machine.keep_freed_memory = nullcontext


def flash_attention() -> None:
    """Dense attention."""
    from numllama import ops

    def forward(q, k, v, first=None, last=None, scale=None):
        return ops.attention_forward(q, k, v, first, last, None, scale)

    ops.flash_attention_forward, ops.flash_attention_backward = forward, ops.attention_backward


def bounded_scores() -> None:
    """Compute the maximum of every tile of scores."""
    from numllama.cpu import flash_attention

    flash_attention.SMALL_SCORE = 0.0


def one_gradient_buffer() -> None:
    """Each shard clears its own buffer, and adds it to the total at the end."""
    from contextlib import contextmanager

    from numllama.parallel.ordered_sum import OrderedSum

    @contextmanager
    def shard(self, index):
        own = self.total.zeros_like()
        yield own
        for name in self.total:
            view = self.acquire(name, index)
            view[...] = own[name] if index == 0 else view + own[name]
            self.release(name)

    OrderedSum.shard = shard


def optimizer_in_pieces() -> None:
    """AdamW in one piece, by one worker."""
    from numllama import blocks

    blocks.PIECE_ELEMENTS = 2**40


TECHNIQUES: dict[str, Callable[[], None]] = {
    f.__name__: f
    for f in (workers, processes, keep_freed_memory, flash_attention, bounded_scores, one_gradient_buffer, optimizer_in_pieces)
}


def leave_out(name: str) -> None:
    """Leave out a technique, here and in the worker processes started from here."""
    from numllama.system import processes as module

    TECHNIQUES[name]()
    also = f"import techniques; techniques.TECHNIQUES[{name!r}](); from numllama.system.processes"
    module._CHILD = module._CHILD.replace("from numllama.system.processes", also)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=train_step.USUAL, choices=list(train_step.CONFIGS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    peers = ["numllama", *(WITHOUT + name for name in TECHNIQUES)]
    results = {"machine": train_step.machine(args.cores), "configs": {}}
    for name in args.configs:
        results["configs"][name] = train_step.compare(name, peers, None, args.rounds, args.cores)
    print(table(results["configs"]))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def table(configs: dict) -> str:
    """Time and memory of a step without each technique, relative to a step with all of them, as Markdown."""
    lines = [f"| without | {' | '.join(configs)} |", "|---" * (1 + len(configs)) + "|"]
    for technique in TECHNIQUES:
        cells = []
        for rows in configs.values():
            ours, row = rows["numllama"], rows[WITHOUT + technique]
            cells.append(f"{row['median_ms'] / ours['median_ms']:.2f} x, {row['peak_mb'] / ours['peak_mb']:.1f} x memory")
        lines.append(f"| {technique.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
