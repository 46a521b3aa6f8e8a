"""The loss curve as a picture (extra ``plot``)."""

from pathlib import Path

import numpy as np


def plot_losses(lines: list[dict], path: Path, title: str = "", best_possible: float | None = None) -> Path:
    """Draw the losses of a run.

    Parameters
    ----------
    lines : list of dict
        The log of a run, at least one line: each with ``step`` and a finite ``loss``, some with ``val_loss``.
    path : path
        The picture to write.
    title : str
    best_possible : float, optional
        A loss that no model can beat, drawn as a line.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = np.array([line["step"] for line in lines])
    losses = np.array([line["loss"] for line in lines])
    val = [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#b8c4d6", linewidth=0.6)
    window = max(1, len(steps) // 50)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(steps[window // 2 :][: len(smooth)], smooth, color="#1f4e8c", label=f"training, mean of {window} steps")
    if val:
        axes.plot(*zip(*val, strict=True), "o-", color="#c8502d", markersize=4, label="validation, estimate")
    if best_possible is not None:
        axes.axhline(best_possible, color="#555555", linestyle="--", linewidth=1, label="best possible predictor")
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.set_ylim(bottom=min(0.95 * losses.min(), 0.95 * (best_possible or np.inf)), top=losses.max() * 1.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path)
    return path
