"""A small Llama, written out: every intermediate has a name, and so has its gradient.

What `model.block` does for any configuration is done here for a plain Llama, op by op, in the order in which it happens: forward
downwards, backward upwards. The loss and the parameters' gradients are those of `Transformer.loss_and_grads`; a test says so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from numllama import ops
from numllama.checks import check_shape
from numllama.data.batches import random_batch
from numllama.data.synthetic import write_play
from numllama.errors import shown
from numllama.generation.text import encode_prompt
from numllama.model import ModelConfig, Transformer
from numllama.model.block import merge_heads, split_heads
from numllama.model.parameters import copied_parameters
from numllama.ops.attention import fold_groups
from numllama.optim import AdamW, clip_grad_norm
from numllama.tokenizer import CharTokenizer, Tokenizer

TEXT = "the king shall sing"
PLAIN = {"norm": "rmsnorm", "positions": "rope", "ffn": "swiglu", "bias": False, "qk_norm": None}  # what a Llama has


@dataclass(frozen=True)
class Traced:
    """An intermediate: its name, value, the loss's gradient with respect to it, and its axes in words."""

    name: str
    value: np.ndarray
    gradient: np.ndarray
    axes: str


@dataclass(frozen=True)
class Trace:
    """All intermediates in the order in which they were made, the gradients of the parameters, and what it was a trace of."""

    text: str
    tokens: list[str]
    loss: float
    values: list[Traced]
    parameters: dict[str, tuple[np.ndarray, np.ndarray]]


class Recorder:
    """Values and gradients by name; caches of the ops by the name of what they made."""

    def __init__(self) -> None:
        self.values: dict[str, np.ndarray] = {}
        self.gradients: dict[str, np.ndarray] = {}
        self.caches: dict[str, tuple] = {}

    def keep(self, name: str, made: tuple) -> np.ndarray:
        """Remember what a forward returned under a name; its output."""
        self.values[name], self.caches[name] = made
        return made[0]


def traced_model(seed: int = 0, steps: int = 0) -> tuple[Transformer, CharTokenizer]:
    """Two layers, four query heads on two key heads; trained for so many steps on a play that is written on the spot."""
    play = write_play(200_000)
    tokenizer = CharTokenizer(play)
    shape = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=64)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, init_std=0.08, **shape)
    model = Transformer(config, seed)
    tokens, optimizer = np.array(tokenizer.encode(play)), AdamW(model.params, lr=5e-3)
    for step in range(1, steps + 1):
        _, grads = model.loss_and_grads(*random_batch(tokens, 16, 32, seed, step))
        clip_grad_norm(grads, 1.0)
        optimizer.step(grads)
    return Transformer(config, dtype="float64", params=copied_parameters(config, model.params, np.float64)), tokenizer


def trace(model: Transformer, tokenizer: Tokenizer | CharTokenizer | None, text: str | Sequence[int] = TEXT) -> Trace:
    """A text through the model and back; each token is to predict the next.

    Parameters
    ----------
    model : Transformer
        A plain Llama: RMSNorm, RoPE, SwiGLU, no biases, no norms of queries and keys. In float64 it is the most exact.
    tokenizer : Tokenizer or CharTokenizer, optional
        Without one, tokens are named by their ids.
    text : str or sequence of int
        At least two tokens: as a text, in front of which comes what the tokenizer puts there (BOS), or by their ids.

    Raises
    ------
    ValueError
        If the model is another one than a plain Llama, or has an adapter, or if the text is too short or too long for it.
    """
    c, w, r = model.config, model.params, Recorder()
    for name, plain in PLAIN.items():
        if getattr(c, name) != plain:
            raise ValueError(f"{name} is {shown(getattr(c, name))}, but only a plain Llama can be traced, with {shown(plain)}")
    if model.adapter is not None:
        raise ValueError("the model has an adapter, which a plain Llama lacks: merge_adapter() makes it part of the weights")
    if tokenizer is None and isinstance(text, str):
        raise ValueError("a text needs a tokenizer: give one, or the tokens by their ids")
    ids = np.array(encode_prompt(model, tokenizer, text)[1] if isinstance(text, str) else text)
    check_shape("the tokens", ids, (None,))
    if not 2 <= len(ids) <= c.max_seq_len + 1:
        raise ValueError(f"the text has {len(ids)} tokens, but there must be 2 to {c.max_seq_len + 1}")
    tokens, targets = ids[None, :-1], ids[None, 1:]                    # (1, T)
    table = ops.rope_table(np.arange(tokens.shape[1]), c.head_dim, c.rope_theta, c.rope_scaling, model.dtype)
    head = "embed" if c.tie_embeddings else "head"

    x = r.keep("embedding", ops.embedding_forward(tokens, w["embed"]))                # (1, T, C)
    for i in range(c.n_layers):
        x = _layer_forward(r, x, w, i, c, table)
    n = r.keep("norm", ops.rmsnorm_forward(x, w["norm"], c.norm_eps))
    logits = r.keep("logits", ops.linear_forward(n, w[head]))                         # (1, T, V)
    loss = r.keep("loss", ops.cross_entropy_forward(logits, targets))

    d, g = r.gradients, {}
    d["loss"] = np.ones(())
    d["logits"] = ops.cross_entropy_backward(1.0, r.caches["loss"])
    d["norm"], g[head] = ops.linear_backward(d["logits"], r.caches["logits"])
    dx, g["norm"] = ops.rmsnorm_backward(d["norm"], r.caches["norm"])
    for i in reversed(range(c.n_layers)):
        dx = _layer_backward(r, dx, g, i, c)
    d["embedding"] = dx
    g["embed"] = g.get("embed", 0) + ops.embedding_backward(dx, r.caches["embedding"])  # of tied embeddings, both parts

    values = [Traced(name, value, d[name], _axes(name)) for name, value in r.values.items()]
    names = [(tokenizer and tokenizer.decode([i])) or str(i) for i in ids.tolist()]
    text = text if isinstance(text, str) else " ".join(map(str, ids.tolist()))
    return Trace(text, names, float(loss), values, {name: (w[name], g[name]) for name in w})


def _layer_forward(r: Recorder, x, w, i, c, table):
    def at(name):
        return f"layer {i}: {name}"

    def linear(name, x, weight):
        return r.keep(at(name), ops.linear_forward(x, w[f"blocks.{i}.{weight}"]))

    n = r.keep(at("attn_norm"), ops.rmsnorm_forward(x, w[f"blocks.{i}.attn_norm"], c.norm_eps))
    q, k, v = linear("q", n, "wq"), linear("k", n, "wk"), linear("v", n, "wv")
    q = r.keep(at("q turned"), ops.rope_forward(split_heads(q, c.n_heads), *table, c.rope_layout))
    k = r.keep(at("k turned"), ops.rope_forward(split_heads(k, c.n_kv_heads), *table, c.rope_layout))
    mixed, cache = ops.attention_forward(q, k, split_heads(v, c.n_kv_heads))
    scores = (fold_groups(q, c.n_kv_heads) @ k.swapaxes(-1, -2)).reshape(*q.shape[:3], -1) / math.sqrt(c.head_dim)
    r.values[at("scores")], r.values[at("attention")] = np.where(cache[3] == 0, 0, scores), cache[3]
    r.keep(at("mixed"), (mixed, cache))
    branch = linear("attention branch", merge_heads(mixed), "wo")
    (x, n), norm_cache = ops.add_rmsnorm_forward(x, branch, w[f"blocks.{i}.ffn_norm"], c.norm_eps)
    r.values[at("stream after attention")] = x
    r.keep(at("ffn_norm"), (n, norm_cache))
    gate, up = linear("gate", n, "w_gate"), linear("up", n, "w_up")
    a = r.keep(at("swiglu"), ops.swiglu_forward(gate, up))
    x = x + linear("ffn branch", a, "w_down")
    r.values[at("stream after ffn")] = x
    return x


def _layer_backward(r: Recorder, dx, g, i, c):
    d = {}

    def linear(name, dout, weight):
        d[name] = dout
        dx, g[f"blocks.{i}.{weight}"] = ops.linear_backward(dout, r.caches[f"layer {i}: {name}"])
        return dx

    def cache(name):
        return r.caches[f"layer {i}: {name}"]

    d["stream after ffn"] = dx                                         # and of the branch: an addition copies
    d["swiglu"] = linear("ffn branch", dx, "w_down")
    dgate, dup = ops.swiglu_backward(d["swiglu"], cache("swiglu"))
    d["ffn_norm"] = linear("gate", dgate, "w_gate") + linear("up", dup, "w_up")
    dx, _, g[f"blocks.{i}.ffn_norm"] = ops.add_rmsnorm_backward((dx, d["ffn_norm"]), cache("ffn_norm"))
    d["stream after attention"] = dx
    d["mixed"] = split_heads(linear("attention branch", dx, "wo"), c.n_heads)
    _, _, v, p, _ = cache("mixed")
    d["attention"] = (fold_groups(d["mixed"], c.n_kv_heads) @ v.swapaxes(-1, -2)).reshape(p.shape)
    d["attention"] = np.where(p == 0, 0, d["attention"])               # hidden keys are constants
    d["scores"] = ops.softmax_backward(d["attention"], (p,))
    d["q turned"], d["k turned"], dv = ops.attention_backward(d["mixed"], cache("mixed"))
    dq = merge_heads(ops.rope_backward(d["q turned"], cache("q turned")))
    dk = merge_heads(ops.rope_backward(d["k turned"], cache("k turned")))
    d["attn_norm"] = linear("q", dq, "wq") + linear("k", dk, "wk") + linear("v", merge_heads(dv), "wv")
    through_norm, g[f"blocks.{i}.attn_norm"] = ops.rmsnorm_backward(d["attn_norm"], cache("attn_norm"))
    r.gradients |= {f"layer {i}: {name}": gradient for name, gradient in d.items()}
    return dx + through_norm


def _axes(name: str) -> str:
    what = name.rpartition(": ")[2]
    by_head = {"q turned": "head, token, component", "k turned": "key head, token, component", "mixed": "head, token, component"}
    by_head |= {"scores": "head, query, key", "attention": "head, query, key", "loss": "", "logits": "token, id"}
    return by_head.get(what, "token, component")
