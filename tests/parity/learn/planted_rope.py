"""Mistakes of RoPE: angles, pairs, and what is rotated."""

import math

import torch
from parity.learn.planted import DOCUMENTS, but, mistake, right

SCALED = ("llama3-scaling",)


def scaling(self):
    return self.c.rope_scaling


def table(self, positions):
    """cos and sin of other positions."""
    angles = positions[..., None].to(self.dtype) * self.frequencies()
    return angles.cos(), angles.sin()


def shifted_k(self, k):
    """Keys at positions that begin at 1."""
    angles = (self.positions() + 1)[..., None].to(self.dtype) * self.frequencies()
    angles = angles[:, None] if angles.dim() == 3 else angles
    return self.rotate(k, angles.cos(), angles.sin())


def in_place(self, x, cos, sin):
    """x1 is overwritten before x2 reads it."""
    x1, x2 = self.pairs(x)
    x1 = x1 * cos - x2 * sin
    x2 = x2 * cos + x1 * sin
    return self.joined(x1, x2)


def no_minus(self, x, cos, sin):
    x1, x2 = self.pairs(x)
    return self.joined(x1 * cos + x2 * sin, x2 * cos + x1 * sin)


def only_first(self, x, cos, sin):
    x1, x2 = self.pairs(x)
    return self.joined(x1 * cos - x2 * sin, x2)


def half_of_the_pairs(self, x, cos, sin):
    """Partial rotation: the pairs of the second half stay."""
    cos, sin = cos.clone(), sin.clone()
    n = cos.shape[-1] // 2
    cos[..., n:], sin[..., n:] = 1, 0
    x1, x2 = self.pairs(x)
    return self.joined(x1 * cos - x2 * sin, x2 * cos + x1 * sin)


def mixed(self, x, cos, sin):
    """The table of one layout with the pairs of the other."""
    if self.layout() == "half":
        cos, sin = cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
        x1, x2 = x.chunk(2, -1)
        return x * cos + torch.cat([-x2, x1], -1) * sin
    cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
    x1, x2 = x[..., 0::2], x[..., 1::2]
    return x * cos + torch.stack([-x2, x1], -1).flatten(-2) * sin


def halves_for_pairs(self, x, cos, sin):
    """Read as neighbours, written as halves (or the reverse)."""
    x1, x2 = self.pairs(x)
    y1, y2 = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    return torch.stack([y1, y2], -1).flatten(-2) if self.layout() == "half" else torch.cat([y1, y2], -1)


def by_head(self, x, cos, sin):
    """The angle follows the head's number: the axes of heads and tokens are exchanged."""
    cos, sin = table(self, torch.arange(x.shape[1])[:, None])          # (H, 1, D/2)
    return right("rotate")(self, x, cos, sin)


def by_sequence(self, x, cos, sin):
    """The angle follows the sequence's number in the batch."""
    cos, sin = table(self, torch.arange(self.B)[:, None, None])        # (B, 1, 1, D/2)
    return right("rotate")(self, x, cos, sin)


def rotated_flat(self, x):
    """One rotation of the whole width, before it is cut into heads; frequencies as for one wide head."""
    heads, D = x.shape[1], x.shape[-1]
    flat = self.merge(x)[:, None]
    exponents = torch.arange(0, heads * D, 2, dtype=self.dtype) / (heads * D)
    positions = self.positions()
    angles = positions[..., None].to(self.dtype) * self.theta() ** -exponents
    angles = angles[:, None] if angles.dim() == 3 else angles
    return self.split(self.rotate(flat, angles.cos(), angles.sin())[:, 0], heads)


def thresholds_only(self, frequencies):
    """Two bands: nothing between them."""
    turns = scaling(self)["original_max_position_embeddings"] / self.wavelength(frequencies)
    return (turns >= scaling(self)["high_freq_factor"]).to(self.dtype)


def twice(self, x, cos, sin):
    return right("rotate")(self, right("rotate")(self, x, cos, sin), cos, sin)


def rope(key, sentence, where=None, **more):
    """A row whose first wrong number is the rotated queries."""
    return mistake(key, "q_rotated", sentence, **({} if where is None else {"where": where}), **more)


ROPE = [
    rope("rope-missing", "nothing is rotated", same_as=("rope-only-k",), rotate=lambda self, x, cos, sin: x),
    rope("rope-sign", "the rotation has the opposite sign", rotate=lambda self, x, c, s: right("rotate")(self, x, c, -s)),
    rope("rope-other-layout", "pairs are neighbours in place of halves, or the reverse",
         layout=lambda self: {"half": "interleaved", "interleaved": "half"}[self.c.rope_layout]),
    rope("rope-layout-half", "pairs are always halves", ("interleaved",), same_as=("rope-other-layout",),
         layout=lambda self: "half"),
    rope("rope-mixed-layouts", "cos and sin are laid out for neighbours, the pairs for halves, or the reverse", rotate=mixed),
    rope("rope-read-write-layouts", "pairs are read in one layout and written in the other", rotate=halves_for_pairs),
    rope("rope-from-1", "positions begin at 1", positions=lambda self: right("positions")(self) + 1),
    rope("rope-reversed", "positions are counted from the end", positions=lambda self: self.T - 1 - right("positions")(self)),
    rope("rope-theta-10000", "theta is always 10000", but("odd-sizes"),
         same_as=("rope-exponent-doubled", "rope-exponent-ends-at-1"), theta=lambda self: 10000.0),
    rope("rope-theta-500000", "theta is always 500000", theta=lambda self: 500000.0),
    rope("rope-exponent-width", "the exponent divides by the width C in place of the head size D",
         exponents=lambda self: torch.arange(0, self.c.head_dim, 2, dtype=self.dtype) / self.c.dim),
    rope("rope-exponent-halved", "the exponent is j/D in place of 2j/D",
         exponents=lambda self: torch.arange(self.c.head_dim // 2, dtype=self.dtype) / self.c.head_dim),
    rope("rope-exponent-doubled", "the exponent is 4j/D in place of 2j/D",
         exponents=lambda self: right("exponents")(self) * 2),
    rope("rope-exponent-from-1", "the exponent of the first pair is 2/D in place of 0",
         exponents=lambda self: right("exponents")(self) + 2 / self.c.head_dim),
    rope("rope-exponent-ends-at-1", "exponents are spread from 0 to 1, both included",
         exponents=lambda self: torch.linspace(0, 1, self.c.head_dim // 2, dtype=self.dtype)),
    rope("rope-frequencies-inverted", "the exponent has the opposite sign", exponents=lambda self: -right("exponents")(self)),
    rope("rope-frequencies-reversed", "the slowest pair comes first",
         frequencies=lambda self: right("frequencies")(self).flip(0)),
    rope("rope-one-frequency", "all pairs turn at the speed of the first",
         exponents=lambda self: right("exponents")(self) * 0),
    rope("rope-two-pi", "angles are in turns: multiplied by 2π",
         frequencies=lambda self: 2 * math.pi * right("frequencies")(self)),
    rope("rope-cos-sin-exchanged", "cos and sin are exchanged", cos_sin=lambda self: right("cos_sin")(self)[::-1]),
    rope("rope-no-minus", "both components add: the minus of rotate_half is forgotten", rotate=no_minus),
    rope("rope-in-place", "the first component is overwritten before the second one reads it", rotate=in_place),
    rope("rope-first-component", "only the first component of each pair changes", rotate=only_first),
    rope("rope-half-of-pairs", "only the first half of the pairs turns", rotate=half_of_the_pairs),
    rope("rope-twice", "queries and keys are rotated twice", rotate=twice),
    rope("rope-by-head", "the angle follows the number of the head", rotate=by_head),
    rope("rope-by-sequence", "the angle follows the number of the sequence", rotate=by_sequence),
    rope("rope-whole-width", "the whole width is rotated as one vector, before it is split into heads",
         rotate_q=rotated_flat, rotate_k=rotated_flat),
    rope("rope-documents", "positions go on from one document to the next", DOCUMENTS,
         positions=lambda self: torch.arange(self.T)),
    rope("rope-only-k", "only keys are rotated", same_as=("rope-missing",), rotate_q=lambda self, q: q),
    mistake("rope-only-q", "k_rotated", "only queries are rotated", rotate_k=lambda self, k: k),
    mistake("rope-k-sign", "k_rotated", "keys are rotated the other way",
            rotate_k=lambda self, k: self.rotate(k, self.cos_sin()[0], -self.cos_sin()[1])),
    mistake("rope-k-from-1", "k_rotated", "positions of keys begin at 1", rotate_k=shifted_k),
    mistake("rope-v", "head_outputs", "values are rotated too",
            repeated_v=lambda self, a: self.repeat(self.rotate(self.split(a.v, self.c.n_kv_heads), *self.cos_sin()))),
    rope("scaling-ignored", "the scaling of frequencies is ignored", SCALED, rescale=lambda self, f: f),
    rope("scaling-linear", "all frequencies are divided by the factor", SCALED, same_as=("scaling-not-smooth",),
         rescale=lambda self, f: f / scaling(self)["factor"]),
    rope("scaling-smooth-inverted", "the smooth factor is the wrong way round", SCALED,
         smooth=lambda self, f: 1 - right("smooth")(self, f)),
    rope("scaling-no-two-pi", "the wavelength lacks 2π", SCALED, wavelength=lambda self, f: 1 / f),
    rope("scaling-not-smooth", "frequencies between the two thresholds are scaled fully", SCALED, same_as=("scaling-linear",),
         smooth=thresholds_only),
    rope("scaling-multiplied", "frequencies are multiplied by the factor", SCALED,
         rescale=lambda self, f: (s := self.smooth(f)) * f + (1 - s) * f * scaling(self)["factor"]),
    rope("scaling-other-length", "max_seq_len stands for the original context length", SCALED,
         smooth=lambda self, f: ((self.c.max_seq_len / self.wavelength(f) - 1) / 3).clamp(0, 1)),
    rope("scaling-theta", "theta is multiplied by the factor, as in NTK scaling", SCALED,
         theta=lambda self: self.c.rope_theta * scaling(self)["factor"], rescale=lambda self, f: f),
]  # fmt: skip
