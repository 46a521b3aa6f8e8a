"""Mistakes from the scores to the loss."""

import math

import torch
from parity.learn.planted import DOCUMENTS, GROUPED, IGNORED, SQUARE, UNTIED, but, mistake, right
from torch.nn import functional as F

# ------------------------------------------------------------------------------------------------ scores and mask


def tiled(self, x):
    return x.repeat(1, self.c.n_heads // self.c.n_kv_heads, 1, 1)


def no_mask(self):
    return torch.zeros(self.T, self.T, dtype=torch.bool)


def causal(self, offset=0):
    """Hidden where the key's place is above the query's plus an offset."""
    t = torch.arange(self.T)
    return t > t[:, None] + offset


def documents_alone(self):
    """True between documents."""
    if self.segments is None:
        return no_mask(self)
    return (self.segments[:, :, None] != self.segments[:, None, :])[:, None]


def masked_softmax(value):
    """Hidden scores get a number that is too large."""
    return lambda self, scores, hidden: self.softmax(scores.masked_fill(hidden, value))


SCORES = [
    mistake("scale-missing", "scores", "scores are not divided by √D", scale=lambda self: 1.0),
    mistake("scale-no-root", "scores", "scores are divided by D in place of √D", scale=lambda self: 1 / self.c.head_dim),
    mistake("scale-width", "scores", "scores are divided by √C", scale=lambda self: self.c.dim**-0.5),
    mistake("scale-all-heads", "scores", "scores are divided by √(H·D)",
            scale=lambda self: (self.c.n_heads * self.c.head_dim) ** -0.5),
    mistake("scale-heads", "scores", "scores are divided by √H", ("odd-sizes",), scale=lambda self: self.c.n_heads**-0.5),
    mistake("scale-key-heads", "scores", "scores are divided by the root of the number of key heads", but("mha"),
            scale=lambda self: self.c.n_kv_heads**-0.5),
    mistake("scale-width-by-heads", "scores", "scores are divided by √(C/H), but the heads are wider", ("odd-sizes",),
            same_as=("scale-length",),
            scale=lambda self: math.sqrt(self.c.n_heads / self.c.dim)),
    mistake("scale-length", "scores", "scores are divided by √T", scale=lambda self: self.T**-0.5),
    mistake("scale-multiplied", "scores", "scores are multiplied by √D", scale=lambda self: math.sqrt(self.c.head_dim)),
    mistake("scale-fourth-root", "scores", "only the queries are divided by D^¼", scale=lambda self: self.c.head_dim**-0.25),
    mistake("scores-transposed", "scores", "scores are k·q: rows are keys",
            scores=lambda self, q, k: k @ q.transpose(-2, -1) * self.scale()),
    mistake("scores-softcap", "scores", "scores pass through 5·tanh(scores/5), as in Gemma 2",
            scores=lambda self, q, k: 5 * torch.tanh(q @ k.transpose(-2, -1) * self.scale() / 5)),
    mistake("scores-cosine", "scores", "queries and keys are normalised to length 1 before the product",
            scores=lambda self, q, k: right("scores")(self, F.normalize(q, dim=-1), F.normalize(k, dim=-1))),
    mistake("keys-tiled", "scores", "key heads are tiled (0 1 0 1) in place of repeated (0 0 1 1)", GROUPED,
            same_as=("keys-values-tiled",), repeated_k=lambda self, a: tiled(self, a.k_rotated)),
    mistake("keys-values-tiled", "scores", "key and value heads are tiled (0 1 0 1) in place of repeated (0 0 1 1)", GROUPED,
            same_as=("keys-tiled",), repeat=tiled),
    mistake("keys-first-head", "scores", "all query heads use the first key head", but("mqa", "odd-sizes"),
            repeated_k=lambda self, a: a.k_rotated[:, :1].expand(-1, self.c.n_heads, -1, -1)),
    mistake("keys-groups-reversed", "scores", "the last query heads use the first key head", but("mqa", "odd-sizes"),
            repeated_k=lambda self, a: self.repeat(a.k_rotated.flip(1))),
    mistake("keys-unrotated", "scores", "scores use the keys before RoPE",
            repeated_k=lambda self, a: self.repeat(a.k_norm if self.c.qk_norm else self.split(a.k, self.c.n_kv_heads))),
    mistake("mask-none", "scores", "no mask: every token sees all tokens", hidden=no_mask),
    mistake("mask-sees-next", "scores", "the mask is off by one: a token sees the next one",
            hidden=lambda self: causal(self, 1) | documents_alone(self)),
    mistake("mask-transposed", "scores", "the mask is transposed: a token sees itself and those after it",
            hidden=lambda self: causal(self).T | documents_alone(self)),
    mistake("mask-hides-self", "scores", "the mask is off by one: a token does not see itself",
            hidden=lambda self: causal(self, -1) | documents_alone(self), attention=masked_softmax(-1e9)),
    mistake("mask-window", "scores", "a token sees only itself and the one before it",
            hidden=lambda self: causal(self) | causal(self, 1).T | documents_alone(self)),
    mistake("mask-documents-ignored", "scores", "the mask is causal only: a token sees the documents before its own",
            DOCUMENTS, hidden=causal),
    mistake("mask-documents-not-causal", "scores", "the mask has documents, but tokens see what comes after them",
            hidden=documents_alone),
    mistake("mask-first-sequence", "scores", "the first sequence's documents are taken for all sequences", DOCUMENTS,
            hidden=lambda self: causal(self) | documents_alone(self)[:1]),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ attention


def normalised(e, dims=-1):
    return e / e.sum(dims, keepdim=True)


def exponentials(scores, hidden):
    """exp of the visible scores, 0 for hidden keys."""
    return (scores - scores.amax()).exp().masked_fill(hidden, 0)


def dropped(self, scores, hidden):
    kept = torch.rand(scores.shape, generator=torch.Generator().manual_seed(1), dtype=self.dtype) >= 0.1
    return self.softmax(scores.masked_fill(hidden, -math.inf)) * kept / 0.9


def with_sink(self, scores, hidden):
    e = scores.exp().masked_fill(hidden, 0)
    return e / (1 + e.sum(-1, keepdim=True))


ATTENTION = [
    mistake("mask-value-0", "attention", "hidden scores are 0: the scores are multiplied by the mask",
            same_as=("mask-value-smallest",),
            attention=masked_softmax(0.0)),
    mistake("mask-value-1", "attention", "hidden scores are -1", attention=masked_softmax(-1.0)),
    mistake("mask-value-10", "attention", "hidden scores are -10", attention=masked_softmax(-10.0)),
    mistake("mask-value-smallest", "attention", "hidden scores are the smallest positive number, not the most negative one",
            same_as=("mask-value-0",),
            attention=masked_softmax(torch.finfo(torch.float64).tiny)),
    mistake("mask-added", "attention", "the mask of ones and zeros is added to the scores",
            attention=lambda self, s, hidden: self.softmax(s + (~hidden).to(self.dtype))),
    mistake("mask-after-softmax", "attention", "hidden keys are zeroed after the softmax, whose sum has them",
            attention=lambda self, s, hidden: self.softmax(s).masked_fill(hidden, 0)),
    mistake("softmax-over-queries", "attention", "the softmax is over the queries",
            attention=lambda self, s, hidden: normalised(exponentials(s, hidden), -2)),
    mistake("softmax-over-heads", "attention", "the softmax is over the heads",
            attention=lambda self, s, hidden: normalised(exponentials(s, hidden), 1).nan_to_num(0)),
    mistake("softmax-over-all", "attention", "the softmax is over queries and keys together",
            attention=lambda self, s, hidden: normalised(exponentials(s, hidden), (-2, -1))),
    mistake("softmax-base-2", "attention", "the softmax is of powers of 2",
            attention=lambda self, s, hidden: self.softmax(math.log(2) * s.masked_fill(hidden, -math.inf))),
    mistake("softmax-temperature", "attention", "the softmax has a temperature of 0.5",
            attention=lambda self, s, hidden: self.softmax(s.masked_fill(hidden, -math.inf) / 0.5)),
    mistake("softmax-sink", "attention", "1 is added to the softmax's sum", attention=with_sink),
    mistake("softmax-sum-missing", "attention", "the exponentials are not divided by their sum",
            attention=lambda self, s, hidden: s.exp().masked_fill(hidden, 0)),
    mistake("softmax-twice", "attention", "the softmax is applied twice",
            attention=lambda self, s, hidden: right("attention")(self, right("attention")(self, s, hidden), hidden)),
    mistake("softmax-sigmoid", "attention", "a sigmoid stands for the softmax",
            attention=lambda self, s, hidden: torch.sigmoid(s).masked_fill(hidden, 0)),
    mistake("attention-dropout", "attention", "dropout is on", attention=dropped),
    mistake("attention-transposed", "head_outputs", "values are mixed by the transposed attention",
            mix=lambda self, p, v: p.transpose(-2, -1) @ v),
    mistake("values-tiled", "head_outputs", "value heads are tiled (0 1 0 1) in place of repeated (0 0 1 1)", GROUPED,
            repeated_v=lambda self, a: tiled(self, self.split(a.v, self.c.n_kv_heads))),
    mistake("values-first-head", "head_outputs", "all query heads use the first value head", but("mqa", "odd-sizes"),
            repeated_v=lambda self, a: self.split(a.v, self.c.n_kv_heads)[:, :1].expand(-1, self.c.n_heads, -1, -1)),
    mistake("values-are-keys", "head_outputs", "the rotated keys are mixed in place of the values",
            repeated_v=lambda self, a: self.repeat(a.k_rotated)),
    mistake("values-heads-not-transposed", "head_outputs", "values are reshaped to heads without a transpose",
            but("mqa", "odd-sizes"),
            repeated_v=lambda self, a: self.repeat(a.v.reshape(self.B, self.c.n_kv_heads, self.T, -1))),
    mistake("heads-merged-not-transposed", "attn_out", "heads are reshaped to (B, T, H·D) without a transpose",
            merge=lambda self, x: x.reshape(self.B, self.T, -1)),
    mistake("heads-merged-strided", "attn_out", "heads are merged component by component: (D, H) in place of (H, D)",
            merge=lambda self, x: x.permute(0, 2, 3, 1).reshape(self.B, self.T, -1)),
    mistake("wo-transposed", "attn_out", "wo is not transposed", SQUARE,
            attn_out=lambda self, h: self.merge(h) @ self.weight("wo")),
    mistake("wo-missing", "attn_out", "there is no output projection", SQUARE, attn_out=lambda self, h: self.merge(h)),
    mistake("wo-is-wq", "attn_out", "wq stands for wo", SQUARE,
            attn_out=lambda self, h: self.linear(self.merge(h), self.weight("wq"))),
    mistake("attn-residual-missing", "after_attention", "attention has no residual",
            after_attention=lambda self, x, a: a.attn_out),
    mistake("attn-residual-normed", "after_attention", "attention is added to the normed x",
            after_attention=lambda self, x, a: a.attn_norm + a.attn_out),
    mistake("attn-out-missing", "after_attention", "attention's output is not added", after_attention=lambda self, x, a: x),
    mistake("attn-out-normed", "after_attention", "attention's output is normalised before it is added",
            after_attention=lambda self, x, a: x + self.rmsnorm(a.attn_out, self.weight("ffn_norm"))),
    mistake("attn-residual-embedding", "after_attention", "attention is added to the embedding, not to the block's input",
            after_attention=lambda self, x, a: self.outer.embedding + a.attn_out),
    mistake("attn-out-scaled", "after_attention", "attention's output is divided by √(2·layers)",
            after_attention=lambda self, x, a: x + a.attn_out / math.sqrt(2 * self.c.n_layers)),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ feed-forward


def activation(f):
    return lambda self, x: f(x)


def gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x * torch.sigmoid(x)


FEED_FORWARD = [
    mistake("ffn-norm-missing", "ffn_norm", "the feed-forward reads the stream without a norm",
            ffn_norm=lambda self, x, a: a.after_attention),
    mistake("parallel-block", "ffn_norm", "the feed-forward reads the block's input, as in a parallel block",
            ffn_norm=lambda self, x, a: self.rmsnorm(x, self.weight("ffn_norm"))),
    mistake("ffn-norm-of-attn-out", "ffn_norm", "the feed-forward reads attention's output without the stream",
            ffn_norm=lambda self, x, a: self.rmsnorm(a.attn_out, self.weight("ffn_norm"))),
    mistake("ffn-norm-shares-gain", "ffn_norm", "the feed-forward's norm has attention's gain",
            ffn_norm=lambda self, x, a: self.rmsnorm(a.after_attention, self.weight("attn_norm"))),
    mistake("parallel-norm", "ffn_norm", "the feed-forward reads attention's norm", ffn_norm=lambda self, x, a: a.attn_norm),
    mistake("gate-up-exchanged", "gate", "w_up makes the gate and w_gate the other factor",
            gate=lambda self, a: self.linear(a.ffn_norm, self.weight("w_up")),
            up=lambda self, a: self.linear(a.ffn_norm, self.weight("w_gate"))),
    mistake("gate-unnormed", "gate", "the gate is made of the stream before the norm",
            gate=lambda self, a: self.linear(a.after_attention, self.weight("w_gate"))),
    mistake("up-unnormed", "up", "up is made of the stream before the norm",
            up=lambda self, a: self.linear(a.after_attention, self.weight("w_up"))),
    mistake("up-is-gate", "up", "w_gate makes both factors",
            up=lambda self, a: self.linear(a.ffn_norm, self.weight("w_gate"))),
    mistake("gelu-tanh", "swiglu", "GELU by tanh stands for SiLU", activation=activation(gelu_tanh)),
    mistake("gelu-erf", "swiglu", "GELU by erf stands for SiLU", activation=activation(F.gelu)),
    mistake("gelu-quick", "swiglu", "x·σ(1.702x) stands for SiLU",
            activation=activation(lambda x: x * torch.sigmoid(1.702 * x))),
    mistake("relu", "swiglu", "ReLU stands for SiLU", activation=activation(torch.relu)),
    mistake("relu-squared", "swiglu", "the square of ReLU stands for SiLU",
            activation=activation(lambda x: torch.relu(x) ** 2)),
    mistake("sigmoid", "swiglu", "a sigmoid stands for SiLU, as in GLU", activation=activation(torch.sigmoid)),
    mistake("tanh", "swiglu", "tanh stands for SiLU", activation=activation(torch.tanh)),
    mistake("softplus", "swiglu", "softplus stands for SiLU", activation=activation(lambda x: torch.log1p(x.exp()))),
    mistake("mish", "swiglu", "Mish stands for SiLU", activation=activation(lambda x: x * torch.tanh(torch.log1p(x.exp())))),
    mistake("activation-missing", "swiglu", "gate and up are multiplied without SiLU", activation=activation(lambda x: x)),
    mistake("silu-sign", "swiglu", "the exponential in SiLU lacks its minus",
            activation=activation(lambda x: x / (1 + x.exp()))),
    mistake("silu-on-up", "swiglu", "SiLU is applied to up in place of the gate",
            swiglu=lambda self, gate, up: gate * silu(up)),
    mistake("silu-on-both", "swiglu", "SiLU is applied to gate and up", swiglu=lambda self, gate, up: silu(gate) * silu(up)),
    mistake("silu-of-product", "swiglu", "SiLU is applied to the product of gate and up",
            swiglu=lambda self, gate, up: silu(gate * up)),
    mistake("silu-of-sum", "swiglu", "SiLU(gate) and up are added", swiglu=lambda self, gate, up: silu(gate) + up),
    mistake("up-missing", "swiglu", "up is not used", swiglu=lambda self, gate, up: silu(gate)),
    mistake("gate-missing", "swiglu", "the gate is not used: SiLU(up)", swiglu=lambda self, gate, up: silu(up)),
    mistake("w-down-reshaped", "ffn_out", "w_down is reshaped to (F, C) in place of transposed",
            ffn_out=lambda self, a: a.swiglu @ self.weight("w_down").reshape(-1, self.c.dim)),
    mistake("w-down-is-w-up", "ffn_out", "w_up's transpose stands for w_down",
            ffn_out=lambda self, a: a.swiglu @ self.weight("w_up")),
    mistake("w-down-is-w-gate", "ffn_out", "w_gate's transpose stands for w_down",
            ffn_out=lambda self, a: a.swiglu @ self.weight("w_gate")),
    mistake("ffn-residual-missing", "after_ffn", "the feed-forward has no residual", after_ffn=lambda self, x, a: a.ffn_out),
    mistake("ffn-residual-input", "after_ffn", "the feed-forward is added to the block's input, which drops attention",
            after_ffn=lambda self, x, a: x + a.ffn_out),
    mistake("ffn-residual-normed", "after_ffn", "the feed-forward is added to the normed stream",
            after_ffn=lambda self, x, a: a.ffn_norm + a.ffn_out),
    mistake("ffn-out-missing", "after_ffn", "the feed-forward's output is not added",
            after_ffn=lambda self, x, a: a.after_attention),
    mistake("ffn-residual-twice", "after_ffn", "the block's input is added once more",
            after_ffn=lambda self, x, a: x + a.after_attention + a.ffn_out),
    mistake("final-norm-missing", "norm", "there is no norm before the head", norm=lambda self, x: x),
    mistake("final-norm-no-gain", "norm", "the final norm has no gain", norm=lambda self, x: x * self.rstd(x)),
    mistake("final-norm-other-gain", "norm", "the final norm has the gain of the last block's norm",
            norm=lambda self, x: self.rmsnorm(x, self.weight("ffn_norm"))),
    mistake("final-norm-of-embedding", "norm", "the final norm reads the last block's input",
            norm=lambda self, x: self.rmsnorm(self.inputs[-1], self.w["norm"])),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ logits and loss


def random_head(self):
    return 0.4 * torch.randn(self.w["embed"].shape, dtype=self.dtype, generator=torch.Generator().manual_seed(1))


def per_token(self, logits):
    return self.token_losses(logits, self.targets)


def shifted_again(self, logits):
    losses = self.token_losses(logits[:, :-1], self.targets[:, 1:]) * self.counted()[:, 1:]
    return losses.sum() / self.counted()[:, 1:].sum()


def of_batch_means(self, logits):
    counted = self.counted()
    return ((per_token(self, logits) * counted).sum(1) / counted.sum(1)).mean()


def smoothed(self, logits):
    log_p, counted = torch.log_softmax(logits, -1), self.counted()
    return ((0.9 * per_token(self, logits) - 0.1 * log_p.mean(-1)) * counted).sum() / counted.sum()


def mean_counted(self, values):
    return (values * self.counted()).sum() / self.counted().sum()


LOSS = [
    mistake("head-is-embedding", "logits", "the embedding is the head, but the model has a head of its own", UNTIED,
            logits=lambda self, x, n: self.linear(n, self.w["embed"])),
    mistake("head-not-tied", "logits", "a head of its own, at random, where the embedding is the head", ("tied",),
            logits=lambda self, x, n: self.linear(n, random_head(self))),
    mistake("head-rows-shifted", "logits", "the rows of the head are off by one",
            logits=lambda self, x, n: self.linear(n, self.head().roll(1, 0))),
    mistake("logits-unnormed", "logits", "the head reads the stream before the final norm",
            logits=lambda self, x, n: self.linear(x, self.head())),
    mistake("logits-scaled", "logits", "the logits are divided by √C",
            logits=lambda self, x, n: self.linear(n, self.head()) / math.sqrt(self.c.dim)),
    mistake("logits-softcap", "logits", "the logits pass through 30·tanh(logits/30), as in Gemma 2",
            logits=lambda self, x, n: 30 * torch.tanh(self.linear(n, self.head()) / 30)),
    mistake("logits-softmaxed", "logits", "the head returns probabilities, and the loss takes their softmax",
            logits=lambda self, x, n: self.softmax(self.linear(n, self.head()))),
    mistake("logits-tokens-shifted", "logits", "each token gets the logits of the token before it",
            logits=lambda self, x, n: self.linear(n, self.head()).roll(1, 1)),
    mistake("loss-sum", "loss", "the loss is a sum over tokens",
            loss=lambda self, z: (per_token(self, z) * self.counted()).sum()),
    mistake("loss-mean-of-all", "loss", "the sum over the targets that count is divided by the number of all tokens", IGNORED,
            loss=lambda self, z: (per_token(self, z) * self.counted()).mean()),
    mistake("loss-per-sequence", "loss", "the loss is a sum over tokens, averaged over sequences",
            loss=lambda self, z: (per_token(self, z) * self.counted()).sum() / self.B),
    mistake("loss-mean-of-means", "loss", "the loss is the mean of the sequences' means", IGNORED, loss=of_batch_means),
    mistake("loss-ignored-as-0", "loss", "ignored targets count as token 0", IGNORED,
            loss=lambda self, z: per_token(self, z).mean()),
    mistake("loss-ignored-as-last", "loss", "ignored targets count as the last token of the vocabulary", IGNORED,
            loss=lambda self, z: self.token_losses(z, torch.where(self.counted(), self.targets, z.shape[-1] - 1)).mean()),
    mistake("loss-target-0-ignored", "loss", "targets of 0 are taken for padding",
            ("mqa", "interleaved", "tied", "qk-norm", "large-eps"),
            loss=lambda self, z: (per_token(self, z) * (m := self.targets > 0)).sum() / m.sum()),
    mistake("loss-shifted", "loss", "targets are shifted once more", loss=shifted_again),
    mistake("loss-of-tokens", "loss", "each token has to predict itself",
            loss=lambda self, z: mean_counted(self, self.token_losses(z, self.tokens))),
    mistake("loss-bits", "loss", "the loss is in bits",
            loss=lambda self, z: mean_counted(self, per_token(self, z)) / math.log(2)),
    mistake("loss-smoothed", "loss", "labels are smoothed by 0.1", loss=smoothed),
    mistake("loss-of-probabilities", "loss", "the loss is the mean of -p, without the logarithm",
            loss=lambda self, z: mean_counted(self, -(-per_token(self, z)).exp())),
    mistake("loss-softmax-twice", "loss", "the loss takes the softmax of probabilities",
            loss=lambda self, z: mean_counted(self, per_token(self, self.softmax(z)))),
    mistake("loss-last-token", "loss", "only the last token of each sequence counts",
            loss=lambda self, z: per_token(self, z)[:, -1].mean()),
    mistake("loss-sign", "loss", "the loss lacks its minus", loss=lambda self, z: -mean_counted(self, per_token(self, z))),
    mistake("loss-logsumexp-missing", "loss", "the loss is minus the target's logit",
            loss=lambda self, z: mean_counted(self, -z.gather(-1, self.targets.clamp(min=0)[..., None])[..., 0])),
    mistake("loss-z", "loss", "0.01 of the squared log-sum-exp is added, as in PaLM",
            loss=lambda self, z: mean_counted(self, per_token(self, z) + 0.01 * z.logsumexp(-1) ** 2)),
    mistake("loss-eps", "loss", "0.001 is added to the probability inside the logarithm",
            loss=lambda self, z: mean_counted(self, -((-per_token(self, z)).exp() + 1e-3).log())),
    mistake("loss-binary", "loss", "the loss is a binary cross-entropy, over V sigmoids",
            loss=lambda self, z: mean_counted(self, F.softplus(z).mean(-1) - (z * self.one_hot()).mean(-1))),
    mistake("loss-square", "loss", "the loss is the squared distance of probabilities and one-hot targets",
            loss=lambda self, z: mean_counted(self, (self.softmax(z) - self.one_hot()).pow(2).sum(-1))),
]  # fmt: skip

OUTPUTS = [*SCORES, *ATTENTION, *FEED_FORWARD, *LOSS]
