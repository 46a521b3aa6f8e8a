"""The user whose Llama is compared with the vectors: right, or with one mistake.

`subject_forward.py` and `subject_backward.py` are the model, this file its training; `planted_*.py` are the mistakes.

    dump = run(read(folder), "scale-missing", steps=10)     # tensors by the vectors' names, in the order of computation
"""

import json
import math
from pathlib import Path

import torch
from parity.learn.planted import Mistake
from parity.learn.planted_attention_backward import ATTENTION_DOWN
from parity.learn.planted_backward import DOWN_TO_ATTENTION
from parity.learn.planted_inputs import INPUTS
from parity.learn.planted_outputs import OUTPUTS
from parity.learn.planted_rope import ROPE
from parity.learn.planted_training import TRAINING
from parity.learn.planted_variants import VARIANTS
from parity.learn.subject_backward import Llama
from safetensors.torch import load_file

MISTAKES: list[Mistake] = [*INPUTS, *ROPE, *OUTPUTS, *DOWN_TO_ATTENTION, *ATTENTION_DOWN, *TRAINING]


class Subject(Llama):
    """A Llama and its training: the settings are the manifest's."""

    def __init__(self, tensors, manifest):
        super().__init__(tensors, manifest)
        self.settings = manifest["optimizer"]
        self.mean = {name: torch.zeros_like(w) for name, w in self.w.items()}
        self.square = {name: torch.zeros_like(w) for name, w in self.w.items()}
        self.beta1, self.beta2 = self.settings["betas"]

    def gathered(self, before, grads):
        """The gradients of a step; `before` are those of the step before, or None."""
        return grads

    def grad_norm(self, grads):
        return math.sqrt(sum(g.pow(2).sum().item() for g in grads.values()))

    def clip(self, grads, norm):
        most = self.settings["clip"]
        return {name: g * (most / (norm + 1e-6)) for name, g in grads.items()} if norm > most else grads

    def lr(self, t):
        return self.settings["lr"]

    def decays(self, name):
        return self.w[name].dim() > 1

    def decay(self, name, t):
        return self.lr(t) * self.settings["weight_decay"] * self.w[name] if self.decays(name) else 0

    def moments(self, name, g):
        self.mean[name] = self.beta1 * self.mean[name] + (1 - self.beta1) * g
        self.square[name] = self.beta2 * self.square[name] + (1 - self.beta2) * g * g

    def correction1(self, t):
        return 1 - self.beta1**t

    def correction2(self, t):
        return 1 - self.beta2**t

    def direction(self, name, t):
        m, v = self.mean[name] / self.correction1(t), self.square[name] / self.correction2(t)
        return m / (v.sqrt() + self.settings["eps"])

    def step(self, grads, t):
        for name, g in grads.items():
            self.moments(name, g)
            self.w[name] = self.w[name] - self.decay(name, t) - self.lr(t) * self.direction(name, t)

    def train(self, steps):
        """Steps of AdamW on the one batch: losses and gradient norms before each step, and the weights after the last."""
        losses, norms, grads = [], [], None
        for t in range(1, steps + 1):
            dump, new = self.loss_and_grads()
            grads = self.gathered(grads, new)
            losses.append(dump["values/loss"].item())
            norms.append(float(self.grad_norm(grads)))
            self.step(self.clip(grads, norms[-1]), t)
        numbers = {"losses": losses, "norms": norms}
        return {f"optimizer/{name}": torch.tensor(n, dtype=self.dtype) for name, n in numbers.items()} | {
            f"after/{name}": w for name, w in self.w.items()
        }


def read(folder, dtype="float64"):
    """A folder of vectors: its tensors and its manifest."""
    folder = Path(folder)
    return load_file(folder / f"{dtype}.safetensors"), json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def run(vectors, key=None, steps=0):
    """The dump of the right Llama, or of one with a mistake or a variant by its key.

    Parameters
    ----------
    vectors : (dict of str to tensor, dict)
        From :func:`read`.
    key : str, optional
        Of `MISTAKES` or `VARIANTS`.
    steps : int
        Steps of AdamW after the pass that is dumped.

    Returns
    -------
    dict of str to tensor
        In the order of computation: ``values/...``, ``d_values/...`` and ``d_weights/...``; ``optimizer/losses``,
        ``optimizer/norms`` and ``after/...`` if there are steps.
    """
    methods = {m.key: m.methods for m in (*MISTAKES, *VARIANTS)}[key] if key else {}
    subject = type("Subject", (Subject,), methods)(*vectors)
    dump, _ = subject.loss_and_grads()
    return dump | (subject.train(steps) if steps else {})
