"""How the loss falls with parameters and tokens: train a family of small Llamas, and fit a scaling law.

    python examples/scaling_laws.py
    python examples/scaling_laws.py --steps 6000 --device cuda

Each model is trained once, with a constant learning rate after the warm-up, and evaluated several times on the way, so that one
run gives the loss for several token budgets. (A schedule that decays to zero would need one run per budget.)
Then  L(N, D) = E + A / N^alpha + B / D^beta  is fitted as in Hoffmann et al. 2022 (section 3.3, "approach 3").

OUT/scaling.json holds all results, OUT/scaling.png plots them.
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import numllama as nl
from numllama.backend import array_module
from numllama.data.shakespeare import shakespeare_dataset
from numllama.install import install_command
from numllama.storage.files import write_text

SIZES = [(16, 2), (32, 2), (48, 3), (80, 3), (112, 4), (144, 4)]       # (dim, layers): 6 thousand parameters to a million
SEQ_LEN, BATCH_SIZE, LEARNING_RATE = 64, 16, 2e-3
READ_AT = (1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)               # fractions of all steps


# ------------------------------------------------------------------------------------------------ the law


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta: irreducible loss, loss from too few parameters, loss from too few tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def __call__(self, n: Any, d: Any) -> Any:
        return self.E + self.A / n**self.alpha + self.B / d**self.beta

    def best_size(self, flops: float) -> float:
        """The N with the lowest loss at a cost of 6 N D = flops (Hoffmann et al. 2022, eq. 4)."""
        a, b = self.alpha, self.beta
        return (a * self.A / (b * self.B)) ** (1 / (a + b)) * (flops / 6) ** (b / (a + b))

    def __str__(self) -> str:
        return f"L(N, D) = {self.E:.3f} + {self.A:.4g} / N^{self.alpha:.3f} + {self.B:.4g} / D^{self.beta:.3f}"


def fit(n: np.ndarray, d: np.ndarray, losses: np.ndarray, delta: float = 1e-3) -> Law:
    """The law that minimises the sum of Huber losses of log L(n, d) - log losses; an outlier's pull is limited to `delta`.

    Levenberg-Marquardt from each point of a grid, because there are local minima.
    """
    n, d, losses = (np.asarray(values, dtype=float) for values in (n, d, losses))
    starts = []
    for share, alpha, beta in product((0.3, 0.6, 0.9), (0.2, 0.5, 1.0), (0.2, 0.5, 1.0)):
        floor = share * losses.min()
        rest = np.log((losses - floor).mean() / 2)
        starts.append((np.log(floor), rest + alpha * np.log(n).mean(), rest + beta * np.log(d).mean(), alpha, beta))
    _, (e, a, b, alpha, beta) = min((descend(np.array(s), n, d, np.log(losses), delta) for s in starts), key=lambda end: end[0])
    return Law(*map(float, (np.exp(e), np.exp(a), np.exp(b), alpha, beta)))


def descend(theta: np.ndarray, n: np.ndarray, d: np.ndarray, target: np.ndarray, delta: float) -> tuple[float, np.ndarray]:
    """Levenberg-Marquardt: Gauss-Newton steps, damped until the sum falls. Returns the lowest sum and its theta."""
    damping = 1e-3
    log_loss, slopes = log_law(theta, n, d)
    lowest = huber(log_loss - target, delta).sum()
    for _ in range(500):
        error = log_loss - target
        # huber'(error) = weight · error
        weight = np.minimum(1, delta / np.maximum(abs(error), 1e-300))
        gradient = slopes.T @ (weight * error)
        curvature = slopes.T @ (weight[:, None] * slopes)
        damped = curvature + damping * np.diag(np.diag(curvature) + 1e-9)
        step = np.linalg.solve(damped, -gradient)
        log_loss_there, slopes_there = log_law(theta + step, n, d)
        there = huber(log_loss_there - target, delta).sum()
        if not there < lowest:
            damping *= 4
            if damping > 1e12:
                break
            continue
        theta, log_loss, slopes = theta + step, log_loss_there, slopes_there
        damping = max(damping / 3, 1e-12)
        if lowest - there <= 1e-14 * lowest:
            break
        lowest = there
    return float(lowest), theta


def log_law(theta: np.ndarray, n: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log L at each (n, d), and its derivatives with respect to theta = (log E, log A, log B, alpha, beta).

    log L is a log-sum-exp, so its derivatives are softmax weights.
    """
    e, a, b, alpha, beta = theta
    terms = np.stack([np.full(len(n), e), a - alpha * np.log(n), b - beta * np.log(d)])
    top = terms.max(0)
    log_loss = top + np.log(np.exp(terms - top).sum(0))
    floor, size, data = np.exp(terms - log_loss)
    slopes = [floor, size, data, -size * np.log(n), -data * np.log(d)]
    return log_loss, np.stack(slopes, axis=1)


def huber(error: np.ndarray, delta: float) -> np.ndarray:
    """A parabola within delta, continued by lines of the same slope."""
    return np.where(abs(error) <= delta, error**2 / 2, delta * (abs(error) - delta / 2))


# ------------------------------------------------------------------------------------------------ the runs


def train(dim: int, layers: int, data: nl.Dataset, settings: nl.TrainConfig, device: str) -> dict[str, Any]:
    """Train one model; its loss on the whole validation split after each token budget."""
    config = nl.ModelConfig(
        vocab_size=data.vocab_size, dim=dim, n_layers=layers, n_heads=dim // 16, max_seq_len=SEQ_LEN, init_std=0.05
    )
    trainer = nl.Trainer(nl.Transformer(config, seed=settings.seed, device=device), data, settings)
    read_at, losses = {max(1, math.ceil(part * settings.steps)) for part in READ_AT}, []
    try:
        for report in trainer:
            if report.step in read_at:
                losses.append([report.step * BATCH_SIZE * SEQ_LEN, round(trainer.evaluate(), 4)])
    finally:
        trainer.close()
    parameters = nl.count_parameters(config) - 2 * config.vocab_size * dim       # without embedding and head
    return {"dim": dim, "layers": layers, "parameters": parameters, "losses": losses}


def points(runs: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters, tokens and loss of every evaluation."""
    n, d, losses = np.array([(run["parameters"], *reading) for run in runs for reading in run["losses"]]).T
    return n, d, losses


def table(runs: list[dict], law: Law) -> str:
    """A row per size, a column per budget: the loss, and the law's prediction in brackets."""
    budgets = [tokens for tokens, _ in runs[0]["losses"]]
    heads = [f"{tokens / 1e3:,.0f} k tokens" for tokens in budgets]
    lines = [f"| parameters | {' | '.join(heads)} |", "|--:" * (len(heads) + 1) + "|"]
    for run in runs:
        cells = [f"{loss:.3f} ({law(run['parameters'], tokens):.3f})" for tokens, loss in run["losses"]]
        lines.append(f"| {run['parameters']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(runs: list[dict], law: Law) -> str:
    """The law, its error, and the best model size that it predicts."""
    n, d, losses = points(runs)
    error = abs(law(n, d) / losses - 1)
    flops = 6 * n.max() * d.max()
    size, growth = law.best_size(flops), law.beta / (law.alpha + law.beta)
    return (
        f"{law}\nerror: median {100 * np.median(error):.2f} %, at most {100 * error.max():.2f} %\n"
        f"the best for the cost of the largest run, {flops:.2g} FLOP: "
        f"{size / 1e3:,.0f} k parameters, {flops / 6e3 / size:,.0f} k tokens\n"
        f"the best size grows as cost^{growth:.2f}"
    )


def draw(runs: list[dict], law: Law) -> Any:
    """A matplotlib figure of the loss against tokens and against parameters: measured points, and the law as lines."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator

    n, d, losses = points(runs)
    figure = Figure(figsize=(7.4, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, x, others in zip(figure.subplots(1, 2, sharey=True), (d, n), (n, d), strict=True):
        along = np.geomspace(x.min(), x.max(), 50)
        values = np.unique(others)
        for other, color in zip(values, colormaps["viridis"](np.linspace(0, 0.9, len(values))), strict=True):
            axes.loglog(x[others == other], losses[others == other], "o", color=color, markersize=4)
            fitted = law(other, along) if x is d else law(along, other)
            axes.loglog(along, fitted, color=color, linewidth=1, label=f"{other:,.0f}")
        axes.set(xlabel="tokens (D)" if x is d else "parameters without embeddings (N)")
        axes.legend(frameon=False, fontsize=7, title="parameters" if x is d else "tokens", title_fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if x is d else (1,)))
        axes.xaxis.set(major_formatter=EngFormatter(), minor_formatter="")
        axes.yaxis.set_major_formatter("{x:.1f}")
        axes.yaxis.set_minor_formatter("{x:.1f}")
    figure.axes[0].set_ylabel("validation loss")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a text file; default tinyshakespeare, cached or downloaded")
    parser.add_argument("--steps", type=int, default=1000, help=f"at least 16, of {BATCH_SIZE} x {SEQ_LEN} tokens; default 1000")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"), help="default runs/scaling")
    args = parser.parse_args()
    try:
        if args.steps < 16:
            raise ValueError(f"steps is {args.steps}, but must be at least 16, because losses are read at sixteenths of the run")
        settings = dict(
            steps=args.steps, batch_size=BATCH_SIZE, lr=LEARNING_RATE, min_lr=LEARNING_RATE, compute_dtype="float32",
            warmup_steps=min(50, args.steps // 16), eval_every=args.steps, eval_batches=1,
        )  # fmt: skip
        array_module(args.device)
        if (args.out / "scaling.json").exists():
            raise ValueError(f"{args.out} already holds results: choose another --out")
        args.out.mkdir(parents=True, exist_ok=True)
        data, line = (nl.load_dataset(args.data), f"DATA: {args.data}") if args.data else shakespeare_dataset()
        print(line, flush=True)
        runs = []
        for dim, layers in SIZES:
            runs.append(train(dim, layers, data, nl.TrainConfig(**settings), args.device))
            print(f"{runs[-1]['parameters']:,} parameters: {runs[-1]['losses'][-1][1]}", flush=True)
    except (nl.NumllamaError, ValueError, OSError) as error:
        print(f"scaling_laws.py: {error}", file=sys.stderr)
        sys.exit(2)
    law = fit(*points(runs))
    write_text(args.out / "scaling.json", json.dumps({"data": data.name, "settings": settings, "runs": runs}) + "\n")
    print(f"{table(runs, law)}\n{summary(runs, law)}")
    try:
        draw(runs, law).savefig(args.out / "scaling.png")
    except ImportError:
        print(f"no plot: it needs {install_command('plot')}")


if __name__ == "__main__":
    main()
