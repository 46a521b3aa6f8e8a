"""How fast is the tokenizer?  Compares numllama with tiktoken and Hugging Face tokenizers, on this CPU.

    python benchmarks/tokenizer.py --data path/to/data                        # encoding, and training on 5.6 MB and 200 MB
    python benchmarks/tokenizer.py --data path/to/data --train-mb 6 --json out.json

The folder holds tinyshakespeare.txt, gpt2_vocab.json and gpt2_merges.txt. Contestants take turns in one run, A B C A B C ...,
and the medians are reported; ratios are more reliable than seconds. All contestants encode 20 copies of tinyshakespeare with
GPT-2's vocabulary to a list of Python integers, and the lists are compared. Each has encoded the text once before, so
numllama's cache is warm; its first encoding is printed separately. The two processes are already running, as in a data loader.
Training learns 10,000 merges on two cores, each contestant in its own process, whose peak memory (with its children) is
measured. Texts of other sizes are made from tinyshakespeare by repeating and shuffling its lines.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from train_step import machine

MERGES = 10_000
FILES = ("tinyshakespeare.txt", "gpt2_vocab.json", "gpt2_merges.txt")
HF_REPEATS = 2  # it encodes a tenth of the text, so that a round does not take a minute


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("NUMLLAMA_TEST_DATA", "data")
    about = "folder with the files above; default $NUMLLAMA_TEST_DATA, or data"
    parser.add_argument("--data", type=Path, default=Path(default), help=about)
    parser.add_argument("--rounds", type=int, default=7, help="rounds per contestant when encoding")
    parser.add_argument("--train-rounds", type=int, default=3, help="rounds per contestant when training")
    parser.add_argument("--train-mb", type=float, nargs="*", default=[5.57697, 200], help="default tinyshakespeare x 5, and 200")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train_once(*args.train)
        return
    if missing := [name for name in FILES if not (args.data / name).is_file()]:
        parser.error(f"the folder {args.data} lacks {', '.join(missing)}: name another with --data")
    if missing := [name for name in ("tiktoken", "tokenizers") if find_spec(name) is None]:
        parser.error(f"the libraries to compare with are missing: pip install {' '.join(missing)}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    libraries = {name: version(name) for name in ("regex", "tiktoken", "tokenizers", "numpy")}
    results = {"machine": machine(args.cores) | {"libraries": libraries}}
    print(f"{results['machine']['cpu']}, {args.cores} cores, {libraries}\n", flush=True)
    results["encoding"] = encoding(args.data, args.rounds)
    print(encoding_table(results["encoding"]), flush=True)
    results["training"] = {}
    for megabytes in args.train_mb:
        results["training"][megabytes] = row = training(args.data / "tinyshakespeare.txt", megabytes, args.train_rounds)
        print(training_table(megabytes, row), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------ encoding


def encoding(data: Path, rounds: int) -> dict:
    """Megabytes per second of each contestant, over its rounds."""
    import tiktoken
    import tokenizers

    import numllama as nl
    from numllama.tokenizer.parallel import ParallelEncoder

    once = (data / "tinyshakespeare.txt").read_text(encoding="utf-8")
    text = once * 20
    ours = nl.Tokenizer.load(data / "gpt2_vocab.json")
    ranks = {token: i for i, token in ours.vocab.items() if i not in ours.special_tokens.values()}
    theirs = tiktoken.Encoding("gpt2", pat_str=TIKTOKEN_GPT2, mergeable_ranks=ranks, special_tokens=ours.special_tokens)
    with tempfile.TemporaryDirectory() as folder:
        face = tokenizers.Tokenizer.from_file(str(ours.save(folder)))
    start = time.perf_counter()
    ours.encode(once)
    first = time.perf_counter() - start
    with ParallelEncoder(ours, 2) as two:
        contestants = {
            "numllama": (lambda: ours.encode(text), text),
            "numllama, two processes": (lambda: two.encode(text), text),
            "tiktoken, one thread": (lambda: theirs.encode(text), text),
            "HF tokenizers": (lambda: face.encode(once * HF_REPEATS).ids, once * HF_REPEATS),
        }
        expected = theirs.encode(text)
        for name, (encode, of) in contestants.items():
            wanted = expected if of is text else theirs.encode(of)
            if encode() != wanted:
                raise SystemExit(f"{name} gives other ids than tiktoken")
        seconds = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, (encode, _) in contestants.items():
                start = time.perf_counter()
                encode()
                seconds[name].append(time.perf_counter() - start)
    speeds = {name: [len(of) / 1e6 / s for s in seconds[name]] for name, (_, of) in contestants.items()}
    rows = {name: {"median_mb_per_s": statistics.median(values), "turns": values} for name, values in speeds.items()}
    return {"first_encoding_mb_per_s": len(once) / 1e6 / first, "ids": len(expected), "contestants": rows}


# GPT-2's pattern as in tiktoken: the same pieces, without backtracking
TIKTOKEN_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def encoding_table(results: dict) -> str:
    rows = {name: row["median_mb_per_s"] for name, row in results["contestants"].items()}
    head = ["| contestant | MB/s | relative to tiktoken | relative to HF |", "|---|---|---|---|"]
    lines = ["### Encoding: tinyshakespeare x 20, GPT-2 vocabulary", "", *head]
    for name, speed in rows.items():
        ratios = f"{speed / rows['tiktoken, one thread']:.2f} | {speed / rows['HF tokenizers']:.1f}"
        lines.append(f"| {name} | {speed:.1f} | {ratios} |")
    first = results["first_encoding_mb_per_s"]
    return "\n".join([*lines, "", f"{results['ids']:,} ids. numllama's first encoding of tinyshakespeare: {first:.1f} MB/s.", ""])


# ------------------------------------------------------------------------------------------------ training


def training(source: Path, megabytes: float, rounds: int) -> dict:
    """Seconds and peak memory of each contestant."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        write_text(source, path, round(megabytes * 1e6))
        rows = {name: {"seconds": [], "peak_mb": []} for name in ("numllama", "HF tokenizers")}
        for _ in range(rounds):
            for name, row in rows.items():
                command = [sys.executable, __file__, "--data", str(source.parent), "--train", name, str(path)]
                answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                row["seconds"].append(answer["seconds"])
                row["peak_mb"].append(answer["peak_mb"])
    for row in rows.values():
        row |= {"median_s": statistics.median(row["seconds"]), "most_mb": max(row["peak_mb"])}
    return rows


def write_text(source: Path, path: Path, size: int) -> None:
    """The lines of a text, shuffled repeatedly until there are enough bytes."""
    lines = source.read_bytes().splitlines(keepends=True)
    rng = random.Random(0)
    with open(path, "wb") as file:
        while (room := size - file.tell()) > 0:
            rng.shuffle(lines)
            file.write(b"".join(lines)[:room])


def train_once(name: str, path: str) -> None:
    """In a separate process: train, and print seconds and peak memory."""
    if name == "numllama":
        import numllama as nl

        def train() -> None:
            nl.Tokenizer.train(path, 256 + MERGES, progress=False)
    else:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        def train() -> None:
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(vocab_size=256 + MERGES, initial_alphabet=alphabet, show_progress=False)
            tokenizer.train([path], trainer)

    peak = Peak()
    start = time.perf_counter()
    train()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mb": peak.stop()}))


class Peak:
    """The peak memory of this process and its children, sampled ten times a second.

    A library that never lets another thread run escapes the sampling, so the system's peak for this process counts too.
    """

    def __init__(self) -> None:
        self.most = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.most = max(self.most, memory_mb())

    def stop(self) -> float:
        self._done.set()
        self._thread.join()
        status = Path("/proc/self/status")
        seen = int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3 if status.exists() else 0.0
        return max(self.most, memory_mb(), seen)


def memory_mb() -> float:
    """The proportional memory of this process and its children now; 0 if the system does not report it."""
    total, own = 0, os.getpid()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if own in (parent, int(folder.name)):
                total += int((folder / "smaps_rollup").read_text().split("Pss:")[1].split()[0])
        except (OSError, IndexError, ValueError):
            continue
    return total / 1e3


def training_table(megabytes: float, rows: dict) -> str:
    theirs = rows["HF tokenizers"]["median_s"]
    head = ["| contestant | s | relative to HF | peak MB |", "|---|---|---|---|"]
    lines = [f"### Training: {MERGES:,} merges on {megabytes:g} MB", "", *head]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['median_s']:.2f} | {row['median_s'] / theirs:.2f} | {row['most_mb']:.0f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
