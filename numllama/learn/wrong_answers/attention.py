"""Wrong answers to attention. Most of them are mistakes of both forms; those of tiles are in `flash_attention`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from numllama.learn.wrong_answers.table import Rows, Table
from numllama.ops.softmax import softmax_forward


def total(x):
    return x.sum(-1, keepdims=True)


def turned(x):
    """The last two axes exchanged."""
    return x.swapaxes(-1, -2)


class Parts:
    """What attention computes on its way, with each key head repeated for the query heads of its group."""

    def __init__(self, dout: Any, q: Any, k: Any, v: Any) -> None:
        self.dout, self.q, self.k, self.v = dout, q, k, v
        (self.B, self.H, self.T, self.D), (self.K, self.S) = q.shape, k.shape[1:3]
        self.R, self.scale = self.H // self.K, 1 / math.sqrt(self.D)
        self.keys, self.values = (np.repeat(x, self.R, 1) for x in (k, v))           # (B, H, S, D)
        self.tiled_keys, self.tiled_values = (np.tile(x, (1, self.R, 1, 1)) for x in (k, v))
        self.t, self.s = np.arange(self.T)[:, None], np.arange(self.S)
        self.visible = self.s <= self.S - self.T + self.t                            # (T, S)
        self.scores = q @ turned(self.keys) * self.scale                             # (B, H, T, S)
        self.p = self.softmax(self.scores, self.visible)
        self.out = self.p @ self.values
        self.dp = dout @ turned(self.values)
        self.delta = total(self.dp * self.p)
        self.ds = self.p * (self.dp - self.delta)
        top = np.where(self.visible, self.scores, -math.inf).max(-1, keepdims=True)
        self.lse = top + np.log(total(np.where(self.visible, np.exp(self.scores - top), 0)))

    def softmax(self, scores: Any, visible: Any = True) -> Any:
        return softmax_forward(np.where(visible, scores, -math.inf))[0]

    def ds_of(self, p: Any) -> Any:
        """Softmax's backward with other probabilities."""
        return p * (self.dp - total(self.dp * p))

    def by_group(self, x: Any) -> Any:
        """(B, H, S, D) -> (B, K, R, S, D)."""
        return x.reshape(self.B, self.K, self.R, self.S, self.D)

    def dq(self, ds: Any) -> Any:
        return ds @ self.keys * self.scale

    def dk(self, ds: Any) -> Any:
        return self.by_group(turned(ds) @ self.q).sum(2) * self.scale

    def dv(self, p: Any) -> Any:
        return self.by_group(turned(p) @ self.dout).sum(2)


def attention_values(dout, q, k, v):
    a = Parts(dout, q, k, v)
    B, H, T, D, S, K, scale = a.B, a.H, a.T, a.D, a.S, a.K, a.scale
    return locals()


def of_ds(result: str, ds: Callable) -> Callable:
    """dq or dk, from the gradient of the scores that `ds` makes."""
    return lambda a: getattr(a, result)(ds(a))


def ds_rows(result: str) -> Rows:
    """Mistakes before dq and dk: in the gradient of the scores."""
    return [(f"{result} {what}", of_ds(result, ds)) for what, ds in DS]


DS: list[tuple[str, Callable]] = [
    ("lacks the sum in ds: softmax's backward is p * (dp - Σ dp * p).", lambda a: a.p * a.dp),
    ("keeps only the diagonal of softmax's Jacobian, p * (1 - p) * dp.", lambda a: a.p * (1 - a.p) * a.dp),
    ("adds the sum in ds instead of subtracting it.", lambda a: a.p * (a.dp + a.delta)),
    ("keeps only the second term of ds, -p * Σ dp * p.", lambda a: -a.p * a.delta),
    ("uses dp in place of ds: softmax's backward is missing.", lambda a: a.dp * a.visible),
    ("uses dp in place of ds, for hidden keys too: softmax's backward is missing.", lambda a: a.dp),
    ("lacks the outer p in ds = p * (dp - Σ dp * p).", lambda a: (a.dp - a.delta) * a.visible),
    ("lacks the outer p in ds = p * (dp - Σ dp * p), which also gives hidden keys a gradient.", lambda a: a.dp - a.delta),
    ("lacks the outer p before the sum in ds = p * (dp - Σ dp * p).", lambda a: a.p * a.dp - a.delta),
    ("lacks p before dp in ds = p * (dp - Σ dp * p).", lambda a: a.dp - a.p * a.delta),
    ("has the outer p twice in ds = p * (dp - Σ dp * p).", lambda a: a.p**2 * (a.dp - a.delta)),
    ("takes p out of the sum in ds: it is Σ dp * p, and not p * Σ dp.", lambda a: a.p * (a.dp - a.p * total(a.dp))),
    ("lacks p in the sum of ds: it is Σ dp * p.", lambda a: a.p * (a.dp - total(a.dp))),
    ("lacks p in the sum of ds, over the keys that are seen: it is Σ dp * p.", lambda a: a.p * (a.dp - total(a.dp * a.visible))),
    ("uses the mean over keys instead of the sum in ds.", lambda a: a.p * (a.dp - a.delta / a.S)),
    ("uses a sum over queries instead of keys in ds.", lambda a: a.p * (a.dp - (a.dp * a.p).sum(-2, keepdims=True))),
    ("has one sum for all queries in ds: each query has its own.",
     lambda a: a.p * (a.dp - (a.dp * a.p).sum((-2, -1), keepdims=True))),
    ("has one sum for all heads in ds: each head has its own.", lambda a: a.p * (a.dp - a.delta.sum(1, keepdims=True))),
    ("uses the softmax's output p in place of ds.", lambda a: a.p),
    ("uses keys in place of values in dp: dp = dout · vᵀ.",
     lambda a: a.p * (a.dout @ turned(a.keys) - total(a.dout @ turned(a.keys) * a.p))),
    ("has tiled values (0, 1, 0, 1) in dp: query head h uses key head h // R, so they are repeated (0, 0, 1, 1).",
     lambda a: a.p * (a.dout @ turned(a.tiled_values) - total(a.dout @ turned(a.tiled_values) * a.p))),
    ("uses out in place of dout in dp.", lambda a: a.p * (a.out @ turned(a.values) - total(a.out @ turned(a.values) * a.p))),
    ("recomputes p without the mask.", lambda a: a.ds_of(a.softmax(a.scores))),
    ("recomputes p with the queries at the start of the keys: query t sees the keys up to S - T + t.",
     lambda a: a.ds_of(a.softmax(a.scores, a.s <= a.t))),
    ("recomputes p with one key too few: query t sees key S - T + t itself.",
     lambda a: a.ds_of(a.softmax(a.scores, a.s < a.S - a.T + a.t))),
    ("recomputes p with one key too many: query t sees keys up to S - T + t.",
     lambda a: a.ds_of(a.softmax(a.scores, a.s <= a.S - a.T + a.t + 1))),
    ("recomputes p without the scale.", lambda a: a.ds_of(a.softmax(a.scores / a.scale, a.visible))),
    ("recomputes p with tiled keys: query head h uses key head h // R.",
     lambda a: a.ds_of(a.softmax(a.q @ turned(a.tiled_keys) * a.scale, a.visible))),
    ("uses the scores in place of p: softmax's backward takes probabilities.",
     lambda a: a.ds_of(np.where(a.visible, a.scores, 0))),
]  # fmt: skip


def scale_rows(result: str) -> Rows:
    """Mistakes with the scale."""
    return [
        (f"{result} lacks the scale: the scores are scaled, so their gradient is.", lambda a: getattr(a, result)(a.ds) / a.scale),
        (f"{result} has the scale twice: the scores have it once.", lambda a: getattr(a, result)(a.ds) * a.scale),
        (f"{result} is multiplied by √D instead of divided.", lambda a: getattr(a, result)(a.ds) / a.scale**2),
    ]  # fmt: skip


def group_rows(result: str, heads: Callable, also: str = "") -> Rows:
    """Mistakes in the sum over the query heads of a group; `heads` makes the gradients for all query heads, (B, H, S, D).

    `also` is another mistake that gives the mean's numbers.
    """
    return [
        (f"{result} has a gradient for each query head: sum over the R query heads of each key head.", lambda a: heads(a)),
        (f"{result} counts only the first query head of each group: sum over the group.",
         lambda a: a.by_group(heads(a))[:, :, 0]),
        (f"{result} counts only the last query head of each group: sum over the group.",
         lambda a: a.by_group(heads(a))[:, :, -1]),
        (f"{result} has the mean over the query heads of a group{also}: it is their sum.",
         lambda a: a.by_group(heads(a)).mean(2)),
        (f"{result} sums over every K-th query head, as if key heads were tiled (0, 1, 0, 1): they are repeated (0, 0, 1, 1).",
         lambda a: heads(a).reshape(a.B, a.R, a.K, a.S, a.D).sum(1)),
        (f"{result} sums over all query heads: each key head has its own group.",
         lambda a: np.broadcast_to(heads(a).sum(1, keepdims=True), a.k.shape)),
        (f"{result} takes the first K query heads, one for each key head: sum over the R query heads of each group.",
         lambda a: heads(a)[:, : a.K]),
        (f"{result} takes the last K query heads, one for each key head: sum over the R query heads of each group.",
         lambda a: heads(a)[:, -a.K :]),
    ]  # fmt: skip


DQ: Rows = [
    *ds_rows("dq"),
    *scale_rows("dq"),
    ("dq is divided by √(H·D), from the width of the model: the scale has √D, from that of a head.",
     lambda a: a.dq(a.ds) / math.sqrt(a.H)),
    ("dq uses v in place of k: dq = ds · k.", lambda a: a.ds @ a.values * a.scale),
    ("dq has tiled keys (0, 1, 0, 1): query head h uses key head h // R, so they are repeated (0, 0, 1, 1).",
     lambda a: a.ds @ a.tiled_keys * a.scale),
    ("dq has tiled keys and values (0, 1, 0, 1): query head h uses key head h // R, so they are repeated (0, 0, 1, 1).",
     lambda a: a.p * (a.dout @ turned(a.tiled_values) - total(a.dout @ turned(a.tiled_values) * a.p)) @ a.tiled_keys * a.scale),
    ("dq uses the first key head for all query heads.", lambda a: a.ds @ a.k[:, :1] * a.scale),
    ("dq adds dout: the queries have no path past the scores.", lambda a: a.dq(a.ds) + a.dout),
    ("dq is multiplied by q: the scores are linear in q, so q itself is not in dq.", lambda a: a.dq(a.ds) * a.q),
]  # fmt: skip
DK: Rows = [
    *ds_rows("dk"),
    *scale_rows("dk"),
    *group_rows("dk", lambda a: turned(a.ds) @ a.q * a.scale, also=", or is divided by √(H·D)"),
    ("dk is qᵀ · ds reshaped until it fits: it is dsᵀ · q.",
     lambda a: (turned(a.q.reshape(a.B, a.K, -1, a.D)) @ a.ds.reshape(a.B, a.K, -1, a.S)).reshape(a.k.shape) * a.scale),
    ("dk uses ds reshaped to (S, T) instead of transposed.",
     lambda a: a.by_group(a.ds.reshape(a.B, a.H, a.S, a.T) @ a.q).sum(2) * a.scale),
    ("dk uses dout in place of q: dk = dsᵀ · q.", lambda a: a.by_group(turned(a.ds) @ a.dout).sum(2) * a.scale),
    ("dk uses dq, the gradient of q, in place of q.", lambda a: a.by_group(turned(a.ds) @ a.dq(a.ds)).sum(2) * a.scale),
]  # fmt: skip
DV: Rows = [
    *group_rows("dv", lambda a: turned(a.p) @ a.dout),
    ("dv uses ds in place of p: dv = pᵀ · dout.", lambda a: a.dv(a.ds)),
    ("dv uses dp in place of p: dv = pᵀ · dout.", lambda a: a.dv(a.dp)),
    ("dv uses the scores in place of p: softmax is missing.", lambda a: a.dv(a.scores)),
    ("dv uses the scores of visible keys in place of p: softmax is missing.",
     lambda a: a.dv(np.where(a.visible, a.scores, 0))),
    ("dv has the scale: it belongs to the scores, so to dq and dk.", lambda a: a.dv(a.p) * a.scale),
    ("dv is divided by the scale: it belongs to the scores, so to dq and dk.", lambda a: a.dv(a.p) / a.scale),
    ("dv has p squared: dv = pᵀ · dout.", lambda a: a.dv(a.p**2)),
    ("dv uses out in place of dout, its gradient.", lambda a: a.by_group(turned(a.p) @ a.out).sum(2)),
    ("dv uses q in place of dout.", lambda a: a.by_group(turned(a.p) @ a.q).sum(2)),
    ("dv is doutᵀ · p reshaped until it fits: it is pᵀ · dout.",
     lambda a: (turned(a.dout.reshape(a.B, a.K, -1, a.D)) @ a.p.reshape(a.B, a.K, -1, a.S)).reshape(a.v.shape)),
    ("dv uses p reshaped to (S, T) instead of transposed.",
     lambda a: a.by_group(a.p.reshape(a.B, a.H, a.S, a.T) @ a.dout).sum(2)),
    ("dv recomputes p without the mask.", lambda a: a.dv(a.softmax(a.scores))),
    ("dv recomputes p with the queries at the start of the keys: query t sees the keys up to S - T + t.",
     lambda a: a.dv(a.softmax(a.scores, a.s <= a.t))),
    ("dv recomputes p with one key too few: query t sees key S - T + t itself.",
     lambda a: a.dv(a.softmax(a.scores, a.s < a.S - a.T + a.t))),
    ("dv recomputes p with one key too many: query t sees keys up to S - T + t.",
     lambda a: a.dv(a.softmax(a.scores, a.s <= a.S - a.T + a.t + 1))),
    ("dv recomputes p without the scale.", lambda a: a.dv(a.softmax(a.scores / a.scale, a.visible))),
    ("dv recomputes p with tiled keys: query head h uses key head h // R.",
     lambda a: a.dv(a.softmax(a.q @ turned(a.tiled_keys) * a.scale, a.visible))),
    ("dv uses exp(s - max) in place of p: divide by the sum.",
     lambda a: a.dv(a.p / a.p.max(-1, keepdims=True))),
    ("dv is multiplied by v: out is linear in v, so v is not in dv.", lambda a: a.dv(a.p) * a.v),
]  # fmt: skip
OUT: Rows = [
    ("out has exp(s - max) without the division by its sum.", lambda a: a.p / a.p.max(-1, keepdims=True) @ a.values),
    ("out lacks the scale of the scores.", lambda a: a.softmax(a.scores / a.scale, a.visible) @ a.values),
    ("out divides the scores by D instead of √D.", lambda a: a.softmax(a.scores * a.scale, a.visible) @ a.values),
    ("out multiplies the scores by √D instead of dividing.",
     lambda a: a.softmax(a.scores / a.scale**2, a.visible) @ a.values),
    ("out divides scores by √(H·D), from the width of the model: the scale has √D, from that of a head.",
     lambda a: a.softmax(a.scores / math.sqrt(a.H), a.visible) @ a.values),
    ("out is scaled after the softmax: scale the scores.",
     lambda a: a.softmax(a.scores / a.scale, a.visible) @ a.values * a.scale),
    ("out lacks the mask: query t sees the keys up to S - T + t.", lambda a: a.softmax(a.scores) @ a.values),
    ("out has the queries at the start of the keys: they stand at the end, and query t sees the keys up to S - T + t.",
     lambda a: a.softmax(a.scores, a.s <= a.t) @ a.values),
    ("out has one key too few: query t sees key S - T + t itself.",
     lambda a: a.softmax(a.scores, a.s < a.S - a.T + a.t) @ a.values),
    ("out has one key too many: query t sees keys up to S - T + t.",
     lambda a: a.softmax(a.scores, a.s <= a.S - a.T + a.t + 1) @ a.values),
    ("out has the mask the wrong way round: query t sees the keys up to S - T + t.",
     lambda a: a.softmax(a.scores, ~a.visible) @ a.values),
    ("out has the mask the wrong way round, with the own key: query t sees the keys up to S - T + t.",
     lambda a: a.softmax(a.scores, a.s >= a.S - a.T + a.t) @ a.values),
    ("out has hidden keys with the score 0: their score is -inf, for exp(0) is 1.",
     lambda a: a.softmax(np.where(a.visible, a.scores, 0)) @ a.values),
    ("out hides keys after the softmax: hide them before, so that each row of p sums to 1.",
     lambda a: a.softmax(a.scores) * a.visible @ a.values),
    ("out lacks the softmax.", lambda a: np.where(a.visible, a.scores, 0) @ a.values),
    ("out takes the softmax over the queries instead of the keys.",
     lambda a: turned(a.softmax(turned(np.where(a.visible, a.scores, -math.inf)))) @ a.values),
    ("out has tiled key heads (0, 1, 0, 1): query head h uses key head h // R, so they are repeated (0, 0, 1, 1).",
     lambda a: a.softmax(a.q @ turned(a.tiled_keys) * a.scale, a.visible) @ a.tiled_values),
    ("out has tiled values (0, 1, 0, 1): query head h uses key head h // R, so they are repeated (0, 0, 1, 1).",
     lambda a: a.p @ a.tiled_values),
    ("out has tiled keys (0, 1, 0, 1): query head h uses key head h // R, so they are repeated (0, 0, 1, 1).",
     lambda a: a.softmax(a.q @ turned(a.tiled_keys) * a.scale, a.visible) @ a.values),
    ("out uses the first key head for all query heads.",
     lambda a: a.softmax(a.q @ turned(a.k[:, :1]) * a.scale, a.visible) @ a.v[:, :1]),
    ("out sums keys instead of values.", lambda a: a.p @ a.keys),
    ("out exchanges k and v.", lambda a: a.softmax(a.q @ turned(a.values) * a.scale, a.visible) @ a.keys),
    ("out is the mean of the values that are seen: the scores have no part in it.",
     lambda a: a.visible / total(a.visible * 1.0) @ a.values),
    ("out mixes heads and queries: a reshape does not exchange axes.",
     lambda a: a.out.swapaxes(1, 2).reshape(a.out.shape)),
]  # fmt: skip

ATTENTION = Table("attention", attention_values, {"out": OUT, "dq": DQ, "dk": DK, "dv": DV}, independent=False)
TABLES = [ATTENTION]
