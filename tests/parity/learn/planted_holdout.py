"""A hold-out set: mistakes that the catalogue was not written against, to measure how many of new ones it names. Forward.

They come from bug reports, reviews and questions about Llamas in PyTorch, C, CUDA, Rust and JAX, and from ports of GPT-2,
BERT, T5, Gemma and others.
"""

import math

import torch
from parity.learn.planted import Mistake, but, mistake, right
from parity.learn.planted_holdout_attention import ATTENTION, FEED_FORWARD, LOSS
from parity.learn.planted_holdout_backward import BACKWARD
from torch.nn import functional as F

SCALED, QK = ("llama3-scaling",), ("qk-norm",)
REPEATED = but("mha")                                                  # fewer key heads than query heads
NORMED = but("qk-norm")                                                # q and k go into RoPE as they are


def without_gain(self, x):
    return x * self.rstd(x)


# ---------------------------------------------------------------- embedding


def normal_embedding(self):
    x = self.w["embed"][self.tokens]
    return F.layer_norm(x, x.shape[-1:], eps=self.eps())


EMBEDDING = [
    mistake("ho-embed-times-c", "embedding", "The embedding is multiplied by C: Gemma's normalizer without its root.",
            embed=lambda self: self.w["embed"][self.tokens] * self.w["embed"].shape[1]),
    mistake("ho-embed-over-root-c", "embedding", "The embedding is divided by √C.",
            embed=lambda self: self.w["embed"][self.tokens] * self.w["embed"].shape[1] ** -0.5),
    mistake("ho-embed-wpe-is-wte", "embedding",
            "The first T rows of the token table are added as position embeddings, as in GPT-2.",
            embed=lambda self: self.w["embed"][self.tokens] + self.w["embed"][: self.T]),
    mistake("ho-embed-token-type", "embedding",
            "A token type's embedding is added to all tokens, as in BERT: row 0 of the table.",
            embed=lambda self: self.w["embed"][self.tokens] + self.w["embed"][0]),
    mistake("ho-embed-table-transposed", "embedding", "The table's file is (C, V), and its bytes are read as (V, C).",
            embed=lambda self: self.w["embed"].T.reshape(self.w["embed"].shape)[self.tokens]),
    mistake("ho-embed-layernorm", "embedding", "A LayerNorm without gain follows the embedding, as in BLOOM.",
            embed=normal_embedding),
]

# ---------------------------------------------------------------- RMSNorm


def rows_of_all(self, q):
    """One mean square for all heads of a token."""
    return q * self.rstd(self.merge(q))[:, None] * self.weight("q_norm")


def all_keys(self, k):
    return k * self.rstd(self.merge(k))[:, None] * self.weight("k_norm")


NORM = [
    mistake("ho-norm-over-rsqrt", "attn_norm", "x is divided by the reciprocal root instead of multiplied by it.",
            rmsnorm=lambda self, x, weight: x / self.rstd(x) * weight),
    mistake("ho-norm-l2", "attn_norm", "x is divided by its length: the sum of squares stands in place of their mean.",
            rstd=lambda self, x: torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + self.eps())),
    mistake("ho-norm-over-time", "attn_norm", "The mean square is over the tokens (axis -2) instead of over the width.",
            rstd=lambda self, x: torch.rsqrt(x.pow(2).mean(-2, keepdim=True) + self.eps())),
    mistake("ho-norm-one-mean", "attn_norm", "There is one mean square for the whole batch: mean() without an axis.",
            rstd=lambda self, x: torch.rsqrt(x.pow(2).mean() + self.eps())),
    mistake("ho-norm-var", "attn_norm", "x.var(-1) stands in place of the mean square; x keeps its mean.",
            rstd=lambda self, x: torch.rsqrt(x.var(-1, keepdim=True) + self.eps())),
    mistake("ho-norm-layernorm", "attn_norm", "It is a LayerNorm without bias, as in GPT-2.",
            rmsnorm=lambda self, x, weight: F.layer_norm(x, x.shape[-1:], weight, eps=self.eps())),
    mistake("ho-norm-eps-after", "attn_norm", "eps is added to the reciprocal root.", where=("large-eps",),
            rstd=lambda self, x: torch.rsqrt(x.pow(2).mean(-1, keepdim=True)) + self.eps()),
    mistake("ho-norm-eps-in-sum", "attn_norm", "eps is added to the sum of squares, before it is divided by C.",
            where=("large-eps",),
            rstd=lambda self, x: torch.rsqrt((x.pow(2).sum(-1, keepdim=True) + self.eps()) / x.shape[-1])),
    mistake("ho-norm-gain-first", "attn_norm", "x is multiplied by the gain before its mean square is taken.",
            rmsnorm=lambda self, x, weight: without_gain(self, x * weight)),
    mistake("ho-norm-twice", "attn_norm", "RMSNorm is applied twice, with its gain each time.",
            rmsnorm=lambda self, x, weight: right("rmsnorm")(self, right("rmsnorm")(self, x, weight), weight)),
    mistake("ho-norm-same-gain", "ffn_norm", "The second norm of a block has the first one's gain.",
            ffn_norm=lambda self, x, a: self.rmsnorm(a.after_attention, self.weight("attn_norm"))),
    mistake("ho-norm-gain-of-layer-0", "attn_norm", "attn_norm has layer 0's gain in all layers: the pointer never moves.",
            attn_norm=lambda self, x: self.rmsnorm(x, self.w["blocks.0.attn_norm"])),
    mistake("ho-norm-final-gain", "norm", "The last norm has the gain of the last block's ffn_norm.",
            norm=lambda self, x: self.rmsnorm(x, self.w[f"blocks.{self.c.n_layers - 1}.ffn_norm"])),
    mistake("ho-norm-final-one-block-early", "norm", "The last norm reads the last block's input: hidden_states[-2].",
            blocks=lambda self, x: (right("blocks")(self, x), self.inputs[-1])[1]),
    mistake("ho-qk-norm-all-heads", "q_norm", "q and k are normalised over all heads together, as in OLMo 2.", QK,
            q_norm=rows_of_all, k_norm=all_keys),
    mistake("ho-qk-norm-one-plus", "q_norm", "The gains of q and k are 1 + w, as in Gemma 3.", QK,
            q_norm=lambda self, q: self.rmsnorm(q, 1 + self.weight("q_norm")),
            k_norm=lambda self, k: self.rmsnorm(k, 1 + self.weight("k_norm"))),
    mistake("ho-qk-norm-no-gain", "q_norm", "q and k are normalised without a gain, as in Llama 4.", QK,
            q_norm=without_gain, k_norm=without_gain),
    mistake("ho-qk-norm-shared", "k_norm", "The keys are normalised with the queries' gain.", QK,
            k_norm=lambda self, k: self.rmsnorm(k, self.weight("q_norm"))),
]  # fmt: skip

# ---------------------------------------------------------------- q, k, v


def groups_of_rows(self):
    """Rows of wq, wk and wv one after the other, cut as if each key head's q, ..., q, k, v were neighbours."""
    rows = torch.cat([self.weight(name) for name in ("wq", "wk", "wv")])
    K, R, D = self.c.n_kv_heads, self.c.n_heads // self.c.n_kv_heads, self.c.head_dim
    return rows.view(K, R + 2, D, -1)


def memory(self, first, per_layer):
    """Weights as they lie in a llama2.c file from `first` on: each layer's at l times a wrong size."""
    order = ["wq", "wk", "wv", "wo"]
    names = order[order.index(first):]
    flat = torch.cat([self.w[f"blocks.{i}.{name}"].flatten() for name in names for i in range(self.c.n_layers)])
    rows, columns = self.weight(first).shape
    return flat[self.i * per_layer:][: rows * columns].view(rows, columns)


def wk_too_far(self, x, normed):
    return self.linear(normed, memory(self, "wk", self.weight("wq").numel()))


def bytes_transposed(self, x, name):
    """The file is (in, out)."""
    weight = self.weight(name)
    return self.linear(x, weight.T.reshape(weight.shape))


PROJECTIONS = [
    mistake("ho-kv-exchanged", "k", "A fused qkv is cut as q, v, k: keys and values are exchanged.",
            k=lambda self, x, normed: self.linear(normed, self.weight("wv")),
            v=lambda self, x, normed: self.linear(normed, self.weight("wk"))),
    mistake("ho-qkv-by-group", "q",
            "Fused rows q | k | v are read as (q..., k, v) for each key head, as in Megatron and InternLM2.",
            but("mqa", "odd-sizes"),
            q=lambda self, x, normed: self.linear(normed, groups_of_rows(self)[:, :-2].flatten(0, 2)),
            k=lambda self, x, normed: self.linear(normed, groups_of_rows(self)[:, -2].flatten(0, 1)),
            v=lambda self, x, normed: self.linear(normed, groups_of_rows(self)[:, -1].flatten(0, 1))),
    mistake("ho-wk-offset", "k", "wk of layer l is read at l times wq's size instead of wk's: layer 1 reads other weights.",
            REPEATED,
            k=wk_too_far),
    mistake("ho-v-not-normed", "v", "The values are projected from the block's input, without attn_norm.",
            v=lambda self, x, normed: self.linear(x, self.weight("wv"))),
    mistake("ho-q-scaled-early", "q", "q is divided by √D when it is projected, and the scores are divided by √D again.",
            q=lambda self, x, normed: self.linear(normed, self.weight("wq")) / math.sqrt(self.c.head_dim)),
    mistake("ho-w-gate-bytes", "gate", "w_gate's bytes are (in, out), and are read as (out, in).",
            gate=lambda self, a: bytes_transposed(self, a.ffn_norm, "w_gate")),
    mistake("ho-w-down-bytes", "ffn_out", "w_down's bytes are (in, out), and are read as (out, in).",
            ffn_out=lambda self, a: bytes_transposed(self, a.swiglu, "w_down")),
    mistake("ho-split-d-h", "q_rotated", "The width is cut as (D, H) instead of (H, D): a head has every H-th component.",
            split=lambda self, x, heads: x.view(self.B, self.T, self.c.head_dim, heads).permute(0, 3, 1, 2),
            instead={"qk-norm": "q_norm"}, where=but("mqa", "odd-sizes")),
    mistake("ho-split-time-first", "q_rotated", "q, k and v are read as (T, B, H, D), as in Megatron, but are (B, T, H, D).",
            split=lambda self, x, heads: x.view(self.T, self.B, heads, -1).permute(1, 2, 0, 3), instead={"qk-norm": "q_norm"}),
    mistake("ho-qk-norm-after-rope", "q_norm", "q and k are normalised after RoPE instead of before it.", QK,
            q_norm=lambda self, q: q, k_norm=lambda self, k: k,
            rotate_q=lambda self, q: self.rmsnorm(right("rotate_q")(self, q), self.weight("q_norm")),
            rotate_k=lambda self, k: self.rmsnorm(right("rotate_k")(self, k), self.weight("k_norm"))),
]  # fmt: skip

# ---------------------------------------------------------------- RoPE


def angles_of(self, positions, frequencies):
    angles = positions[..., None].to(self.dtype) * frequencies
    angles = angles[:, None] if angles.dim() == 3 else angles
    return angles.cos(), angles.sin()


def across_heads(self, x):
    """The pair's number counts through the whole width, not within a head."""
    heads, D = x.shape[1], self.c.head_dim
    exponents = torch.arange(0, heads * D, 2, dtype=self.dtype).view(heads, 1, -1) / (heads * D)
    positions = self.positions()[..., None].to(self.dtype)
    positions = positions[:, None] if positions.dim() == 3 else positions
    angles = positions * self.theta() ** -exponents
    return self.rotate(x, angles.cos(), angles.sin())


def flat_positions(self):
    return torch.arange(self.B * self.T).view(self.B, self.T)


def padding_at_1(self):
    """cumsum(mask) - 1, in which padding is filled with 1."""
    positions = right("positions")(self)
    return positions.masked_fill((self.segments == 0) & (self.segments != self.segments[:, -1:]), 1)


def half_rotary(self, x):
    """Only the first half of a head is rotated, as a smaller head."""
    D = self.c.head_dim
    some = D // 4 * 2
    exponents = torch.arange(0, some, 2, dtype=self.dtype) / some
    cos, sin = angles_of(self, self.positions(), self.theta() ** -exponents)
    return torch.cat([self.rotate(x[..., :some], cos, sin), x[..., some:]], -1)


def minus_on_wrong_half(self, x, cos, sin):
    x1, x2 = self.pairs(x)
    return self.joined(x1 * cos - x1 * sin, x2 * cos + x2 * sin)


def next_positions(self, q):
    return self.rotate(q, *angles_of(self, self.positions() + 1, self.frequencies()))


def turns_of_max_seq_len(self, frequencies):
    low, high = (self.c.rope_scaling[f"{name}_freq_factor"] for name in ("low", "high"))
    return ((self.c.max_seq_len / self.wavelength(frequencies) - low) / (high - low)).clamp(0, 1)


def yarn(self):
    cos, sin = right("cos_sin")(self)
    factor = 0.1 * math.log(self.c.rope_scaling["factor"]) + 1
    return cos * factor, sin * factor


def in_wavelengths(self, frequencies):
    """Linear between two wavelengths instead of between two frequencies."""
    s, waves = self.c.rope_scaling, self.wavelength(frequencies)
    low, high = (s["original_max_position_embeddings"] / s[f"{name}_freq_factor"] for name in ("low", "high"))
    share = ((waves - high) / (low - high)).clamp(0, 1)
    return frequencies / ((1 - share) + share * s["factor"])


def rope(key, sentence, where=NORMED, **methods):
    return mistake(key, "q_rotated", sentence, (*where, *QK) if where is NORMED else where, **methods)


ROPE = [
    rope("ho-rope-width", "The exponents are 2i/C instead of 2i/D.",
         exponents=lambda self: torch.arange(0, self.c.head_dim, 2, dtype=self.dtype) / self.w["embed"].shape[1]),
    rope("ho-rope-across-heads", "The exponents count through all heads: 2i/(H·D), i from 0 to H·D/2, so that heads differ.",
         rotate_q=across_heads, rotate_k=across_heads),
    rope("ho-rope-integer-division", "i / D is an integer division: all frequencies are 1.",
         exponents=lambda self: torch.zeros(self.c.head_dim // 2, dtype=self.dtype)),
    rope("ho-rope-inverted", "The exponents lack their minus: the angles grow with i.",
         exponents=lambda self: -right("exponents")(self)),
    rope("ho-rope-two-twice", "The exponents are 4i/D: arange(0, D, 2) is doubled again.",
         exponents=lambda self: 2 * right("exponents")(self)),
    rope("ho-rope-from-1", "i counts from 1: the exponents are 2/D to 1.",
         exponents=lambda self: torch.arange(2, self.c.head_dim + 2, 2, dtype=self.dtype) / self.c.head_dim),
    rope("ho-rope-timescales", "The exponents are i/(D/2 - 1), from 0 to 1, as in tensor2tensor.",
         exponents=lambda self: torch.linspace(0, 1, self.c.head_dim // 2, dtype=self.dtype)),
    rope("ho-rope-theta-500000", "rope_theta is 500000, whatever the configuration says.", theta=lambda self: 500000.0),
    rope("ho-rope-log10", "The frequencies are exp(-log10(theta)·2i/D).",
         theta=lambda self: math.exp(math.log10(self.c.rope_theta))),
    rope("ho-rope-flat-positions",
         "The position is the row's number in the flattened batch: the second sequence goes on at T.",
         positions=flat_positions),
    rope("ho-rope-padding-1", "Padding is at position 1.", ("padded",), positions=padding_at_1),
    rope("ho-rope-partial", "Only half of each head is rotated, as in GPT-J and GPT-NeoX.",
         rotate_q=half_rotary, rotate_k=half_rotary),
    rope("ho-rope-halves-not-exchanged", "rotate_half returns (-x1, x2): the halves are not exchanged.",
         rotate=minus_on_wrong_half),
    rope("ho-rope-queries-ahead", "The queries' positions are one too large, the keys' are right.", rotate_q=next_positions),
    mistake("ho-rope-keys-twice", "k_rotated", "The keys are rotated twice, before the cache and after it.",
            rotate_k=lambda self, k: self.rotate_q(self.rotate_q(k))),
    mistake("ho-rope-values-too", "head_outputs", "The values are rotated too.",
            repeated_v=lambda self, a: self.repeat(self.rotate_q(self.split(a.v, self.c.n_kv_heads)))),
    rope("ho-llama3-theta", "rope_theta is multiplied by the factor, and the frequencies are not rescaled.", SCALED,
         theta=lambda self: self.c.rope_theta * self.c.rope_scaling["factor"], rescale=lambda self, frequencies: frequencies),
    rope("ho-llama3-times", "Low frequencies are multiplied by the factor instead of divided.", SCALED,
         rescale=lambda self, f: self.smooth(f) * f + (1 - self.smooth(f)) * f * self.c.rope_scaling["factor"]),
    rope("ho-llama3-max-seq-len", "max_seq_len stands in place of the original length.", SCALED,
         smooth=turns_of_max_seq_len),
    rope("ho-llama3-wavelengths", "The middle band is linear in the wavelength instead of in its reciprocal.", SCALED,
         rescale=in_wavelengths),
    rope("ho-llama3-yarn", "cos and sin are multiplied by YaRN's 0.1 ln(factor) + 1.", SCALED, cos_sin=yarn),
]  # fmt: skip

FORWARD: list[Mistake] = [*EMBEDDING, *NORM, *PROJECTIONS, *ROPE, *ATTENTION, *FEED_FORWARD, *LOSS]
HOLDOUT = [*FORWARD, *BACKWARD]
