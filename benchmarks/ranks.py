"""How do ranks compare with threads, and how do they scale?  Times whole training steps over MPI, on this machine.

    python benchmarks/ranks.py                          # small and base; 2 threads, 2 processes, 1, 2 and 4 ranks
    python benchmarks/ranks.py --configs base --contestants threads ranks-2 ranks-2-zero --json out.json
    python benchmarks/ranks.py --configs base --contestants ranks-2 ranks-2-afterwards --network 0.125     # a gigabit Ethernet

Each contestant is started once (ranks by mpirun) in a clean environment and warmed up. Then they take turns, a few steps at a
time, and the medians are reported. Four ranks on two cores show the overhead of ranks. "afterwards" sends all gradients after
backward instead of each bucket as soon as it is ready; the difference is the gain from overlapping. With --network, messages
take as long as they would, one after another, on a link of the given GB/s.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from train_step import CONFIGS, clean_environment

CONTESTANTS = (
    "threads", "processes", "ranks-1", "ranks-2", "ranks-2-afterwards", "ranks-2-zero", "ranks-2-zero-afterwards",
    "ranks-2-by-rank", "ranks-4", "ranks-4-zero",
)  # fmt: skip
SHARDS = 4  # for every contestant, so that each of four ranks has one
SECONDS_PER_TURN = 0.7
ALLOW = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=["small", "base"], choices=list(CONFIGS))
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--rounds", type=int, default=7, help="rounds per contestant")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--network", type=float, help="GB/s of a rank's link; default: the speed of memory")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, CONFIGS[args.configs[0]], args.network)
        return
    results = {}
    for name in args.configs:
        contestants = {variant: Contestant(variant, name, args.network) for variant in args.contestants}
        for _ in range(args.rounds):
            for contestant in contestants.values():
                contestant.turn()
        results[name] = {variant: contestant.finish() for variant, contestant in contestants.items()}
        print(table(name, results[name]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


class Contestant:
    """A process, or mpirun with its ranks, that trains on request."""

    def __init__(self, variant: str, config: str, network: float | None) -> None:
        command = [sys.executable, __file__, "--child", variant, "--configs", config]
        command += ["--network", str(network)] if network else []
        if variant.startswith("ranks"):
            command = ["mpirun", "-n", variant.split("-")[1], "--bind-to", "none", *command]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=clean_environment() | ALLOW, stdin=pipe, stdout=pipe, text=True)
        self.about = json.loads(self.process.stdout.readline())
        self.steps = max(1, round(SECONDS_PER_TURN / self.about["seconds"]))
        self.milliseconds: list[float] = []

    def turn(self) -> None:
        self.process.stdin.write(f"{self.steps}\n")
        self.process.stdin.flush()
        self.milliseconds += json.loads(self.process.stdout.readline())

    def finish(self) -> dict:
        self.process.stdin.close()
        self.process.wait()
        about = {"losses": self.about["losses"], "steps": len(self.milliseconds)}
        return {"median_ms": statistics.median(self.milliseconds), "fastest_ms": min(self.milliseconds), **about}


def table(name: str, rows: dict) -> str:
    """One configuration as Markdown."""
    lines = [f"### {name}", "", "| contestant | median ms | fastest ms | / two threads | same losses |", "|---|---|---|---|---|"]
    threads = rows.get("threads") or next(iter(rows.values()))
    for variant, row in rows.items():
        ratio = threads["median_ms"] / row["median_ms"]
        same = "to the bit" if row["losses"] == threads["losses"] else "no"
        lines.append(f"| {variant} | {row['median_ms']:.1f} | {row['fastest_ms']:.1f} | {ratio:.2f} | {same} |")
    return "\n".join([*lines, ""])


def slow_down(comm: object, network: float) -> None:
    """Delay the large messages of a communicator."""
    free = [0.0]

    def delayed(method: Callable) -> Callable:
        def call(array: object, *args: object, **kwargs: object) -> object:
            request = method(array, *args, **kwargs)
            seconds = array.nbytes * (comm.size - 1) / comm.size / (1e9 * network)
            due = free[0] = max(time.monotonic(), free[0]) + seconds
            test, request._test = request._test, lambda: time.monotonic() >= due and test()
            return request

        return call

    comm.reduce_scatter, comm.all_gather = delayed(comm.reduce_scatter), delayed(comm.all_gather)


def child(variant: str, config: dict, network: float | None) -> None:
    """Train the number of steps on each line of rank 0's standard input."""
    import numpy as np
    import train_step_peers

    import numllama as nl
    import numllama.data.batches as data_module
    from numllama.parallel import ranks, shards
    from numllama.parallel.launched import communicator
    from numllama.system import machine

    source = train_step_peers.batches(config)

    def random_batch(*about: object) -> tuple:
        *_, rows = about
        return tuple(part[slice(None) if rows is None else rows] for part in next(source))

    data_module.random_batch = random_batch
    if variant.endswith("afterwards"):
        ranks.first_layer = lambda *_: -1
    shards.PROCESSES_AFTER = -1.0 if variant == "processes" else float("inf")
    model = nl.Transformer(train_step_peers.model_config(config), seed=0)
    some = np.zeros(2 * config["max_seq_len"], dtype=np.int64)
    who = dict(workers=2)
    if variant.startswith("ranks"):
        by_rank = "rank" if variant.endswith("by-rank") else None
        who = dict(parallel="mpi", shard_optimizer="zero" in variant, sum_by=by_rank)
    settings = nl.TrainConfig(steps=10**9, batch_size=config["batch"], shards=SHARDS, warmup_steps=0, eval_every=10**9, **who)
    trainer = nl.Trainer(model, nl.Dataset(some, some, config["vocab_size"]), settings)
    comm = communicator(settings.parallel)
    if network:
        slow_down(comm, network)
    loop = ExitStack()
    loop.enter_context(machine.training_settings("cpu"))

    def timed(n: int) -> list[float]:
        times = []
        for _ in range(n):
            start = time.perf_counter()
            losses.append(trainer._step().loss)
            times.append(1e3 * (time.perf_counter() - start))
        return times

    def tell(answer: object) -> None:
        if comm.rank == 0:
            print(json.dumps(answer), flush=True)

    def asked() -> int:
        """The number of steps; waiting ranks leave the cores to the others."""
        number = np.zeros(1, dtype=np.int64)
        if comm.rank == 0:
            number[0] = int(sys.stdin.readline() or 0)
        if comm.size > 1:
            request = comm._comm.Ibcast(number)
            while not request.Test():
                time.sleep(0.01)
        return int(number[0])

    losses: list[float] = []
    warm = timed(3)
    tell({"losses": losses[:3], "seconds": min(warm) / 1e3})
    while n := asked():
        tell(timed(n))
    trainer.close()
    loop.close()


if __name__ == "__main__":
    main()
