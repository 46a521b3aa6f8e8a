"""How long does a user wait?  Compares the server with plain decoding, and times the start of the command line.

    python benchmarks/serve.py                                    # everything
    python benchmarks/serve.py --rounds 3 --json out.json

- *first token*: the time from a request to `numllama serve` until the first piece of text arrives, over HTTP on this machine.
  The model is shaped like stories15M, with random weights; the prompt has three words.
- *streaming*: tokens/s of a stream of 200 tokens as they arrive, and of `numllama.stream` in another process, in turns.
- *eight at once*: total tokens/s of eight concurrent streams.
- *import*: `import numllama` with all of its public names. *help*: every command's `--help`. Each runs in its own process.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numllama as nl

SHAPE = dict(vocab_size=32000, dim=288, n_layers=6, n_heads=6, ffn_dim=768, max_seq_len=256, tie_embeddings=True)
PROMPT, NEW = "word " * 3, 200
COMMANDS = (
    "train", "plan", "prepare", "finetune", "generate", "chat", "serve", "eval", "inspect", "convert", "bench", "doctor",
    "exercises", "trace",
)  # fmt: skip
FIRST_TOKEN_MS, STREAMING, HELP_MS, IMPORT_MS = 200, 0.9, 300, 250  # the promised limits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=("serve", "start"), help="the server, or the start of the command line")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        decode(args.child)
        return
    figures = {}
    if args.only != "start":
        with tempfile.TemporaryDirectory() as folder:
            figures |= serving(make_model(Path(folder) / "model"), args.rounds)
    if args.only != "serve":
        figures |= starting(args.rounds)
    print("| figure | measured | promised |\n|---|---|---|")
    for name, (value, unit, promise) in figures.items():
        print(f"| {name} | {value:.3g} {unit} | {promise} |")
    if args.json:
        args.json.write_text(json.dumps({name: value for name, (value, *_) in figures.items()}, indent=1) + "\n")


def make_model(folder: Path) -> Path:
    """Random weights, and a tokenizer with a different word for every id."""
    model = nl.Transformer(nl.ModelConfig(**SHAPE))
    alphabet = "abcdefghijklmnopqrst"
    words = [a + b + c + d for a in alphabet for b in alphabet for c in alphabet for d in alphabet]
    vocab = {i: bytes([i]) for i in range(256)} | {256 + i: (" " + word).encode() for i, word in enumerate(words[: 32000 - 256])}
    model.save(folder, nl.Tokenizer(vocab, []))
    return folder


# ------------------------------------------------------------------------------------------------ the server


def serving(folder: Path, rounds: int) -> dict[str, tuple]:
    """The server and plain decoding, each in its own process, in turns."""
    port = free_port()
    server = start("-m", "numllama.cli", "serve", folder, "--port", port)
    plain = start(__file__, "--child", folder, stdin=subprocess.PIPE)
    try:
        assert "http://" in server.stdout.readline()
        assert plain.stdout.readline() == "ready\n"
        stream(port), ask(plain)
        firsts, served, decoded = [], [], []
        for _ in range(rounds):
            first, rate = stream(port)
            firsts.append(first)
            served.append(rate)
            decoded.append(ask(plain))
        with ThreadPoolExecutor(8) as pool:
            begin = time.perf_counter()
            list(pool.map(lambda _: stream(port), range(8)))
            together = 8 * NEW / (time.perf_counter() - begin)
    finally:
        for child in (server, plain):
            child.terminate()
            child.wait()
    ratio = statistics.median(a / b for a, b in zip(served, decoded, strict=True))
    return {
        "first token": (1e3 * statistics.median(firsts), "ms", f"< {FIRST_TOKEN_MS} ms"),
        "streaming": (statistics.median(served), "tokens/s", ""),
        "plain decoding": (statistics.median(decoded), "tokens/s", ""),
        "streaming / plain decoding": (ratio, "", f">= {STREAMING}"),
        "eight at once": (together, "tokens/s", "all finish"),
    }


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(*arguments: object, **more: object) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    environment["PYTHONPATH"] = str(Path(nl.__file__).parents[1])
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **more)


def stream(port: int) -> tuple[float, float]:
    """Seconds until the first piece of text, and tokens/s after it."""
    body = json.dumps(dict(prompt=PROMPT, max_tokens=NEW, temperature=0, stream=True, stream_options={"include_usage": True}))
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    begin = time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    first, tokens = None, 0
    for line in connection.getresponse():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        first = first or time.perf_counter() - begin
        if event["usage"]:
            tokens = event["usage"]["completion_tokens"]
    assert tokens == NEW
    return first, (tokens - 1) / (time.perf_counter() - begin - first)


def decode(folder: Path) -> None:
    """A child process: prints the tokens/s of `numllama.stream` for every line on its input."""
    model, tokenizer = nl.load(folder), nl.Tokenizer.load(folder)
    print("ready", flush=True)
    for _ in sys.stdin:
        ids = nl.stream(model, tokenizer.encode(PROMPT), NEW, temperature=0)
        next(ids)
        begin = time.perf_counter()
        n = sum(1 for _ in ids)
        print(n / (time.perf_counter() - begin), flush=True)


def ask(child: subprocess.Popen) -> float:
    child.stdin.write("go\n")
    child.stdin.flush()
    return float(child.stdout.readline())


# ------------------------------------------------------------------------------------------------ the start


def starting(rounds: int) -> dict[str, tuple]:
    """Milliseconds of whole processes, and of the import inside one process."""
    every = "import numllama as nl; [getattr(nl, name) for name in nl.__all__]"
    code = f"import time; begin = time.perf_counter(); {every}; print(time.perf_counter() - begin)"
    imports = [float(output("-c", code)) for _ in range(rounds)]
    seconds = {command: [] for command in COMMANDS}
    for _ in range(rounds):
        for command in COMMANDS:
            begin = time.perf_counter()
            output("-m", "numllama.cli", command, "--help")
            seconds[command].append(time.perf_counter() - begin)
    slowest = max(COMMANDS, key=lambda command: statistics.median(seconds[command]))
    return {
        "import numllama, all of it": (1e3 * statistics.median(imports), "ms", f"< {IMPORT_MS} ms"),
        f"the slowest help ({slowest})": (1e3 * statistics.median(seconds[slowest]), "ms", f"< {HELP_MS} ms"),
    }


def output(*arguments: str) -> str:
    child = start(*arguments)
    text, _ = child.communicate()
    assert child.returncode == 0
    return text


if __name__ == "__main__":
    main()
