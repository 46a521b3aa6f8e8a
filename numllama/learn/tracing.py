"""Trace a text through a model: every intermediate value of :mod:`numllama.learn.plain_llama`, with its gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from numllama.checks import check_shape
from numllama.data.batches import random_batch
from numllama.data.synthetic import write_play
from numllama.errors import shown
from numllama.generation.text import encode_prompt
from numllama.learn import plain_llama
from numllama.model.config import ModelConfig
from numllama.model.parameters import copied_parameters
from numllama.model.transformer import Transformer
from numllama.optim import AdamW, clip_grad_norm
from numllama.tokenizer import CharTokenizer, Tokenizer

TEXT = "the king shall sing"
PLAIN = {  # the options of a plain Llama
    "norm": ("rmsnorm",), "norm_placement": ("before",), "positions": ("rope",), "ffn": ("swiglu",), "bias": (False,),
    **dict.fromkeys(("rope_layers", "rotary_dim", "sliding_window", "attn_scale", "attn_softcap", "logit_softcap"), (None,)),
    "embed_scale": (1.0,),
    "qk_norm": (None, "rms"),
}  # fmt: skip


@dataclass(frozen=True)
class Traced:
    """An intermediate value: its name, the gradient of the loss with respect to it, and its axes in words."""

    name: str
    value: np.ndarray
    gradient: np.ndarray
    axes: str


class TracedParameter(NamedTuple):
    """A parameter and the gradient of the loss with respect to it."""

    value: np.ndarray
    gradient: np.ndarray


@dataclass(frozen=True)
class Trace:
    """The traced text, its tokens and loss, all intermediate values in the order of forward, and the parameters by name."""

    text: str
    tokens: list[str]
    loss: float
    values: list[Traced]
    parameters: dict[str, TracedParameter]


def traced_model(seed: int = 0, steps: int = 0) -> tuple[Transformer, CharTokenizer]:
    """A model with two layers, four query heads and two key heads, trained for `steps` steps on a generated play."""
    play = write_play(200_000)
    tokenizer = CharTokenizer(play)
    config = ModelConfig(tokenizer.vocab_size, 32, 2, 4, n_kv_heads=2, max_seq_len=64, init_std=0.08)
    model = Transformer(config, seed=seed)
    tokens, optimizer = np.array(tokenizer.encode(play)), AdamW(model.params, lr=5e-3)
    for step in range(1, steps + 1):
        _, grads = model.loss_and_grads(*random_batch(tokens, 16, 32, seed, step))
        clip_grad_norm(grads, 1.0)
        optimizer.step(grads)
    return Transformer(config, dtype="float64", params=copied_parameters(config, model.params, np.dtype(np.float64))), tokenizer


def trace(model: Transformer, tokenizer: Tokenizer | CharTokenizer | None, text: str | Sequence[int] = TEXT) -> Trace:
    """Run a text forward and backward through a model; each token predicts the next.

    Parameters
    ----------
    model : Transformer
        A plain Llama: RMSNorm, RoPE, SwiGLU, no biases; queries and keys may have a norm, as in Qwen3. float64 is the most
        exact.
    tokenizer : Tokenizer or CharTokenizer, optional
        Without one, tokens are named by their ids.
    text : str or sequence of int
        At least two tokens, as ids or as a text; the tokenizer may put BOS in front of a text.

    Raises
    ------
    ValueError
        If the model is not a plain Llama or has an adapter, or if the text is too short or too long.
    """
    check_is_plain(model)
    c, params = model.config, model.params
    if isinstance(text, str) and tokenizer is None:
        raise ValueError("a text needs a tokenizer: pass one, or pass the tokens as ids")
    ids = np.array(encode_prompt(model, tokenizer, text)[1] if isinstance(text, str) else text)
    check_shape("the tokens", ids, (None,))
    if not 2 <= len(ids) <= c.max_seq_len + 1:
        raise ValueError(f"the text has {len(ids)} tokens, but there must be 2 to {c.max_seq_len + 1}")
    tokens, targets = ids[None, :-1], ids[None, 1:]                    # (1, T)
    run = plain_llama.loss_and_grads(params, c, tokens, targets)

    a, d = run.outer.values, run.d_outer
    values = [Traced("embedding", a.embedding, d.embedding, _axes("embedding"))]
    for i, (block, d_block) in enumerate(zip(run.blocks, run.d_blocks, strict=True)):
        values += _traced_block(f"layer {i}: ", block.values, d_block)
    values += [Traced(name, getattr(a, name), getattr(d, name), _axes(name)) for name in ("norm", "logits", "loss")]
    names = [(tokenizer and tokenizer.decode([i])) or str(i) for i in ids.tolist()]
    text = text if isinstance(text, str) else " ".join(map(str, ids.tolist()))
    return Trace(text, names, run.loss, values, {name: TracedParameter(params[name], run.grads[name]) for name in params})


def check_is_plain(model: Transformer) -> None:
    """Raise ValueError if :mod:`numllama.learn.plain_llama` does not compute this model."""
    for name, (plain, *others) in PLAIN.items():
        value = getattr(model.config, name)
        if value not in (plain, *others):
            raise ValueError(f"{name} is {shown(value)}, but only a plain Llama can be traced: {shown(plain)}")
    if model.adapter is not None:
        raise ValueError("the model has an adapter, but only a plain Llama can be traced: call merge_adapter() first")


def _traced_block(at: str, a: SimpleNamespace, d: SimpleNamespace) -> list[Traced]:
    """The values of a block. Hidden keys are shown as zeros: their scores are minus infinity, and their attention is constant."""
    visible = ~np.isneginf(a.scores)
    shown_values = vars(a) | {"scores": np.where(visible, a.scores, 0)}
    shown_gradients = vars(d) | {"attention": np.where(visible, d.attention, 0)}
    return [Traced(at + name, value, shown_gradients[name], _axes(name)) for name, value in shown_values.items()]


def _axes(name: str) -> str:
    by_head = dict.fromkeys(("q_norm", "q_rotated", "head_outputs"), "head, token, component")
    by_head |= dict.fromkeys(("k_norm", "k_rotated"), "key head, token, component")
    by_head |= {"scores": "head, query, key", "attention": "head, query, key"}
    return (by_head | {"loss": "", "logits": "token, id"}).get(name, "token, component")
