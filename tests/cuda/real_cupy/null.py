"""What a driver says to every launch of every preset:   python tests/cuda/real_cupy/null.py --capability 90 [--json OUT]

Nothing is computed. Models are of their own width and head size, but of two layers; only those of `WHOLE` are built whole, and of
them it is recorded how many launches a token and how many nodes a step takes.
"""

import argparse
import asyncio
import json
import sys
import warnings
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path

import cuda_on_cpu
import numpy as np

import numllama as nl
from numllama.data.dataset import Dataset
from numllama.generation import generate
from numllama.model import transformer
from numllama.model.config import PRESETS
from numllama.model.lora import LoraConfig
from numllama.model.parameters import Parameters, count_parameters, parameter_shapes
from numllama.serve.engine import Engine
from numllama.serve.job import Request
from numllama.tokenizer import CharTokenizer
from numllama.training.config import TrainConfig, recipe

CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)
DTYPES = ("bfloat16", "float16", "float32")
WHOLE = ("shakespeare", "117m")
LONGEST = 1024


def without_numbers(config, seed, dtype, xp):
    """Parameters of whatever memory holds: nobody looks at them."""
    return Parameters(parameter_shapes(config), xp.zeros(count_parameters(config), dtype))


def dataset(config):
    tokens = np.arange(20 * LONGEST) % min(config.vocab_size, 60_000)
    return Dataset(tokens.astype("uint16"), tokens[: 4 * LONGEST].astype("uint16"), config.vocab_size)


def train(config, dtype, preset, **changes):
    """Three steps, the second of which is recorded, and an evaluation."""
    settings = recipe(preset)
    seq_len, one = min(config.max_seq_len, LONGEST), dict(workers=1, warmup_steps=1, eval_every=3, eval_batches=1)
    small = dict(batch_size=min(4, settings.batch_size)) if preset not in WHOLE else {}
    settings = TrainConfig(**{**settings.to_dict(), "steps": 3, "seq_len": seq_len, **one, **small, **changes})
    with closing(nl.Trainer(nl.Transformer(config, device="cuda", compute_dtype=dtype), dataset(config), settings)) as trainer:
        list(trainer)


def finetune(config, dtype, preset):
    model = nl.Transformer(config, device="cuda", compute_dtype=dtype)
    model.add_adapter(LoraConfig(rank=8))
    tokens = np.zeros((2, 64), int)
    model.loss_and_grads(tokens, tokens)


def decode(config, dtype, preset):
    """A batch of prompts of different lengths, drawn in each way that there is."""
    model = nl.Transformer(config, device="cuda", compute_dtype=dtype)
    for settings in (dict(temperature=0.0), dict(top_k=5), dict(top_p=0.9, min_p=0.1, repetition_penalty=1.1), dict(window=8)):
        generate(model, [[1, 2, 3], [4]], 6, seed=0, **settings)


def serve(config, dtype, preset):
    """A prompt, one that goes on with its keys and values, and one whose own tokens are given their probabilities."""
    model, prompt = nl.Transformer(config, device="cuda", compute_dtype=dtype), list(range(20))
    characters = map(chr, range(0x10000, 0x10000 + config.vocab_size))
    requests = [Request(prompt, 4), Request([*prompt, 1, 2], 4), Request(prompt, 2, echo=True, top_logprobs=2)]

    async def answers(engine):
        for request in requests:
            async for _ in (await engine.submit([request])).chunks():
                pass

    with closing(Engine(model, CharTokenizer(characters))) as engine:
        asyncio.run(answers(engine))


def evaluate(config, dtype, preset):
    model = nl.Transformer(config, device="cuda", compute_dtype=dtype)
    tokens = np.zeros((2, min(config.max_seq_len, LONGEST)), int)
    model.loss(tokens, tokens)
    model.forward(tokens[:, :7])


PHASES = {
    "training": train,
    "recompute": lambda *about: train(*about, recompute=True),
    "shards": lambda *about: train(*about, shards=2),
    "finetune": finetune,
    "generate": decode,
    "serve": serve,
    "eval": evaluate,
}


def run(cuda, preset, dtype, phase):
    """What was launched and refused, and the nodes of the step that was recorded."""
    config = PRESETS[preset]
    if preset not in WHOLE:
        config = replace(config, n_layers=2)
    cuda.reset()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", RuntimeWarning)  # of numbers that nobody has computed
        try:
            PHASES[phase](config, dtype, preset)
            errors = []
        except Exception as error:  # one of many cases
            errors = [f"{type(error).__name__}: {str(error)[:300]}"]
    counts = cuda.counts()
    nodes = cuda.graph() if counts["graphs"] else {}
    sys.modules["cupy"].get_default_memory_pool().free_all_blocks()
    return dict(
        preset=preset, dtype=dtype, phase=phase, problems=cuda.problems() + errors + [str(w.message) for w in said],
        launches=counts["launches"], graphs=counts["graphs"], graph_launches=counts["graph launches"], nodes=dict(nodes),
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, choices=CAPABILITIES, default=90)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cuda = cuda_on_cpu.install()
    cuda.capability, cuda.computes, cuda.memory = args.capability, False, 1 << 46
    transformer.initial_parameters = without_numbers
    transformer.check_ids = lambda *about: None  # of a token that nobody has drawn
    rows = [run(cuda, *case) for case in product(args.presets, args.dtypes, args.phases)]
    for row in rows:
        print(*list(row.values())[:3], *list(row.values())[4:7], sum(row["nodes"].values()))
        for line in row["problems"]:
            print("   ", line)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return any(row["problems"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
