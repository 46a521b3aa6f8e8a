"""A Llama in PyTorch with one mistake in it. Find the line:

    numllama vectors gqa --out vectors/gqa
    python examples/broken_llama.py vectors/gqa mine.safetensors
    numllama compare vectors/gqa mine.safetensors
    numllama diagnose vectors/gqa mine.safetensors
"""

import json
import math
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from numllama.learn.record import layer, record, recording


class MyLlama(torch.nn.Module):
    def __init__(self, weights, config):
        super().__init__()
        self.config = config
        self.w = {name: torch.nn.Parameter(value) for name, value in weights.items()}

    def weight(self, i, name):
        return self.w[f"blocks.{i}.{name}"]

    def norm(self, x, gain):
        return gain * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.config["norm_eps"])

    def rope(self, x):                                                 # x (B, heads, T, D)
        D = x.shape[-1]
        frequencies = self.config["rope_theta"] ** (-torch.arange(0, D, 2) / D)
        angles = torch.arange(x.shape[2])[:, None] * frequencies       # (T, D/2)
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        x1, x2 = x.chunk(2, -1)
        return x * cos + torch.cat((-x2, x1), -1) * sin

    def attention(self, x, w):
        B, T, _ = x.shape
        H, K = self.config["n_heads"], self.config["n_kv_heads"]
        q, k, v = (record(name, x @ w(f"w{name}").T) for name in "qkv")
        split = ((q, H), (k, K), (v, K))
        q, k, v = (a.view(B, T, heads, -1).transpose(1, 2) for a, heads in split)
        q, k = record("q_rotated", self.rope(q)), record("k_rotated", self.rope(k))
        # each key head serves H/K query heads
        k, v = k.repeat(1, H // K, 1, 1), v.repeat(1, H // K, 1, 1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        hidden = torch.ones(T, T).triu(1).bool()
        scores = record("scores", scores.masked_fill(hidden, -math.inf))
        out = record("head_outputs", record("attention", scores.softmax(-1)) @ v)
        return out.transpose(1, 2).reshape(B, T, -1) @ w("wo").T

    def forward(self, tokens, targets):
        x = record("embedding", self.w["embed"][tokens])
        for i in range(self.config["n_layers"]):
            w = partial(self.weight, i)
            with layer(i):
                x = x + record("attn_out", self.attention(record("attn_norm", self.norm(x, w("attn_norm"))), w))
                h = record("ffn_norm", self.norm(x, w("ffn_norm")))
                x = x + record("ffn_out", (F.silu(h @ w("w_gate").T) * (h @ w("w_up").T)) @ w("w_down").T)
                record("after_ffn", x)
        logits = record("logits", record("norm", self.norm(x, self.w["norm"])) @ self.w["head"].T)
        return record("loss", F.cross_entropy(logits.flatten(0, 1), targets.flatten()))


folder, out = sys.argv[1:]
tensors = load_file(f"{folder}/float32.safetensors")
config = json.loads(Path(folder, "manifest.json").read_text())["config"]
weights = {name.removeprefix("weights/"): value for name, value in tensors.items() if name.startswith("weights/")}
model = MyLlama(weights, config)
with recording() as dump:
    model(tensors["tokens"].long(), tensors["targets"].long()).backward()
dump.save(out)
