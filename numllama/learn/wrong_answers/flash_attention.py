"""Wrong answers to flash attention: those of attention, and those that only tiles have."""

import math

import numpy as np

from numllama.blocks import TILE
from numllama.learn.wrong_answers.attention import DK, DQ, DV, OUT, Parts, attention_values, of_ds, total, turned
from numllama.learn.wrong_answers.table import Rows, Table


def tile(s):
    """The tile of each query or key."""
    return s // TILE


def again(a: Parts, scores=None, visible=None, lse=None):
    """p, computed again from other scores, with the forward's lse unless another is given."""
    scores = a.scores if scores is None else scores
    p = np.exp(scores - (a.lse if lse is None else lse))
    return np.where(a.visible if visible is None else visible, p, 0)


def with_delta(a: Parts, p):
    """ds with another p and the right delta, which comes from dout and out."""
    return p * (a.dp - a.delta)


def tiled_p(a: Parts):
    """p from the wrong key heads."""
    return again(a, a.q @ turned(a.tiled_keys) * a.scale)


def tile_sums(a: Parts):
    """Σ dp * p over the keys of each tile, at each of its keys."""
    products, sums = a.dp * a.p, np.empty_like(a.p)
    for s in range(tile(a.S - 1) + 1):
        sums[..., tile(a.s) == s] = total(products[..., tile(a.s) == s])
    return sums


def late(a: Parts):
    """Which keys a query sees if its bound is looked up by its place in the tile."""
    return a.s <= a.S - a.T + a.t % TILE


DS = [
    ("lacks delta, the sum in softmax's backward: ds = p * (dp - delta), with delta = Σ dout * out.", lambda a: a.p * a.dp),
    ("sums dp * p over the keys of one tile: it runs over all keys, and delta = Σ dout * out gives it before the first tile.",
     lambda a: a.p * (a.dp - tile_sums(a))),
    ("has delta = Σ dout, without out: it is Σ dout * out.", lambda a: a.p * (a.dp - total(a.dout))),
    ("has delta = Σ out, without dout: it is Σ dout * out.", lambda a: a.p * (a.dp - total(a.out))),
    ("has delta = Σ dout * dout: it is Σ dout * out.", lambda a: a.p * (a.dp - total(a.dout**2))),
    ("has delta = Σ dout * q: it is Σ dout * out.", lambda a: a.p * (a.dp - total(a.dout * a.q))),
    ("has a mean over D in delta: it is Σ dout * out.", lambda a: a.p * (a.dp - a.delta / a.D)),
    ("has delta times the scale: the scale comes after ds.", lambda a: a.p * (a.dp - a.delta * a.scale)),
    ("uses lse in place of delta = Σ dout * out.", lambda a: a.p * (a.dp - a.lse)),
    ("computes p without lse: p = exp(s - lse).", lambda a: with_delta(a, again(a, lse=0))),
    ("divides p by lse: lse is a logarithm, so p = exp(s - lse).",
     lambda a: with_delta(a, again(a, lse=0) / a.lse)),
    ("computes p from scores without the scale, with the forward's lse.", lambda a: with_delta(a, again(a, a.scores / a.scale))),
    ("computes p from scores that are scaled twice, with the forward's lse.",
     lambda a: with_delta(a, again(a, a.scores * a.scale))),
    ("computes p from scores without the mask, or with keys that are counted from 0 in each tile.",
     lambda a: with_delta(a, again(a, visible=True))),
    ("computes p from a mask whose queries are counted from 0 in each tile: take first[:, t] and last[:, t].",
     lambda a: with_delta(a, again(a, visible=late(a)))),
    ("computes p from a mask with the queries at the start of the keys: query t sees the keys up to S - T + t.",
     lambda a: with_delta(a, again(a, visible=a.s <= a.t))),
    ("computes p from a mask with one key too few: query t sees keys < last[t], and last is S - T + t + 1.",
     lambda a: with_delta(a, again(a, visible=a.s < a.S - a.T + a.t))),
    ("computes p from a mask with one key too many: query t sees keys < last[t].",
     lambda a: with_delta(a, again(a, visible=a.s <= a.S - a.T + a.t + 1))),
    ("normalises p in each tile: p = exp(s - lse), with the forward's lse.", lambda a: with_delta(a, by_tile(a))),
    ("computes p from tiled keys (0, 1, 0, 1), with the forward's lse: query head h uses key head h // R.",
     lambda a: with_delta(a, tiled_p(a))),
    ("has tiled values (0, 1, 0, 1) in dp, with the right delta: query head h uses key head h // R.",
     lambda a: a.p * (a.dout @ turned(a.tiled_values) - a.delta)),
    ("uses keys in place of values in dp, with the right delta: dp = dout · vᵀ.",
     lambda a: a.p * (a.dout @ turned(a.keys) - a.delta)),
]  # fmt: skip


def by_tile(a: Parts):
    """A softmax in each tile."""
    p = np.empty_like(a.p)
    for s in range(tile(a.S - 1) + 1):
        keys = tile(a.s) == s
        p[..., keys] = a.softmax(a.scores[..., keys], a.visible[:, keys])
    return p


def ds_rows(result: str) -> Rows:
    return [(f"{result} {what}", of_ds(result, ds)) for what, ds in DS]


def seen_whole(a: Parts):
    """Which keys are in a tile that all queries of the tile see whole."""
    bounds = a.S - a.T + TILE * tile(a.t)  # the last key that the first query of each tile sees
    return TILE * tile(a.s) + TILE - 1 <= bounds


QUERY_TILES = [
    ("counts only the last tile of queries: each tile adds its part, with +=.", lambda a: tile(a.t) == tile(a.T - 1)),
    ("counts only the first tile of queries: each tile adds its part.", lambda a: tile(a.t) == 0),
]
KEY_TILES = [
    ("counts only the last tile of keys: each tile adds its part, with +=.", lambda a: tile(a.s) == tile(a.S - 1)),
    ("counts only the first tile of keys: each tile adds its part.", lambda a: tile(a.s) == 0),
    ("skips tiles of keys that are seen in part: skip a tile only if no query of the tile sees any of its keys.",
     lambda a: seen_whole(a)),
]  # fmt: skip


def masked_rows(result: str, tiles, get) -> Rows:
    """Mistakes that lose tiles; `get` takes the factor, ds or p, from the parts."""
    def row(only):
        return lambda a: getattr(a, result)(get(a) * only(a))

    return [(f"{result} {what}", row(only)) for what, only in tiles]


def right_z(z, shrink, new):
    return z * shrink + new


def no_shrink(z, shrink, new):
    return z + new


def online(a: Parts, shrink_o=True, z_of=right_z):
    """The forward's sums o and z after the last tile; `z_of` computes z from the one before, its factor, and the tile's sum."""
    m, z, o = np.full(a.lse.shape, -math.inf), 0.0, 0.0
    for s in range(tile(a.S - 1) + 1):
        keys = tile(a.s) == s
        scores = np.where(a.visible[:, keys], a.scores[..., keys], -math.inf)
        top = np.maximum(m, scores.max(-1, keepdims=True))
        p, shrink = np.exp(scores - top), np.exp(m - top)
        z, o = z_of(z, shrink, total(p)), o * (shrink if shrink_o else 1) + p @ a.values[:, :, keys]
        m = top
    return o, z


def divided(sums):
    o, z = sums
    return o / np.where(z == 0, 1, z)


FLASH_OUT: Rows = [
    ("out does not rescale o when the maximum rises: o * exp(m - top).", lambda a: divided(online(a, shrink_o=False))),
    ("out does not rescale z when the maximum rises: z * exp(m - top).", lambda a: divided(online(a, z_of=no_shrink))),
    ("out rescales neither z nor o when the maximum rises: both are multiplied by exp(m - top).",
     lambda a: divided(online(a, shrink_o=False, z_of=no_shrink))),
    ("out has the sum of the last tile for z: z adds up over the tiles, as o does.",
     lambda a: divided(online(a, z_of=lambda z, shrink, new: new))),
    ("out rescales the new tile's sum with the old z: z * exp(m - top) first, then the sum is added.",
     lambda a: divided(online(a, z_of=lambda z, shrink, new: (z + new) * shrink))),
    ("out is not divided by z at the end.", lambda a: online(a)[0]),
    ("out is divided by z twice: o / z at the end is all.", lambda a: online(a)[0] / online(a)[1] ** 2),
    ("out counts only the last tile of keys: o and z add up over the tiles.",
     lambda a: a.softmax(a.scores, a.visible & (tile(a.s) == tile(a.S - 1))) @ a.values),
    ("out counts only the first tile of keys: o and z add up over the tiles.",
     lambda a: a.softmax(a.scores, a.visible & (tile(a.s) == 0)) @ a.values),
    ("out adds up softmaxes of the tiles: the sum z runs over all tiles.", lambda a: by_tile(a) @ a.values),
    ("out has o of the last tile alone, divided by the whole z: o adds up over the tiles.",
     lambda a: a.p * (tile(a.s) == tile(a.S - 1)) @ a.values),
    ("out has queries that are counted from 0 in each tile: take first[:, t] and last[:, t].",
     lambda a: a.softmax(a.scores, late(a)) @ a.values),
]  # fmt: skip
FLASH_DV: Rows = [
    *masked_rows("dv", QUERY_TILES, lambda a: a.p),
    ("dv computes p without lse: p = exp(s - lse).", lambda a: a.dv(again(a, lse=0))),
    ("dv computes p from scores without the scale, with the forward's lse.", lambda a: a.dv(again(a, a.scores / a.scale))),
    ("dv computes p from scores that are scaled twice, with the forward's lse.", lambda a: a.dv(again(a, a.scores * a.scale))),
    ("dv computes p from scores without the mask, or with keys that are counted from 0 in each tile.",
     lambda a: a.dv(again(a, visible=True))),
    ("dv computes p from a mask whose queries are counted from 0 in each tile: take first[:, t] and last[:, t].",
     lambda a: a.dv(again(a, visible=late(a)))),
    ("dv computes p from a mask with the queries at the start of the keys: query t sees the keys < last[t].",
     lambda a: a.dv(again(a, visible=a.s <= a.t))),
    ("dv computes p from a mask with one key too few, and the forward's lse: query t sees keys < last[t].",
     lambda a: a.dv(again(a, visible=a.s < a.S - a.T + a.t))),
    ("dv computes p from a mask with one key too many, and the forward's lse: query t sees keys < last[t].",
     lambda a: a.dv(again(a, visible=a.s <= a.S - a.T + a.t + 1))),
    ("dv normalises p in each tile: p = exp(s - lse), with the forward's lse.", lambda a: a.dv(by_tile(a))),
    ("dv computes p from tiled keys (0, 1, 0, 1), with the forward's lse: query head h uses key head h // R.",
     lambda a: a.dv(tiled_p(a))),
]  # fmt: skip


TILED_DQ: Rows = [
    ("dq has tiled keys and values (0, 1, 0, 1), with the right delta and lse: query head h uses key head h // R.",
     lambda a: tiled_p(a) * (a.dout @ turned(a.tiled_values) - a.delta) @ a.tiled_keys * a.scale),
]  # fmt: skip

# The first row of OUT, DQ and DK is a mistake that has a name of its own here: z is missing, delta is missing.
FLASH_ATTENTION = Table("flash_attention", attention_values, {
    "out": [*FLASH_OUT, *OUT[1:]],
    "dq": [*ds_rows("dq"), *TILED_DQ, *masked_rows("dq", KEY_TILES, lambda a: a.ds), *DQ[1:]],
    "dk": [*ds_rows("dk"), *masked_rows("dk", QUERY_TILES, lambda a: a.ds), *DK[1:]],
    "dv": [*FLASH_DV, *DV],
}, independent=False)  # fmt: skip
TABLES = [FLASH_ATTENTION]
