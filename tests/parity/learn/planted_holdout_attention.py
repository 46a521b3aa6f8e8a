"""The hold-out set's mistakes from the scores to the loss: see planted_holdout.py."""

import math

import torch
from parity.learn.planted import DOCUMENTS, GROUPED, IGNORED, UNTIED, but, mistake, right
from torch.nn import functional as F

REPEATED = but("mha")                                                  # fewer key heads than query heads


# ---------------------------------------------------------------- attention


def straddling(self, a):
    """Query head h reads its key at h·D/R of the flat (K·D) row, and on into the next row."""
    R, D = self.c.n_heads // self.c.n_kv_heads, self.c.head_dim
    flat = self.merge(a.k_rotated).flatten()
    flat = torch.cat([flat, torch.zeros(D, dtype=self.dtype)])
    start = torch.arange(self.B * self.T)[:, None] * self.c.n_kv_heads * D + torch.arange(self.c.n_heads) * D // R
    return flat[start[..., None] + torch.arange(D)].view(self.B, self.T, -1, D).transpose(1, 2)


def alibi(self, q, k):
    slopes = 2.0 ** (-8 * torch.arange(1, self.c.n_heads + 1, dtype=self.dtype) / self.c.n_heads)
    t = torch.arange(self.T)
    return right("scores")(self, q, k) + slopes[:, None, None] * (t - t[:, None])


def window_of_3(self):
    t = torch.arange(self.T)
    return right("hidden")(self) | (t[:, None] - t >= 3)


def later_normalised(self, scores, hidden):
    return self.softmax(scores).masked_fill(hidden, 0)


def plus_one(self, scores, hidden):
    e = scores.masked_fill(hidden, -math.inf).exp()
    return e / (1 + e.sum(-1, keepdim=True))


def base_2(self, scores, hidden):
    scores = scores.masked_fill(hidden, -math.inf)
    return torch.softmax(scores * math.log(2), -1)


def not_rescaled(self, scores, hidden):
    """Blocks of two keys; the sum is rescaled when the maximum grows, what is accumulated is not."""
    scores = scores.masked_fill(hidden, -math.inf)
    running = scores.cummax(-1).values
    last = torch.arange(self.T).div(2, rounding_mode="floor").mul(2).add(1).clamp(max=self.T - 1)
    p = (scores - running[..., last]).exp()
    return p / (scores - scores.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)


ATTENTION = [
    mistake("ho-first-key-head", "scores", "All query heads read key head 0.", GROUPED,
            repeated_k=lambda self, a: a.k_rotated[:, :1].expand(-1, self.c.n_heads, -1, -1)),
    mistake("ho-values-tiled", "head_outputs", "The values are tiled over the query heads, the keys are repeated.", GROUPED,
            repeated_v=lambda self, a: self.split(a.v, self.c.n_kv_heads).repeat(1,
            self.c.n_heads // self.c.n_kv_heads, 1, 1)),
    mistake("ho-key-offset", "scores", "Query head h reads its key at h·D/R instead of (h // R)·D.", REPEATED,
            repeated_k=straddling),
    mistake("ho-scale-time", "scores", "The scores are divided by √T: size(-2) instead of size(-1).",
            scale=lambda self: 1 / math.sqrt(self.T)),
    mistake("ho-scale-c-over-h", "scores", "The scores are divided by √(C/H), which is not √D here.", ("odd-sizes",),
            same_as=("ho-scale-time",), scale=lambda self: 1 / math.sqrt(self.w["embed"].shape[1] // self.c.n_heads)),
    mistake("ho-scale-times", "scores", "The scores are multiplied by √D.", scale=lambda self: math.sqrt(self.c.head_dim)),
    mistake("ho-scores-capped", "scores", "The scores are capped: 50 tanh(s/50), as in Gemma 2.",
            scores=lambda self, q, k: 50 * torch.tanh(right("scores")(self, q, k) / 50)),
    mistake("ho-alibi", "scores", "ALiBi's slopes are added to the scores, as in BLOOM.", scores=alibi),
    mistake("ho-mask-window", "scores", "A query sees three keys at most: a sliding window, as in Mistral.", but("packed"),
            hidden=window_of_3),
    mistake("ho-mask-added", "attention", "The boolean mask is added to the scores: hidden ones become 1 larger.",
            attention=lambda self, scores, hidden: self.softmax(scores + hidden)),
    mistake("ho-mask-tiny", "attention", "Hidden scores are -1e-9 instead of -1e9.",
            attention=lambda self, scores, hidden: self.softmax(scores.masked_fill(hidden, -1e-9))),
    mistake("ho-mask-not-causal", "scores", "Documents are kept apart, but within one all tokens see each other.", DOCUMENTS,
            hidden=lambda self: (self.segments[:, :, None] != self.segments[:, None, :])[:, None]),
    mistake("ho-softmax-heads", "attention", "The softmax is over the heads (dim=1).",
            attention=lambda self, scores, hidden: scores.masked_fill(hidden, -1e9).softmax(1)),
    mistake("ho-softmax-masked-later", "attention", "The mask follows the softmax: visible weights do not sum to 1.",
            attention=later_normalised),
    mistake("ho-softmax-one", "attention", "There is 1 more in the softmax's denominator.", attention=plus_one),
    mistake("ho-softmax-base-2", "attention", "exp2 stands in place of exp, without log2(e) in the scale.", attention=base_2),
    mistake("ho-softmax-not-rescaled", "attention",
            "Online softmax: what is accumulated is not rescaled when the maximum grows.",
            but(*DOCUMENTS), attention=not_rescaled),
    mistake("ho-mix-transposed", "head_outputs", "The attention weights are transposed before they meet the values.",
            mix=lambda self, attention, v: attention.transpose(-2, -1) @ v),
    mistake("ho-merge-not-transposed", "attn_out", "(B, H, T, D) is reshaped to (B, T, H·D) without a transpose.",
            attn_out=lambda self, heads: self.linear(heads.reshape(self.B, self.T, -1), self.weight("wo"))),
    mistake("ho-merge-d-h", "attn_out", "Heads are merged as (D, H): the components of all heads alternate.",
            attn_out=lambda self, heads: self.linear(heads.permute(0, 2, 3, 1).reshape(self.B, self.T, -1),
            self.weight("wo"))),
    mistake("ho-merge-heads-first", "attn_out", "(B, H, T, D) is viewed as (H, B, T, D) when the heads are merged.",
            attn_out=lambda self, heads: self.linear(
                heads.reshape(-1, self.B, self.T, self.c.head_dim).permute(1, 2, 0, 3).reshape(self.B,
                self.T, -1), self.weight("wo"))),
    mistake("ho-wo-depth", "attn_out", "wo's output is divided by √(2L): GPT-2's initialisation is applied to activations.",
            attn_out=lambda self, heads: right("attn_out")(self, heads) / math.sqrt(2 * self.c.n_layers)),
]  # fmt: skip

# ---------------------------------------------------------------- residual stream and feed-forward


def dropped(self, x, a):
    """Dropout of 10 % that is still on, with a fixed seed."""
    keep = torch.rand(x.shape, generator=torch.Generator().manual_seed(5), dtype=self.dtype) > 0.1
    return x + a.attn_out * keep / 0.9


def not_chained(self, x):
    """h = layer(x) in the loop: every block reads the embedding."""
    embedding, self.inputs, self.acts = x, [], []
    for i in range(self.c.n_layers):
        self.i = i
        self.inputs.append(embedding)
        self.acts.append(self.block(embedding))
    return self.acts[-1].after_ffn


def alternating(self):
    """Rows of w_gate and w_up one after the other, read as if they alternated."""
    return torch.cat([self.weight("w_gate"), self.weight("w_up")])


FEED_FORWARD = [
    mistake("ho-parallel-block", "ffn_norm", "ffn_norm reads the block's input: a parallel block, as in GPT-NeoX.",
            ffn_norm=lambda self, x, a: self.rmsnorm(x, self.weight("ffn_norm"))),
    mistake("ho-residual-normed", "after_attention", "The residual is attn_norm's output instead of its input.",
            after_attention=lambda self, x, a: a.attn_norm + a.attn_out),
    mistake("ho-residual-root-2", "after_attention", "The sum with the residual is divided by √2.",
            after_attention=lambda self, x, a: (x + a.attn_out) / math.sqrt(2)),
    mistake("ho-dropout-on", "after_attention", "Dropout of 10 % after attention is on.", after_attention=dropped),
    mistake("ho-residual-again", "after_ffn", "The block's input is added a second time at its end.",
            after_ffn=lambda self, x, a: x + a.after_attention + a.ffn_out),
    mistake("ho-residual-old", "after_ffn", "The second residual is the block's input: attention's output is lost.",
            after_ffn=lambda self, x, a: x + a.ffn_out),
    mistake("ho-blocks-not-chained", "attn_norm", "Every block reads the embedding: h = layer(x) in the loop.",
            blocks=not_chained),
    mistake("ho-up-not-normed", "up", "w_up reads the residual stream without ffn_norm.",
            up=lambda self, a: self.linear(a.after_attention, self.weight("w_up"))),
    mistake("ho-gate-up-alternate", "gate", "Fused rows gate | up are read as alternating, as in gpt-oss.",
            gate=lambda self, a: self.linear(a.ffn_norm, alternating(self)[0::2]),
            up=lambda self, a: self.linear(a.ffn_norm, alternating(self)[1::2])),
    mistake("ho-w1-w3", "gate", "w1 and w3 are exchanged: the gate has w_up and the other way round.",
            gate=lambda self, a: self.linear(a.ffn_norm, self.weight("w_up")),
            up=lambda self, a: self.linear(a.ffn_norm, self.weight("w_gate"))),
    mistake("ho-silu-of-up", "swiglu", "silu is applied to up instead of to the gate.",
            swiglu=lambda self, gate, up: self.activation(up) * gate),
    mistake("ho-quick-gelu", "swiglu", "The gate's activation is x·sigmoid(1.702 x), as in CLIP.",
            activation=lambda self, x: x * torch.sigmoid(1.702 * x)),
    mistake("ho-relu-squared", "swiglu", "The gate's activation is relu(x)².",
            activation=lambda self, x: torch.relu(x).pow(2)),
    mistake("ho-silu-sign", "swiglu", "The gate's activation is x / (1 + exp(x)): the exponent lacks its minus.",
            activation=lambda self, x: x * torch.sigmoid(-x)),
    mistake("ho-hard-swish", "swiglu", "The gate's activation is x·relu6(x + 3)/6.",
            activation=lambda self, x: F.hardswish(x)),
    mistake("ho-silu-of-product", "swiglu", "silu is applied to the product of gate and up.",
            swiglu=lambda self, gate, up: self.activation(gate * up)),
    mistake("ho-silu-both", "swiglu", "silu is applied to both gate and up.",
            swiglu=lambda self, gate, up: self.activation(gate) * self.activation(up)),
    mistake("ho-gate-plus-up", "swiglu", "silu(gate) and up are added.",
            swiglu=lambda self, gate, up: self.activation(gate) + up),
    mistake("ho-up-plus-1", "swiglu", "silu(gate) is multiplied by up + 1, as in gpt-oss.",
            swiglu=lambda self, gate, up: self.activation(gate) * (up + 1)),
]  # fmt: skip

# ---------------------------------------------------------------- logits and loss


def means_of_sequences(self, logits):
    counted = self.counted()
    return ((self.token_losses(logits, self.targets) * counted).sum(1) / counted.sum(1)).mean()


def shifted_again(self, logits):
    losses = self.token_losses(logits[:, :-1], self.targets[:, 1:])
    counted = self.counted()[:, 1:]
    return (losses * counted).sum() / counted.sum()


def smoothed(self, logits):
    counted = self.counted()
    uniform = -torch.log_softmax(logits, -1).mean(-1)
    return ((0.9 * self.token_losses(logits, self.targets) + 0.1 * uniform) * counted).sum() / counted.sum()


def with_z_loss(self, logits):
    counted = self.counted()
    return right("loss")(self, logits) + 1e-4 * (logits.logsumexp(-1).pow(2) * counted).sum() / counted.sum()


LOSS = [
    mistake("ho-logits-t5", "logits", "The last norm's output is divided by √C before the tied head, as in T5.", ("tied",),
            logits=lambda self, x, normed: self.linear(normed * normed.shape[-1] ** -0.5, self.head())),
    mistake("ho-logits-capped", "logits", "The logits are capped: 30 tanh(x/30), as in Gemma 2.",
            logits=lambda self, x, normed: 30 * torch.tanh(self.linear(normed, self.head()) / 30)),
    mistake("ho-logits-tied", "logits", "The logits come from the embedding's table, though the head has its own.", UNTIED,
            logits=lambda self, x, normed: self.linear(normed, self.w["embed"])),
    mistake("ho-loss-softmax-twice", "loss", "The cross-entropy is given probabilities: it takes another softmax.",
            loss=lambda self, logits: right("loss")(self, logits.softmax(-1))),
    mistake("ho-loss-shifted-again", "loss", "Logits and targets are shifted once more: the targets already are.",
            loss=shifted_again),
    mistake("ho-loss-by-sequence", "loss", "The loss is the mean of the sequences' means, whatever each one counts.", IGNORED,
            loss=means_of_sequences),
    mistake("ho-loss-over-batch", "loss", "The sum of the losses is divided by B instead of by the number of targets.",
            loss=lambda self, logits: (self.token_losses(logits, self.targets) * self.counted()).sum() / self.B),
    mistake("ho-loss-smoothed", "loss", "Label smoothing of 0.1 is on.", loss=smoothed),
    mistake("ho-loss-z", "loss", "PaLM's z-loss, 1e-4 times the squared log-sum-exp, is part of the loss.", loss=with_z_loss),
    mistake("ho-loss-bits", "loss", "The loss is in bits.",
            loss=lambda self, logits: right("loss")(self, logits) / math.log(2)),
]  # fmt: skip
