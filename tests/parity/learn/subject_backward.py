"""The gradients of `subject_forward.py`, by hand: each step's backward is a method of its own."""

import torch
from parity.learn.subject_forward import Forward, Notes


class Llama(Forward):
    """Forward and backward of one batch."""

    def one_hot(self):
        return torch.nn.functional.one_hot(self.targets.clamp(min=0), self.c.vocab_size).to(self.dtype)

    def loss_backward(self, logits):
        counted = self.counted()
        return (self.softmax(logits) - self.one_hot()) * counted[..., None] / counted.sum()

    def linear_dx(self, dout, weight, name):
        return dout @ weight

    def linear_dw(self, dout, x, name):
        return dout.flatten(0, -2).T @ x.flatten(0, -2)

    def rmsnorm_dx(self, dout, x, weight):
        rstd, dn = self.rstd(x), dout * weight
        n = x * rstd
        return rstd * (dn - n * (dn * n).mean(-1, keepdim=True))

    def rmsnorm_dw(self, dout, x, weight):
        return (dout * x * self.rstd(x)).flatten(0, -2).sum(0)

    def activation_backward(self, x):
        s = torch.sigmoid(x)
        return s * (1 + x * (1 - s))

    def dgate(self, dout, gate, up):
        return dout * up * self.activation_backward(gate)

    def dup(self, dout, gate, up):
        return dout * self.activation(gate)

    def d_ffn_norm(self, from_gate, from_up):
        return from_gate + from_up

    def d_attn_norm(self, from_q, from_k, from_v):
        return from_q + from_k + from_v

    def d_after_attention(self, dout, from_norm):
        return dout + from_norm

    def d_attn_out(self, dout, d_after_attention):
        return d_after_attention

    def d_input(self, d_after_attention, from_norm):
        return d_after_attention + from_norm

    def split_backward(self, x):
        return x.transpose(1, 2).reshape(self.B, self.T, -1)

    def merge_backward(self, x):
        return x.view(self.B, self.T, self.c.n_heads, self.c.head_dim).transpose(1, 2)

    def wo_input(self, a):
        return self.merge(a.head_outputs)

    def d_attention(self, dout, v):
        return dout @ v.transpose(-2, -1)

    def dv(self, dout, attention, a):
        return attention.transpose(-2, -1) @ dout

    def softmax_backward(self, dp, p, scores):
        return p * (dp - (dp * p).sum(-1, keepdim=True))

    def dq(self, ds, k, a):
        return ds @ k * self.scale()

    def dk(self, ds, q, a):
        return ds.transpose(-2, -1) @ q * self.scale()

    def groups(self, x):
        """(B, H, T, D) -> (B, K, query heads of a key head, T, D)."""
        return x.view(self.B, self.c.n_kv_heads, -1, self.T, self.c.head_dim)

    def sum_dk(self, dk):
        return self.groups(dk).sum(2)

    def sum_dv(self, dv):
        return self.groups(dv).sum(2)

    def rotate_back(self, dx):
        cos, sin = self.cos_sin()
        return self.rotate(dx, cos, -sin)

    def rotate_back_q(self, dq):
        return self.rotate_back(dq)

    def rotate_back_k(self, dk):
        return self.rotate_back(dk)

    def cache(self):
        return self.acts[self.i]

    def weight_in_backward(self, name):
        return self.weight(name)

    def norm_backward(self, g, dout, x, name):
        weight = self.weight_in_backward(name)
        setattr(g, name, self.rmsnorm_dw(dout, x, weight))
        return self.rmsnorm_dx(dout, x, weight)

    def project_backward(self, g, dout, x, name):
        setattr(g, name, self.linear_dw(dout, x, name))
        return self.linear_dx(dout, self.weight_in_backward(name), name)

    def block_backward(self, dout):
        a, x, c = self.cache(), self.inputs[self.i], self.c
        d, g = Notes(self.dump, f"d_values/layer.{self.i}."), Notes(self.dump, f"d_weights/blocks.{self.i}.")
        d.after_ffn = d.ffn_out = dout
        d.swiglu = self.project_backward(g, d.ffn_out, a.swiglu, "w_down")
        d.gate, d.up = self.dgate(d.swiglu, a.gate, a.up), self.dup(d.swiglu, a.gate, a.up)
        from_gate = self.project_backward(g, d.gate, a.ffn_norm, "w_gate")
        from_up = self.project_backward(g, d.up, a.ffn_norm, "w_up")
        d.ffn_norm = self.d_ffn_norm(from_gate, from_up)
        from_norm = self.norm_backward(g, d.ffn_norm, a.after_attention, "ffn_norm")
        d.after_attention = self.d_after_attention(dout, from_norm)
        d.attn_out = self.d_attn_out(dout, d.after_attention)
        d.head_outputs = self.merge_backward(self.project_backward(g, d.attn_out, self.wo_input(a), "wo"))
        d.attention = self.d_attention(d.head_outputs, self.repeated_v(a))
        d.scores = self.softmax_backward(d.attention, a.attention, a.scores)
        d.q_rotated = self.dq(d.scores, self.repeated_k(a), a)
        d.k_rotated = self.sum_dk(self.dk(d.scores, a.q_rotated, a))
        d.v = self.split_backward(self.sum_dv(self.dv(d.head_outputs, a.attention, a)))
        dq, dk = self.rotate_back_q(d.q_rotated), self.rotate_back_k(d.k_rotated)
        if c.qk_norm:
            d.q_norm, d.k_norm = dq, dk
            dq = self.norm_backward(g, d.q_norm, self.split(a.q, c.n_heads), "q_norm")
            dk = self.norm_backward(g, d.k_norm, self.split(a.k, c.n_kv_heads), "k_norm")
        d.q, d.k = self.split_backward(dq), self.split_backward(dk)
        from_q = self.project_backward(g, d.q, a.attn_norm, "wq")
        from_k = self.project_backward(g, d.k, a.attn_norm, "wk")
        from_v = self.project_backward(g, d.v, a.attn_norm, "wv")
        d.attn_norm = self.d_attn_norm(from_q, from_k, from_v)
        from_norm = self.norm_backward(g, d.attn_norm, x, "attn_norm")
        return self.d_input(d.after_attention, from_norm)

    def embed_backward(self, dout):
        dembed = torch.zeros_like(self.w["embed"])
        for b in range(self.B):
            for t in range(self.T):
                dembed[self.tokens[b, t]] += dout[b, t]
        return dembed

    def tied_backward(self, from_head, from_embedding):
        return from_head + from_embedding

    def backward(self):
        o, d, g = self.outer, Notes(self.dump, "d_values/"), Notes(self.dump, "d_weights/")
        d.loss = torch.ones_like(o.loss)
        d.logits = self.loss_backward(o.logits)
        d.norm = self.linear_dx(d.logits, self.head(), "head")
        dhead = self.linear_dw(d.logits, o.norm, "head")
        if not self.c.tie_embeddings:
            g.head = dhead
        g.norm = self.rmsnorm_dw(d.norm, self.last, self.w["norm"])
        dx = self.rmsnorm_dx(d.norm, self.last, self.w["norm"])
        for i in reversed(range(self.c.n_layers)):
            self.i = i
            dx = self.block_backward(dx)
        d.embedding = dx
        dembed = self.embed_backward(dx)
        g.embed = self.tied_backward(dhead, dembed) if self.c.tie_embeddings else dembed

    def loss_and_grads(self):
        """The dump of one pass; its gradients are copied out by their parameters' names."""
        self.dump = {}
        self.forward()
        self.backward()
        return self.dump, {name: self.dump[f"d_weights/{name}"] for name in self.w}
