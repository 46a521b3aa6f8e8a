"""The interactive pictures compute what numllama computes: their functions, run in Chromium, against the package in float64."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from browser.pages import folder_served

import numllama as nl
from numllama import ops
from numllama.data.synthetic import write_play
from numllama.model.parameters import Parameters

WIDGETS = Path(__file__).parents[2] / "docs" / "_static" / "widgets"
NEAR = dict(rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def call(browser):
    """call("softmax", "backward", ...): the result of a function that docs/_static/widgets/softmax.js exports.

    call.of_each calls it with each of a list of lists of arguments.
    """
    with folder_served(WIDGETS) as address:
        page = browser.new_page()
        page.goto(address + "widgets.css")                             # any page of that origin

        def called(module, function, *args):
            script = "async ([module, name, args]) => (await import(module))[name](...args)"
            return page.evaluate(script, [f"{address}{module}.js", function, list(args)])

        def of_each(module, function, lists):
            script = "async ([module, name, lists]) => { const m = await import(module); return lists.map(x => m[name](...x)); }"
            return page.evaluate(script, [f"{address}{module}.js", function, lists])

        called.of_each = of_each
        yield called
        page.close()


def rows(*shape, seed=0):
    return np.random.default_rng([3, seed, *shape]).standard_normal(shape)


# ------------------------------------------------------------------------------------------------ softmax


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.5])
@pytest.mark.parametrize("size", [1, 300])
def test_softmax_and_its_gradient(call, temperature, size):
    x, dout = size * rows(6), rows(6, seed=1)
    p, cache = ops.softmax_forward(x / temperature)
    found = call("softmax", "softmax", x.tolist(), temperature)
    np.testing.assert_allclose(found, p, **NEAR)
    np.testing.assert_allclose(
        call("softmax", "backward", dout.tolist(), found, temperature), ops.softmax_backward(dout, cache) / temperature, **NEAR
    )
    jacobian = [ops.softmax_backward(row, cache) / temperature for row in np.eye(6)]  # row i: the gradient of p[i]
    np.testing.assert_allclose(call("softmax", "jacobian", found, temperature), jacobian, **NEAR)


# ------------------------------------------------------------------------------------------------ RoPE


@pytest.mark.parametrize("theta", [10.0, 10_000.0, 1e6])
@pytest.mark.parametrize("t, s", [(0, 0), (12, 8), (500, 1), (9_000, 77)])
def test_the_score_of_rotated_pairs(call, theta, t, s):
    q, k = rows(2, 16)
    cos, sin = ops.rope_table(np.array([t, s]), 16, theta, dtype="float64")
    rotated = ops.rope_forward(np.stack([q, k])[None, None], cos, sin)[0][0, 0]
    products = rotated[0] * rotated[1]
    found = call("rope", "scores", q.tolist(), k.tolist(), theta, t - s)
    np.testing.assert_allclose(found, products[:8] + products[8:], rtol=1e-9, atol=1e-10)


def test_the_curve_of_scores_is_the_sum_of_the_chosen_pairs(call):
    q, k, on = rows(8).tolist(), rows(8, seed=1).tolist(), [True, False, True, True]
    expected = [np.dot(call("rope", "scores", q, k, 100, d), on) for d in range(32)]
    curve = np.array(call("rope", "envelope", q, k, 100, on, 32, 32))
    np.testing.assert_allclose(curve, np.stack([np.arange(32), expected, expected], 1), **NEAR)
    narrow = np.array(call("rope", "envelope", q, k, 100, on, 32, 8))  # four distances in a column
    np.testing.assert_allclose(narrow[:, 1], np.reshape(expected, (8, 4)).min(1), **NEAR)
    np.testing.assert_allclose(narrow[:, 2], np.reshape(expected, (8, 4)).max(1), **NEAR)


# ------------------------------------------------------------------------------------------------ flash attention


@pytest.mark.parametrize("size", [2, 4, 5, 16])
@pytest.mark.parametrize("window", [0, 1, 6])
def test_tiles_give_the_output_of_flash_attention(call, size, window):
    q, k, v = 3 * rows(3, 16, 4)
    first = np.array([max(0, t - window + 1) if window else 0 for t in range(16)])
    out, cache = ops.flash_attention_forward(*(x[None, None] for x in (q, k, v)), first=first)
    found = call("flash", "attention", q.tolist(), k.tolist(), v.tolist(), size, window)
    np.testing.assert_allclose(found["out"], out[0, 0], **NEAR)
    np.testing.assert_allclose(found["lse"], cache.lse[0, 0], **NEAR)


@pytest.mark.parametrize("window", [0, 6])
def test_after_each_tile_there_is_the_attention_over_the_keys_so_far(call, window):
    q, k, v = 3 * rows(3, 16, 4, seed=2)
    steps = call("flash", "visit", q.tolist(), k.tolist(), v.tolist(), 4, window)
    assert len(steps) == 16 and [(step["t"], step["s"]) for step in steps[:5]] == [(0, 0), (0, 4), (0, 8), (0, 12), (4, 0)]
    for step in steps:
        seen = 0
        for row in step["rows"]:
            t = row["query"]
            first, last = (max(0, t - window + 1) if window else 0), min(t + 1, step["s"] + 4)
            seen += max(0, last - max(first, step["s"]))
            scores = q[t] @ k[first : max(first, last)].T / 2
            assert row["top"] == (pytest.approx(scores.max(), rel=1e-9) if len(scores) else -math.inf)
            arrays = (x[None, None] for x in (q[t : t + 1], k, v))
            so_far = ops.attention_forward(*arrays, np.array([first]), np.array([last]))[0]
            np.testing.assert_allclose(row["out"], so_far[0, 0, 0], **NEAR)
        assert step["skipped"] == (seen == 0)


# ------------------------------------------------------------------------------------------------ byte-pair encoding


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    path = tmp_path_factory.mktemp("play") / "play.txt"
    path.write_text(write_play(60_000), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(play):
    return nl.Tokenizer.train(play, 512, progress=False)


@pytest.fixture(scope="module")
def merges(tokenizer):
    ids = {token: id for id, token in tokenizer.vocab.items()}
    return [[ids[a], ids[b]] for a, b in tokenizer.merges]


def texts():
    """Words of the play, and what people type."""
    rng = np.random.default_rng([3, 0])
    words = write_play(30_000, seed=7).split(" ")
    odd = [
        "", " ", "  a", "a  b", "tab\tand\nline\n\n x", "don't we'll I'm they've", "'s's", "1,234.50 €", "naïve café Ünïcode",
        "東京 тест", "👩‍🚀 emoji 🎉", "\u00a0no-break\u2003em\u3000wide", "\ufeffmark", "x\u0085y \u001cz", "ª²³½Ⅷ", "a\u0301",
        "\x00\x7f",
        "the the  the   the", "?!?... --", "swords Swords SWORDS our swords",
    ]  # fmt: skip
    lines = [" ".join(rng.choice(words, 6)) for _ in range(300)]
    letters = list("thesword  'AÉß1.,\n🎉")
    return odd + lines + ["".join(rng.choice(letters, 20)) for _ in range(200)]


def test_ids_are_those_of_the_tokenizer(call, tokenizer, merges):
    for text, ids in zip(texts(), call.of_each("bpe", "encode", [[text, merges] for text in texts()]), strict=True):
        assert ids == tokenizer.encode(text), text


def test_every_merge_is_the_tokenizers_in_its_order(call, tokenizer, merges):
    for text in texts()[:60]:
        found = [state["rank"] for state in call("bpe", "mergingWith", text, merges)]
        assert found == [None, *(step.rank for step in tokenizer.merges_of(text))], text


def test_a_smaller_vocabulary_is_a_shorter_list_of_merges(call, play, merges):
    smaller = nl.Tokenizer.train(play, 300, progress=False)
    for text, ids in zip(texts(), call.of_each("bpe", "encode", [[text, merges, 44] for text in texts()]), strict=True):
        assert ids == smaller.encode(text), text


# ------------------------------------------------------------------------------------------------ the KV cache


@pytest.mark.parametrize("K", [1, 2, 4])
def test_the_bytes_of_the_cache(call, K):
    config = nl.ModelConfig(vocab_size=5, dim=32, n_layers=3, n_heads=4, n_kv_heads=K, max_seq_len=16)
    cache = nl.KVCache(nl.Transformer(config, dtype="float32"), capacity=16)
    found = call("cache", "bytes", {"layers": 3, "headDim": 8, "perNumber": 4}, K, 16)
    assert found == cache.keys.nbytes + cache.values.nbytes
    assert call("cache", "passes", 16, True) == 16
    assert call("cache", "passes", 16, False) == sum(range(1, 17))


@pytest.mark.parametrize("bytes, words", [(0, "0 bytes"), (1536, "1.5 KiB"), (131072, "128 KiB"), (2**30, "1 GiB")])
def test_bytes_in_words(call, bytes, words):
    assert call("cache", "size", bytes) == words


# ------------------------------------------------------------------------------------------------ AdamW


@pytest.mark.parametrize(
    "beta1, beta2, eps, decay", [(0.9, 0.95, 1e-8, 0.0), (0.0, 0.0, 1e-8, 0.1), (0.99, 0.999, 1.0, 2.0), (0.5, 0.9, 1e-3, 0.05)]
)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_moments_and_steps_are_those_of_adamw(call, beta1, beta2, eps, decay, scale):
    gradients = scale * rows(40) * (np.arange(40) % 3 > 0)
    params, grads = (Parameters({"w": (1, 1)}, np.ones(1)) for _ in range(2))
    optimizer = nl.AdamW(params, 0.01, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    settings = dict(lr=0.01, beta1=beta1, beta2=beta2, eps=eps, decay=decay, w=1.0)
    found = call("adamw", "adamw", gradients.tolist(), settings)
    assert len(found) == 40
    start = np.flatnonzero(gradients)[0]                               # before, nl.AdamW divides 0 by 0 if eps is tiny
    for i, (g, step) in enumerate(zip(gradients, found, strict=True)):
        grads.flat[...] = g
        optimizer.step(grads)
        state = [optimizer.state[name].flat[0] for name in ("m", "v")]
        np.testing.assert_allclose([step["m"], step["v"], step["w"]], [*state, params.flat[0]], **NEAR)
        if i >= start:
            corrected = step["mhat"] / (math.sqrt(step["vhat"]) + eps)
            assert step["step"] == pytest.approx(corrected, rel=1e-9)


# ------------------------------------------------------------------------------------------------ landscapes


def test_the_loss_between_the_points_of_a_plane(call):
    at, grid = np.linspace(-1, 1, 5), rows(5, 5)
    for i, j in np.ndindex(5, 5):
        assert call("landscape", "between", grid.tolist(), at.tolist(), at[j], at[i]) == pytest.approx(grid[i, j], abs=1e-4)
    a, b = 0.3, -0.85                                                  # between columns 2 and 3, rows 0 and 1
    along = [np.interp(a, at, row) for row in grid]
    assert call("landscape", "between", grid.tolist(), at.tolist(), a, b) == pytest.approx(np.interp(b, at, along), rel=1e-9)


def test_lines_of_equal_loss_have_that_loss(call):
    at, grid = np.linspace(-1, 1, 7), rows(7, 7)
    pieces = call("landscape", "contour", grid.tolist(), at.tolist(), 0.2)
    sides = [(grid[i, j] < 0.2) != (grid[i, j + 1] < 0.2) for i in range(7) for j in range(6)]
    sides += [(grid[i, j] < 0.2) != (grid[i + 1, j] < 0.2) for i in range(6) for j in range(7)]
    ends = {tuple(np.round(point, 9)) for piece in pieces for point in piece}
    assert len(ends) == sum(sides) > 5                                 # each crossed side once, and no other
    for a, b in ends:
        assert call("landscape", "between", grid.tolist(), at.tolist(), a, b) == pytest.approx(0.2, abs=1e-5)


# ------------------------------------------------------------------------------------------------ numbers and axes


@pytest.mark.parametrize(
    "function, args, words",
    [
        ("number", [-1234.567], "−1,234.57"), ("number", [-0.001], "0"), ("number", [2], "2"), ("number", [0.12345, 4], "0.1235"),
        ("fixed", [-0.004, 2, True], "0.00"), ("fixed", [0.5, 2, True], "+0.50"), ("fixed", [-1.0, 1], "−1.0"),
    ],
)  # fmt: skip
def test_numbers_for_people(call, function, args, words):
    assert call("shared", function, *args) == words


@pytest.mark.parametrize("low, high, most", [(0, 1, 5), (-8, 8, 4), (0, 8192, 3), (1e-9, 3e-9, 4), (0.4, 1.0, 3)])
def test_ticks_are_round_and_inside(call, low, high, most):
    found = call("shared", "ticks", [low, high], most)
    steps = {float(f"{b - a:.6g}") for a, b in pairwise(found)}
    assert 1 <= len(found) <= most + 1 and len(steps) <= 1
    assert all(low - 1e-9 * abs(low) <= tick <= high * (1 + 1e-9) for tick in found)
    assert all(f"{step:e}"[0] in "125" for step in steps)
