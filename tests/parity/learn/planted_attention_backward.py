"""Mistakes of attention's gradients and of those below it, after a right forward."""

import torch
from parity.learn.planted import DOCUMENTS, GROUPED, but, mistake, right

MULTI = but("mqa", "odd-sizes")                                        # several key heads
SHARED = but("mha")                                                    # query heads share key heads
QUERIES, KEYS = {"qk-norm": "d q_norm"}, {"qk-norm": "d k_norm"}       # the norms come between RoPE and q, k


def tiled(self, x):
    return x.repeat(1, self.c.n_heads // self.c.n_kv_heads, 1, 1)


def tile_groups(self, x):
    """Groups as tiling would make them: (R, K) in place of (K, R)."""
    return x.view(self.B, -1, self.c.n_kv_heads, self.T, self.c.head_dim).sum(1)


def split(self, x):
    return self.split(x, self.c.n_kv_heads)


def repeated_keys(self, a):
    """Unrotated."""
    return self.repeat(a.k_norm if self.c.qk_norm else split(self, a.k))


# ------------------------------------------------------------------------------------------------ values and softmax


def softmax_dx(dx):
    """dx(dp, p, scores)."""
    return lambda self, dp, p, scores: dx(dp, p, scores)


def total(x, dim=-1):
    return x.sum(dim, keepdim=True)


def recomputed(self, dp, p, scores):
    """Softmax computed again from the scores, without the mask."""
    p = self.softmax(scores)
    return p * (dp - total(dp * p))


SOFTMAX = [
    mistake("d-heads-not-transposed", "d head_outputs", "the gradient is reshaped to heads without a transpose",
            merge_backward=lambda self, x: x.reshape(self.B, self.c.n_heads, self.T, self.c.head_dim)),
    mistake("d-attention-values-tiled", "d attention", "the values are tiled (0 1 0 1) in place of repeated (0 0 1 1)",
            GROUPED,
            d_attention=lambda self, dout, v: dout @ tiled(self, split(self, self.acts[self.i].v)).transpose(-2, -1)),
    mistake("d-attention-transposed", "d attention", "rows are keys: v·dout in place of dout·v",
            d_attention=lambda self, dout, v: v @ dout.transpose(-2, -1)),
    mistake("d-attention-scaled", "d attention", "the gradient is divided by √D here, and once more below",
            d_attention=lambda self, dout, v: dout @ v.transpose(-2, -1) * self.scale()),
    mistake("d-attention-keys", "d attention", "the keys stand for the values",
            d_attention=lambda self, dout, v: dout @ self.repeated_k(self.acts[self.i]).transpose(-2, -1)),
    mistake("d-softmax-no-sum", "d scores", "the sum over the row is forgotten: p·dp",
            softmax_backward=softmax_dx(lambda dp, p, s: p * dp)),
    mistake("d-softmax-diagonal", "d scores", "only the diagonal of the Jacobian: p(1 - p)·dp",
            softmax_backward=softmax_dx(lambda dp, p, s: p * (1 - p) * dp)),
    mistake("d-softmax-over-queries", "d scores", "the sum is over queries",
            softmax_backward=softmax_dx(lambda dp, p, s: p * (dp - total(dp * p, -2)))),
    mistake("d-softmax-over-heads", "d scores", "the sum is over heads",
            softmax_backward=softmax_dx(lambda dp, p, s: p * (dp - total(dp * p, 1)))),
    mistake("d-softmax-mean", "d scores", "the row has a mean in place of a sum",
            softmax_backward=softmax_dx(lambda dp, p, s: p * (dp - (dp * p).mean(-1, keepdim=True)))),
    mistake("d-softmax-sum-unweighted", "d scores", "the row's sum lacks the factor p",
            softmax_backward=softmax_dx(lambda dp, p, s: p * (dp - total(dp)))),
    mistake("d-softmax-sum-added", "d scores", "the row's sum is added",
            softmax_backward=softmax_dx(lambda dp, p, s: p * (dp + total(dp * p)))),
    mistake("d-softmax-sum-outside", "d scores", "the row's sum is not multiplied by p",
            softmax_backward=softmax_dx(lambda dp, p, s: p * dp - total(dp * p))),
    mistake("d-softmax-squared", "d scores", "the second term has p once too often: p·dp - p²·sum",
            softmax_backward=softmax_dx(lambda dp, p, s: p * dp - p * p * total(dp * p))),
    mistake("d-softmax-of-scores", "d scores", "the scores stand for the probabilities",
            softmax_backward=softmax_dx(lambda dp, p, s: s * (dp - total(dp * s)))),
    mistake("d-softmax-skipped", "d scores", "the softmax has no backward", softmax_backward=softmax_dx(lambda dp, p, s: dp)),
    mistake("d-softmax-cross-entropy", "d scores", "p - dp, as for a cross-entropy",
            softmax_backward=softmax_dx(lambda dp, p, s: p - dp)),
    mistake("d-softmax-unmasked", "d scores", "probabilities are computed again, without the mask",
            softmax_backward=recomputed),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ queries, keys, values

PRODUCTS = [
    mistake("d-q-no-scale", "d q_rotated", "the queries' gradient is not divided by √D", same_as=("d-scale-missing",),
            dq=lambda self, ds, k, a: ds @ k),
    mistake("d-q-scale-twice", "d q_rotated", "the queries' gradient is divided by D",
            dq=lambda self, ds, k, a: ds @ k * self.scale() ** 2),
    mistake("d-scale-missing", "d q_rotated", "the gradients of queries and keys are not divided by √D",
            same_as=("d-q-no-scale",),
            dq=lambda self, ds, k, a: ds @ k, dk=lambda self, ds, q, a: ds.transpose(-2, -1) @ q),
    mistake("d-q-transposed", "d q_rotated", "the queries' gradient uses the transposed gradient of the scores",
            dq=lambda self, ds, k, a: ds.transpose(-2, -1) @ k * self.scale()),
    mistake("d-q-of-queries", "d q_rotated", "the queries' gradient uses the queries in place of the keys",
            dq=lambda self, ds, k, a: ds @ a.q_rotated * self.scale()),
    mistake("d-q-keys-unrotated", "d q_rotated", "the queries' gradient uses the keys before RoPE",
            dq=lambda self, ds, k, a: ds @ repeated_keys(self, a) * self.scale()),
    mistake("d-q-keys-tiled", "d q_rotated", "the queries' gradient uses tiled keys (0 1 0 1)", GROUPED,
            dq=lambda self, ds, k, a: ds @ tiled(self, a.k_rotated) * self.scale()),
    mistake("d-q-attention", "d q_rotated", "the attention stands for the gradient of the scores",
            dq=lambda self, ds, k, a: a.attention @ k * self.scale()),
    mistake("d-k-no-scale", "d k_rotated", "the keys' gradient is not divided by √D",
            dk=lambda self, ds, q, a: ds.transpose(-2, -1) @ q),
    mistake("d-k-not-transposed", "d k_rotated", "the gradient of the scores is not transposed",
            dk=lambda self, ds, q, a: ds @ q * self.scale()),
    mistake("d-k-reshaped", "d k_rotated", "(D, T) is reshaped to (T, D) in place of transposed",
            dk=lambda self, ds, q, a: (q.transpose(-2, -1) @ ds).reshape(q.shape) * self.scale()),
    mistake("d-k-of-keys", "d k_rotated", "the keys' gradient uses the keys in place of the queries",
            dk=lambda self, ds, q, a: ds.transpose(-2, -1) @ self.repeated_k(a) * self.scale()),
    mistake("d-k-queries-unrotated", "d k_rotated", "the keys' gradient uses the queries before RoPE",
            dk=lambda self, ds, q, a: ds.transpose(-2, -1) @ (
                a.q_norm if self.c.qk_norm else self.split(a.q, self.c.n_heads)) * self.scale()),
    mistake("d-k-first-of-group", "d k_rotated", "a key head gets the gradient of its first query head only", SHARED,
            sum_dk=lambda self, dk: self.groups(dk)[:, :, 0]),
    mistake("d-k-last-of-group", "d k_rotated", "a key head's gradient is overwritten by each of its query heads", SHARED,
            sum_dk=lambda self, dk: self.groups(dk)[:, :, -1]),
    mistake("d-k-mean-of-group", "d k_rotated", "a key head's gradient is the mean over its query heads", SHARED,
            sum_dk=lambda self, dk: self.groups(dk).mean(2)),
    mistake("d-k-tiled", "d k_rotated", "query heads are summed as if key heads had been tiled (0 1 0 1)", GROUPED,
            sum_dk=tile_groups),
    mistake("d-v-not-transposed", "d v", "the attention is not transposed", dv=lambda self, dout, p, a: p @ dout),
    mistake("d-v-scores", "d v", "the scores stand for the attention",
            dv=lambda self, dout, p, a: a.scores.transpose(-2, -1) @ dout),
    mistake("d-v-scaled", "d v", "the values' gradient is divided by √D",
            dv=lambda self, dout, p, a: p.transpose(-2, -1) @ dout * self.scale()),
    mistake("d-v-values", "d v", "the head outputs stand for their gradient",
            dv=lambda self, dout, p, a: p.transpose(-2, -1) @ a.head_outputs),
    mistake("d-v-first-of-group", "d v", "a value head gets the gradient of its first query head only", SHARED,
            sum_dv=lambda self, dv: self.groups(dv)[:, :, 0]),
    mistake("d-v-last-of-group", "d v", "a value head's gradient is overwritten by each of its query heads", SHARED,
            sum_dv=lambda self, dv: self.groups(dv)[:, :, -1]),
    mistake("d-v-mean-of-group", "d v", "a value head's gradient is the mean over its query heads", SHARED,
            sum_dv=lambda self, dv: self.groups(dv).mean(2)),
    mistake("d-v-tiled", "d v", "query heads are summed as if value heads had been tiled (0 1 0 1)", GROUPED,
            sum_dv=tile_groups),
    mistake("d-v-rotated", "d v", "the values' gradient is rotated back, as the keys' is",
            sum_dv=lambda self, dv: self.rotate_back(right("sum_dv")(self, dv))),
    mistake("d-merge-not-transposed", "d v", "heads are merged without a transpose in backward",
            instead={"mqa": "d q", "odd-sizes": "d q"}, split_backward=lambda self, x: x.reshape(self.B, self.T, -1)),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ RoPE and the norms of q and k


def exchanged(self, dx):
    cos, sin = self.cos_sin()
    return self.rotate(dx, sin, -cos)


def in_place(self, dx):
    cos, sin = self.cos_sin()
    d1, d2 = self.pairs(dx)
    d1 = d1 * cos + d2 * sin
    return self.joined(d1, d2 * cos - d1 * sin)


def other_layout(self, dx):
    cos, sin = self.cos_sin()
    half = self.c.rope_layout == "half"
    d1, d2 = (dx[..., 0::2], dx[..., 1::2]) if half else dx.chunk(2, -1)
    d1, d2 = d1 * cos + d2 * sin, d2 * cos - d1 * sin
    return torch.stack([d1, d2], -1).flatten(-2) if half else torch.cat([d1, d2], -1)


def without_documents(self, dx):
    angles = torch.arange(self.T)[:, None].to(self.dtype) * self.frequencies()
    return self.rotate(dx, angles.cos(), -angles.sin())


def forward_again(self, dx):
    return self.rotate(dx, *self.cos_sin())


def norm_backward(change):
    """norm_backward of the right subject with other arguments: change(name, dout, x)."""
    return lambda self, g, dout, x, name: right("norm_backward")(self, g, *change(name, dout, x), name)


def gain_of_queries(self, name):
    return self.weight("q_norm" if name == "k_norm" else name)


def per_head(reduce):
    """The gain's gradient of q_norm and k_norm, whose rows are (B, heads, T)."""
    def rmsnorm_dw(self, dout, x, weight):
        dw = dout * x * self.rstd(x)
        return reduce(dw) if dw.dim() == 4 else dw.flatten(0, -2).sum(0)
    return rmsnorm_dw


def norm_skipped(*names):
    def norm_backward(self, g, dout, x, name):
        dx = right("norm_backward")(self, g, dout, x, name)
        return dout if name in names else dx
    return norm_backward


BELOW = [
    mistake("d-rope-forward", "d q", "gradients are rotated forward in place of back", instead=QUERIES,
            rotate_back=forward_again),
    mistake("d-rope-missing", "d q", "gradients are not rotated", instead=QUERIES, same_as=("d-rope-only-k",),
            rotate_back=lambda self, dx: dx),
    mistake("d-rope-layout", "d q", "gradients are rotated in the other layout", instead=QUERIES, rotate_back=other_layout),
    mistake("d-rope-exchanged", "d q", "cos and sin are exchanged in backward", instead=QUERIES, rotate_back=exchanged),
    mistake("d-rope-in-place", "d q", "the first component is overwritten before the second one reads it", instead=QUERIES,
            rotate_back=in_place),
    mistake("d-rope-documents", "d q", "backward's positions go on from one document to the next", DOCUMENTS,
            rotate_back=without_documents),
    mistake("d-rope-only-k", "d q", "the queries' gradient is not rotated", instead=QUERIES, same_as=("d-rope-missing",),
            rotate_back_q=lambda self, dq: dq),
    mistake("d-rope-only-q", "d k", "the keys' gradient is not rotated", instead=KEYS, rotate_back_k=lambda self, dk: dk),
    mistake("d-rope-k-forward", "d k", "the keys' gradient is rotated forward", instead=KEYS, rotate_back_k=forward_again),
    mistake("d-qk-norm-missing", "d q", "the norms of queries and keys have no backward", ("qk-norm",),
            norm_backward=norm_skipped("q_norm", "k_norm")),
    mistake("d-k-norm-missing", "d k", "the keys' norm has no backward", ("qk-norm",), norm_backward=norm_skipped("k_norm")),
    mistake("d-k-norm-with-q-gain", "d k", "the keys' norm has the queries' gain in backward", ("qk-norm",),
            weight_in_backward=gain_of_queries),
    mistake("d-qk-gain-mean-of-heads", "d_weights q_norm", "gains of queries and keys get the mean over heads", ("qk-norm",),
            rmsnorm_dw=per_head(lambda dw: dw.mean(1).flatten(0, -2).sum(0))),
    mistake("d-qk-gain-last-head", "d_weights q_norm", "gains of queries and keys get the gradient of the last head",
            ("qk-norm",),
            rmsnorm_dw=per_head(lambda dw: dw[:, -1].flatten(0, -2).sum(0))),
    mistake("d-qk-norm-rotated", "d_weights q_norm", "the norms' backward reads values after RoPE", ("qk-norm",),
            norm_backward=lambda self, g, dout, x, name: right("norm_backward")(
                self, g, dout,
                self.acts[self.i].__dict__[name.replace("norm", "rotated")] if name in ("q_norm", "k_norm") else x, name)),
    mistake("d-attn-norm-no-v", "d attn_norm", "the values' gradient is not added", d_attn_norm=lambda self, q, k, v: q + k),
    mistake("d-attn-norm-no-k", "d attn_norm", "the keys' gradient is not added", d_attn_norm=lambda self, q, k, v: q + v),
    mistake("d-attn-norm-no-q", "d attn_norm", "the queries' gradient is not added", d_attn_norm=lambda self, q, k, v: k + v),
    mistake("d-attn-norm-only-q", "d attn_norm", "only the queries' gradient goes down", d_attn_norm=lambda self, q, k, v: q),
    mistake("d-attn-norm-only-v", "d attn_norm", "only the values' gradient goes down", d_attn_norm=lambda self, q, k, v: v),
    mistake("d-attn-norm-mean", "d attn_norm", "the three gradients are averaged",
            d_attn_norm=lambda self, q, k, v: (q + k + v) / 3),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ embedding


def rows(self, ids, dout):
    return torch.zeros_like(self.w["embed"]).index_add_(0, ids.flatten(), dout.flatten(0, 1))


def first_only(self, dout):
    dembed, seen = torch.zeros_like(self.w["embed"]), set()
    for b in range(self.B):
        for t in range(self.T):
            if (token := self.tokens[b, t].item()) not in seen:
                dembed[token] = dout[b, t]
                seen.add(token)
    return dembed


def overwritten(self, dout):
    dembed = torch.zeros_like(self.w["embed"])
    for b in range(self.B):
        for t in range(self.T):
            dembed[self.tokens[b, t]] = dout[b, t]
    return dembed


def averaged(self, dout):
    counts = torch.bincount(self.tokens.flatten(), minlength=self.c.vocab_size).clamp(min=1)
    return rows(self, self.tokens, dout) / counts[:, None]


def last_sequence(self, dout):
    return rows(self, self.tokens[-1:], dout[-1:])


def without_row_0(self, dout):
    dembed = rows(self, self.tokens, dout)
    dembed[0] = 0
    return dembed


EMBEDDING = [
    mistake("d-embed-overwritten", "d_weights embed", "a token's row is overwritten where the token is repeated",
            embed_backward=overwritten),
    mistake("d-embed-first", "d_weights embed", "a token's row gets the gradient of its first place only",
            embed_backward=first_only),
    mistake("d-embed-mean", "d_weights embed", "a token's row gets the mean over its places", embed_backward=averaged),
    mistake("d-embed-mean-of-batch", "d_weights embed", "the embedding's gradient is averaged over the batch",
            embed_backward=lambda self, dout: rows(self, self.tokens, dout) / self.B),
    mistake("d-embed-next-row", "d_weights embed", "each gradient goes to the row after its token's",
            embed_backward=lambda self, dout: rows(self, (self.tokens + 1) % self.c.vocab_size, dout)),
    mistake("d-embed-targets", "d_weights embed", "each gradient goes to the target's row",
            embed_backward=lambda self, dout: rows(self, self.targets.clamp(min=0), dout)),
    mistake("d-embed-last-sequence", "d_weights embed", "the embedding gets the last sequence's gradient only",
            embed_backward=last_sequence),
    mistake("d-embed-row-0", "d_weights embed", "row 0 is taken for padding and gets no gradient",
            ("mqa", "interleaved", "qk-norm"), embed_backward=without_row_0),
    mistake("d-embed-ignored", "d_weights embed", "tokens whose targets are ignored give no gradient to their rows",
            ("ignored",),
            embed_backward=lambda self, dout: rows(self, self.tokens, dout * self.counted()[..., None])),
    mistake("d-tied-no-head", "d_weights embed", "the tied matrix lacks the head's gradient", ("tied",),
            tied_backward=lambda self, head, embed: embed),
    mistake("d-tied-only-head", "d_weights embed", "the tied matrix has the head's gradient only", ("tied",),
            tied_backward=lambda self, head, embed: head),
    mistake("d-tied-mean", "d_weights embed", "the tied matrix gets the mean of both gradients", ("tied",),
            tied_backward=lambda self, head, embed: (head + embed) / 2),
    mistake("d-tied-head-twice", "d_weights embed", "the head's gradient is added twice", ("tied",),
            tied_backward=lambda self, head, embed: 2 * head + embed),
]  # fmt: skip

ATTENTION_DOWN = [*SOFTMAX, *PRODUCTS, *BELOW, *EMBEDDING]
