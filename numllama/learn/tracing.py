"""Trace a text through a model: every intermediate value, with its gradient.

A plain Llama is traced by :mod:`numllama.learn.plain_llama`, whose lines can be read; any other model by recording what its own
forward and backward compute, :mod:`numllama.learn.intermediates`. Both give the same values of a plain Llama.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from numllama.checks import check_ids, check_shape
from numllama.data.batches import random_batch
from numllama.data.synthetic import write_play
from numllama.errors import shown
from numllama.generation.text import encode_prompt
from numllama.learn import intermediates, plain_llama
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
        Of any family that :func:`numllama.load` opens. float64 is the most exact.
    tokenizer : Tokenizer or CharTokenizer, optional
        Without one, tokens are named by their ids.
    text : str or sequence of int
        At least two tokens, as ids or as a text; the tokenizer may put BOS in front of a text.

    Raises
    ------
    ValueError
        If the model has an adapter, or if the text is too short or too long.
    """
    intermediates.check_no_adapter(model)
    ids, names, text = tokens_of(model, tokenizer, text, most=model.config.max_seq_len + 1)
    tokens, targets = ids[None, :-1], ids[None, 1:]                    # (1, T)
    loss, grads, values = (_plain if _not_plain(model) is None else _recorded)(model, tokens, targets)
    parameters = {name: TracedParameter(value, grads[name]) for name, value in model.params.items()}
    return Trace(text, names, loss, values, parameters)


def tokens_of(
    model: Transformer, tokenizer: Tokenizer | CharTokenizer | None, text: str | Sequence[int], most: int
) -> tuple[np.ndarray, list[str], str]:
    """The ids of a text, 2 to `most` of them, their names, and the text itself."""
    if isinstance(text, str) and tokenizer is None:
        raise ValueError("a text needs a tokenizer: pass one, or pass the tokens as ids")
    ids = np.array(encode_prompt(model, tokenizer, text)[1] if isinstance(text, str) else text)
    check_shape("the tokens", ids, (None,))
    if not 2 <= len(ids) <= most:
        raise ValueError(f"the text has {len(ids)} token{'s' * (len(ids) != 1)}, but there must be 2 to {most}")
    check_ids("tokens", ids, model.config.vocab_size)
    names = [token_name(tokenizer, i) for i in ids.tolist()]
    return ids, names, text if isinstance(text, str) else " ".join(map(str, ids.tolist()))


def token_name(tokenizer: Tokenizer | CharTokenizer | None, token: int) -> str:
    """A token's text; its id, if it has none."""
    return (tokenizer and tokenizer.decode([token])) or str(token)


def _plain(model: Transformer, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, Mapping, list[Traced]]:
    """Loss, gradients of the parameters, and the values of a plain Llama."""
    run = plain_llama.loss_and_grads(model.params, model.config, tokens, targets)
    a, d = run.outer.values, run.d_outer
    values = [Traced("embedding", a.embedding, d.embedding, _axes("embedding", 3))]
    for i, (block, d_block) in enumerate(zip(run.blocks, run.d_blocks, strict=True)):
        values += _traced_block(f"layer {i}: ", block.values, d_block)
    values += [Traced(name, getattr(a, name), getattr(d, name), _axes(name, 3)) for name in ("norm", "logits", "loss")]
    return run.loss, run.grads, values


def _recorded(model: Transformer, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, Mapping, list[Traced]]:
    """The same of any model."""
    run = intermediates.forward(model, tokens)
    loss, grads, d = run.loss_and_grads(targets)
    values = [Traced(name, a, d[name], _axes(name.rpartition(": ")[2], a.ndim)) for name, a in run.values.items()]
    return loss, grads, [*values, Traced("loss", np.array(loss), np.ones(()), "")]


def check_is_plain(model: Transformer) -> None:
    """Raise ValueError if :mod:`numllama.learn.plain_llama` does not compute this model."""
    if (name := _not_plain(model)) is not None:
        plain, value = PLAIN[name][0], getattr(model.config, name)
        raise ValueError(f"{name} is {shown(value)}, but only a plain Llama has golden vectors: {shown(plain)}")
    if model.adapter is not None:
        raise ValueError("the model has an adapter, but only a plain Llama has golden vectors: call merge_adapter() first")


def _not_plain(model: Transformer) -> str | None:
    """The first option that a plain Llama does not have."""
    return next((name for name, plain in PLAIN.items() if getattr(model.config, name) not in plain), None)


def _traced_block(at: str, a: SimpleNamespace, d: SimpleNamespace) -> list[Traced]:
    """The values of a block. Hidden keys are shown as zeros: their scores are minus infinity, and their attention is constant."""
    visible = ~np.isneginf(a.scores)
    shown_values = vars(a) | {"scores": np.where(visible, a.scores, 0)}
    shown_gradients = vars(d) | {"attention": np.where(visible, d.attention, 0)}
    return [Traced(at + name, value, shown_gradients[name], _axes(name, value.ndim)) for name, value in shown_values.items()]


def _axes(name: str, ndim: int) -> str:
    special = dict.fromkeys(("scores", "capped_scores", "attention"), "head, query, key")
    special |= {"loss": "", "logits": "token, id", "router": "token, expert", "expert_weights": "token, choice"}
    heads = "key head" if name.startswith("k_") else "head"
    return special.get(name, f"{heads}, token, component" if ndim == 4 else "token, component")
