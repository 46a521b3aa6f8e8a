"""docs/chapters/reading_a_model.md"""

from math import exp, sqrt

import numpy as np

from numllama.learn.heads import induction_scores, previous_token_scores
from numllama.learn.intermediates import forward
from numllama.learn.lens import logit_lens
from numllama.learn.patching import activation_patching, attribution_patching
from numllama.model import ModelConfig, Transformer

CONFIG = ModelConfig(vocab_size=11, dim=8, n_layers=2, n_heads=2, ffn_dim=12, max_seq_len=16, init_std=0.4)
MODEL = Transformer(CONFIG, dtype="float64")
CLEAN, CORRUPT, ANSWERS = np.array([3, 9, 4, 4]), np.array([3, 2, 4, 4]), (5, 8)
P = MODEL.params


def metric(run):
    return float(run.logits[0, -1, ANSWERS[0]] - run.logits[0, -1, ANSWERS[1]])


def lens():
    found, streams = logit_lens(MODEL, CLEAN, k=11), forward(MODEL, CLEAN[None]).values
    for level, name in enumerate(("embedding", "layer 0: after_ffn", "layer 1: after_ffn")):
        for t in range(4):
            x = streams[name][0, t]
            rms = sqrt(sum(x[c] ** 2 for c in range(8)) / 8 + MODEL.config.norm_eps)
            z = [sum(P["head"][v, c] * P["norm"][c] * x[c] / rms for c in range(8)) for v in range(11)]
            p = [exp(z[v]) / sum(exp(z[u]) for u in range(11)) for v in range(11)]
            yield p, found.probs[level, t][np.argsort(found.top[level, t])]


def scores():
    a = np.random.default_rng(0).dirichlet(np.ones(10), size=10)
    T, n = 10, 5
    yield sum(a[t, t - 1] for t in range(1, T)) / (T - 1), previous_token_scores(a)
    yield sum(a[t, t - n + 1] for t in range(n, 2 * n)) / n, induction_scores(a, n)


def patching():
    """Each place of one value of the clean run, in the corrupt run."""
    name = "layer 0: attn_out"
    clean, before = forward(MODEL, CLEAN[None]).values[name], metric(forward(MODEL, CORRUPT[None]))
    literal = []
    for t in range(4):

        def put(value, t=t):
            value[0, t] = clean[0, t]
            return value

        literal.append(metric(forward(MODEL, CORRUPT[None], edits={name: put})) - before)
    yield literal, activation_patching(MODEL, CLEAN, CORRUPT, [name], ANSWERS)[name]


def attribution():
    """The gradient by differences."""
    name, h = "layer 0: attn_out", 1e-3
    clean, corrupt = (forward(MODEL, text[None]).values[name][0] for text in (CLEAN, CORRUPT))

    def moved(t, c, by):
        def edit(value):
            value[0, t, c] += by
            return value

        return metric(forward(MODEL, CORRUPT[None], only=lambda _: False, edits={name: edit}))

    def slope(t, c):
        pairs = ((45, 1), (-9, 2), (1, 3))
        return sum(f * (moved(t, c, k * h) - moved(t, c, -k * h)) for f, k in pairs) / (60 * h)

    literal = [sum((clean[t, c] - corrupt[t, c]) * slope(t, c) for c in range(8)) for t in range(4)]
    yield literal, attribution_patching(MODEL, CLEAN, CORRUPT, ANSWERS).effects[name], 1e-8
