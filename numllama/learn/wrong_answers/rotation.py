"""Wrong answers to RoPE."""

import numpy as np

from numllama.learn.wrong_answers.table import Table


def rope_values(dout, x, cos, sin):
    B, H, T, D = x.shape
    x1, x2 = np.split(x, 2, -1)
    d1, d2 = np.split(dout, 2, -1)
    return locals()


def halves(first, second):
    return np.concatenate([first, second], -1)


def neighbours(first, second):
    """Components of pairs, side by side."""
    return np.stack([first, second], -1).reshape(*first.shape[:-1], -1)


def turned(a, cos, sin):
    """Each pair turned by its angle."""
    first, second = np.split(a, 2, -1)
    return halves(first * cos - second * sin, second * cos + first * sin)


def turned_neighbours(a, cos, sin):
    first, second = a[..., ::2], a[..., 1::2]
    return neighbours(first * cos - second * sin, second * cos + first * sin)


ROPE = Table("rope", rope_values, {
    "out": [
        ("out is turned the other way: out₁ = x₁ cos - x₂ sin.", lambda x, cos, sin: turned(x, cos, -sin)),
        ("out is turned twice.", lambda x, cos, sin: turned(turned(x, cos, sin), cos, sin)),
        ("out pairs neighbours (x[2j], x[2j + 1]): the layout half pairs x[j] with x[j + D/2].",
         lambda x, cos, sin: turned_neighbours(x, cos, sin)),
        ("out interleaves the two halves of the result: concatenate them.",
         lambda x1, x2, cos, sin: neighbours(x1 * cos - x2 * sin, x2 * cos + x1 * sin)),
        ("out pairs neighbours and concatenates the results in halves: the layout half pairs x[j] with x[j + D/2].",
         lambda x, cos, sin: halves(x[..., ::2] * cos - x[..., 1::2] * sin, x[..., 1::2] * cos + x[..., ::2] * sin)),
        ("out lacks the sines: out₁ = x₁ cos - x₂ sin.", lambda x, cos, sin: turned(x, cos, 0 * sin)),
        ("out lacks the cosines: out₁ = x₁ cos - x₂ sin.", lambda x, cos, sin: turned(x, 0 * cos, sin)),
        ("out has a plus before both sines: the first has a minus.",
         lambda x1, x2, cos, sin: halves(x1 * cos + x2 * sin, x2 * cos + x1 * sin)),
        ("out has a minus before both sines: the second has a plus.",
         lambda x1, x2, cos, sin: halves(x1 * cos - x2 * sin, x2 * cos - x1 * sin)),
        ("out is turned in place: its second half is computed from the new first half.",
         lambda x1, x2, cos, sin: halves(x1 * cos - x2 * sin, x2 * cos + (x1 * cos - x2 * sin) * sin)),
        ("out exchanges cos and sin: out₁ = x₁ cos - x₂ sin.", lambda x, cos, sin: turned(x, sin, cos)),
        ("out has its halves exchanged: the first is x₁ cos - x₂ sin.",
         lambda x, cos, sin, D: np.roll(turned(x, cos, sin), D // 2, -1)),
        ("out turns the first half only: the second is x₂ cos + x₁ sin.",
         lambda x1, x2, cos, sin: halves(x1 * cos - x2 * sin, x2)),
        ("out turns the second half only: the first is x₁ cos - x₂ sin.",
         lambda x1, x2, cos, sin: halves(x1, x2 * cos + x1 * sin)),
        ("out pairs each half with itself: it is x₁ cos - x₂ sin and x₂ cos + x₁ sin.",
         lambda x1, x2, cos, sin: halves(x1 * cos - x1 * sin, x2 * cos + x2 * sin)),
        ("out is turned by the angles of the next position.",
         lambda x, cos, sin: turned(x, np.roll(cos, -1, 0), np.roll(sin, -1, 0))),
        ("out is turned by the angles of the position before.",
         lambda x, cos, sin: turned(x, np.roll(cos, 1, 0), np.roll(sin, 1, 0))),
        ("out has the frequencies in the order of the other layout: repeat the table as a whole, not each column.",
         lambda x, x1, x2, cos, sin: x * np.repeat(cos, 2, -1) + halves(-x2, x1) * np.repeat(sin, 2, -1)),
    ],
    "dx": [
        ("dx is turned forward again: the transpose of a rotation is the rotation back, with -sin.",
         lambda dout, cos, sin: turned(dout, cos, sin)),
        ("dx is dout: it is not turned back.", lambda dout: dout),
        ("dx is turned back twice.", lambda dout, cos, sin: turned(turned(dout, cos, -sin), cos, -sin)),
        ("dx turns x back instead of dout.", lambda x, cos, sin: turned(x, cos, -sin)),
        ("dx turns neighbours (dout[2j], dout[2j + 1]): the layout half pairs dout[j] with dout[j + D/2].",
         lambda dout, cos, sin: turned_neighbours(dout, cos, -sin)),
        ("dx turns neighbours, and forward: the layout half pairs dout[j] with dout[j + D/2], and backward turns with -sin.",
         lambda dout, cos, sin: turned_neighbours(dout, cos, sin)),
        ("dx interleaves the two halves of the result: concatenate them.",
         lambda d1, d2, cos, sin: neighbours(d1 * cos + d2 * sin, d2 * cos - d1 * sin)),
        ("dx turns neighbours and concatenates the results in halves: the layout half pairs dout[j] with dout[j + D/2].",
         lambda dout, cos, sin: halves(
             dout[..., ::2] * cos + dout[..., 1::2] * sin, dout[..., 1::2] * cos - dout[..., ::2] * sin)),
        ("dx lacks the sines: dx₁ = dout₁ cos + dout₂ sin.", lambda dout, cos, sin: turned(dout, cos, 0 * sin)),
        ("dx lacks the cosines: dx₁ = dout₁ cos + dout₂ sin.", lambda dout, cos, sin: turned(dout, 0 * cos, -sin)),
        ("dx has a plus before both sines: the second has a minus.",
         lambda d1, d2, cos, sin: halves(d1 * cos + d2 * sin, d2 * cos + d1 * sin)),
        ("dx has a minus before both sines: the first has a plus.",
         lambda d1, d2, cos, sin: halves(d1 * cos - d2 * sin, d2 * cos - d1 * sin)),
        ("dx is turned in place: its second half is computed from the new first half.",
         lambda d1, d2, cos, sin: halves(d1 * cos + d2 * sin, d2 * cos - (d1 * cos + d2 * sin) * sin)),
        ("dx exchanges cos and sin: dx₁ = dout₁ cos + dout₂ sin.", lambda dout, cos, sin: turned(dout, sin, -cos)),
        ("dx turns forward, with cos and sin exchanged: dx₁ = dout₁ cos + dout₂ sin.",
         lambda dout, cos, sin: turned(dout, sin, cos)),
        ("dx has -cos as well as -sin: cos(-a) is cos a.", lambda dout, cos, sin: turned(dout, -cos, -sin)),
        ("dx has the wrong sign everywhere, or -cos in place of -sin: cos(-a) is cos a, and sin(-a) is -sin a.",
         lambda dout, cos, sin: turned(dout, -cos, sin)),
        ("dx has its halves exchanged: the first is dout₁ cos + dout₂ sin.", lambda dx, D: np.roll(dx, D // 2, -1)),
        ("dx turns the first half only: the second is dout₂ cos - dout₁ sin.",
         lambda d1, d2, cos, sin: halves(d1 * cos + d2 * sin, d2)),
        ("dx turns the second half only: the first is dout₁ cos + dout₂ sin.",
         lambda d1, d2, cos, sin: halves(d1, d2 * cos - d1 * sin)),
        ("dx pairs each half with itself: it is dout₁ cos + dout₂ sin and dout₂ cos - dout₁ sin.",
         lambda d1, d2, cos, sin: halves(d1 * cos + d1 * sin, d2 * cos - d2 * sin)),
        ("dx is turned back by the angles of the next position.",
         lambda dout, cos, sin: turned(dout, np.roll(cos, -1, 0), -np.roll(sin, -1, 0))),
        ("dx is turned back by the angles of the position before.",
         lambda dout, cos, sin: turned(dout, np.roll(cos, 1, 0), -np.roll(sin, 1, 0))),
        ("dx has the frequencies in the order of the other layout: repeat the table as a whole, not each column.",
         lambda dout, d1, d2, cos, sin: dout * np.repeat(cos, 2, -1) + halves(d2, -d1) * np.repeat(sin, 2, -1)),
        ("dx is multiplied by x: RoPE is linear in x, so x itself is not in dx.", lambda dx, x: dx * x),
        ("dx adds the rotation forward and the rotation back: turn back only.",
         lambda dout, cos, sin: turned(dout, cos, sin) + turned(dout, cos, -sin)),
    ],
})  # fmt: skip
TABLES = [ROPE]
