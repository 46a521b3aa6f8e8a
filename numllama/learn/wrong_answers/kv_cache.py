"""Wrong answers to attention with a KV cache."""

from typing import Any

import numpy as np

from numllama.learn.wrong_answers.table import Rows


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def turn(x, cos, sin):
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def turned(x, at, cos, sin):
    """RoPE of tokens from a position on; beyond the table's end by its last row."""
    rows = np.minimum(np.arange(at, at + x.shape[2]), len(cos) - 1)
    return turn(x, cos[rows], sin[rows])


def put(cache, new, place):
    """A copy of a cache with new tokens from a slot on."""
    cache = cache.copy()
    T = cache[:, :, place : place + new.shape[2]].shape[2]
    cache[:, :, place : place + T] = new[:, :, :T]
    return cache


def cached(q, k, v, keys, values, length, cos, sin, *, first=None, end=None, scale=True, seen=None,
           q_at=None, k_at=None, turned_again=False):  # fmt: skip
    """The output with something else in place of a part of it.

    first, end : slots that attention reads; q_at, k_at : position of the first new token, -1 without RoPE; seen(s, t, length)
    """
    T = q.shape[2]
    places = (length if at is None else at for at in (q_at, k_at))
    q_turned, k_turned = (x if at == -1 else turned(x, at, cos, sin) for x, at in zip((q, k), places, strict=True))
    if turned_again:
        keys = turn(keys, cos, sin)
    keys, values = put(keys, k_turned, length), put(values, v, length)
    read = slice(first or 0, length + T if end is None else end)
    scores = q_turned @ keys[:, :, read].swapaxes(-1, -2) / (np.sqrt(q.shape[3]) if scale else 1)
    s, t = np.arange(*read.indices(keys.shape[2])), np.arange(T)[:, None]
    mask = s <= length + t if seen is None else seen(s, t, length)
    return softmax(np.where(mask, scores, -np.inf)) @ values[:, :, read]


def changed(**changes):
    """:func:`cached` as a row, with these parts changed; functions of the length and of S are called first."""
    def row(q, k, v, keys, values, length, cos, sin):
        given: dict[str, Any] = {name: change(length, keys.shape[2]) if callable(change) and name != "seen" else change
                                 for name, change in changes.items()}  # fmt: skip
        return cached(q, k, v, keys, values, length, cos, sin, **given)

    return row


ROWS: dict[str, Rows] = {
    "out": [
        ("out lets tokens see the empty slots: a key of zeros has the score 0, not -inf, and takes its share of the softmax.",
         changed(end=lambda length, S: S, seen=lambda s, t, length: (s <= length + t) | (s >= length + t.size))),
        ("out lets tokens see all slots, the empty ones and those of later tokens too.",
         changed(end=lambda length, S: S, seen=lambda s, t, length: s >= 0)),
        ("out has no mask among the new tokens: token t must not see those after it.",
         changed(seen=lambda s, t, length: s + 0 * t >= 0)),
        ("out has a mask that begins at position 0: the mask of new token t ends at length + t.",
         changed(seen=lambda s, t, length: s <= t)),
        ("out hides a token from itself: it sees the keys s <= length + t.",
         changed(seen=lambda s, t, length: (s < length + t) | (s + length + t == 0))),
        ("out has a mask one token too wide, up to an empty slot: it sees the keys s <= length + t, and not the next one.",
         changed(end=lambda length, S: S, seen=lambda s, t, length: s <= length + t + 1)),
        ("out has a mask one token too wide: it sees the keys s <= length + t, and not the next one.",
         changed(seen=lambda s, t, length: s <= length + t + 1)),
        ("out sees the cache alone: the new tokens are among the keys too.",
         changed(seen=lambda s, t, length: (s < length) | (length == 0) & (s <= t))),
        ("out sees the new tokens alone: the cache is not read.", changed(first=lambda length, S: length)),
        ("out does not see the first slot.",
         changed(seen=lambda s, t, length: (s <= length + t) & ((s > 0) | (length + t == 0)))),
        ("out turns queries and keys from position 0: the first new token is at position length.", changed(q_at=0, k_at=0)),
        ("out turns queries from position 0: the first new token is at position length.", changed(q_at=0)),
        ("out turns the new keys from position 0: the first one is at position length.", changed(k_at=0)),
        ("out turns the new tokens one position too far: the first one is at position length, not length + 1.",
         changed(q_at=lambda length, S: length + 1, k_at=lambda length, S: length + 1)),
        ("out turns queries one position too far: the first new token is at position length, not length + 1.",
         changed(q_at=lambda length, S: length + 1)),
        ("out turns the new keys one position too far: the first one is at position length, not length + 1.",
         changed(k_at=lambda length, S: length + 1)),
        ("out turns the new tokens one position too little: the first one is at position length, not length - 1.",
         changed(q_at=lambda length, S: max(length - 1, 0), k_at=lambda length, S: max(length - 1, 0))),
        ("out turns the keys of the cache again: they were turned when they were written.", changed(turned_again=True)),
        ("out does not turn the queries.", changed(q_at=-1)),
        ("out does not turn the new keys.", changed(k_at=-1)),
        ("out has no RoPE: turn q and k by the angles of their positions.", changed(q_at=-1, k_at=-1)),
        ("out lacks the division of the scores by sqrt(D).", changed(scale=False)),
        ("out takes values that RoPE has turned: values have no position.",
         lambda q, k, v, keys, values, length, cos, sin:
         cached(q, k, turned(v, length, cos, sin), keys, values, length, cos, sin)),
    ],
    "keys": [
        ("keys are not turned: the cache holds them after RoPE.", lambda k, keys, length: put(keys, k, length)),
        ("keys are turned from position 0: the first new one is at position length.",
         lambda k, keys, length, cos, sin: put(keys, turned(k, 0, cos, sin), length)),
        ("keys are turned one position too far: the first new one is at position length, not length + 1.",
         lambda k, keys, length, cos, sin: put(keys, turned(k, length + 1, cos, sin), length)),
        ("keys are turned one position too little: the first new one is at position length, not length - 1.",
         lambda k, keys, length, cos, sin: put(keys, turned(k, max(length - 1, 0), cos, sin), length)),
        ("keys are turned by the opposite angle.",
         lambda k, keys, length, cos, sin: put(keys, turned(k, length, cos, -sin), length)),
        ("keys are written from slot 0 on: they overwrite what was kept.",
         lambda k, keys, length, cos, sin: put(keys, turned(k, length, cos, sin), 0)),
        ("keys are written one slot too late: the first new one belongs to slot length.",
         lambda k, keys, length, cos, sin: put(keys, turned(k, length, cos, sin), length + 1)),
        ("keys are written to the last slots: the first new one belongs to slot length.",
         lambda k, keys, length, cos, sin: put(keys, turned(k, length, cos, sin), keys.shape[2] - k.shape[2])),
        ("keys lack the new ones.", lambda keys: keys),
        ("keys of the cache are turned again: they were turned when they were written.",
         lambda k, keys, length, cos, sin: put(turn(keys, cos, sin), turned(k, length, cos, sin), length)),
        ("keys hold the values: return out, keys, values, in this order.",
         lambda v, values, length: put(values, v, length)),
        ("keys have the shape of what is filled alone: return all S slots.",
         lambda k, keys, length, cos, sin: put(keys, turned(k, length, cos, sin), length)[:, :, : length + k.shape[2]]),
    ],
    "values": [
        ("values are turned: RoPE is for queries and keys alone.",
         lambda v, values, length, cos, sin: put(values, turned(v, length, cos, sin), length)),
        ("values are written from slot 0 on: they overwrite what was kept.", lambda v, values: put(values, v, 0)),
        ("values are written one slot too late: the first new one belongs to slot length.",
         lambda v, values, length: put(values, v, length + 1)),
        ("values are written to the last slots: the first new one belongs to slot length.",
         lambda v, values, length: put(values, v, values.shape[2] - v.shape[2])),
        ("values lack the new ones.", lambda values: values),
        ("values hold the keys before RoPE.", lambda k, values, length: put(values, k, length)),
        ("values hold the keys: return out, keys, values, in this order.",
         lambda k, keys, length, cos, sin: put(keys, turned(k, length, cos, sin), length)),
        ("values have the shape of what is filled alone: return all S slots.",
         lambda v, values, length: put(values, v, length)[:, :, : length + v.shape[2]]),
    ],
}  # fmt: skip
