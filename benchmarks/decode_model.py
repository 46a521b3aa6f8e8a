"""The contestants of `benchmarks/decode.py --model PATH`: a model on disk, here, in transformers and in llama.cpp.

Decoding: NEW tokens, greedy, after a prompt of PROMPT. All have the same weights: transformers reads the folder that is written
here, llama.cpp (the wheels of `xllamacpp`) the GGUF files; Q8_0 and int8 round those weights. Times include the prompt, but
llama.cpp's is its own (`predicted_ms`), which leaves out prompt and server.
"""

import json
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

PROMPT, NEW = 16, 64
IDS = list(range(100, 100 + PROMPT))
OURS = {"float32": {}, "bfloat16": dict(dtype="bfloat16"), "int8": dict(store_as="int8")}
NAMES = [
    *(f"numllama {name}" for name in OURS), "transformers float32", "transformers bfloat16",
    "llama.cpp float32", "llama.cpp bfloat16", "llama.cpp q8_0",
]  # fmt: skip


def tasks(kind: str, path: Path, cores: int) -> dict[str, Callable]:
    """What a contestant does."""
    program, how = kind.split(" ")
    return {"decode": PROGRAMS[program](how, path, cores)}


def numllama(how: str, path: Path, cores: int) -> Callable:
    import numllama as nl

    model = nl.load(path, **OURS[how])
    return lambda: nl.generate(model, IDS, NEW, temperature=0) and None


def transformers(how: str, path: Path, cores: int) -> Callable:
    import torch
    from transformers import AutoModelForCausalLM, utils

    import numllama as nl

    utils.logging.disable_progress_bar()
    torch.set_num_threads(cores)
    with tempfile.TemporaryDirectory() as folder:
        nl.load(path).save(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, how))
    model.generation_config.eos_token_id = None
    prompt = torch.tensor([IDS])

    def decode() -> None:
        with torch.inference_mode():
            model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False, pad_token_id=0)

    return decode


def llamacpp(how: str, path: Path, cores: int) -> Callable:
    import xllamacpp

    import numllama as nl
    from numllama.interop import save
    from numllama.interop.convert import load_own_tokenizer

    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name) / "model.gguf"
    save(nl.load(path), file, load_own_tokenizer(path, None), how)  # its server does not start without a tokenizer
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(file), 256, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = cores
    server = xllamacpp.Server(params)

    def decode() -> float:
        assert folder  # the file stays while it is mapped
        values = {"prompt": IDS, "n_predict": NEW, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.listening_address}/completion", json.dumps(values).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            timings = json.load(answer)["timings"]
        assert timings["predicted_n"] == NEW
        return timings["predicted_ms"] / 1000

    return decode


PROGRAMS = {"numllama": numllama, "transformers": transformers, "llama.cpp": llamacpp}


def report(seconds: dict[str, dict[str, float]]) -> str:
    """The figures as Markdown."""
    ours = seconds["numllama float32"]["decode"]
    lines = ["| | tokens/s | ms each | numllama float32's time |", "|---|---|---|---|"]
    for name, values in seconds.items():
        s = values["decode"]
        lines.append(f"| {name} | {NEW / s:,.1f} | {1000 * s / NEW:.1f} | {s / ours:.2f} x |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(__doc__)  # what runs it
