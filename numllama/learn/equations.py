"""The plain Llama as a table of equations: each value, the op that computes it, and the values that it is computed from.

:mod:`numllama.learn.plain_llama` is the same model as a program. In a table, any value can be computed alone, from values of
another implementation; an equation can be replaced by a mistaken one; and gradients need no table of their own:

    d x  =  Σ over the equations that use x of their op's backward with respect to x

Values have the names of golden vectors: ``values/layer.0.q`` with the gradient ``d_values/layer.0.q``, ``weights/blocks.0.wq``
with ``d_weights/blocks.0.wq``. Some more values stand between them: ``values/layer.0.k_repeated``, ``visible``.
"""

import functools
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from numllama import ops
from numllama.learn import plain_llama
from numllama.model.config import ModelConfig
from numllama.ops.rope_scaling import attention_factor, scaled


class Op(NamedTuple):
    """A function and its gradient.

    Attributes
    ----------
    name : str
    forward : callable
        The inputs by position.
    backward : callable, optional
        ``backward(dout, *inputs)``: a gradient for each parameter in `wrt`.
    wrt : tuple of str
        The differentiable parameters of `forward`.
    page : str
        The page of the book with the derivation.
    more : tuple of str
        Values that a mistaken backward takes after the inputs; they may be gradients, and come later than the op's output.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., tuple] | None
    wrt: tuple[str, ...]
    page: str
    more: tuple[str, ...] = ()


class Row(NamedTuple):
    """An equation: an op, and the name of a value for each parameter."""

    op: Op
    inputs: dict[str, str]


# ------------------------------------------------------------------------------------------------ ops


def _pair(name: str, forward: Callable, backward: Callable, wrt: str, page: str = "") -> Op:
    """A pair of numllama.ops, whose backward takes the forward's cache."""

    @functools.wraps(forward)
    def only_output(*inputs):
        return forward(*inputs)[0]

    def from_inputs(dout, *inputs):
        gradients = backward(dout, forward(*inputs)[1])
        return gradients if isinstance(gradients, tuple) else (gradients,)

    return Op(name, only_output, from_inputs, tuple(wrt.split()), page or f"ops/{name}")


def repeat(x, n_heads):
    """Each key/value head serves a group of query heads: (B, K, T, D) -> (B, H, T, D)."""
    return np.repeat(x, n_heads // x.shape[1], axis=1)


def scores(q, k, visible):
    """(B, H, T, D), (B, H, T, D) -> (B, H, T, T)."""
    return np.where(visible, q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]), -math.inf)


def scores_backward(dout, q, k, visible):
    return dout @ k / math.sqrt(q.shape[-1]), dout.swapaxes(-1, -2) @ q / math.sqrt(q.shape[-1])


def softmax(scores, visible):
    """Over the visible keys: scores of hidden ones may be anything."""
    return ops.softmax_forward(np.where(visible, scores, -math.inf))[0]


def softmax_backward(dout, scores, visible):
    return (ops.softmax_backward(dout, ops.softmax_forward(np.where(visible, scores, -math.inf))[1]),)


def weighted_sum(attention, v):
    return attention @ v                                                                         # (B, H, T, D)


def weighted_sum_backward(dout, attention, v):
    return dout @ v.swapaxes(-1, -2), attention.swapaxes(-1, -2) @ dout


def positions(tokens, segments):
    return plain_llama.positions_and_mask(tokens.shape[1], segments)[0]                          # (T,) or (B, T)


def visible(tokens, segments):
    return plain_llama.positions_and_mask(tokens.shape[1], segments)[1]                          # (T, T) or (B, 1, T, T)


def frequencies(positions, config):
    """By how much each pair turns per token."""
    plain = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)           # (D/2,)
    return scaled(plain, positions, config.rope_theta, config.rope_scaling)


def angles(positions, frequencies):
    return positions[..., None] * frequencies                                                    # (T, D/2) or (B, T, D/2)


def cos(angles, config):
    return attention_factor(config.rope_scaling) * _over_heads(np.cos(angles))


def sin(angles, config):
    return attention_factor(config.rope_scaling) * _over_heads(np.sin(angles))


def _over_heads(table):
    return table if table.ndim == 2 else table[:, None]                                          # (T, D/2) or (B, 1, T, D/2)


_SPLIT = (lambda x, D: plain_llama.split_heads(x, D)), (lambda dout, x, D: (plain_llama.merge_heads(dout),))
_MERGE = (lambda x, D: plain_llama.merge_heads(x)), (lambda dout, x, D: (plain_llama.split_heads(dout, D),))
OPS = {
    op.name: op
    for op in (
        Op("positions", positions, None, (), "ops/rope"),
        Op("visible", visible, None, (), "ops/attention"),
        Op("frequencies", frequencies, None, (), "ops/rope"),
        Op("angles", angles, None, (), "ops/rope"),
        Op("cos", cos, None, (), "ops/rope"),
        Op("sin", sin, None, (), "ops/rope"),
        _pair("embedding", ops.embedding_forward, ops.embedding_backward, "weight"),
        _pair("linear", ops.linear_forward, ops.linear_backward, "x weight"),
        _pair("rmsnorm", ops.rmsnorm_forward, ops.rmsnorm_backward, "x weight"),
        Op("split_heads", *_SPLIT, ("x",), "ops/attention"),
        _pair("rope", ops.rope_forward, ops.rope_backward, "x"),
        Op("repeat", repeat, lambda dout, x, n_heads: (plain_llama.sum_repeated(dout, x.shape[1]),), ("x",), "ops/attention"),
        Op("scores", scores, scores_backward, ("q", "k"), "ops/attention"),
        Op("softmax", softmax, softmax_backward, ("scores",), "ops/softmax"),
        Op("weighted_sum", weighted_sum, weighted_sum_backward, ("attention", "v"), "ops/attention"),
        Op("merge_heads", *_MERGE, ("x",), "ops/attention"),
        Op("add", lambda x, branch: x + branch, lambda dout, x, branch: (dout, dout), ("x", "branch"), "trace"),
        _pair("swiglu", ops.swiglu_forward, ops.swiglu_backward, "gate up"),
        _pair("cross_entropy", ops.cross_entropy_forward, ops.cross_entropy_backward, "logits"),
    )
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ the table

BEFORE = """
    positions       = positions(tokens, segments)
    visible         = visible(tokens, segments)
    frequencies     = frequencies(positions, config)
    angles          = angles(positions, frequencies)
    cos             = cos(angles, config)
    sin             = sin(angles, config)
    embedding       = embedding(tokens, embed)
"""
BLOCK = """
    attn_norm       = rmsnorm(x, w_attn_norm, eps)
    q               = linear(attn_norm, wq)
    k               = linear(attn_norm, wk)
    v               = linear(attn_norm, wv)
    q_heads         = split_heads(q, D)
    k_heads         = split_heads(k, D)
    v_heads         = split_heads(v, D)
    q_rotated       = rope(q_heads, cos, sin, layout)
    k_rotated       = rope(k_heads, cos, sin, layout)
    k_repeated      = repeat(k_rotated, n_heads)
    v_repeated      = repeat(v_heads, n_heads)
    scores          = scores(q_rotated, k_repeated, visible)
    attention       = softmax(scores, visible)
    head_outputs    = weighted_sum(attention, v_repeated)
    merged          = merge_heads(head_outputs, D)
    attn_out        = linear(merged, wo)
    after_attention = add(x, attn_out)
    ffn_norm        = rmsnorm(after_attention, w_ffn_norm, eps)
    gate            = linear(ffn_norm, w_gate)
    up              = linear(ffn_norm, w_up)
    swiglu          = swiglu(gate, up)
    ffn_out         = linear(swiglu, w_down)
    after_ffn       = add(after_attention, ffn_out)
"""
QK_NORM = """
    q_norm          = rmsnorm(q_heads, w_q_norm, eps)
    k_norm          = rmsnorm(k_heads, w_k_norm, eps)
    q_rotated       = rope(q_norm, cos, sin, layout)
    k_rotated       = rope(k_norm, cos, sin, layout)
"""
AFTER = """
    norm            = rmsnorm(last, w_norm, eps)
    logits          = linear(norm, head)
    loss            = cross_entropy(logits, targets)
"""
TABLES = {"rope/cos": "cos", "rope/sin": "sin"}
MATRICES = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")
GAINS = ("attn_norm", "q_norm", "k_norm", "ffn_norm")


def parsed(line: str) -> tuple[str, str, list[str]]:
    """An equation's name, op and inputs: "q = linear(attn_norm, wq)" gives ("q", "linear", ["attn_norm", "wq"])."""
    name, _, call = line.partition("=")
    op, _, inputs = call.strip().removesuffix(")").partition("(")
    return name.strip(), op, inputs.split(", ")


def gradient_of(node: str) -> str:
    """The name of a value's gradient."""
    return f"d_{node}"


SETTINGS = {"config", "eps", "D", "n_heads", "layout", "tokens", "targets", "segments"}
OUTSIDE = {"positions", "visible", "frequencies", "angles"}  # values before the blocks that golden vectors do not name


class Equations:
    """The table of a configuration.

    Attributes
    ----------
    rows : dict of str to Row
        By the name of the value, in the order of computation.
    order : list of str
        All values, then all gradients, in the order of computation.
    """

    def __init__(self, c: ModelConfig):
        self.config, self.rows = c, {}
        for line in BEFORE.split("\n")[1:-1]:
            self._append(line, None)
        qk_norm = {parsed(line)[0]: line for line in QK_NORM.split("\n")[1:-1]} if c.qk_norm else {}
        for i in range(c.n_layers):
            for line in BLOCK.split("\n")[1:-1]:
                name = parsed(line)[0]
                if name == "q_rotated":
                    for more in ("q_norm", "k_norm") if qk_norm else ():
                        self._append(qk_norm[more], i)
                self._append(qk_norm.get(name, line), i)
        for line in AFTER.split("\n")[1:-1]:
            self._append(line, None)
        self.users = users_of(self.rows)
        self.order = self._in_order()

    def _append(self, line: str, layer: int | None) -> None:
        name, op, inputs = parsed(line)
        parameters = inspect.signature(OPS[op].forward).parameters
        self.rows[self.node(name, layer)] = Row(
            OPS[op], {parameter: self.node(value, layer) for parameter, value in zip(parameters, inputs, strict=False)}
        )

    def node(self, name: str, layer: int | None) -> str:
        """The full name of a value, weight or setting: "q" of layer 0 is ``values/layer.0.q``, "d_q" its gradient.

        Mistakes also name ``block_input``, and ``q_unrotated`` and ``k_unrotated``, the inputs of RoPE with or without norms.
        """
        last = self.config.n_layers - 1
        if name.startswith("d_"):
            return gradient_of(self.node(name[2:], layer))
        if name in ("q_unrotated", "k_unrotated"):
            return self.node(name[:2] + ("norm" if self.config.qk_norm else "heads"), layer)
        if name in ("x", "block_input") and layer is not None:
            return f"values/layer.{layer - 1}.after_ffn" if layer else "values/embedding"
        if name == "last":
            return f"values/layer.{last}.after_ffn"
        if name in ("embedding", "norm", "logits", "loss"):
            return f"values/{name}"
        if name in ("cos", "sin"):
            return f"rope/{name}"
        if name in ("embed", "head"):
            return f"weights/{plain_llama.head_name(self.config) if name == 'head' else name}"
        if name == "w_norm":
            return "weights/norm"
        if name in MATRICES:
            return f"weights/blocks.{layer}.{name}"
        if name.removeprefix("w_") in GAINS and name.startswith("w_"):
            return f"weights/blocks.{layer}.{name[2:]}"
        return name if layer is None or name in SETTINGS | OUTSIDE else f"values/layer.{layer}.{name}"

    def _in_order(self) -> list[str]:
        forward, backward = list(self.rows), []
        for name in reversed(forward):
            if self.rows[name].op.backward:
                backward.append(gradient_of(name))
                weights = [value for value in self.rows[name].inputs.values() if value.startswith("weights/")]
                backward += [gradient_of(weight) for weight in weights if self.users[weight][0] == name]
        return forward + backward

    def settings(self) -> dict[str, Any]:
        """What rows need of the configuration, and the gradient of the loss with respect to itself."""
        c = self.config
        names = {"config": c, "eps": c.norm_eps, "D": c.head_dim, "n_heads": c.n_heads, "layout": c.rope_layout}
        return names | {"d_values/loss": np.ones(()), "segments": None}


def users_of(rows: Mapping[str, Row]) -> dict[str, list[str]]:
    """The rows that use each value."""
    users = defaultdict(list)
    for name, row in rows.items():
        for value in dict.fromkeys(row.inputs.values()):
            users[value].append(name)
    return users
