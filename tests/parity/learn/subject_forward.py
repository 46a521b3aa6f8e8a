"""A Llama's forward as its users write it, in PyTorch, with nothing of numllama.

Every step is a method of its own, so that a mistake is one method written wrongly. What is computed goes into a dump under the
vectors' names, in the order of computation. `subject_backward.py` has the gradients, `subject.py` the optimizer.
"""

import math
from types import SimpleNamespace

import torch


class Notes(SimpleNamespace):
    """Tensors by name; each goes into the dump too."""

    def __init__(self, dump, prefix):
        self.__dict__.update(_dump=dump, _prefix=prefix)

    def __setattr__(self, name, tensor):
        self.__dict__[name] = tensor
        self._dump[self._prefix + name] = tensor


class Forward:
    """The weights, one batch, and the way from tokens to the loss."""

    def __init__(self, tensors, manifest):
        self.c = SimpleNamespace(**manifest["config"])
        self.w = {name.removeprefix("weights/"): t.clone() for name, t in tensors.items() if name.startswith("weights/")}
        self.tokens, self.targets = tensors["tokens"].long(), tensors["targets"].long()
        self.segments = tensors.get("segments")
        self.B, self.T = self.tokens.shape
        self.dtype = self.w["embed"].dtype
        self.i = 0                                                     # the layer at work

    def weight(self, name):
        return self.w[f"blocks.{self.i}.{name}"]

    def head(self):
        return self.w["embed" if self.c.tie_embeddings else "head"]

    # ---------------------------------------------------------------- forward: tables

    def positions(self):
        if self.segments is None:
            return torch.arange(self.T)
        positions = torch.zeros_like(self.tokens)
        for b in range(self.B):
            for t in range(1, self.T):
                if self.segments[b, t] == self.segments[b, t - 1]:
                    positions[b, t] = positions[b, t - 1] + 1
        return positions

    def theta(self):
        return self.c.rope_theta

    def exponents(self):
        return torch.arange(0, self.c.head_dim, 2, dtype=self.dtype) / self.c.head_dim

    def frequencies(self):
        frequencies = self.theta() ** -self.exponents()
        return self.rescale(frequencies) if self.c.rope_scaling else frequencies

    def wavelength(self, frequencies):
        return 2 * math.pi / frequencies

    def smooth(self, frequencies):
        s = SimpleNamespace(**self.c.rope_scaling)
        turns = s.original_max_position_embeddings / self.wavelength(frequencies)
        return ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)

    def rescale(self, frequencies):
        smooth = self.smooth(frequencies)
        return smooth * frequencies + (1 - smooth) * frequencies / self.c.rope_scaling["factor"]

    def cos_sin(self):
        angles = self.positions()[..., None].to(self.dtype) * self.frequencies()
        if angles.dim() == 3:
            angles = angles[:, None]                                   # (B, 1, T, D/2): the same for all heads
        return angles.cos(), angles.sin()

    def hidden(self):
        rows, columns = torch.arange(self.T)[:, None], torch.arange(self.T)
        hidden = columns > rows
        if self.segments is not None:
            hidden = hidden | (self.segments[:, :, None] != self.segments[:, None, :])[:, None]
        return hidden

    # ---------------------------------------------------------------- forward: steps

    def embed(self):
        return self.w["embed"][self.tokens]

    def eps(self):
        return self.c.norm_eps

    def rstd(self, x):
        return 1 / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps())

    def rmsnorm(self, x, weight):
        return x * self.rstd(x) * weight

    def linear(self, x, weight):
        return x @ weight.T

    def q(self, x, normed):
        return self.linear(normed, self.weight("wq"))

    def k(self, x, normed):
        return self.linear(normed, self.weight("wk"))

    def v(self, x, normed):
        return self.linear(normed, self.weight("wv"))

    def split(self, x, heads):
        return x.view(self.B, self.T, heads, self.c.head_dim).transpose(1, 2)

    def merge(self, x):
        return x.transpose(1, 2).reshape(self.B, self.T, -1)

    def q_norm(self, q):
        return self.rmsnorm(q, self.weight("q_norm"))

    def k_norm(self, k):
        return self.rmsnorm(k, self.weight("k_norm"))

    def layout(self):
        return self.c.rope_layout

    def pairs(self, x):
        return x.chunk(2, -1) if self.layout() == "half" else (x[..., 0::2], x[..., 1::2])

    def joined(self, x1, x2):
        return torch.cat([x1, x2], -1) if self.layout() == "half" else torch.stack([x1, x2], -1).flatten(-2)

    def rotate(self, x, cos, sin):
        x1, x2 = self.pairs(x)
        return self.joined(x1 * cos - x2 * sin, x2 * cos + x1 * sin)

    def rotate_q(self, q):
        return self.rotate(q, *self.cos_sin())

    def rotate_k(self, k):
        return self.rotate(k, *self.cos_sin())

    def repeat(self, x):
        return x.repeat_interleave(self.c.n_heads // self.c.n_kv_heads, 1)

    def repeated_k(self, a):
        return self.repeat(a.k_rotated)

    def repeated_v(self, a):
        return self.repeat(self.split(a.v, self.c.n_kv_heads))

    def scale(self):
        return 1 / math.sqrt(self.c.head_dim)

    def scores(self, q, k):
        return q @ k.transpose(-2, -1) * self.scale()

    def softmax(self, x):
        e = torch.exp(x - x.amax(-1, keepdim=True))
        return e / e.sum(-1, keepdim=True)

    def attention(self, scores, hidden):
        return self.softmax(scores.masked_fill(hidden, -math.inf))

    def mix(self, attention, v):
        return attention @ v

    def attn_out(self, heads):
        return self.linear(self.merge(heads), self.weight("wo"))

    def attn_norm(self, x):
        return self.rmsnorm(x, self.weight("attn_norm"))

    def ffn_norm(self, x, a):
        return self.rmsnorm(a.after_attention, self.weight("ffn_norm"))

    def after_attention(self, x, a):
        return x + a.attn_out

    def after_ffn(self, x, a):
        return a.after_attention + a.ffn_out

    def gate(self, a):
        return self.linear(a.ffn_norm, self.weight("w_gate"))

    def up(self, a):
        return self.linear(a.ffn_norm, self.weight("w_up"))

    def activation(self, x):
        return x * torch.sigmoid(x)

    def swiglu(self, gate, up):
        return self.activation(gate) * up

    def ffn_out(self, a):
        return self.linear(a.swiglu, self.weight("w_down"))

    def block(self, x):
        c, a = self.c, Notes(self.dump, f"values/layer.{self.i}.")
        a.attn_norm = self.attn_norm(x)
        a.q, a.k, a.v = self.q(x, a.attn_norm), self.k(x, a.attn_norm), self.v(x, a.attn_norm)
        q, k = self.split(a.q, c.n_heads), self.split(a.k, c.n_kv_heads)
        if c.qk_norm:
            a.q_norm, a.k_norm = self.q_norm(q), self.k_norm(k)
            q, k = a.q_norm, a.k_norm
        a.q_rotated, a.k_rotated = self.rotate_q(q), self.rotate_k(k)
        scores, hidden = self.scores(a.q_rotated, self.repeated_k(a)), self.hidden()
        a.scores = scores.masked_fill(hidden, 0)
        a.attention = self.attention(scores, hidden)
        a.head_outputs = self.mix(a.attention, self.repeated_v(a))
        a.attn_out = self.attn_out(a.head_outputs)
        a.after_attention = self.after_attention(x, a)
        a.ffn_norm = self.ffn_norm(x, a)
        a.gate, a.up = self.gate(a), self.up(a)
        a.swiglu = self.swiglu(a.gate, a.up)
        a.ffn_out = self.ffn_out(a)
        a.after_ffn = self.after_ffn(x, a)
        return a

    def blocks(self, x):
        """Every block reads what the one before it returned."""
        self.inputs, self.acts = [], []
        for i in range(self.c.n_layers):
            self.i = i
            self.inputs.append(x)
            self.acts.append(self.block(x))
            x = self.acts[-1].after_ffn
        return x

    def norm(self, x):
        return self.rmsnorm(x, self.w["norm"])

    def logits(self, x, normed):
        return self.linear(normed, self.head())

    def counted(self):
        return self.targets != -100

    def token_losses(self, logits, targets):
        """-log p of each target."""
        largest = logits.amax(-1, keepdim=True)
        log_p = logits - largest - (logits - largest).exp().sum(-1, keepdim=True).log()
        return -log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0]

    def loss(self, logits):
        counted = self.counted()
        return (self.token_losses(logits, self.targets) * counted).sum() / counted.sum()

    def forward(self):
        o = self.outer = Notes(self.dump, "values/")
        o.embedding = self.embed()
        self.last = self.blocks(o.embedding)
        o.norm = self.norm(self.last)
        o.logits = self.logits(self.last, o.norm)
        o.loss = self.loss(o.logits)
