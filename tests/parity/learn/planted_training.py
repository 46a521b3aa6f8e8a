"""Mistakes of clipping and AdamW, after right gradients."""

import math

import torch
from parity.learn.planted import ALL, but, mistake, right


def each(f):
    """Change each gradient by itself."""
    return lambda self, grads, norm: {name: f(self, g) for name, g in grads.items()}


def to_norm(self, g):
    norm, most = g.norm(), self.settings["clip"]
    return g * (most / (norm + 1e-6)) if norm > most else g


def norms_with(f):
    return lambda self, grads: f(list(grads.values()))


def of_step_before(self, grads, norm):
    """The clipped gradients of the step before; the first step has its own."""
    clipped = right("clip")(self, grads, norm)
    before, self.held = getattr(self, "held", clipped), clipped
    return before


CLIP = [
    mistake("grad-norm-no-root", "optimizer norms", "the norm is the sum of squares without a root",
            grad_norm=norms_with(lambda gs: sum(g.pow(2).sum() for g in gs))),
    mistake("grad-norm-mean", "optimizer norms", "the norm is the root of the mean square",
            grad_norm=norms_with(lambda gs: torch.cat([g.flatten() for g in gs]).pow(2).mean().sqrt())),
    mistake("grad-norm-of-norms-added", "optimizer norms", "the parameters' norms are added",
            grad_norm=norms_with(lambda gs: sum(g.norm() for g in gs))),
    mistake("grad-norm-largest", "optimizer norms", "the norm is the largest of the parameters' norms",
            grad_norm=norms_with(lambda gs: max(g.norm() for g in gs))),
    mistake("grad-norm-maximum", "optimizer norms", "the norm is the largest absolute value",
            grad_norm=norms_with(lambda gs: max(g.abs().max() for g in gs))),
    mistake("grad-norm-l1", "optimizer norms", "the norm is the sum of absolute values",
            grad_norm=norms_with(lambda gs: sum(g.abs().sum() for g in gs))),
    mistake("grad-norm-matrices", "optimizer norms", "the norm leaves the gains out",
            grad_norm=norms_with(lambda gs: math.sqrt(sum(g.pow(2).sum() for g in gs if g.dim() > 1)))),
    mistake("grad-norm-after-clip", "optimizer norms", "the norm that is logged is the one after clipping",
            grad_norm=lambda self, grads: min(right("grad_norm")(self, grads), self.settings["clip"]),
            clip=lambda self, grads, norm: right("clip")(self, grads, right("grad_norm")(self, grads))),
    mistake("clip-missing", "optimizer losses", "gradients are not clipped", clip=lambda self, grads, norm: grads),
    mistake("clip-per-tensor", "optimizer losses", "each parameter's gradient is clipped by itself", clip=each(to_norm)),
    mistake("clip-values", "optimizer losses", "values are clipped, not the norm", clip=each(lambda self, g: g.clamp(-1, 1))),
    mistake("clip-always", "optimizer losses", "gradients are scaled to the norm even if theirs is smaller", but("gqa"),
            instead=dict.fromkeys(("interleaved", "llama3-scaling", "large-eps"), "after"),
            clip=lambda self, grads, norm: {name: g * (self.settings["clip"] / (norm + 1e-6)) for name, g in grads.items()}),
    mistake("clip-root", "optimizer losses", "gradients are divided by the root of the norm",
            clip=lambda self, grads, norm: {name: g / max(1, math.sqrt(norm)) for name, g in grads.items()}),
    mistake("clip-inverse", "optimizer losses", "gradients are multiplied by the norm",
            clip=lambda self, grads, norm: {name: g * max(1, norm) for name, g in grads.items()}),
    mistake("clip-at-10", "optimizer losses", "gradients are clipped at 10 times the setting",
            clip=lambda self, grads, norm: {name: g * min(1, 10 / norm) for name, g in grads.items()}),
    mistake("grads-accumulate", "optimizer norms", "gradients are not zeroed between steps",
            gathered=lambda self, before, g: g if before is None else {name: g[name] + before[name] for name in g}),
    mistake("grads-of-step-before", "optimizer losses", "each step uses the gradients of the step before it",
            clip=of_step_before),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ AdamW


def adamw(key, sentence, *, op="optimizer losses", where=ALL, **more):
    return mistake(key, op, sentence, where, **more)


def moments(mean, square):
    """Both moments: mean(self, m, g) and square(self, v, g)."""
    def update(self, name, g):
        self.mean[name], self.square[name] = mean(self, self.mean[name], g), square(self, self.square[name], g)
    return update


def usual_mean(self, m, g):
    return self.beta1 * m + (1 - self.beta1) * g


def usual_square(self, v, g):
    return self.beta2 * v + (1 - self.beta2) * g * g


def direction(f):
    """f(m̂, v̂, eps, t)."""
    def of(self, name, t):
        m, v = self.mean[name] / self.correction1(t), self.square[name] / self.correction2(t)
        return f(m, v, self.settings["eps"], t)
    return of


def step(update):
    """update(self, name, g, t) for every parameter."""
    def all_of_them(self, grads, t):
        for name, g in grads.items():
            update(self, name, g, t)
    return all_of_them


def coupled(self, name, g, t):
    """Weight decay as L2 in the gradient: Adam, not AdamW."""
    w = self.w[name]
    self.moments(name, g + (self.settings["weight_decay"] * w if self.decays(name) else 0))
    self.w[name] = w - self.lr(t) * self.direction(name, t)


def decay_last(self, name, g, t):
    self.moments(name, g)
    self.w[name] = self.w[name] - self.lr(t) * self.direction(name, t)
    self.w[name] = self.w[name] - self.decay(name, t)


def direction_first(self, name, g, t):
    """The weight moves by the moments of the step before it."""
    if t > 1:
        self.w[name] = self.w[name] - self.decay(name, t) - self.lr(t) * self.direction(name, t)
    self.moments(name, g)


def counted_per_tensor(self, grads, t):
    """t goes up with each parameter, not with each step."""
    for name, g in grads.items():
        self.count = getattr(self, "count", 0) + 1
        self.moments(name, g)
        self.w[name] = self.w[name] - self.decay(name, t) - self.lr(t) * self.direction(name, self.count)


def shared_moments(self, name, g):
    """Tensors of one shape share their moments."""
    shape = g.shape
    self.pool = getattr(self, "pool", {})
    m, v = self.pool.get(shape, (torch.zeros_like(g), torch.zeros_like(g)))
    self.pool[shape] = usual_mean(self, m, g), usual_square(self, v, g)
    self.mean[name], self.square[name] = self.pool[shape]


def nesterov(self, name, t):
    m, v = self.mean[name] / self.correction1(t), self.square[name] / self.correction2(t)
    return (self.beta1 * m + (1 - self.beta1) * self.last_g[name] / self.correction1(t)) / (v.sqrt() + self.settings["eps"])


def keeps_gradient(self, name, g):
    right("moments")(self, name, g)
    self.last_g = getattr(self, "last_g", {}) | {name: g}


def square_of_mean(self, name, g):
    self.mean[name] = usual_mean(self, self.mean[name], g)
    self.square[name] = usual_square(self, self.square[name], self.mean[name])


def remembers_factor(self, grads, norm):
    """Clips, and keeps what undoes it."""
    self.factor = max(1, (norm + 1e-6) / self.settings["clip"])
    return right("clip")(self, grads, norm)


def largest_square(self, name, t):
    """AMSGrad."""
    v = self.square[name] / self.correction2(t)
    self.most = getattr(self, "most", {})
    self.most[name] = torch.maximum(v, self.most.get(name, v))
    return self.mean[name] / self.correction1(t) / (self.most[name].sqrt() + self.settings["eps"])


def frozen(chosen):
    """The chosen parameters stay."""
    def of(self, name, g, t):
        self.moments(name, g)
        if not chosen(self, name):
            self.w[name] = self.w[name] - self.decay(name, t) - self.lr(t) * self.direction(name, t)
    return step(of)


def with_betas(beta1=None, beta2=None):
    return moments(
        lambda self, m, g: (b := beta1 or self.beta1) * m + (1 - b) * g,
        lambda self, v, g: (b := beta2 or self.beta2) * v + (1 - b) * g * g
    )


ADAMW = [
    adamw("adamw-decays-gains", "gains decay too", decays=lambda self, name: True),
    adamw("adamw-decays-gains-only", "gains decay, matrices do not", decays=lambda self, name: self.w[name].dim() == 1),
    adamw("adamw-no-decay", "nothing decays", decays=lambda self, name: False),
    adamw("adamw-embedding-no-decay", "the embedding does not decay",
          decays=lambda self, name: self.w[name].dim() > 1 and name != "embed"),
    adamw("adamw-l2", "decay is added to the gradient, as in Adam with L2", step=step(coupled)),
    adamw("adamw-decay-no-lr", "decay is not multiplied by the learning rate",
          decay=lambda self, name, t: self.settings["weight_decay"] * self.w[name] if self.decays(name) else 0),
    adamw("adamw-decay-sign", "decay lets weights grow", decay=lambda self, name, t: -right("decay")(self, name, t)),
    adamw("adamw-decay-last", "weights decay after the step, with their new values", step=step(decay_last)),
    adamw("adamw-decay-doubled", "weights decay by 2λw, the gradient of λw²",
          decay=lambda self, name, t: 2 * right("decay")(self, name, t)),
    adamw("adamw-decay-l1", "decay is λ·sign(w)",
          decay=lambda self, name, t: right("decay")(self, name, t) / self.w[name].abs()),
    adamw("adamw-no-correction", "the moments are not corrected for their start at 0", correction1=lambda self, t: 1,
          correction2=lambda self, t: 1),
    adamw("adamw-no-correction-1", "the first moment is not corrected", correction1=lambda self, t: 1),
    adamw("adamw-no-correction-2", "the second moment is not corrected", correction2=lambda self, t: 1),
    adamw("adamw-correction-fixed", "the correction is that of the first step in all steps",
          correction1=lambda self, t: 1 - self.beta1, correction2=lambda self, t: 1 - self.beta2),
    adamw("adamw-correction-late", "t counts from 2", correction1=lambda self, t: 1 - self.beta1 ** (t + 1),
          correction2=lambda self, t: 1 - self.beta2 ** (t + 1)),
    adamw("adamw-correction-from-0", "t counts from 0, with a correction of 1 at 0",
          correction1=lambda self, t: 1 - self.beta1 ** (t - 1) or 1,
          correction2=lambda self, t: 1 - self.beta2 ** (t - 1) or 1),
    adamw("adamw-correction-product", "the correction is 1 - β·t", correction1=lambda self, t: abs(1 - self.beta1 * t),
          correction2=lambda self, t: abs(1 - self.beta2 * t)),
    adamw("adamw-correction-exchanged", "the corrections have each other's β",
          correction1=lambda self, t: 1 - self.beta2**t, correction2=lambda self, t: 1 - self.beta1**t),
    adamw("adamw-count-per-tensor", "t goes up with each parameter", step=counted_per_tensor),
    adamw("adamw-eps-inside", "eps is inside the root", direction=direction(lambda m, v, eps, t: m / (v + eps).sqrt())),
    adamw("adamw-eps-1e-5", "eps is 1e-5", direction=direction(lambda m, v, eps, t: m / (v.sqrt() + 1e-5))),
    adamw("adamw-eps-missing", "there is no eps", where=but("mha", "mqa", "odd-sizes", "packed"),
          direction=direction(lambda m, v, eps, t: m / v.sqrt().clamp(min=torch.finfo(v.dtype).tiny))),
    adamw("adamw-eps-uncorrected", "eps is added before the second moment is corrected", where=but("mqa"),
          direction=lambda self, name, t: self.mean[name] / self.correction1(t) * math.sqrt(self.correction2(t)) / (
              self.square[name].sqrt() + self.settings["eps"])),
    adamw("adamw-betas-exchanged", "the two βs are exchanged", moments=with_betas(0.95, 0.9),
          correction1=lambda self, t: 1 - 0.95**t, correction2=lambda self, t: 1 - 0.9**t),
    adamw("adamw-beta2-0.999", "the second β is 0.999", moments=with_betas(beta2=0.999),
          correction2=lambda self, t: 1 - 0.999**t),
    adamw("adamw-beta1-0.95", "the first β is 0.95", moments=with_betas(beta1=0.95), correction1=lambda self, t: 1 - 0.95**t),
    adamw("adamw-moments-beta-only", "new gradients lack the factor 1 - β",
          moments=moments(lambda self, m, g: self.beta1 * m + g, lambda self, v, g: self.beta2 * v + g * g)),
    adamw("adamw-beta-and-complement", "β and 1 - β are exchanged",
          moments=with_betas(1 - 0.9, 1 - 0.95)),
    adamw("adamw-square-of-mean", "the second moment is of the first moment's squares",
          moments=square_of_mean),
    adamw("adamw-absolute", "the second moment is of absolute values",
          moments=moments(usual_mean, lambda self, v, g: self.beta2 * v + (1 - self.beta2) * g.abs())),
    adamw("adamw-no-root", "the second moment has no root", direction=direction(lambda m, v, eps, t: m / (v + eps))),
    adamw("adamw-no-momentum", "the first moment is the gradient", moments=moments(lambda self, m, g: g, usual_square),
          correction1=lambda self, t: 1),
    adamw("adamw-moments-reset", "the moments begin at 0 in every step",
          moments=moments(lambda self, m, g: (1 - self.beta1) * g, lambda self, v, g: (1 - self.beta2) * g * g),
          correction1=lambda self, t: 1 - self.beta1, correction2=lambda self, t: 1 - self.beta2),
    adamw("adamw-shared-moments", "tensors of one shape share their moments", moments=shared_moments),
    adamw("adamw-second-moment-unclipped", "the second moment is of the gradients before clipping",
          clip=remembers_factor,
          moments=moments(usual_mean, lambda self, v, g: usual_square(self, v, g * self.factor))),
    adamw("adamw-scalar-second-moment", "a tensor has one second moment: the mean of its squares",
          moments=moments(usual_mean, lambda self, v, g: self.beta2 * v + (1 - self.beta2) * (g * g).mean())),
    adamw("adamw-warm-up", "the learning rate warms up over 5 steps", lr=lambda self, t: self.settings["lr"] * min(1, t / 5)),
    adamw("adamw-cosine", "the learning rate decays by a cosine",
          lr=lambda self, t: self.settings["lr"] * (1 + math.cos(math.pi * (t - 1) / 10)) / 2),
    adamw("adamw-lr-1e-3", "the learning rate is 1e-3", lr=lambda self, t: 1e-3),
    adamw("adamw-lr-root-t", "the learning rate is divided by √t", lr=lambda self, t: self.settings["lr"] / math.sqrt(t)),
    adamw("adamw-sign", "the step goes up the gradient", direction=direction(lambda m, v, eps, t: -m / (v.sqrt() + eps))),
    adamw("adamw-order", "weights move before the moments have the new gradient", step=step(direction_first)),
    adamw("adamw-nesterov", "the step is NAdam's", moments=keeps_gradient, direction=nesterov),
    adamw("adamw-amsgrad", "the second moment is the largest so far, as in AMSGrad", direction=largest_square),
    adamw("adamw-gains-frozen", "gains are not updated", step=frozen(lambda self, name: self.w[name].dim() == 1)),
    adamw("adamw-embedding-frozen", "the embedding is not updated", step=frozen(lambda self, name: name == "embed")),
    adamw("adamw-last-layer-frozen", "the last layer is not updated",
          step=frozen(lambda self, name: name.startswith("blocks.1."))),
    adamw("adamw-sgd", "plain gradient descent", direction=lambda self, name, t: self.mean[name],
          moments=moments(lambda self, m, g: g, usual_square)),
    adamw("adamw-lion", "the step is the sign of the first moment", direction=lambda self, name, t: self.mean[name].sign()),
]  # fmt: skip

TRAINING = [*CLIP, *ADAMW]
