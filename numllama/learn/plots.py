"""Plots of a model's attention, gradients and predictions (extra ``plot``). Each function returns a matplotlib figure, which a
notebook shows after `%matplotlib inline`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from numllama import ops
from numllama.backend import Array, to_numpy


def plot_attention(attention: np.ndarray, tokens: Sequence[str] = ()) -> Any:
    """Draw a map for each head: which keys each query attends to.

    Parameters
    ----------
    attention : array, shape (H, T, S)
        Probabilities, from :func:`numllama.learn.tracing.trace` or from the cache of :func:`numllama.ops.attention_forward`.
    tokens : sequence of str, optional
        The keys' tokens; the queries are the last T of them.
    """
    attention = to_numpy(attention)
    if attention.ndim != 3:
        raise ValueError(f"attention has shape {attention.shape}, but must be (heads, queries, keys)")
    H, T, S = attention.shape
    columns = min(H, 2 if H <= 4 else 4)
    rows = -(-H // columns)
    figure, axes = _figure(columns, width=3.2 * columns, height=3.3 * rows, rows=rows)
    for ax in axes[H:]:
        ax.remove()
    for h, ax in enumerate(axes[:H]):
        ax.imshow(attention[h], cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(f"head {h}", fontsize=9)
        if tokens:
            ax.set_xticks(range(S), tokens, fontsize=7)
            ax.set_yticks(range(T), tokens[S - T :], fontsize=7)
    axes[0].set_ylabel("query")
    axes[0].set_xlabel("key")
    return figure


def norms_by_layer(values: Mapping[str, Array]) -> dict[str, float]:
    """Norms of parameters, gradients or updates: one for each layer, and one for each array outside of the layers."""
    squares: dict[str, float] = {}
    for name, value in values.items():
        layer = f"layer {name.split('.')[1]}" if name.startswith("blocks.") else name
        squares[layer] = squares.get(layer, 0.0) + float((value * value).sum())
    return {layer: square**0.5 for layer, square in squares.items()}


def plot_norms(history: Sequence[Mapping[str, float]], title: str = "norm of the gradient") -> Any:
    """Draw a curve for each layer over training.

    Parameters
    ----------
    history : sequence of mapping
        The result of :func:`norms_by_layer` for each step, of gradients or of updates.
    """
    if not history:
        raise ValueError("history is empty, but there must be at least one step")
    figure, (ax,) = _figure(1, width=6.4, height=3.2)
    for name in history[0]:
        ax.semilogy([norms[name] for norms in history], label=name, linewidth=1)
    ax.set(xlabel="step", title=title)
    figure.legend(fontsize=7, frameon=False, loc="outside right upper")
    return figure


def plot_histograms(activations: Mapping[str, np.ndarray], bins: int = 60) -> Any:
    """Draw a histogram of each array, one below the other, on the same axis.

    Parameters
    ----------
    activations : mapping of str to array
    bins : int
    """
    if not activations:
        raise ValueError("activations is empty, but there must be at least one array")
    arrays = {name: to_numpy(value).ravel() for name, value in activations.items()}
    most = max(float(np.quantile(abs(array), 0.999)) for array in arrays.values()) or 1.0
    figure, axes = _figure(1, width=6.4, height=0.55 * len(arrays) + 0.8, rows=len(arrays))
    for ax, (name, array) in zip(axes, arrays.items(), strict=True):
        ax.hist(array, np.linspace(-most, most, bins), color="tab:blue")
        ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        ax.set_yticks([])
        ax.tick_params(labelbottom=ax is axes[-1])
    return figure


def plot_token_probabilities(logits: np.ndarray, tokens: Sequence[str], most: int = 12) -> Any:
    """Draw the probabilities of the likeliest next tokens.

    Parameters
    ----------
    logits : array, shape (V,)
    tokens : sequence of V str
    most : int
        Number of tokens to show.
    """
    logits = to_numpy(logits)
    if logits.shape != (len(tokens),):
        raise ValueError(f"logits has shape {logits.shape}, but there are {len(tokens)} tokens")
    p, _ = ops.softmax_forward(logits)
    order = np.argsort(-p, kind="stable")[:most]
    figure, (ax,) = _figure(1, width=6.4, height=0.22 * len(order) + 0.7)
    ax.barh(range(len(order)), p[order], color="tab:blue")
    ax.set_yticks(range(len(order)), [repr(tokens[i]) for i in order], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("probability")
    return figure


def _figure(columns: int, width: float, height: float, rows: int = 1) -> tuple:
    """A figure and its axes, created without pyplot, which would keep it in memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes
