"""Mistakes from the embedding to the rotated queries and keys."""

import math

import torch
from parity.learn.planted import SQUARE, mistake

# ------------------------------------------------------------------------------------------------ embedding


def sinusoids(self):
    C = self.c.dim
    rates = 10000.0 ** (-torch.arange(0, C, 2, dtype=self.dtype) / C)
    angles = torch.arange(self.T, dtype=self.dtype)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[:, :C]


def padding_row(self):
    table = self.w["embed"].clone()
    table[0] = 0
    return table[self.tokens]


EMBEDDING = [
    mistake("embed-scaled", "embedding", "the embedding is multiplied by √C, as in Gemma",
            embed=lambda self: self.w["embed"][self.tokens] * math.sqrt(self.c.dim)),
    mistake("embed-next-row", "embedding", "each token takes the row after its own",
            embed=lambda self: self.w["embed"][(self.tokens + 1) % self.c.vocab_size]),
    mistake("embed-row-before", "embedding", "ids are taken to start at 1, so each token takes the row before its own",
            embed=lambda self: self.w["embed"][self.tokens - 1]),
    mistake("embed-of-targets", "embedding", "the targets are embedded in place of the tokens",
            embed=lambda self: self.w["embed"][self.targets.clamp(min=0)]),
    mistake("embed-positions-added", "embedding", "sinusoids are added to the embedding, besides RoPE",
            embed=lambda self: self.w["embed"][self.tokens] + sinusoids(self)),
    mistake("embed-padding-row", "embedding", "token 0 is taken for padding, whose row is zeros",
            ("mqa", "interleaved", "qk-norm"), embed=padding_row),
    mistake("embed-normalised", "embedding", "the embedding is normalised before the first block",
            embed=lambda self: (x := self.w["embed"][self.tokens]) * self.rstd(x)),
    mistake("embed-batch-mixed", "embedding", "the batch is read in column order: tokens of the two sequences alternate",
            embed=lambda self: self.w["embed"][self.tokens.T.reshape(self.B, self.T)]),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ RMSNorm


def mean_square(x, dims=-1):
    return x.pow(2).mean(dims, keepdim=True)


def centred(x):
    return x - x.mean(-1, keepdim=True)


NORM = [
    mistake("norm-eps-outside", "attn_norm", "eps is added to the root, not inside it",
            rstd=lambda self, x: 1 / (mean_square(x).sqrt() + self.eps())),
    mistake("norm-eps-missing", "attn_norm", "there is no eps", eps=lambda self: 0.0),
    mistake("norm-eps-1e-6", "attn_norm", "eps is a constant 1e-6", eps=lambda self: 1e-6),
    mistake("norm-eps-1e-8", "attn_norm", "eps is a constant 1e-8", eps=lambda self: 1e-8),
    mistake("norm-eps-1e-5", "attn_norm", "eps is a constant 1e-5", ("large-eps",), eps=lambda self: 1e-5),
    mistake("norm-eps-clamp", "attn_norm", "the root is at least eps; eps is not added",
            rstd=lambda self, x: 1 / mean_square(x).sqrt().clamp(min=self.eps())),
    mistake("norm-eps-twice", "attn_norm", "eps is added inside the root and to the root",
            rstd=lambda self, x: 1 / ((mean_square(x) + self.eps()).sqrt() + self.eps())),
    mistake("norm-layernorm", "attn_norm", "the mean is subtracted, as in LayerNorm",
            rmsnorm=lambda self, x, w: centred(x) * self.rstd(centred(x)) * w),
    mistake("norm-std", "attn_norm", "x is divided by its standard deviation, which subtracts the mean",
            rstd=lambda self, x: 1 / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + self.eps())),
    mistake("norm-unbiased", "attn_norm", "the mean of squares divides by C - 1",
            rstd=lambda self, x: 1 / torch.sqrt(x.pow(2).sum(-1, keepdim=True) / (x.shape[-1] - 1) + self.eps())),
    mistake("norm-sum", "attn_norm", "squares are summed, not averaged",
            rstd=lambda self, x: 1 / torch.sqrt(x.pow(2).sum(-1, keepdim=True) + self.eps())),
    mistake("norm-no-root", "attn_norm", "x is divided by the mean of squares, without a root",
            rstd=lambda self, x: 1 / (mean_square(x) + self.eps())),
    mistake("norm-absolute", "attn_norm", "x is divided by the mean of its absolute values",
            rstd=lambda self, x: 1 / (x.abs().mean(-1, keepdim=True) + self.eps())),
    mistake("norm-multiplied", "attn_norm", "x is multiplied by its RMS",
            rstd=lambda self, x: torch.sqrt(mean_square(x) + self.eps())),
    mistake("norm-over-tokens", "attn_norm", "the mean of squares is over a sequence's tokens",
            rstd=lambda self, x: 1 / torch.sqrt(mean_square(x, -2) + self.eps())),
    mistake("norm-over-sequence", "attn_norm", "the mean of squares is over all of a sequence, tokens and width",
            rstd=lambda self, x: 1 / torch.sqrt(mean_square(x, (-2, -1)) + self.eps())),
    mistake("norm-over-batch", "attn_norm", "the mean of squares is over the batch",
            rstd=lambda self, x: 1 / torch.sqrt(mean_square(x, 0) + self.eps())),
    mistake("norm-one-plus-gain", "attn_norm", "the gain is 1 + weight, as in Gemma",
            rmsnorm=lambda self, x, w: x * self.rstd(x) * (1 + w)),
    mistake("norm-no-gain", "attn_norm", "the gain is forgotten", rmsnorm=lambda self, x, w: x * self.rstd(x)),
    mistake("norm-gain-first", "attn_norm", "the gain is applied before the RMS is taken",
            rmsnorm=lambda self, x, w: x * w * self.rstd(x * w)),
    mistake("norm-gain-added", "attn_norm", "the gain is added as a bias", rmsnorm=lambda self, x, w: x * self.rstd(x) + w),
    mistake("norm-gains-exchanged", "attn_norm", "the gains of the two norms of a block are exchanged",
            attn_norm=lambda self, x: self.rmsnorm(x, self.weight("ffn_norm")),
            ffn_norm=lambda self, x, a: self.rmsnorm(a.after_attention, self.weight("attn_norm"))),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ order of layers


def blocks_with(input_of):
    """Blocks whose inputs are input_of(self, i, x, embedding)."""
    def blocks(self, embedding):
        self.inputs, self.acts, x = [], [], embedding
        for i in range(self.c.n_layers):
            self.i = i
            self.inputs.append(input_of(self, i, x, embedding))
            self.acts.append(self.block(self.inputs[-1]))
            x = self.acts[-1].after_ffn
        return x
    return blocks


def norm_before_last(self, i, x, embedding):
    return self.rmsnorm(x, self.w["norm"]) if i == self.c.n_layers - 1 else x


def weight_of_layer(number):
    return lambda self, name: self.w[f"blocks.{number(self)}.{name}"]


LAYERS = [
    mistake("layers-reversed", "attn_norm", "layers are applied in reverse order", same_as=("layers-share-last",),
            weight=weight_of_layer(lambda self: self.c.n_layers - 1 - self.i)),
    mistake("layers-share-first", "attn_norm", "every layer uses the first layer's weights",
            weight=weight_of_layer(lambda self: 0)),
    mistake("layers-share-last", "attn_norm", "every layer uses the last layer's weights", same_as=("layers-reversed",),
            weight=weight_of_layer(lambda self: self.c.n_layers - 1)),
    mistake("layers-read-embedding", "attn_norm", "every layer reads the embedding, not the layer before it",
            blocks=blocks_with(lambda self, i, x, embedding: embedding)),
    mistake("layers-embedding-added", "attn_norm", "the embedding is added again before every layer",
            blocks=blocks_with(lambda self, i, x, embedding: x + embedding)),
    mistake("layers-norm-before-last", "attn_norm", "the final norm stands before the last block",
            blocks=blocks_with(norm_before_last), norm=lambda self, x: x),
    mistake("attn-norm-missing", "attn_norm", "attention reads x without a norm", same_as=("post-norm",),
            attn_norm=lambda self, x: x),
    mistake("post-norm", "attn_norm", "norms stand after attention and feed-forward, as in the first transformer",
            same_as=("attn-norm-missing",), attn_norm=lambda self, x: x, ffn_norm=lambda self, x, a: a.after_attention,
            after_attention=lambda self, x, a: self.rmsnorm(x + a.attn_out, self.weight("attn_norm")),
            after_ffn=lambda self, x, a: self.rmsnorm(a.after_attention + a.ffn_out, self.weight("ffn_norm"))),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ projections and heads


def fused_by_head(self, x, normed):
    """Rows of a fused matrix taken as (H, 3, D): GPT-NeoX's order, but the rows are q's, k's, v's."""
    fused = self.linear(normed, torch.cat([self.weight("wq"), self.weight("wk"), self.weight("wv")]))
    return fused.view(self.B, self.T, self.c.n_heads, 3, self.c.head_dim)[..., 0, :].flatten(-2)


def halves_for_neighbours(self, name):
    """Rows of each head reordered as a conversion between the two layouts of RoPE does."""
    return self.weight(name).view(-1, 2, self.c.head_dim // 2, self.c.dim).transpose(1, 2).reshape(-1, self.c.dim)


PROJECTIONS = [
    mistake("q-k-exchanged", "q", "wq makes the keys and wk the queries", ("mha",),
            q=lambda self, x, n: self.linear(n, self.weight("wk")), k=lambda self, x, n: self.linear(n, self.weight("wq"))),
    mistake("wq-transposed", "q", "wq is not transposed", SQUARE, same_as=("wq-layout-of-buffer",),
            q=lambda self, x, n: n @ self.weight("wq")),
    mistake("wk-transposed", "k", "wk is not transposed", ("mha",), k=lambda self, x, n: n @ self.weight("wk")),
    mistake("wv-transposed", "v", "wv is not transposed", ("mha",), v=lambda self, x, n: n @ self.weight("wv")),
    mistake("wk-is-wq", "k", "wq makes the keys too", ("mha",), same_as=("wk-first-rows-of-wq",),
            k=lambda self, x, n: self.linear(n, self.weight("wq"))),
    mistake("wk-first-rows-of-wq", "k", "the keys are made by the first rows of wq",
            k=lambda self, x, n: self.linear(n, self.weight("wq")[: self.c.n_kv_heads * self.c.head_dim])),
    mistake("k-v-exchanged", "k", "wk makes the values and wv the keys",
            k=lambda self, x, n: self.linear(n, self.weight("wv")), v=lambda self, x, n: self.linear(n, self.weight("wk"))),
    mistake("v-is-k", "v", "wk makes the values too", v=lambda self, x, n: self.linear(n, self.weight("wk"))),
    mistake("q-unnormed", "q", "the queries are made of x before the norm",
            q=lambda self, x, n: self.linear(x, self.weight("wq"))),
    mistake("k-unnormed", "k", "the keys are made of x before the norm",
            k=lambda self, x, n: self.linear(x, self.weight("wk"))),
    mistake("v-unnormed", "v", "the values are made of x before the norm",
            v=lambda self, x, n: self.linear(x, self.weight("wv"))),
    mistake("qkv-by-head", "q", "a fused matrix of wq, wk and wv is split by head", ("mha",), q=fused_by_head),
    mistake("wq-permuted", "q", "the rows of wq and wk are reordered, as if the file had RoPE's other layout",
            q=lambda self, x, n: self.linear(n, halves_for_neighbours(self, "wq")),
            k=lambda self, x, n: self.linear(n, halves_for_neighbours(self, "wk"))),
    mistake("wq-layout-of-buffer", "q", "wq is stored as (in, out), but read as (out, in): the numbers stay where they are",
            q=lambda self, x, n: n @ self.weight("wq").reshape(self.c.dim, -1)),
    mistake("heads-not-transposed", "q_rotated", "(B, T, H·D) is reshaped to (B, H, T, D) without a transpose",
            instead={"qk-norm": "q_norm"}, split=lambda self, x, heads: x.reshape(self.B, heads, self.T, self.c.head_dim)),
    mistake("heads-strided", "q_rotated", "components of a head are H apart: (B, T, D, H) in place of (B, T, H, D)",
            instead={"qk-norm": "q_norm"},
            split=lambda self, x, heads: x.view(self.B, self.T, self.c.head_dim, heads).permute(0, 3, 1, 2)),
    mistake("qk-norm-missing", "q_norm", "queries and keys have no norm", ("qk-norm",),
            q_norm=lambda self, q: q, k_norm=lambda self, k: k),
    mistake("k-norm-missing", "k_norm", "keys have no norm", ("qk-norm",), k_norm=lambda self, k: k),
    mistake("qk-norm-no-gain", "q_norm", "the norms of queries and keys have no gain", ("qk-norm",),
            q_norm=lambda self, q: q * self.rstd(q), k_norm=lambda self, k: k * self.rstd(k)),
    mistake("qk-norm-gains-exchanged", "q_norm", "the gains of q_norm and k_norm are exchanged", ("qk-norm",),
            q_norm=lambda self, q: self.rmsnorm(q, self.weight("k_norm")),
            k_norm=lambda self, k: self.rmsnorm(k, self.weight("q_norm"))),
    mistake("k-norm-with-q-gain", "k_norm", "the keys' norm has the queries' gain", ("qk-norm",),
            k_norm=lambda self, k: self.rmsnorm(k, self.weight("q_norm"))),
    mistake("qk-norm-over-width", "q_norm", "the RMS is over all heads together", ("qk-norm",),
            q_norm=lambda self, q: q / torch.sqrt(mean_square(q, (1, 3)) + self.eps()) * self.weight("q_norm"),
            k_norm=lambda self, k: k / torch.sqrt(mean_square(k, (1, 3)) + self.eps()) * self.weight("k_norm")),
    mistake("qk-norm-l2", "q_norm", "queries and keys get length 1 in place of RMS 1", ("qk-norm",),
            q_norm=lambda self, q: q / q.norm(dim=-1, keepdim=True) * self.weight("q_norm"),
            k_norm=lambda self, k: k / k.norm(dim=-1, keepdim=True) * self.weight("k_norm")),
    mistake("qk-norm-after-rope", "q_norm", "queries and keys are rotated before their norm", ("qk-norm",),
            q_norm=lambda self, q: self.rmsnorm(self.rotate(q, *self.cos_sin()), self.weight("q_norm")),
            rotate_q=lambda self, q: q,
            k_norm=lambda self, k: self.rmsnorm(self.rotate(k, *self.cos_sin()), self.weight("k_norm")),
            rotate_k=lambda self, k: k),
]  # fmt: skip

INPUTS = [*EMBEDDING, *NORM, *LAYERS, *PROJECTIONS]
