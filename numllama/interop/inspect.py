"""Inspect a model: its shape, its parameters part by part, and their size."""

from math import prod
from pathlib import Path
from typing import Any

from numllama.generation.kv_cache import KVCache
from numllama.interop.gguf import quantisations
from numllama.interop.load import gguf_of
from numllama.model import Transformer

PARTS = {
    "embedding": ("embed", "pos_embed"),
    "attention": ("wq", "wk", "wv", "wo", "q_norm", "k_norm"),
    "feed-forward": ("w_gate", "w_up", "w_down", "router", "experts_gate", "experts_up", "experts_down"),
    "norms": ("attn_norm", "attn_post_norm", "ffn_norm", "ffn_post_norm", "norm"),
    "head": ("head",),
}


def inspect(model: Transformer) -> dict[str, Any]:
    """Describe a model in plain values.

    Returns
    -------
    dict
        ``config``; ``parameters`` of each part and their ``total``; ``dtype`` and ``bytes`` of the weights;
        ``kv_cache_bytes_per_token``; ``tensors``, name to shape; ``generation``, the checkpoint's generation config.
    """
    counts = dict.fromkeys(PARTS, 0)
    for name, shape in model.params.shapes.items():
        counts[part_of(name)] += prod(shape)
    one = KVCache(model, capacity=1)
    return {
        "config": model.config.to_dict(),
        "parameters": {**counts, "total": sum(counts.values())},
        "dtype": str(model.params.flat.dtype),
        "bytes": int(model.params.flat.nbytes),
        "kv_cache_bytes_per_token": int(one.keys.nbytes + one.values.nbytes),
        "tensors": {name: list(shape) for name, shape in model.params.shapes.items()},
        "generation": dict(model.generation_config),
    }


def stored_types(path: Path) -> dict[str, Any]:
    """``stored_as``: how many tensors of a GGUF file have each type; nothing for other files."""
    file = gguf_of(path)
    return {} if file is None else {"stored_as": quantisations(file)}


def part_of(name: str) -> str:
    """The part of a model that a parameter belongs to; a bias belongs to the part of its weight."""
    last = name.rpartition(".")[2].removesuffix("_bias")
    return next(part for part, names in PARTS.items() if last in names)


def as_text(found: dict[str, Any]) -> str:
    """Format the values of :func:`inspect` as text."""
    total = found["parameters"]["total"]
    settings = {name: value for name, value in found["config"].items() if value is not None}
    lines = [f"{name:24} {value}" for name, value in settings.items()]
    lines += ["", *(f"{part:24} {n:>15,}  {100 * n / total:5.1f} %" for part, n in found["parameters"].items() if n)]
    lines += ["", f"{'weights':24} {found['dtype']}, {size(found['bytes'])}"]
    if "stored_as" in found:
        stored = ", ".join(f"{n} in {name}" for name, n in found["stored_as"].items())
        lines += [f"{'tensors in the file':24} {stored}"]
    lines += [f"{'cache for each token':24} {size(found['kv_cache_bytes_per_token'])}"]
    if found["generation"]:
        lines += [f"{name:24} {value}" for name, value in found["generation"].items()]
    return "\n".join(lines)


def size(n: float) -> str:
    """Format a number of bytes."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:,} {unit}" if unit == "bytes" else f"{n:,.1f} {unit}"
        n /= 1000
    raise AssertionError
