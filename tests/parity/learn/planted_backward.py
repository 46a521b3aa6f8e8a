"""Mistakes of the gradients, after a right forward, from the loss down to the embedding."""

import math

import torch
from parity.learn.planted import IGNORED, SQUARE, UNTIED, mistake, right

HEAD = {"tied": "d_weights w_down"}                                     # the head's gradient is not seen by itself

# ------------------------------------------------------------------------------------------------ loss


def probabilities(self, logits):
    """Softmax minus one-hot targets, 0 where a target does not count."""
    return (self.softmax(logits) - self.one_hot()) * self.counted()[..., None]


LOSS = [
    mistake("d-loss-sum", "d logits", "the gradient is of the sum of the losses",
            loss_backward=lambda self, z: probabilities(self, z)),
    mistake("d-loss-mean-of-all", "d logits", "the gradient is divided by the number of all tokens", IGNORED,
            loss_backward=lambda self, z: probabilities(self, z) / self.targets.numel()),
    mistake("d-loss-per-sequence", "d logits", "the gradient is divided by the batch size",
            loss_backward=lambda self, z: probabilities(self, z) / self.B),
    mistake("d-loss-mean-of-means", "d logits", "the gradient is of the mean of the sequences' means", IGNORED,
            loss_backward=lambda self, z: probabilities(self, z) / self.counted().sum(1)[:, None, None] / self.B),
    mistake("d-loss-mean-of-classes", "d logits", "the gradient is divided by V as well",
            loss_backward=lambda self, z: right("loss_backward")(self, z) / self.c.vocab_size),
    mistake("d-loss-no-one-hot", "d logits", "1 is not subtracted at the target",
            loss_backward=lambda self, z: self.softmax(z) * self.counted()[..., None] / self.counted().sum()),
    mistake("d-loss-one-hot-only", "d logits", "the softmax is forgotten: only the targets' entries are not 0",
            loss_backward=lambda self, z: -self.one_hot() * self.counted()[..., None] / self.counted().sum()),
    mistake("d-loss-one-hot-scaled", "d logits", "1 is subtracted after the division by the count",
            loss_backward=lambda self, z: (self.softmax(z) / (m := self.counted()).sum() - self.one_hot()) * m[..., None]),
    mistake("d-loss-sign", "d logits", "the gradient has the opposite sign",
            loss_backward=lambda self, z: -right("loss_backward")(self, z)),
    mistake("d-loss-ignored", "d logits", "ignored targets get a gradient, as token 0", IGNORED,
            loss_backward=lambda self, z: (self.softmax(z) - self.one_hot()) / self.counted().sum()),
    mistake("d-loss-ignored-no-one-hot", "d logits", "ignored targets get the softmax as a gradient", IGNORED,
            loss_backward=lambda self, z: (self.softmax(z) - self.one_hot() * (m := self.counted())[..., None]) / m.sum()),
    mistake("d-loss-logits", "d logits", "the logits stand for their softmax",
            loss_backward=lambda self, z: (z - self.one_hot()) * self.counted()[..., None] / self.counted().sum()),
    mistake("d-loss-of-tokens", "d logits", "1 is subtracted at the token in place of the target",
            one_hot=lambda self: torch.nn.functional.one_hot(self.tokens, self.c.vocab_size).to(self.dtype)),
    mistake("d-loss-bits", "d logits", "the gradient is divided by log 2",
            loss_backward=lambda self, z: right("loss_backward")(self, z) / math.log(2)),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ linear


def dw_for(name, dw):
    """A weight's gradient computed wrongly: dw(self, dout, x)."""
    return lambda self, dout, x, of: dw(self, dout, x) if of == name else right("linear_dw")(self, dout, x, of)


def dx_for(name):
    """The gradient of one product's input with the weight transposed once too often."""
    return lambda self, dout, weight, of: dout @ (weight.T if of == name else weight)


def flat(x):
    return x.flatten(0, -2)


def product(dout, x):
    return flat(dout).T @ flat(x)


LINEAR = [
    mistake("dw-mean-of-tokens", "d_weights head", "gradients of matrices are averaged over tokens", instead=HEAD,
            linear_dw=lambda self, dout, x, of: product(dout, x) / (self.B * self.T)),
    mistake("dw-mean-of-batch", "d_weights head", "gradients of matrices are averaged over the batch", instead=HEAD,
            linear_dw=lambda self, dout, x, of: product(dout, x) / self.B),
    mistake("dw-last-sequence", "d_weights head", "gradients of matrices are overwritten by each sequence", instead=HEAD,
            linear_dw=lambda self, dout, x, of: product(dout[-1:], x[-1:])),
    mistake("dw-first-sequence", "d_weights head", "gradients of matrices have the first sequence only", instead=HEAD,
            linear_dw=lambda self, dout, x, of: product(dout[:1], x[:1])),
    mistake("dw-last-token", "d_weights head", "gradients of matrices have each sequence's last token only", instead=HEAD,
            linear_dw=lambda self, dout, x, of: product(dout[:, -1:], x[:, -1:])),
    mistake("dw-transposed-product", "d_weights head", "(in, out) is reshaped to (out, in) in place of transposed",
            instead=HEAD,
            linear_dw=lambda self, dout, x, of: product(x, dout).reshape(dout.shape[-1], x.shape[-1])),
    mistake("d-head-unnormed", "d_weights head", "the head's gradient is taken with the values before the final norm",
            instead={"tied": "d_weights embed"}, linear_dw=dw_for("head", lambda self, dout, x: product(dout, self.last))),
    mistake("d-norm-by-embedding", "d norm", "the head's gradient goes down through the embedding", UNTIED,
            linear_dx=lambda self, dout, weight, of: dout @ (self.w["embed"] if of == "head" else weight)),
    mistake("d-w-down-gate", "d_weights w_down", "w_down's gradient is taken with the gate",
            linear_dw=dw_for("w_down", lambda self, dout, x: product(dout, self.acts[self.i].gate))),
    mistake("d-w-down-activated-gate", "d_weights w_down", "w_down's gradient is taken with SiLU(gate), without up",
            linear_dw=dw_for("w_down", lambda self, dout, x: product(dout, self.activation(self.acts[self.i].gate)))),
    mistake("d-w-gate-unnormed", "d_weights w_gate", "w_gate's gradient is taken with the values before the norm",
            linear_dw=dw_for("w_gate", lambda self, dout, x: product(dout, self.acts[self.i].after_attention))),
    mistake("d-w-up-unnormed", "d_weights w_up", "w_up's gradient is taken with the values before the norm",
            linear_dw=dw_for("w_up", lambda self, dout, x: product(dout, self.acts[self.i].after_attention))),
    mistake("d-wo-transposed", "d_weights wo", "wo's gradient is transposed", SQUARE,
            linear_dw=dw_for("wo", lambda self, dout, x: product(x, dout))),
    mistake("d-wo-heads", "d_weights wo",
            "wo's gradient is taken with heads that are not merged: reshaped without a transpose",
            wo_input=lambda self, a: a.head_outputs.reshape(self.B, self.T, -1)),
    mistake("d-wq-transposed", "d_weights wq", "wq's gradient is transposed", SQUARE,
            linear_dw=dw_for("wq", lambda self, dout, x: product(x, dout))),
    mistake("d-wk-transposed", "d_weights wk", "wk's gradient is transposed", ("mha",),
            linear_dw=dw_for("wk", lambda self, dout, x: product(x, dout))),
    mistake("d-wv-transposed", "d_weights wv", "wv's gradient is transposed", ("mha",),
            linear_dw=dw_for("wv", lambda self, dout, x: product(x, dout))),
    mistake("d-wq-unnormed", "d_weights wq", "wq's gradient is taken with the block's input before the norm",
            linear_dw=dw_for("wq", lambda self, dout, x: product(dout, self.inputs[self.i]))),
    mistake("d-wk-unnormed", "d_weights wk", "wk's gradient is taken with the block's input before the norm",
            linear_dw=dw_for("wk", lambda self, dout, x: product(dout, self.inputs[self.i]))),
    mistake("d-wv-unnormed", "d_weights wv", "wv's gradient is taken with the block's input before the norm",
            linear_dw=dw_for("wv", lambda self, dout, x: product(dout, self.inputs[self.i]))),
    mistake("d-head-outputs-wo", "d head_outputs", "the gradient goes through wo transposed", SQUARE, linear_dx=dx_for("wo")),
    mistake("d-attn-norm-wq", "d attn_norm", "the queries' gradient goes through wq transposed", SQUARE,
            linear_dx=dx_for("wq")),
    mistake("d-attn-norm-wk", "d attn_norm", "the keys' gradient goes through wk transposed", ("mha",),
            linear_dx=dx_for("wk")),
    mistake("backward-other-layer", "d swiglu", "backward uses the first layer's weights in every layer",
            weight_in_backward=lambda self, name: self.w[f"blocks.0.{name}"]),
    mistake("backward-other-values", "d_weights w_down", "backward uses the first layer's values in every layer",
            cache=lambda self: self.acts[0]),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ RMSNorm


def norm_dx(dx):
    """dx(rstd, n, dn, dout) of a row: n is the normalised x, dn the gradient with the gain."""
    def rmsnorm_dx(self, dout, x, weight):
        rstd = self.rstd(x)
        return dx(rstd, x * rstd, dout * weight, dout)
    return rmsnorm_dx


def mean(x):
    return x.mean(-1, keepdim=True)


NORM = [
    mistake("d-rmsnorm-no-second-term", "d after_ffn", "x's part in its own RMS is forgotten",
            rmsnorm_dx=norm_dx(lambda rstd, n, dn, dout: rstd * dn)),
    mistake("d-rmsnorm-no-rstd", "d after_ffn", "dx is not divided by the RMS",
            rmsnorm_dx=norm_dx(lambda rstd, n, dn, dout: dn - n * mean(dn * n))),
    mistake("d-rmsnorm-no-gain", "d after_ffn", "dx lacks the gain",
            rmsnorm_dx=norm_dx(lambda rstd, n, dn, dout: rstd * (dout - n * mean(dout * n)))),
    mistake("d-rmsnorm-half-gain", "d after_ffn", "the second term lacks the gain",
            rmsnorm_dx=norm_dx(lambda rstd, n, dn, dout: rstd * (dn - n * mean(dout * n)))),
    mistake("d-rmsnorm-sum", "d after_ffn", "the second term has a sum in place of a mean",
            rmsnorm_dx=norm_dx(lambda rstd, n, dn, dout: rstd * (dn - n * (dn * n).sum(-1, keepdim=True)))),
    mistake("d-rmsnorm-sign", "d after_ffn", "the second term is added",
            rmsnorm_dx=norm_dx(lambda rstd, n, dn, dout: rstd * (dn + n * mean(dn * n)))),
    mistake("d-rmsnorm-layernorm", "d after_ffn", "the mean gradient is subtracted, as in LayerNorm",
            rmsnorm_dx=norm_dx(lambda rstd, n, dn, dout: rstd * (dn - mean(dn) - n * mean(dn * n)))),
    mistake("d-rmsnorm-rstd-squared", "d after_ffn", "the second term has rstd to a power too low",
            rmsnorm_dx=norm_dx(lambda rstd, n, dn, dout: rstd * dn - n * mean(dn * n))),
    mistake("d-rmsnorm-x", "d after_ffn", "the second term has x in place of its normalised values",
            rmsnorm_dx=norm_dx(lambda rstd, n, dn, dout: rstd * (dn - n / rstd * mean(dn * n / rstd)))),
    mistake("d-rmsnorm-n-missing", "d after_ffn", "the second term is subtracted without the factor n",
            rmsnorm_dx=norm_dx(lambda rstd, n, dn, dout: rstd * (dn - mean(dn * n)))),
    mistake("d-rmsnorm-gain-last", "d after_ffn", "the gain multiplies the whole dx at the end",
            rmsnorm_dx=lambda self, dout, x, w: (r := self.rstd(x)) * w * (dout - x * r * mean(dout * x * r))),
    mistake("d-rmsnorm-over-tokens", "d after_ffn", "the second term's mean is over tokens",
            rmsnorm_dx=norm_dx(lambda rstd, n, dn, dout: rstd * (dn - n * (dn * n).mean(-2, keepdim=True)))),
    mistake("d-rmsnorm-rms", "d after_ffn", "dx is multiplied by the RMS in place of divided",
            rmsnorm_dx=norm_dx(lambda rstd, n, dn, dout: (dn - n * mean(dn * n)) / rstd)),
    mistake("d-rmsnorm-no-eps", "d after_ffn", "backward computes the RMS again, without eps", ("large-eps",),
            rmsnorm_dx=lambda self, dout, x, w: (r := x.pow(2).mean(-1, keepdim=True) ** -0.5) * (
                dout * w - x * r * mean(dout * w * x * r))),
    mistake("d-gain-x", "d_weights norm", "the gain's gradient is taken with x before it is normalised",
            rmsnorm_dw=lambda self, dout, x, w: flat(dout * x).sum(0)),
    mistake("d-gain-mean", "d_weights norm", "the gain's gradient is averaged over tokens",
            rmsnorm_dw=lambda self, dout, x, w: flat(dout * x * self.rstd(x)).mean(0)),
    mistake("d-gain-batch-mean", "d_weights norm", "the gain's gradient is averaged over the batch",
            rmsnorm_dw=lambda self, dout, x, w: flat(dout * x * self.rstd(x)).sum(0) / self.B),
    mistake("d-gain-times-gain", "d_weights norm", "the gain's gradient has the gain as a factor",
            rmsnorm_dw=lambda self, dout, x, w: flat(dout * w * x * self.rstd(x)).sum(0)),
    mistake("d-gain-dout", "d_weights norm", "the gain's gradient is a bias's: the sum of the gradients above",
            rmsnorm_dw=lambda self, dout, x, w: flat(dout).sum(0)),
    mistake("d-gain-last-sequence", "d_weights norm", "the gain's gradient is overwritten by each sequence",
            rmsnorm_dw=lambda self, dout, x, w: flat((dout * x * self.rstd(x))[-1]).sum(0)),
    mistake("d-gain-rms", "d_weights norm", "the gain's gradient is taken with x times its RMS",
            rmsnorm_dw=lambda self, dout, x, w: flat(dout * x / self.rstd(x)).sum(0)),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ feed-forward, residuals


def derivative(f):
    """SiLU's derivative written wrongly: f(x, σ(x))."""
    return lambda self, x: f(x, torch.sigmoid(x))


FEED_FORWARD = [
    mistake("d-silu-sigmoid", "d gate", "SiLU's derivative is σ(x): the second term is forgotten",
            activation_backward=derivative(lambda x, s: s)),
    mistake("d-silu-of-sigmoid", "d gate", "SiLU's derivative is that of σ",
            activation_backward=derivative(lambda x, s: s * (1 - s))),
    mistake("d-silu-second-term", "d gate", "SiLU's derivative is x·σ(1 - σ): the first term is forgotten",
            activation_backward=derivative(lambda x, s: x * s * (1 - s))),
    mistake("d-silu-no-x", "d gate", "SiLU's derivative is σ + σ(1 - σ), without x",
            activation_backward=derivative(lambda x, s: s + s * (1 - s))),
    mistake("d-silu-sign", "d gate", "SiLU's derivative subtracts its second term",
            activation_backward=derivative(lambda x, s: s * (1 - x * (1 - s)))),
    mistake("d-silu-one", "d gate", "SiLU's derivative is 1", activation_backward=derivative(lambda x, s: torch.ones_like(x))),
    mistake("d-silu-value", "d gate", "SiLU itself stands for its derivative",
            activation_backward=derivative(lambda x, s: x * s)),
    mistake("d-silu-at-output", "d gate", "SiLU's derivative is taken at SiLU's output",
            activation_backward=lambda self, x: right("activation_backward")(self, self.activation(x))),
    mistake("d-silu-relu", "d gate", "SiLU's derivative is ReLU's",
            activation_backward=derivative(lambda x, s: (x > 0).to(x.dtype))),
    mistake("d-gate-no-up", "d gate", "the gate's gradient lacks up",
            dgate=lambda self, dout, gate, up: dout * self.activation_backward(gate)),
    mistake("d-gate-is-d-up", "d gate", "the gradients of gate and up are exchanged",
            dgate=lambda self, dout, gate, up: right("dup")(self, dout, gate, up),
            dup=lambda self, dout, gate, up: right("dgate")(self, dout, gate, up)),
    mistake("d-gate-at-up", "d gate", "SiLU's derivative is taken at up",
            dgate=lambda self, dout, gate, up: dout * up * self.activation_backward(up)),
    mistake("d-up-gate", "d up", "up's gradient has the gate without SiLU", dup=lambda self, dout, gate, up: dout * gate),
    mistake("d-up-sigmoid", "d up", "up's gradient has σ(gate)", dup=lambda self, dout, gate, up: dout * torch.sigmoid(gate)),
    mistake("d-up-no-gate", "d up", "up's gradient lacks the gate", dup=lambda self, dout, gate, up: dout),
    mistake("d-up-derivative", "d up", "up's gradient has SiLU's derivative",
            dup=lambda self, dout, gate, up: dout * self.activation_backward(gate)),
    mistake("d-ffn-norm-only-up", "d ffn_norm", "the gate's gradient is not added", d_ffn_norm=lambda self, gate, up: up),
    mistake("d-ffn-norm-only-gate", "d ffn_norm", "up's gradient is not added", d_ffn_norm=lambda self, gate, up: gate),
    mistake("d-ffn-norm-mean", "d ffn_norm", "the two gradients are averaged",
            d_ffn_norm=lambda self, gate, up: (gate + up) / 2),
    mistake("d-ffn-residual-dropped", "d after_attention", "the feed-forward's residual is forgotten",
            d_after_attention=lambda self, dout, from_norm: from_norm),
    mistake("d-ffn-branch-dropped", "d after_attention", "the feed-forward's gradient is not added to the residual's",
            d_after_attention=lambda self, dout, from_norm: dout),
    mistake("d-ffn-residual-twice", "d after_attention", "the feed-forward's residual is added twice",
            d_after_attention=lambda self, dout, from_norm: 2 * dout + from_norm),
    mistake("d-ffn-residual-mean", "d after_attention", "residual and feed-forward are averaged",
            d_after_attention=lambda self, dout, from_norm: (dout + from_norm) / 2),
    mistake("d-attn-out-residual-only", "d attn_out", "attention's gradient lacks what comes through the feed-forward",
            d_attn_out=lambda self, dout, d_after_attention: dout),
    mistake("d-attn-residual-dropped", "d after_ffn", "attention's residual is forgotten",
            d_input=lambda self, d_after_attention, from_norm: from_norm),
    mistake("d-attn-branch-dropped", "d after_ffn", "attention's gradient is not added to the residual's",
            d_input=lambda self, d_after_attention, from_norm: d_after_attention),
    mistake("d-attn-residual-twice", "d after_ffn", "attention's residual is added twice",
            d_input=lambda self, d_after_attention, from_norm: 2 * d_after_attention + from_norm),
]  # fmt: skip

DOWN_TO_ATTENTION = [*LOSS, *LINEAR, *NORM, *FEED_FORWARD]
