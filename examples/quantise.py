"""What does a model lose if its weights are stored in fewer bits?  Rounds its matrices in several ways, and measures the loss.

    python examples/quantise.py MODEL TEXT
    python examples/quantise.py MODEL TEXT --bits 8 6 4 3 --tokens 65536

MODEL is anything that `nl.load` opens and that has a tokenizer, TEXT a file. Weights are rounded and expanded again, so the
products are in float32: what is measured is the rounding, not speed.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

import numllama as nl
from numllama.interop.load import load_tokenizer
from numllama.model.parameters import copied_parameters

Rounding = Callable[[np.ndarray], np.ndarray]


def symmetric(w: np.ndarray, bits: int, block: int | None = None) -> np.ndarray:
    """Round to 2^bits - 1 values around zero, with a scale for each `block` numbers, for each row (None), or one for all (0)."""
    most = 2 ** (bits - 1) - 1                      # 127 for 8 bits, 7 for 4
    groups = w.reshape(1, -1) if block == 0 else w.reshape(-1, block or w.shape[-1])
    scale = abs(groups).max(-1, keepdims=True) / most
    scale[scale == 0] = 1
    return (np.rint(groups / scale) * scale).reshape(w.shape)


def q4_0(w: np.ndarray) -> np.ndarray:
    """llama.cpp's Q4_0: blocks of 32 numbers, for each a scale in float16 and 32 whole numbers of 4 bits."""
    blocks = w.reshape(-1, 32)
    at = abs(blocks).argmax(-1, keepdims=True)
    largest = np.take_along_axis(blocks, at, -1)    # with its sign
    scale = largest / -8
    q = np.floor(blocks / np.where(scale == 0, 1, scale) + 8.5).clip(0, 15)
    return (scale.astype(np.float16).astype(w.dtype) * (q - 8)).reshape(w.shape)


def bits_per_weight(bits: int, block: int, scale_bits: int = 16) -> float:
    """The bits of a weight and its part of the block's scale."""
    return bits + scale_bits / block


def with_rounded(model: nl.Transformer, rounding: Rounding) -> nl.Transformer:
    """The model with all matrices rounded; gains and biases stay."""
    tensors = {name: rounding(value) if value.ndim == 2 else value for name, value in model.params.items()}
    params = copied_parameters(model.config, tensors, model.params.flat.dtype)
    return nl.Transformer(model.config, dtype=params.flat.dtype.name, params=params)


def loss_of(model: nl.Transformer, tokens: np.ndarray, length: int = 64) -> float:
    """The mean loss on a text, cut into windows of `length` tokens."""
    length = min(length, model.config.max_seq_len)
    n = (len(tokens) - 1) // length * length
    return float(model.loss(tokens[:n].reshape(-1, length), tokens[1 : n + 1].reshape(-1, length)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 5, 4, 3])
    parser.add_argument("--blocks", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--tokens", type=int, default=16384)
    args = parser.parse_args()
    model, tokenizer = nl.load(args.model), load_tokenizer(Path(args.model))
    tokens = np.array(tokenizer.encode(args.text.read_text(encoding="utf-8"))[: args.tokens + 1])
    wide = {name: value.shape[-1] for name, value in model.params.items() if value.ndim == 2}
    blocks = [block for block in args.blocks if not any(columns % block for columns in wide.values())]
    print("| bits | " + " | ".join(["one scale", "a scale per row", *(f"blocks of {block}" for block in blocks)]) + " |")
    print("|---" * (3 + len(blocks)) + "|")
    print("| 32 |" + f" {np.exp(loss_of(model, tokens)):.3f} |" * (2 + len(blocks)))
    for bits in args.bits:
        models = (with_rounded(model, partial(symmetric, bits=bits, block=block)) for block in (0, None, *blocks))
        print(f"| {bits} | " + " | ".join(f"{np.exp(loss_of(each, tokens)):.3f}" for each in models) + " |", flush=True)


if __name__ == "__main__":
    main()
