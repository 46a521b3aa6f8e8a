"""Attention with a KV cache.

T new tokens follow `length` tokens whose keys and values are kept. Their outputs are the last T rows of attention over the whole
text; the page docs/chapters/kv_cache says why. Return new arrays: those that are given stay as they are.
"""

import numpy as np


def softmax(x):                                                        # over the last axis
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def turn(x, cos, sin):                                                 # RoPE: x (B, H, T, D), cos and sin (T, D/2)
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def cached_attention(q, k, v, keys, values, length, cos, sin):
    """Causal attention of new tokens to those in the cache and to one another.

    Parameters
    ----------
    q, k, v : array, shape (B, H, T, D)
        Of the new tokens; RoPE has not turned q and k yet.
    keys, values : array, shape (B, H, S, D)
        The cache: slot t is for the token at position t. The first `length` slots are filled, with keys that RoPE has turned. The
        others hold zeros, or what another text has left.
    length : int
        length + T is at most S.
    cos, sin : array, shape (S, D/2)
        RoPE's table: row t is for position t.

    Returns
    -------
    out : array, shape (B, H, T, D)
    keys, values : array, shape (B, H, S, D)
        The cache with the new tokens in it.
    """
    T, D = q.shape[2:]
    end = length + T
    new = slice(length, end)
    keys, values = keys.copy(), values.copy()
    keys[:, :, new] = turn(k, cos[new], sin[new])
    values[:, :, new] = v
    scores = turn(q, cos[new], sin[new]) @ keys[:, :, :end].swapaxes(-1, -2) / np.sqrt(D)    # (B, H, T, end)
    seen = np.arange(end) <= length + np.arange(T)[:, None]                                  # (T, end)
    p = softmax(np.where(seen, scores, -np.inf))
    return p @ values[:, :, :end], keys, values


# ---------------------------------------------------------------------------------------------- the test:  pytest kv_cache.py


B, H, S, D = 2, 3, 8, 4
ANGLES = np.arange(S)[:, None] * np.array([1.0, 0.1])
COS, SIN = np.cos(ANGLES), np.sin(ANGLES)
Q, K, V = np.random.default_rng(0).standard_normal((3, B, H, S, D))


def in_pieces(sizes, q=Q):
    """The outputs for a text that comes in pieces, and the cache at the end."""
    keys, values, length, outs = np.zeros_like(K), np.zeros_like(V), 0, []
    for size in sizes:
        new = np.s_[:, :, length : length + size]
        out, keys, values = cached_attention(q[new], K[new], V[new], keys, values, length, COS, SIN)
        outs.append(out)
        length += size
    return np.concatenate(outs, axis=2), keys, values


def test_a_text_in_pieces_gives_what_it_gives_in_one():
    whole = in_pieces([8])
    for sizes in ([1] * 8, [5, 3], [2, 1, 4, 1]):
        for actual, right in zip(in_pieces(sizes), whole, strict=True):
            np.testing.assert_allclose(actual, right)


def test_the_first_token_sees_itself_alone():
    np.testing.assert_allclose(in_pieces([3, 1, 2])[0][:, :, 0], V[:, :, 0])


def test_queries_of_zeros_give_the_mean_of_the_values_so_far():
    mean = np.cumsum(V, axis=2) / np.arange(1, S + 1)[:, None]
    for sizes in ([8], [1] * 8, [4, 3]):
        np.testing.assert_allclose(in_pieces(sizes, 0 * Q)[0], mean[:, :, : sum(sizes)])


def test_weights_depend_on_the_distance_of_two_tokens():
    """RoPE as the product of complex numbers, for the sixth token."""
    q, k = (x[..., : D // 2] + 1j * x[..., D // 2 :] for x in (Q[:, :, 5:6], K[:, :, :6]))
    scores = (q * np.exp(1j * ANGLES[5::-1]) * k.conj()).real.sum(-1) / np.sqrt(D)  # (B, H, 6)
    out = np.einsum("bhs,bhsd->bhd", softmax(scores), V[:, :, :6])
    for sizes in ([6], [5, 1], [2, 4]):
        np.testing.assert_allclose(in_pieces(sizes)[0][:, :, 5], out)


def test_the_key_at_position_zero_is_not_turned():
    np.testing.assert_allclose(in_pieces([2, 2])[1][:, :, 0], K[:, :, 0])
