"""The hold-out set's mistakes in the gradients: see planted_holdout.py."""

import math

import torch
from parity.learn.planted import ALL, DOCUMENTS, GROUPED, IGNORED, SQUARE, Mistake, but, mistake, right

SCALED, QK, REPEATED = ("llama3-scaling",), ("qk-norm",), but("mha")


# ---------------------------------------------------------------- loss, head


def divided_early(self, logits):
    """p / n, from which 1 is subtracted at the target instead of 1 / n."""
    counted = self.counted()
    return (self.softmax(logits) / counted.sum() - self.one_hot()) * counted[..., None]


def through_softmax_again(self, logits):
    p, d = self.softmax(logits), right("loss_backward")(self, logits)
    return p * (d - (d * p).sum(-1, keepdim=True))


def last_layer_input(self, dout, x, name):
    return right("linear_dw")(self, dout, self.last if name == "head" else x, name)


LOSS = [
    mistake("ho-dlogits-over-batch", "d logits", "The logits' gradient is divided by B instead of by the number of targets.",
            loss_backward=lambda self, logits: (self.softmax(logits) - self.one_hot()) * self.counted()[..., None] / self.B),
    mistake("ho-dlogits-ignored", "d logits", "Ignored targets keep the softmax as their gradient: only the 1 is left out.",
            IGNORED,
            loss_backward=lambda self, logits: (
                self.softmax(logits) - self.one_hot() * self.counted()[..., None]) / self.counted().sum()),
    mistake("ho-dlogits-of-tokens", "d logits", "1 is subtracted at the input's token instead of at the target.",
            one_hot=lambda self: torch.nn.functional.one_hot(self.tokens, self.c.vocab_size).to(self.dtype)),
    mistake("ho-dlogits-divided-early", "d logits",
            "The probabilities are divided by the number of targets before 1 is subtracted.",
            loss_backward=divided_early),
    mistake("ho-dlogits-softmax-again", "d logits", "p - y goes through the softmax's backward once more.",
            loss_backward=through_softmax_again),
    mistake("ho-dlogits-no-softmax", "d logits", "The logits stand in place of their softmax: logits - y.",
            loss_backward=lambda self, logits: (logits - self.one_hot()) * self.counted()[..., None] / self.counted().sum()),
    mistake("ho-dhead-not-normed", "d_weights head", "The head's gradient has the last norm's input instead of its output.",
            linear_dw=last_layer_input, where=but("tied")),
]  # fmt: skip

# ---------------------------------------------------------------- linear


def last_row_only(self, dout, x, name):
    """= in place of += in the loop over tokens."""
    return dout.flatten(0, -2)[-1:].T @ x.flatten(0, -2)[-1:]


def block_input_for_qkv(self, g, dout, x, name):
    return right("project_backward")(self, g, dout, self.inputs[self.i] if name in ("wq", "wk", "wv") else x, name)


def silu_for_w_down(self, dout, x, name):
    return right("linear_dw")(self, dout, self.activation(self.acts[self.i].gate) if name == "w_down" else x, name)


def gate_through_w_up(self, g, dout, x, name):
    dx = right("project_backward")(self, g, dout, x, name)
    return self.linear_dx(dout, self.weight("w_up"), name) if name == "w_gate" else dx


def not_zeroed(self, g, dout, x, name):
    """One buffer for all layers, which is not zeroed between them."""
    dx = right("project_backward")(self, g, dout, x, name)
    if self.i + 1 < self.c.n_layers:
        setattr(g, name, getattr(g, name) + self.dump[f"d_weights/blocks.{self.i + 1}.{name}"])
    return dx


def wo_transposed(self, dout, weight, name):
    return dout @ (weight.T if name == "wo" else weight)


LINEAR = [
    mistake("ho-dw-mean", "d_weights head", "A weight's gradient is the mean over the tokens instead of their sum.",
            linear_dw=lambda self, dout, x, name: dout.flatten(0, -2).T @ x.flatten(0, -2) / (self.B * self.T),
            instead={"tied": "d_weights w_down"}),
    mistake("ho-dw-over-batch", "d_weights w_down", "A block's weight gradients are divided by B once more.",
            linear_dw=lambda self, dout, x, name: right("linear_dw")(self, dout, x, name) / (1 if name == "head" else self.B)),
    mistake("ho-dw-last-token", "d_weights head", "A weight's gradient is the last token's only: = in place of +=.",
            linear_dw=last_row_only, instead={"tied": "d_weights w_down"}),
    mistake("ho-dqkv-block-input", "d_weights wq", "The gradients of wq, wk and wv have the block's input, before attn_norm.",
            project_backward=block_input_for_qkv),
    mistake("ho-dw-down-without-up", "d_weights w_down", "w_down's gradient has silu(gate) in place of silu(gate)·up.",
            linear_dw=silu_for_w_down),
    mistake("ho-dwo-not-merged", "d_weights wo", "wo's gradient has the heads' outputs reshaped without a transpose.",
            wo_input=lambda self, a: a.head_outputs.reshape(self.B, self.T, -1)),
    mistake("ho-dgate-through-w-up", "d ffn_norm", "The gate's gradient goes back through w_up.",
            project_backward=gate_through_w_up),
    mistake("ho-dw-not-zeroed", "d_weights w_down", "Layers share a buffer of gradients: layer 0's contain layer 1's.",
            project_backward=not_zeroed),
    mistake("ho-dwo-transposed", "d head_outputs",
            "The gradient goes back through wo as it goes forward: the weight is transposed.", SQUARE,
            linear_dx=wo_transposed),
]  # fmt: skip

# ---------------------------------------------------------------- RMSNorm


def norm_dx(rule):
    """rmsnorm_dx by a rule of (r: rstd, n: x·rstd, dn: dout·weight, w, x)."""

    def rmsnorm_dx(self, dout, x, weight):
        r = self.rstd(x)
        return rule(r, x * r, dout * weight, weight, x)

    return rmsnorm_dx


def mean(x):
    return x.mean(-1, keepdim=True)


def residual_before_norm(self, dout, from_norm):
    """The residual's gradient is added before the norm's backward."""
    both = dout + self.dump[f"d_values/layer.{self.i}.ffn_norm"]
    return self.rmsnorm_dx(both, self.acts[self.i].after_attention, self.weight("ffn_norm"))


def stale_rstd(self, g, dout, x, name):
    """Both norms of a block share one array of rstd, which the second forward has overwritten."""
    if name != "attn_norm":
        return right("norm_backward")(self, g, dout, x, name)
    r, weight = self.rstd(self.acts[self.i].after_attention), self.weight(name)
    n, dn = x * r, dout * weight
    setattr(g, name, (dout * n).flatten(0, -2).sum(0))
    return r * (dn - n * mean(dn * n))


def without_eps(self, dout, x, weight):
    r = torch.rsqrt(mean(x * x))
    n, dn = x * r, dout * weight
    return r * (dn - n * mean(dn * n))


def norm(key, sentence, rule):
    """The last norm's gradient comes first."""
    return mistake(key, "d after_ffn", sentence, rmsnorm_dx=norm_dx(rule))


def gain(key, sentence, **methods):
    return mistake(key, "d_weights norm", sentence, **methods)


NORM = [
    norm("ho-dnorm-no-gain", "dx lacks the gain: dn = dout.", lambda r, n, dn, w, x: r * (dn / w - n * mean(dn / w * n))),
    norm("ho-dnorm-sum", "The second term has a sum over the width in place of its mean.",
         lambda r, n, dn, w, x: r * (dn - n * (dn * n).sum(-1, keepdim=True))),
    norm("ho-dnorm-r-squared", "The second term has rstd² in place of rstd³.",
         lambda r, n, dn, w, x: r * dn - r**2 * x * mean(dn * x)),
    norm("ho-dnorm-plus", "The second term is added instead of subtracted.",
         lambda r, n, dn, w, x: r * (dn + n * mean(dn * n))),
    norm("ho-dnorm-layernorm", "dx is LayerNorm's: the mean of dn is subtracted too.",
         lambda r, n, dn, w, x: r * (dn - mean(dn) - n * mean(dn * n))),
    norm("ho-dnorm-gain-twice", "dx is multiplied by the gain twice.", lambda r, n, dn, w, x: w * r * (dn - n * mean(dn * n))),
    norm("ho-dnorm-of-output", "n is the norm's output, gain included, in the second term.",
         lambda r, n, dn, w, x: r * (dn - n * w * mean(dn * n * w))),
    norm("ho-dnorm-gain-outside-mean", "The mean in the second term has dout in place of dout times the gain.",
         lambda r, n, dn, w, x: r * (dn - n * mean(dn / w * n))),
    mistake("ho-dnorm-no-eps", "d after_ffn", "The backward's rstd lacks eps.", ("large-eps",), rmsnorm_dx=without_eps),
    mistake("ho-dnorm-residual-first", "d after_attention", "The residual's gradient is added before the norm's backward.",
            d_after_attention=residual_before_norm),
    mistake("ho-dnorm-stale-rstd", "d_weights attn_norm", "attn_norm's backward has ffn_norm's rstd: they share an array.",
            norm_backward=stale_rstd),
    gain("ho-dgain-no-rstd", "The gain's gradient has x in place of x·rstd.",
         rmsnorm_dw=lambda self, dout, x, weight: (dout * x).flatten(0, -2).sum(0)),
    gain("ho-dgain-times-gain", "The gain's gradient is multiplied by the gain.",
         rmsnorm_dw=lambda self, dout, x, weight: (dout * weight * x * self.rstd(x)).flatten(0, -2).sum(0)),
    gain("ho-dgain-zero", "The gain's gradient is never written: zeros.",
         rmsnorm_dw=lambda self, dout, x, weight: torch.zeros_like(weight)),
    gain("ho-dgain-last-sequence", "The gain's gradient is that of the batch's last sequence only.",
         rmsnorm_dw=lambda self, dout, x, weight: (dout * x * self.rstd(x))[-1].flatten(0, -2).sum(0)),
]  # fmt: skip

# ---------------------------------------------------------------- feed-forward, residual stream


def gelu_slope(self, x):
    c = math.sqrt(2 / math.pi)
    t = torch.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)


def slope(key, sentence, rule):
    """silu's derivative by a rule of (x, s: sigmoid(x))."""
    return mistake(key, "d gate", sentence, activation_backward=lambda self, x: rule(x, torch.sigmoid(x)))


FEED_FORWARD = [
    slope("ho-dsilu-no-sigmoid", "silu's derivative lacks its sigmoid: 1 + x(1 - s).", lambda x, s: 1 + x * (1 - s)),
    slope("ho-dsilu-no-x", "silu's derivative lacks its x: s + s(1 - s).", lambda x, s: s + s * (1 - s)),
    slope("ho-dsilu-s", "silu's derivative has s in place of 1 - s: s(1 + x·s).", lambda x, s: s * (1 + x * s)),
    slope("ho-dsilu-minus", "silu's derivative is s(1 - x(1 - s)).", lambda x, s: s * (1 - x * (1 - s))),
    mistake("ho-dsilu-of-output", "d gate", "silu's derivative is taken at silu(gate), which has overwritten the gate.",
            dgate=lambda self, dout, gate, up: dout * up * self.activation_backward(self.activation(gate))),
    mistake("ho-dsilu-gelu", "d gate", "The derivative is that of GELU (tanh), the forward has silu.",
            activation_backward=gelu_slope),
    mistake("ho-dgate-dup-exchanged", "d gate", "The gradients of gate and up are stored in each other's place.",
            dgate=lambda self, dout, gate, up: right("dup")(self, dout, gate, up),
            dup=lambda self, dout, gate, up: right("dgate")(self, dout, gate, up)),
    mistake("ho-dgate-gate", "d gate", "The gate's gradient is multiplied by the gate instead of by up.",
            dgate=lambda self, dout, gate, up: dout * gate * self.activation_backward(gate)),
    mistake("ho-dup-gate", "d up", "The gradient of up has the gate in place of silu(gate).",
            dup=lambda self, dout, gate, up: dout * gate),
    mistake("ho-dffn-norm-overwritten", "d ffn_norm", "The gradient through w_up overwrites the one through w_gate.",
            d_ffn_norm=lambda self, from_gate, from_up: from_up),
    mistake("ho-dattn-norm-values-only", "d attn_norm", "The gradient through wv overwrites those through wq and wk.",
            d_attn_norm=lambda self, from_q, from_k, from_v: from_v),
    mistake("ho-dresidual-twice", "d after_attention", "The residual's gradient is added twice.",
            d_after_attention=lambda self, dout, from_norm: 2 * dout + from_norm),
    mistake("ho-dattn-out-early", "d attn_out",
            "Attention's output gets the block's gradient, without what comes through ffn_norm.",
            d_attn_out=lambda self, dout, d_after_attention: dout),
    mistake("ho-dinput-no-residual", "d after_ffn",
            "The residual around attention is lost: only attn_norm's gradient goes on.",
            d_input=lambda self, d_after_attention, from_norm: from_norm),
]  # fmt: skip

# ---------------------------------------------------------------- attention


def all_heads_delta(self, dp, p, scores):
    """D = rowsum(dO·O) over the whole width, so that it is one for all heads."""
    return p * (dp - (dp * p).sum((1, 3), keepdim=True))


def not_normalised(self, dp, p, scores):
    """P is recomputed from the row's maximum instead of its log-sum-exp."""
    return right("softmax_backward")(self, dp, p / p.amax(-1, keepdim=True), scores)


def unmasked(self, dp, p, scores):
    """P is recomputed without the mask."""
    a = self.acts[self.i]
    return right("softmax_backward")(self, dp, self.softmax(self.scores(a.q_rotated, self.repeated_k(a))), scores)


def of_tiles(self, x):
    """Query head h belongs to key head h mod K."""
    return x.view(self.B, -1, self.c.n_kv_heads, self.T, self.c.head_dim).sum(1)


def dscores(key, sentence, rule):
    return mistake(key, "d scores", sentence, softmax_backward=rule)


ATTENTION = [
    dscores("ho-dsoftmax-sum-of-dp", "The softmax's backward subtracts the sum of dp, without p.",
            lambda self, dp, p, scores: p * (dp - dp.sum(-1, keepdim=True))),
    dscores("ho-dsoftmax-mean", "The softmax's backward subtracts the mean of dp·p instead of its sum.",
            lambda self, dp, p, scores: p * (dp - mean(dp * p))),
    dscores("ho-dsoftmax-queries", "The softmax's backward sums over the queries.",
            lambda self, dp, p, scores: p * (dp - (dp * p).sum(-2, keepdim=True))),
    dscores("ho-dsoftmax-diagonal", "The softmax's backward is p(1 - p)dp: the Jacobian's diagonal.",
            lambda self, dp, p, scores: p * (1 - p) * dp),
    dscores("ho-dsoftmax-no-p", "The softmax's backward is dp - sum(dp·p): p is not multiplied.",
            lambda self, dp, p, scores: (dp - (dp * p).sum(-1, keepdim=True)) * (p > 0)),
    dscores("ho-dflash-delta", "Flash attention's delta is the sum over all heads.", all_heads_delta),
    dscores("ho-dflash-max", "P is recomputed with the row's maximum in place of its log-sum-exp: it is not normalised.",
            not_normalised),
    dscores("ho-dflash-no-mask", "P is recomputed without the mask.", unmasked),
    mistake("ho-dattention-keys", "d attention", "dP is dO·Kᵀ instead of dO·Vᵀ.",
            d_attention=lambda self, dout, v: dout @ self.repeated_k(self.acts[self.i]).transpose(-2, -1)),
    mistake("ho-dqk-scaled-twice", "d q_rotated", "The scale is in dS and again in dq and dk.",
            dq=lambda self, ds, k, a: right("dq")(self, ds, k, a) * self.scale(),
            dk=lambda self, ds, q, a: right("dk")(self, ds, q, a) * self.scale()),
    mistake("ho-dk-not-scaled", "d k_rotated", "dk lacks the scale.", dk=lambda self, ds, q, a: ds.transpose(-2, -1) @ q),
    mistake("ho-dk-not-transposed", "d k_rotated", "dk is dS·Q instead of dSᵀ·Q.",
            dk=lambda self, ds, q, a: ds @ q * self.scale()),
    mistake("ho-dq-transposed", "d q_rotated", "dq is dSᵀ·K instead of dS·K.",
            dq=lambda self, ds, k, a: ds.transpose(-2, -1) @ k * self.scale()),
    mistake("ho-dk-before-rope", "d k_rotated", "dk has the queries before RoPE.",
            dk=lambda self, ds, q, a: right("dk")(self, ds, self.split(a.q, self.c.n_heads), a)),
    mistake("ho-dv-not-transposed", "d v", "dv is P·dO instead of Pᵀ·dO.",
            dv=lambda self, dout, attention, a: attention @ dout),
    mistake("ho-dv-scores", "d v", "dv has the scores in place of their softmax.",
            dv=lambda self, dout, attention, a: a.scores.transpose(-2, -1) @ dout),
    mistake("ho-dk-first-of-group", "d k_rotated", "Only the group's first query head gives a gradient to its key head.",
            REPEATED,
            sum_dk=lambda self, dk: self.groups(dk)[:, :, 0]),
    mistake("ho-dkv-tiled", "d k_rotated", "The gradients of query heads h, h + K, ... are added for key head h.", GROUPED,
            sum_dk=of_tiles, sum_dv=of_tiles),
    mistake("ho-dv-mean-of-group", "d v", "dv is the mean over the group's query heads, dk their sum.", REPEATED,
            sum_dv=lambda self, dv: self.groups(dv).mean(2)),
    mistake("ho-dv-view", "d v", "dv is viewed as (B, T, K·D) without a transpose.", but("mqa", "odd-sizes"),
            split_backward=lambda self, x: x.reshape(self.B, self.T, -1)),
    mistake("ho-dheads-view", "d head_outputs",
            "The gradient of the merged heads is viewed as (B, H, T, D) without a transpose.",
            merge_backward=lambda self, x: x.view(self.B, self.c.n_heads, self.T, -1)),
    mistake("ho-dv-rotated-back", "d v", "dv is rotated back, as dq and dk are.",
            sum_dv=lambda self, dv: self.rotate_back(right("sum_dv")(self, dv))),
]  # fmt: skip

# ---------------------------------------------------------------- RoPE, q_norm and k_norm, embedding


def by(self, dx, positions, frequencies):
    """Rotated back by other angles."""
    angles = positions[..., None].to(self.dtype) * frequencies
    angles = angles[:, None] if angles.dim() == 3 else angles
    return self.rotate(dx, angles.cos(), -angles.sin())


def other_layout(self, dx):
    cos, sin = self.cos_sin()
    if self.layout() == "half":
        x1, x2 = dx[..., 0::2], dx[..., 1::2]
        return torch.stack([x1 * cos + x2 * sin, x2 * cos - x1 * sin], -1).flatten(-2)
    x1, x2 = dx.chunk(2, -1)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], -1)


def overwritten(self, dx):
    """The first of a pair is overwritten before the second reads it."""
    cos, sin = self.cos_sin()
    x1, x2 = self.pairs(dx)
    x1 = x1 * cos + x2 * sin
    return self.joined(x1, x2 * cos - x1 * sin)


def last_head_gain(self, g, dout, x, name):
    dx = right("norm_backward")(self, g, dout, x, name)
    if name in ("q_norm", "k_norm"):
        setattr(g, name, self.rmsnorm_dw(dout[:, -1], x[:, -1], self.weight(name)))
    return dx


def queries_for_keys(self, g, dout, x, name):
    """k_norm's backward reads the cache of q_norm's first heads."""
    x = self.split(self.acts[self.i].q, self.c.n_heads)[:, : self.c.n_kv_heads] if name == "k_norm" else x
    return right("norm_backward")(self, g, dout, x, name)


def mean_of_occurrences(self, dout):
    counts = torch.bincount(self.tokens.flatten(), minlength=self.c.vocab_size).clamp(min=1)
    return right("embed_backward")(self, dout) / counts[:, None]


def last_occurrence(self, dout):
    dembed = torch.zeros_like(self.w["embed"])
    for token, d in zip(self.tokens.flatten(), dout.flatten(0, 1), strict=True):
        dembed[token] = d
    return dembed


def to_targets(self, dout):
    dembed = torch.zeros_like(self.w["embed"])
    return dembed.index_add(0, self.targets.clamp(min=0).flatten(), dout.flatten(0, 1))


def padding_index(self, dout):
    dembed = right("embed_backward")(self, dout)
    dembed[0] = 0
    return dembed


def drope(key, sentence, where=ALL, **methods):
    return mistake(key, "d q", sentence, where, instead={"qk-norm": "d q_norm"} if where is ALL else {}, **methods)


INPUTS = [
    drope("ho-drope-forward", "RoPE's backward rotates forward once more: the sine keeps its sign.",
          rotate_back=lambda self, dx: self.rotate(dx, *self.cos_sin())),
    drope("ho-drope-layout", "RoPE's backward pairs the components of the other layout.", rotate_back=other_layout),
    drope("ho-drope-next", "RoPE's backward has positions from 1.",
          rotate_back=lambda self, dx: by(self, dx, self.positions() + 1, self.frequencies())),
    drope("ho-drope-overwritten", "RoPE's backward overwrites the first of a pair before the second reads it.",
          rotate_back=overwritten),
    drope("ho-drope-not-reset", "RoPE's backward has positions that do not begin again with a document.",
          rotate_back=lambda self, dx: by(self, dx, torch.arange(self.T), self.frequencies()), where=DOCUMENTS),
    drope("ho-drope-not-rescaled", "RoPE's backward has frequencies without Llama 3's scaling.",
          rotate_back=lambda self, dx: by(self, dx, self.positions(), self.theta() ** -self.exponents()), where=SCALED),
    mistake("ho-drope-keys-left", "d k", "The keys' gradient is not rotated back.", rotate_back_k=lambda self, dk: dk,
            instead={"qk-norm": "d k_norm"}),
    mistake("ho-dqk-gain-last-head", "d_weights q_norm", "The gains of q and k get the last head's gradient only.", QK,
            norm_backward=last_head_gain),
    mistake("ho-dk-norm-of-queries", "d_weights k_norm", "k_norm's backward reads the queries.", QK,
            norm_backward=queries_for_keys),
    mistake("ho-dembed-mean", "d_weights embed", "A token's gradient is the mean over its occurrences.",
            embed_backward=mean_of_occurrences),
    mistake("ho-dembed-last", "d_weights embed", "A token's gradient is that of its last occurrence.",
            embed_backward=last_occurrence),
    mistake("ho-dembed-targets", "d_weights embed", "The gradient is scattered to the targets' rows instead of the tokens'.",
            embed_backward=to_targets),
    mistake("ho-dembed-padding", "d_weights embed", "Row 0 gets no gradient: padding_idx=0.",
            ("mqa", "interleaved", "qk-norm"),
            embed_backward=padding_index),
    mistake("ho-dtied-mean", "d_weights embed", "The tied table's gradient is the mean of the head's and the embedding's.",
            ("tied",),
            tied_backward=lambda self, from_head, from_embedding: (from_head + from_embedding) / 2),
]  # fmt: skip

BACKWARD: list[Mistake] = [*LOSS, *LINEAR, *NORM, *FEED_FORWARD, *ATTENTION, *INPUTS]
