"""The loss curve as a picture (extra ``plot``)."""

from pathlib import Path

import numpy as np


def plot_losses(run: Path, best_possible: float | None = None) -> Path | None:
    """Draw ``metrics.jsonl`` of a run as ``loss.png``.

    Parameters
    ----------
    run : path
    best_possible : float, optional
        A loss that no model can beat, drawn as a line.

    Returns
    -------
    path, or None if matplotlib is not installed
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    from numllama.training.run import read_metrics

    lines = read_metrics(run / "metrics.jsonl")
    steps = np.array([line["step"] for line in lines])
    losses = np.array([line["loss"] for line in lines])
    val = [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#b8c4d6", linewidth=0.6)
    window = max(1, len(steps) // 50)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(steps[window - 1 :], smooth, color="#1f4e8c", label=f"training, mean of {window} steps")
    if val:
        axes.plot(*zip(*val, strict=True), "o-", color="#c8502d", markersize=4, label="validation, estimate")
    if best_possible is not None:
        axes.axhline(best_possible, color="#555555", linestyle="--", linewidth=1, label="best possible predictor")
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=f"{run.name}")
    axes.set_ylim(bottom=min(0.95 * np.nanmin(losses), 0.95 * (best_possible or np.inf)), top=np.nanmax(losses) * 1.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    path = run / "loss.png"
    figure.savefig(path)
    return path
