"""How long does the whole default run take?  Times 2000 steps on tinyshakespeare with evaluations, here and in PyTorch.

    python benchmarks/whole_run.py --data tinyshakespeare.txt
    python benchmarks/whole_run.py --data tinyshakespeare.txt --rounds 3 --peers numllama-onednn numllama-bf16   # three seeds

All contestants have the same model, initial weights, batches, learning rates, clipping, AdamW and evaluations. Each is a child
process with a clean environment on the same two cores, one after another. PyTorch is eager, as installed and, where that
matters, with MKL unlocked (see train_step.py). numllama runs in NumPy only, with oneDNN, and in bfloat16. Each round has its own
seed, for the weights and the batches. The time is measured from the first step to the last evaluation.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from train_step import UNLOCKED, clean_environment, machine, unlock_library

PEERS = {  # the kind of a contestant, and its settings
    "numllama": ("numllama", {"NUMLLAMA_ONEDNN": "off"}),
    "numllama-onednn": ("numllama", {}),
    "numllama-bf16": ("numllama-bf16", {}),
    "torch-eager": ("torch", {}),
    "torch-eager+unlocked": ("torch", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="tinyshakespeare as a text file")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
        dtype = "bfloat16" if args.child == "numllama-bf16" else "float32"
        trainer = trainer_of(args.data, args.steps, args.cores, args.seed, dtype)
        print(json.dumps(torch_run(trainer, args.cores) if args.child == "torch" else numllama_run(trainer)))
        return
    results = {"machine": machine(args.cores), "steps": args.steps, "runs": {}}
    with tempfile.TemporaryDirectory() as folder:
        unlock = unlock_library(Path(folder))
        preload = {"LD_PRELOAD": str(unlock)}
        contestants = {name: PEERS[name] for name in args.peers if unlock or not name.endswith(UNLOCKED)}
        for seed in range(args.rounds):
            for name, (kind, settings) in contestants.items():
                command = [sys.executable, __file__, "--child", kind, "--data", str(args.data), "--seed", str(seed)]
                command += ["--steps", str(args.steps), "--cores", str(args.cores)]
                env = clean_environment() | settings | (preload if name.endswith(UNLOCKED) else {})
                answer = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
                results["runs"].setdefault(name, []).append(json.loads(answer.stdout))
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def table(results: dict) -> str:
    """As Markdown."""
    medians = {name: statistics.median(run["seconds"] for run in runs) for name, runs in results["runs"].items()}
    first = next(iter(medians))
    lines = [f"| contestant | seconds | {first}'s relative time | validation losses |", "|---|---|---|---|"]
    for name, runs in results["runs"].items():
        loss = ", ".join(f"{run['validation_loss']:.4f}" for run in runs)
        lines.append(f"| {name} | {medians[name]:.1f} | {medians[first] / medians[name]:.2f} x | {loss} |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ inside a child


def trainer_of(path: Path, steps: int, cores: int, seed: int, compute_dtype: str):
    """The default run of examples/train_shakespeare.py, without checkpoints."""
    from dataclasses import replace

    import numllama as nl
    from numllama.training import recipe

    data = nl.load_dataset(path)
    config = nl.ModelConfig.preset("shakespeare-cpu", vocab_size=data.vocab_size)
    settings = replace(recipe("shakespeare-cpu"), steps=steps, workers=cores, seed=seed, compute_dtype=compute_dtype)
    return nl.Trainer(nl.Transformer(config, seed=seed, compute_dtype=compute_dtype), data, settings)


def numllama_run(trainer) -> dict:
    start = time.perf_counter()
    for _ in trainer:
        continue
    loss = trainer.evaluate()
    seconds = time.perf_counter() - start
    trainer.close()
    return {"seconds": seconds, "validation_loss": loss}


def torch_run(trainer, cores: int) -> dict:
    import numpy as np
    import torch
    from train_step_peers import torch_llama

    from numllama.data.batches import Position

    torch.set_num_threads(cores)
    c, source = trainer.config, trainer.batches  # the trainer provides the data, the settings and the initial weights
    steps = c.steps
    model, optimizer = torch_llama(trainer.model.config, c.lr, (c.beta1, c.beta2), c.weight_decay, seed=c.seed)

    def loss_of(tokens, targets):
        return model(*(torch.from_numpy(np.ascontiguousarray(part)) for part in (tokens, targets)))

    def mean_loss(batches) -> float:
        with torch.no_grad():
            parts = [(loss_of(batch.tokens, batch.targets).item(), batch.count) for batch in batches]
        return sum(loss * n for loss, n in parts) / sum(n for _, n in parts)

    start = time.perf_counter()
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = trainer.config.learning_rate(step)
        batch = source.batch(Position(step, (step - 1) * c.batch_size))
        loss = loss_of(batch.tokens, batch.targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), c.clip)
        optimizer.step()
        loss.item()
        if step % c.eval_every == 0 or step == steps:
            mean_loss(source.validation(c.eval_batches))
    loss = mean_loss(source.validation())
    return {"seconds": time.perf_counter() - start, "validation_loss": loss}


if __name__ == "__main__":
    main()
