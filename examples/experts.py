"""Do all experts of a mixture get work?  Trains a small mixture with and without the load-balancing loss, and counts.

    python examples/experts.py
    python examples/experts.py --factors 0 0.01 0.1 1 --steps 1000

The same model learns the same batches of a generated play, with other factors of the loss. OUT/experts.png shows the share of the
tokens that each expert gets, step by step.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import numllama as nl
from numllama import ops
from numllama.data.batches import random_batch
from numllama.data.synthetic import write_play
from numllama.install import install_command
from numllama.tokenizer import CharTokenizer

EXPERTS, CHOSEN, LAYERS = 8, 2, 2
BATCH_SIZE, SEQ_LEN, LEARNING_RATE = 12, 32, 1e-2


@dataclass(frozen=True)
class Run:
    """A run's factor, its losses without the load-balancing loss, (steps,), and each expert's share, (steps, layers, experts)."""

    factor: float
    losses: np.ndarray
    shares: np.ndarray

    def busiest(self, last: int = 20) -> np.ndarray:
        """The largest share in each layer, (layers,), as a multiple of an equal one; a mean over the last steps."""
        return EXPERTS * self.shares[-last:].mean(0).max(-1)

    def idle(self, last: int = 20) -> np.ndarray:
        """How many experts of each layer, (layers,), get less than a quarter of an equal share."""
        return (EXPERTS * self.shares[-last:].mean(0) < 0.25).sum(-1)


def train(factor: float, steps: int = 150, seed: int = 0) -> Run:
    """Train a mixture with `factor` times the load-balancing loss."""
    play = write_play(50_000)
    tokenizer = CharTokenizer(play)
    tokens = np.array(tokenizer.encode(play))
    config = nl.ModelConfig(
        tokenizer.vocab_size, 32, LAYERS, 4, ffn_dim=32, max_seq_len=SEQ_LEN, init_std=0.08, ffn="moe", n_experts=EXPERTS,
        n_experts_per_token=CHOSEN, router_aux_loss=factor > 0, router_aux_loss_coef=factor,
    )  # fmt: skip
    model = nl.Transformer(config, seed=seed)
    optimizer, losses, shares = nl.AdamW(model.params, lr=LEARNING_RATE), [], []
    for step in range(1, steps + 1):
        with counting() as (seen, balance):
            loss, grads = model.loss_and_grads(*random_batch(tokens, BATCH_SIZE, SEQ_LEN, seed, step))
        nl.clip_grad_norm(grads, 1.0)
        optimizer.step(grads)
        losses.append(float(loss) - factor * sum(balance))
        shares.append(seen[:LAYERS])
    return Run(factor, np.array(losses), np.array(shares))


@contextmanager
def counting() -> Iterator[tuple[list[np.ndarray], list[float]]]:
    """Collect the shares of the experts in each mixture that is computed inside, and the load-balancing losses."""
    shares, losses, mixture, balance = [], [], ops.mixture_of_experts_forward, ops.load_balancing_forward

    def counted(*args: Any, **options: Any) -> Any:
        result = mixture(*args, **options)
        chosen = result[1].router.chosen                               # (N, k)
        shares.append(np.bincount(chosen.ravel(), minlength=EXPERTS) / chosen.size)
        return result

    def kept(*args: Any) -> Any:
        result = balance(*args)
        losses.append(float(result[0]))
        return result

    ops.mixture_of_experts_forward, ops.load_balancing_forward = counted, kept
    try:
        yield shares, losses
    finally:
        ops.mixture_of_experts_forward, ops.load_balancing_forward = mixture, balance


def table(runs: Sequence[Run]) -> str:
    """Loss, busiest expert and idle experts of each run, as Markdown."""
    lines = ["| factor | loss | busiest expert, times an equal share | experts with under a quarter of it |", "|---" * 4 + "|"]
    for run in runs:
        busiest, idle = (" and ".join(form.format(value) for value in values)
                         for form, values in (("{:.1f}", run.busiest()), ("{:.0f}", run.idle())))  # fmt: skip
        lines.append(f"| {run.factor:g} | {run.losses[-20:].mean():.2f} | {busiest} | {idle} of {EXPERTS} |")
    return "\n".join(lines)


def draw(runs: Sequence[Run]) -> Any:
    """The shares of the last layer's experts over the steps of each run, stacked."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(runs), figsize=(2.9 * len(runs), 2.8), sharey=True, squeeze=False)
    for ax, run in zip(axes[0], runs, strict=True):
        smooth = np.apply_along_axis(lambda y: np.convolve(y, np.ones(9) / 9, "valid"), 0, run.shares[:, -1])    # (steps - 8, E)
        colors = plt.get_cmap("viridis")(np.linspace(0, 1, EXPERTS))
        ax.stackplot(np.arange(len(smooth)) + 5, smooth.T, colors=colors, lw=0.3, ec="w")
        ax.set(title=f"factor {run.factor:g}", xlabel="step", xlim=(5, len(smooth) + 4), ylim=(0, 1))
        ax.grid(False)
    axes[0, 0].set_ylabel("share of each expert")
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factors", type=float, nargs="+", default=[0.0, 0.01, 0.1])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args()
    runs = [train(factor, args.steps) for factor in args.factors]
    print(table(runs))
    try:
        fig = draw(runs)
    except ImportError:
        sys.exit(f"the picture needs matplotlib: {install_command('plot')}")
    args.out.mkdir(parents=True, exist_ok=True)
    fig.savefig(args.out / "experts.png", dpi=150)


if __name__ == "__main__":
    main()
