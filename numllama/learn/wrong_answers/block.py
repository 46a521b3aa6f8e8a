"""Wrong answers to the backward of a whole block: rows compute with d, a and w, the gradients, values and weights by name."""

import math

import numpy as np

from numllama.learn.course.block import EPS, D, H, K, rows, split_heads, turn
from numllama.learn.wrong_answers.table import Rows


def weight(name: str, out: str, into: str, others: str = "") -> Rows:
    """Of the weight of a linear map from a[into] to a[out]; `others` are values that may be taken for its input."""
    def with_input(other):
        return lambda d, a: rows(d[out]).T @ rows(a[other])

    return [
        (f"{name} has the factors exchanged, so it is transposed: the gradient of the output comes first, as a column.",
         lambda d, a: rows(a[into]).T @ rows(d[out])),
        (f"{name} is transposed and then reshaped until it fits: a reshape does not exchange axes.",
         lambda d, a: (rows(a[into]).T @ rows(d[out])).reshape(rows(d[out]).shape[1], -1)),
        (f"{name} is not summed over the sequences: flatten both factors to rows first.",
         lambda d, a: d[out].swapaxes(-1, -2) @ a[into]),
        (f"{name} has the part of the first sequence alone: flatten both factors to rows first.",
         lambda d, a: d[out][0].T @ a[into][0]),
        (f"{name} has the part of the last sequence alone: flatten both factors to rows first.",
         lambda d, a: d[out][-1].T @ a[into][-1]),
        (f"{name} is a mean over the sequences: it is their sum.",
         lambda d, a: (d[out].swapaxes(-1, -2) @ a[into]).mean(0)),
        (f"{name} uses the output in place of its gradient.", lambda d, a: rows(a[out]).T @ rows(a[into])),
        *[(f"{name} uses a.{other} in place of a.{into}, the input of the map.", with_input(other)) for other in others.split()],
    ]  # fmt: skip


def maps_input(name: str, *maps: tuple[str, str]) -> Rows:
    """Of a value that linear maps were given: pairs of an output and a weight."""
    def through(some):
        return lambda d, w: sum(d[out] @ w[matrix] for out, matrix in some)

    why = f"the value went into {len(maps)} maps, and all add up"
    found = [(f"{name} has the part through w.{each[1]} alone: {why}.", through([each])) for each in maps]
    if len(maps) > 2:
        found += [(f"{name} lacks the part through w.{each[1]}: {why}.", through([other for other in maps if other != each]))
                  for each in maps]  # fmt: skip
    return [*found, (f"{name} is the mean of the parts: they add up.", lambda d, w: through(maps)(d, w) / len(maps))]


def factor(name: str, out: str, other: str, own: str) -> Rows:
    """Of one factor of an elementwise product."""
    return [
        (f"{name} lacks the other factor, a.{other}.", lambda d: d[out]),
        (f"{name} is multiplied by a.{own}, the factor itself: it is the other one, a.{other}.", lambda d, a: d[out] * a[own]),
        (f"{name} is the other factor alone: multiply it by d.{out}.", lambda a: a[other]),
    ]


def gain(name: str, out: str, normed: str, before: str) -> Rows:
    return [
        (f"{name} is not summed over the rows: one gain serves all of them.", lambda d, a: d[out] * a[normed]),
        (f"{name} is summed over the first axis alone: sum over the tokens too.", lambda d, a: (d[out] * a[normed]).sum(0)),
        (f"{name} is summed over the tokens alone: sum over the sequences too.", lambda d, a: (d[out] * a[normed]).sum(1)),
        (f"{name} is a mean over the rows: it is their sum.", lambda d, a: rows(d[out] * a[normed]).mean(0)),
        (f"{name} uses a.{before}, before the norm, in place of a.{normed}.", lambda d, a: rows(d[out] * a[before]).sum(0)),
        (f"{name} is the sum of d.{out}, the gradient of a bias: multiply by a.{normed} first.", lambda d: rows(d[out]).sum(0)),
    ]


def normed(name: str, out: str, weight: str) -> Rows:
    return [
        (f"{name} lacks w.{weight}.", lambda d: d[out]),
        (f"{name} is divided by w.{weight}: it is multiplied by it.", lambda d, w: d[out] / w[weight]),
    ]


def rstd(name: str, of: str, before: str, after: str) -> Rows:
    return [
        (f"{name} is not summed over the row: one number served all of it.", lambda d, a: d[of] * a[before]),
        (f"{name} has lost its last axis: keepdims=True keeps it with the length 1.", lambda d, a: (d[of] * a[before]).sum(-1)),
        (f"{name} is a mean over the row: it is a sum.", lambda d, a: (d[of] * a[before]).mean(-1, keepdims=True)),
        (f"{name} uses a.{after}, which has rstd in it already, in place of a.{before}.",
         lambda d, a: (d[of] * a[after]).sum(-1, keepdims=True)),
        (f"{name} is the sum of d.{of}: multiply it by a.{before} first.", lambda d: d[of].sum(-1, keepdims=True)),
    ]  # fmt: skip


def stream(name: str, after: str, n: str, factor: str, x: str) -> Rows:
    """Of the residual stream, which goes on, into the norm, and into its statistic."""
    def direct(d, a):
        return d[after] + d[n] * a[factor]

    def through(d, a):
        return d[factor] * a[factor] ** 3 * a[x]

    def width(a):
        return a[x].shape[-1]

    return [
        (f"{name} treats a.{factor} as a constant: it depends on every element of the row.", direct),
        (f"{name} lacks d.{after}: the stream itself goes on, past the norm.",
         lambda d, a: d[n] * a[factor] - through(d, a) / width(a)),
        (f"{name} is d.{after}: the two paths through the norm are missing.", lambda d: d[after]),
        (f"{name} lacks the path through a.{n}.", lambda d, a: d[after] - through(d, a) / width(a)),
        (f"{name} adds the path through a.{factor}: its derivative is negative.",
         lambda d, a: direct(d, a) + through(d, a) / width(a)),
        (f"{name} is not divided by C in the path through a.{factor}, which is of a mean.",
         lambda d, a: direct(d, a) - through(d, a)),
        (f"{name} has a factor 2 too many in the path through a.{factor}: the square's 2 and the root's 1/2 cancel.",
         lambda d, a: direct(d, a) - 2 * through(d, a) / width(a)),
        (f"{name} has half of the path through a.{factor}: the square's 2 and the root's 1/2 cancel.",
         lambda d, a: direct(d, a) - through(d, a) / width(a) / 2),
        (f"{name} has a.{factor} instead of its third power in the path through it.",
         lambda d, a: direct(d, a) - d[factor] * a[factor] * a[x] / width(a)),
        (f"{name} has a.{factor} squared instead of its third power in the path through it.",
         lambda d, a: direct(d, a) - d[factor] * a[factor] ** 2 * a[x] / width(a)),
        (f"{name} lacks a.{x} in the path through a.{factor}.",
         lambda d, a: direct(d, a) - d[factor] * a[factor] ** 3 / width(a)),
    ]  # fmt: skip


def group(name: str, out: str) -> Rows:
    """Of a key head that was copied to several query heads."""
    def split(d, *shape):
        B, _, T, _ = d[out].shape
        return d[out].reshape(B, *shape, T, D)

    return [
        (f"{name} adds heads that are H/K apart: np.repeat puts the copies of a head next to each other.",
         lambda d: split(d, H // K, K).sum(1)),
        (f"{name} is the mean of the copies: it is their sum.", lambda d: split(d, K, H // K).mean(2)),
        (f"{name} is that of the first copy alone: add those of all copies.", lambda d: split(d, K, H // K)[:, :, 0]),
        (f"{name} is that of the last copy alone: add those of all copies.", lambda d: split(d, K, H // K)[:, :, -1]),
        (f"{name} is that of the first heads: each key head has copies, and their gradients add up.", lambda d: d[out][:, :K]),
        (f"{name} is not summed over the copies.", lambda d: d[out]),
    ]


def turned_back(name: str, out: str) -> Rows:
    return [
        (f"{name} turns forward again: the transpose of a rotation turns back, so sin is negative.",
         lambda d, a: turn(d[out], a.cos, a.sin)),
        (f"{name} is not turned back.", lambda d: d[out]),
        (f"{name} turns back with cos negative: it is sin whose sign changes.", lambda d, a: turn(d[out], -a.cos, a.sin)),
        (f"{name} exchanges cos and sin.", lambda d, a: turn(d[out], a.sin, -a.cos)),
    ]


def merged(name: str, out: str) -> Rows:
    return [
        (f"{name} is reshaped without exchanging the axes of heads and tokens: use merge_heads.",
         lambda d: d[out].reshape(d[out].shape[0], d[out].shape[2], -1)),
        (f"{name} still has an axis of heads: merge_heads puts them next to each other.", lambda d: d[out]),
    ]  # fmt: skip


def scores(name: str, other: str, swap: bool) -> Rows:
    """Of a factor of q @ k.T / sqrt(D)."""
    def product(d, a):
        return (d.scores.swapaxes(-1, -2) if swap else d.scores) @ a[other]

    return [
        (f"{name} lacks the division by sqrt(D).", product),
        (f"{name} is divided by D: it is the root of D.", lambda d, a: product(d, a) / D),
        (f"{name} is multiplied by sqrt(D): it is divided by it.", lambda d, a: product(d, a) * math.sqrt(D)),
        (f"{name} has d.scores {'as it is: exchange' if swap else 'with its last two axes exchanged: leave'} "
         f"{'its last two axes' if swap else 'them'}.",
         lambda d, a: (d.scores if swap else d.scores.swapaxes(-1, -2)) @ a[other] / math.sqrt(D)),
        (f"{name} uses a.scores in place of d.scores.",
         lambda d, a: np.where(np.isfinite(a.scores), a.scores, 0).swapaxes(*((-1, -2) if swap else (-1, -1))) @ a[other]
         / math.sqrt(D)),
    ]  # fmt: skip


def total(x):
    return x.sum(-1, keepdims=True)


def one_map(name: str, out: str, weight: str) -> Rows:
    """Of a value that one linear map was given."""
    return [
        (f"{name} uses a.{out} in place of d.{out}, its gradient.", lambda a, w: a[out] @ w[weight]),
        (f"{name} is not summed over the outputs: each input went into all of them.",
         lambda d, w: d[out][..., None] * w[weight]),
        (f"{name} is the sum of d.{out} in every place: multiply by w.{weight} first.",
         lambda d, w: total(d[out]) * np.ones(w[weight].shape[1])),
        (f"{name} multiplies two sums: multiply d.{out} by w.{weight} first, then sum over the outputs.",
         lambda d, w: total(d[out]) * w[weight].sum(0)),
        (f"{name} has |w.{weight}| in place of w.{weight}.", lambda d, w: d[out] @ abs(w[weight])),
    ]  # fmt: skip


def branch(name: str, out: str, stream: str, own: str) -> Rows:
    """Of what is added to the stream."""
    return [
        (f"{name} is half of d.{out}: a sum hands its gradient on to both terms, whole.", lambda d: d[out] / 2),
        (f"{name} is multiplied by a.{stream}: that is of a product, and this is a sum.", lambda d, a: d[out] * a[stream]),
        (f"{name} is multiplied by a.{own}: the derivative of a sum by a term is 1.", lambda d, a: d[out] * a[own]),
        (f"{name} is a.{own}, the value itself.", lambda a: a[own]),
        (f"{name} is a.{out}, a value: take d.{out}.", lambda a: a[out]),
        (f"{name} has a.{own} added: the derivative of a sum by a term is 1.", lambda d, a: d[out] + a[own]),
    ]  # fmt: skip


def seen(a, hidden):
    """The scores where the keys of a triangle are hidden."""
    raw = a.q_rotated @ a.k_all.swapaxes(-1, -2) / math.sqrt(D)
    return np.where(hidden(raw.shape[-1]), -math.inf, raw)


def copied(name: str, own: str, **others: str) -> Rows:
    """Of heads that are repeated for the query heads; `others` are values that may be taken for them, and what they are."""
    def repeated(other):
        return lambda a: np.repeat(a[other], H // K, axis=1)

    return [
        (f"{name} is tiled, heads 0, 1, 0, 1: each key head serves query heads that are neighbours, 0, 0, 1, 1.",
         lambda a: np.tile(a[own], (1, H // K, 1, 1))),
        (f"{name} has the first head in all places.", lambda a: np.repeat(a[own][:, :1], H, axis=1)),
        *[(f"{name} repeats {what}.", repeated(other)) for other, what in others.items()],
    ]  # fmt: skip


def normed_by(name: str, x: str) -> Rows:
    """Of 1 / rms."""
    return [
        (f"{name} has eps outside the root: it is 1 / sqrt(mean + eps).",
         lambda a: 1 / (np.sqrt((a[x] * a[x]).mean(-1, keepdims=True)) + EPS)),
        (f"{name} lacks eps.", lambda a: 1 / np.sqrt((a[x] * a[x]).mean(-1, keepdims=True))),
        (f"{name} has the sum of the squares in place of their mean.", lambda a: 1 / np.sqrt(total(a[x] * a[x]) + EPS)),
        (f"{name} is rms itself: divide by it.", lambda a: 1 / a[name]),
        (f"{name} has one mean for all rows: each row has its own.", lambda a: 1 / np.sqrt((a[x] * a[x]).mean() + EPS)),
    ]  # fmt: skip


VALUES: dict[str, Rows] = {  # of the forward
    "attn_rstd": normed_by("attn_rstd", "x"),
    "k_all": copied("k_all", "k_rotated", k_heads="the keys before they are turned", v_heads="the values in place of the keys"),
    "v_all": copied("v_all", "v_heads", k_heads="the keys in place of the values",
                    k_rotated="the turned keys in place of the values"),
    "scores": [
        ("scores let query t see key t + 1, the token that it is to predict.",
         lambda a: seen(a, lambda T: ~np.tri(T, k=1, dtype=bool))),
        ("scores hide key t from query t: a token sees itself.", lambda a: seen(a, lambda T: ~np.tri(T, k=-1, dtype=bool))),
        ("scores let every query see all keys: the mask is missing.", lambda a: seen(a, lambda T: False)),
        ("scores hide the keys 0..t-1 and show the rest: the mask is transposed.",
         lambda a: seen(a, lambda T: ~np.tri(T, dtype=bool).T)),
        ("scores hide the keys 0..t, and show the others.", lambda a: seen(a, lambda T: np.tri(T, dtype=bool))),
        ("scores lack the division by sqrt(D).", lambda a: a.scores * math.sqrt(D)),
        ("scores are divided by D: it is the root of D.", lambda a: a.scores / math.sqrt(D)),
    ],
    "ffn_rstd": normed_by("ffn_rstd", "after_attention"),
}
GRADIENTS: dict[str, Rows] = {
    "d_ffn_out": branch("d_ffn_out", "after_ffn", "after_attention", "ffn_out"),
    "d_swiglu": one_map("d_swiglu", "ffn_out", "w_down"),
    "d_attn_out": branch("d_attn_out", "after_attention", "x", "attn_out"),
    "d_merged": one_map("d_merged", "attn_out", "wo"),
    "d_w_down": weight("d_w_down", "ffn_out", "swiglu", "silu up"),
    "d_up": factor("d_up", "swiglu", "silu", "up"),
    "d_silu": factor("d_silu", "swiglu", "up", "silu"),
    "d_gate": [
        ("d_gate lacks its second term: sigma depends on the gate too.", lambda d, a: d.silu * a.sigma),
        ("d_gate lacks its first term: the gate is a factor of silu itself.",
         lambda d, a: d.silu * a.gate * a.sigma * (1 - a.sigma)),
        ("d_gate is the gradient of a sigmoid: silu is gate * sigma.", lambda d, a: d.silu * a.sigma * (1 - a.sigma)),
        ("d_gate has 1 - sigma without sigma in the second term.", lambda d, a: d.silu * (a.sigma + a.gate * (1 - a.sigma))),
        ("d_gate lacks the gate in the second term.", lambda d, a: d.silu * (a.sigma + a.sigma * (1 - a.sigma))),
        ("d_gate subtracts the second term: both add up.", lambda d, a: d.silu * a.sigma * (1 - a.gate * (1 - a.sigma))),
        ("d_gate has silu in place of sigma in the second term.",
         lambda d, a: d.silu * (a.sigma + a.gate * a.silu * (1 - a.silu))),
        ("d_gate has d.swiglu in place of d.silu.", lambda d, a: d.swiglu * (a.sigma + a.gate * a.sigma * (1 - a.sigma))),
        ("d_gate is the derivative of silu alone: multiply it by d.silu.", lambda a: a.sigma + a.gate * a.sigma * (1 - a.sigma)),
    ],
    "d_w_up": weight("d_w_up", "up", "ffn_norm", "ffn_n after_attention"),
    "d_w_gate": weight("d_w_gate", "gate", "ffn_norm", "ffn_n after_attention"),
    "d_ffn_norm": maps_input("d_ffn_norm", ("up", "w_up"), ("gate", "w_gate")),
    "d_ffn_gain": gain("d_ffn_gain", "ffn_norm", "ffn_n", "after_attention"),
    "d_ffn_n": normed("d_ffn_n", "ffn_norm", "ffn_gain"),
    "d_ffn_rstd": rstd("d_ffn_rstd", "ffn_n", "after_attention", "ffn_n"),
    "d_after_attention": stream("d_after_attention", "after_ffn", "ffn_n", "ffn_rstd", "after_attention"),
    "d_wo": weight("d_wo", "attn_out", "merged"),
    "d_head_outputs": [
        ("d_head_outputs is reshaped without exchanging the axes of tokens and heads: use split_heads.",
         lambda d: d.merged.reshape(d.merged.shape[0], H, -1, D)),
        ("d_head_outputs still has its heads in one axis: split_heads takes them apart.", lambda d: d.merged),
        ("d_head_outputs has the axes of tokens and heads in the other order.", lambda d: split_heads(d.merged).swapaxes(1, 2)),
    ],
    "d_attention": [
        ("d_attention has a.attention in place of a.v_all.", lambda d, a: a.attention * total(d.head_outputs)),
        ("d_attention has its factors exchanged, so queries and keys have changed places.",
         lambda d, a: a.v_all @ d.head_outputs.swapaxes(-1, -2)),
        ("d_attention uses the outputs of the heads in place of their gradient.",
         lambda a: a.head_outputs @ a.v_all.swapaxes(-1, -2)),
        ("d_attention is multiplied by a.attention: that belongs to the softmax, d.scores.",
         lambda d, a: a.attention * (d.head_outputs @ a.v_all.swapaxes(-1, -2))),
    ],
    "d_v_all": [
        ("d_v_all has a.attention as it is: exchange its last two axes, for each value adds up over the queries.",
         lambda d, a: a.attention @ d.head_outputs),
        ("d_v_all uses a.scores in place of a.attention.",
         lambda d, a: np.where(np.isfinite(a.scores), a.scores, 0).swapaxes(-1, -2) @ d.head_outputs),
        ("d_v_all uses d.attention in place of a.attention.", lambda d: d.attention.swapaxes(-1, -2) @ d.head_outputs),
    ],
    "d_scores": [
        ("d_scores lacks the sum over the row: all probabilities fall when one rises.", lambda d, a: a.attention * d.attention),
        ("d_scores uses p * (1 - p), the diagonal of the Jacobian alone.",
         lambda d, a: d.attention * a.attention * (1 - a.attention)),
        ("d_scores lacks the factor a.attention in front.", lambda d, a: d.attention - total(d.attention * a.attention)),
        ("d_scores lacks a.attention inside of the sum.", lambda d, a: a.attention * (d.attention - total(d.attention))),
        ("d_scores adds the sum over the row: it is subtracted.",
         lambda d, a: a.attention * (d.attention + total(d.attention * a.attention))),
        ("d_scores has the mean in place of the sum over the row.",
         lambda d, a: a.attention * (d.attention - (d.attention * a.attention).mean(-1, keepdims=True))),
        ("d_scores sums over the queries: the softmax is over the keys, the last axis.",
         lambda d, a: a.attention * (d.attention - (d.attention * a.attention).sum(-2, keepdims=True))),
        ("d_scores is divided by sqrt(D): that belongs to the gradients of queries and keys.",
         lambda d, a: a.attention * (d.attention - total(d.attention * a.attention)) / math.sqrt(D)),
        ("d_scores is d.attention itself: the softmax's Jacobian is missing.", lambda d: d.attention),
    ],
    "d_q_rotated": scores("d_q_rotated", "k_all", swap=False),
    "d_k_all": scores("d_k_all", "q_rotated", swap=True),
    "d_k_rotated": group("d_k_rotated", "k_all"),
    "d_v_heads": group("d_v_heads", "v_all"),
    "d_q_heads": turned_back("d_q_heads", "q_rotated"),
    "d_k_heads": turned_back("d_k_heads", "k_rotated"),
    "d_q": merged("d_q", "q_heads"),
    "d_k": merged("d_k", "k_heads"),
    "d_v": merged("d_v", "v_heads"),
    "d_wq": weight("d_wq", "q", "attn_norm", "attn_n x"),
    "d_wk": weight("d_wk", "k", "attn_norm", "attn_n x"),
    "d_wv": weight("d_wv", "v", "attn_norm", "attn_n x"),
    "d_attn_norm": maps_input("d_attn_norm", ("q", "wq"), ("k", "wk"), ("v", "wv")),
    "d_attn_gain": gain("d_attn_gain", "attn_norm", "attn_n", "x"),
    "d_attn_n": normed("d_attn_n", "attn_norm", "attn_gain"),
    "d_attn_rstd": rstd("d_attn_rstd", "attn_n", "x", "attn_n"),
    "d_x": stream("d_x", "after_attention", "attn_n", "attn_rstd", "x"),
}  # fmt: skip
ROWS = VALUES | GRADIENTS
