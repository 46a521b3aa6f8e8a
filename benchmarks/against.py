"""Has a change made anything slower?  Compares this checkout with another one, in turns, in one run.

    git worktree add ../before COMMIT
    python benchmarks/against.py ../before                        # training, decoding, the tokenizer, the server
    python benchmarks/against.py ../before --only train serve --rounds 15 --json out.json

Both checkouts run the same tasks in separate processes with a clean environment, pinned to the same cores, A B B A ... The
ratio is the median, over the rounds, of this checkout's time divided by the other's in the same round: 1.02 means 2 % slower.
For training and decoding, each checkout runs its own train_step.py and decode.py, and their losses are compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from serve import free_port, make_model, stream
from train_step import USUAL, clean_environment, machine

HERE = Path(__file__).parents[1]
SECONDS = 1.0  # per round of training
GROUPS = ("train", "decode", "tokenizer", "serve")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, nargs="?", help="the other checkout's folder")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--most", type=float, help="fail if any ratio is larger")
    parser.add_argument("--json", type=Path, help="write all ratios to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        tokenizer_child(Path(args.child))
        return
    if args.other is None or not (args.other / "numllama").is_dir():
        parser.error("name the folder of another checkout of this repository")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])  # which all children inherit
    print(f"{machine(args.cores)['cpu']}, {args.cores} cores\n", flush=True)
    results = {}
    for group in args.only:
        for name, (ours, theirs) in globals()[group](args.other.resolve(), args.rounds, args.cores):
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            results[name] = dict(here=statistics.median(ours), other=statistics.median(theirs), ratio=ratio)
            print(f"{name:24} {results[name]['here']:10.4g} {results[name]['other']:10.4g} s   ratio {ratio:.3f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(args.cores), "results": results}, indent=1) + "\n")
    if args.most and (slower := [name for name, row in results.items() if row["ratio"] > args.most]):
        raise SystemExit(f"more than {args.most} times the other's time: {', '.join(slower)}")


Times = tuple[str, tuple[list[float], list[float]]]


class Child:
    """A process of one checkout; it answers each line on its input with one line."""

    def __init__(self, checkout: Path, *command: object) -> None:
        env = clean_environment() | {"PYTHONPATH": str(checkout)}
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=env, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.ready = self.answer()

    def ask(self, line: str) -> str:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a child ended: {self.process.args}")
        return line

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def train(other: Path, rounds: int, cores: int) -> Iterator[Times]:
    """Seconds of a training step."""
    for config in USUAL:
        pair = [
            Child(where, where / "benchmarks" / "train_step.py", "--child", "numllama", "--configs", config, "--cores", cores)
            for where in (HERE, other)
        ]
        about = [json.loads(child.ready) for child in pair]
        if about[0]["losses"] != about[1]["losses"]:
            print(f"train {config}: losses differ, {about[0]['losses']} and {about[1]['losses']}")
        steps = max(1, round(SECONDS / about[0]["seconds"]))
        times = [], []
        for child, taken in turns(rounds, pair, times):
            taken.append(statistics.median(json.loads(child.ask(str(steps)))["milliseconds"]) / 1e3)
        for child in pair:
            child.end()
        yield f"train {config}", times


def decode(other: Path, rounds: int, cores: int) -> Iterator[Times]:
    """Seconds of decode.py's tasks."""
    pair = [Child(where, where / "benchmarks" / "decode.py", "--child", "numllama", "--cores", cores) for where in (HERE, other)]
    yield from tasks(pair, json.loads(pair[0].ready), rounds)


def tokenizer(other: Path, rounds: int, cores: int) -> Iterator[Times]:
    """Seconds for training a tokenizer, and for encoding and decoding with it."""
    from numllama.data.synthetic import write_play  # from this checkout, so that both read the same text

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plays.txt"
        path.write_text(5 * write_play(), encoding="utf-8")
        pair = [Child(where, __file__, "--child", path) for where in (HERE, other)]
        yield from tasks(pair, json.loads(pair[0].ready), rounds)


def tasks(pair: list[Child], names: list[str], rounds: int) -> Iterator[Times]:
    for name in names:
        times = [], []
        for child, taken in turns(rounds, pair, times):
            taken.append(float(child.ask(name)))
        yield name, times
    for child in pair:
        child.end()


def serve(other: Path, rounds: int, cores: int) -> Iterator[Times]:
    """Seconds until the first token of a stream arrives over HTTP, and seconds for each further token."""
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        ports = [free_port(), free_port()]
        pair = [
            Child(where, "-m", "numllama.cli", "serve", folder, "--port", port)
            for where, port in zip((HERE, other), ports, strict=True)
        ]
        firsts, rest = ([], []), ([], [])
        for port in ports:
            stream(port)  # everything that is created only once exists now
        for port, first, behind in turns(rounds, ports, firsts, rest):
            seconds, rate = stream(port)
            first.append(seconds)
            behind.append(1 / rate)
        for child in pair:
            child.end()
    yield "first token", firsts
    yield "token of a stream", rest


def turns(rounds: int, *columns: tuple) -> Iterator[tuple]:
    """The values of both checkouts in turns; the second one of a round is the first one of the next."""
    for i in range(rounds):
        yield from list(zip(*columns, strict=True))[:: -1 if i % 2 else 1]


def tokenizer_child(path: Path) -> None:
    """Run each task named on standard input, with a text of five plays, and print its seconds."""
    import time

    import numllama as nl

    plays = path.read_text(encoding="utf-8")
    play = plays[: len(plays) // 5]
    tokenizer = nl.Tokenizer.train([path], 2000)
    ids = tokenizer.encode(play)
    work = {
        "learn 2,000 tokens": lambda: nl.Tokenizer.train([path], 2000),
        "encode": lambda: tokenizer.encode(play),
        "encode, short": lambda: [tokenizer.encode(play[i : i + 60]) for i in range(0, 60_000, 60)],
        "decode": lambda: tokenizer.decode(ids),
    }
    print(json.dumps(list(work)), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        work[line.strip()]()
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
