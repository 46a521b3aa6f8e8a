"""Mistakes in AdamW and in clipping, as equations that replace those of :mod:`numllama.learn.optimizer_equations`."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from numllama.learn.optimizer_equations import norm as norm_of


class OptimizerMistake(NamedTuple):
    """A sentence, and the mistaken equations by the names of the right ones."""

    what: str
    equations: dict[str, Callable[..., Any]]


OPTIMIZER: list[OptimizerMistake] = []


def mistake(what: str, **equations: Callable[..., Any]) -> None:
    OPTIMIZER.append(OptimizerMistake(what, equations))


def shrunk(grad, norm, clip):
    """Clipped by a norm."""
    return grad * clip / (norm + 1e-6) if norm > clip else grad


def total(grads, function=lambda g: (g * g).sum()):
    return sum(function(g) for g in grads.values())


def no_decay(weight):
    return 0.0 * weight


def mean(before, beta, number):
    """A running mean."""
    return beta * before + (1 - beta) * number


def updates_until(step, name, tensors):
    """How many tensors were updated up to this one in this step."""
    return (step - 1) * len(tensors) + list(tensors).index(name) + 1


def shared(before, numbers, name, beta):
    """The running mean of all tensors of a shape, which each of them updates in turn."""
    alike = [each for each in numbers if numbers[each].shape == numbers[name].shape]
    result = before.get(alike[-1], 0.0)
    for each in alike[: alike.index(name) + 1]:
        result = mean(result, beta, numbers[each])
    return result


# ------------------------------------------------------------------------------------------------ clipping

mistake("Gradients are not clipped.", clipped=lambda grad: grad)
mistake("Each tensor is clipped by its own norm.", clipped=lambda grad, clip: shrunk(grad, np.linalg.norm(grad), clip))
mistake("Each number is clipped instead of the norm.", clipped=lambda grad, clip: np.clip(grad, -clip, clip))
mistake("The limit is ten times as large.", clipped=lambda grad, norm, clip: grad * min(1, 10 * clip / norm))
mistake("Gradients below the limit are scaled up, too.", clipped=lambda grad, norm, clip: grad * clip / (norm + 1e-6))
mistake("Gradients below the limit are scaled up, too, without 1e-6.", clipped=lambda grad, norm, clip: grad * clip / norm)
mistake("Gradients are divided by the root of their norm.", clipped=lambda grad, norm, clip: grad / max(1, norm / clip) ** 0.5)
mistake("Gradients are multiplied by their norm.", clipped=lambda grad, norm, clip: grad * max(1, norm / clip))
mistake(
    "Gradients are divided by their norm twice when they are clipped.",
    clipped=lambda grad, norm, clip: shrunk(grad, norm, clip) / max(norm / clip, 1),
)
mistake("The root of the norm is missing: gradients are clipped by the sum of squares.", norm=lambda grads: total(grads))
mistake(
    "The norm is the root of the mean of squares instead of their sum.",
    norm=lambda grads: math.sqrt(total(grads) / total(grads, np.size)),
)
mistake("The norm is the sum of absolute values.", norm=lambda grads: total(grads, lambda g: np.abs(g).sum()))
mistake("The norm is the largest absolute value.", norm=lambda grads: max(np.abs(g).max() for g in grads.values()))
mistake("The norm is the sum of the tensors' norms.", norm=lambda grads: total(grads, np.linalg.norm))
mistake("The norm is the mean of the tensors' norms.", norm=lambda grads: total(grads, np.linalg.norm) / len(grads))
mistake("The norm is the largest of the tensors' norms.", norm=lambda grads: max(map(np.linalg.norm, grads.values())))
mistake(
    "The norm is over matrices only: gains are left out.",
    norm=lambda grads: norm_of({name: g for name, g in grads.items() if g.ndim > 1}),
)
mistake(
    "The norm is over the blocks only: embedding, head and last norm are left out.",
    norm=lambda grads: norm_of({name: g for name, g in grads.items() if name.startswith("blocks.")}),
)
mistake("The norm that is reported is that after clipping.", reported=lambda norm, clip: min(norm, clip))
mistake(
    "The update is clipped by its norm instead of the gradient.",
    clipped=lambda grad: grad,
    new=lambda weight, decay, rate, update, updates, clip: weight - decay - rate * shrunk(update, norm_of(updates), clip),
)

# ------------------------------------------------------------------------------------------------ weight decay

mistake("Weights do not decay.", decay=no_decay)
mistake("Gains decay too.", decay=lambda weight, rate, weight_decay: rate * weight_decay * weight)
mistake(
    "Gains decay and matrices do not.",
    decay=lambda weight, rate, weight_decay, is_matrix: rate * weight_decay * weight * (not is_matrix),
)
mistake(
    "Embedding and head do not decay.",
    decay=lambda weight, rate, weight_decay, is_matrix, name: rate * weight_decay * weight * (is_matrix and "blocks" in name),
)
mistake(
    "The embedding does not decay.",
    decay=lambda weight, rate, weight_decay, is_matrix, name: rate * weight_decay * weight * (is_matrix and name != "embed"),
)
mistake(
    "The decay is not multiplied by the learning rate.",
    decay=lambda weight, weight_decay, is_matrix: weight_decay * weight * is_matrix,
)
mistake(
    "The decay is doubled, as the gradient of λw².",
    decay=lambda weight, rate, weight_decay, is_matrix: 2 * rate * weight_decay * weight * is_matrix,
)
mistake(
    "The decay has the wrong sign: weights grow.",
    decay=lambda weight, rate, weight_decay, is_matrix: -rate * weight_decay * weight * is_matrix,
)
mistake("The weight decay is 0.01, PyTorch's default.", decay=lambda weight, rate, is_matrix: rate * 0.01 * weight * is_matrix)
mistake(
    "The decay is the same for all weights: it lacks the factor w.",
    decay=lambda weight, rate, weight_decay, is_matrix: rate * weight_decay * np.sign(weight) * is_matrix,
)
mistake(
    "Weights decay after the step instead of before.",
    new=lambda weight, rate, update, weight_decay, is_matrix: (weight - rate * update) * (1 - rate * weight_decay * is_matrix),
)
mistake(
    "The decay is an L2 term of the gradient, added before clipping, for matrices.",
    grad=lambda raw, weight, weight_decay, is_matrix: raw + weight_decay * weight * is_matrix,
    decay=no_decay,
)
mistake(
    "The decay is an L2 term of the gradient, added before clipping, for all weights.",
    grad=lambda raw, weight, weight_decay: raw + weight_decay * weight,
    decay=no_decay,
)
mistake(
    "The decay is an L2 term of the gradient, added after clipping, for matrices.",
    clipped=lambda grad, norm, clip, weight, weight_decay, is_matrix: (
        shrunk(grad, norm, clip) + weight_decay * weight * is_matrix
    ),
    decay=no_decay,
)
mistake(
    "The decay is an L2 term of the gradient, added after clipping, for all weights.",
    clipped=lambda grad, norm, clip, weight, weight_decay: shrunk(grad, norm, clip) + weight_decay * weight,
    decay=no_decay,
)

# ------------------------------------------------------------------------------------------------ correction of the bias

mistake("The bias of m and v is not corrected.", m_hat=lambda m: m, v_hat=lambda v: v)
mistake("The bias of m is not corrected.", m_hat=lambda m: m)
mistake("The bias of v is not corrected.", v_hat=lambda v: v)
mistake(
    "The correction of the bias counts steps from 0, and leaves out the first.",
    m_hat=lambda m, beta1, step: m / (1 - beta1 ** max(step - 1, 1)),
    v_hat=lambda v, beta2, step: v / (1 - beta2 ** max(step - 1, 1)),
)
mistake(
    "The correction of the bias counts steps from 0, and leaves the first step uncorrected.",
    m_hat=lambda m, beta1, step: m / (1 - beta1 ** (step - 1) or 1),
    v_hat=lambda v, beta2, step: v / (1 - beta2 ** (step - 1) or 1),
)
mistake(
    "The correction of the bias counts the tensors of all steps, not the steps.",
    m_hat=lambda m, beta1, step, name, grads: m / (1 - beta1 ** updates_until(step, name, grads)),
    v_hat=lambda v, beta2, step, name, grads: v / (1 - beta2 ** updates_until(step, name, grads)),
)
mistake(
    "The correction of the bias is one step ahead: its first t is 2.",
    m_hat=lambda m, beta1, step: m / (1 - beta1 ** (step + 1)),
    v_hat=lambda v, beta2, step: v / (1 - beta2 ** (step + 1)),
)
mistake(
    "The correction of the bias has the betas exchanged.",
    m_hat=lambda m, beta2, step: m / (1 - beta2**step),
    v_hat=lambda v, beta1, step: v / (1 - beta1**step),
)
mistake(
    "The correction of the bias lacks the power of t: 1 − β instead of 1 − βᵗ.",
    m_hat=lambda m, beta1: m / (1 - beta1),
    v_hat=lambda v, beta2: v / (1 - beta2),
)
mistake(
    "The correction of the bias multiplies β by t: |1 − βt| instead of 1 − βᵗ.",
    m_hat=lambda m, beta1, step: m / abs(1 - beta1 * step),
    v_hat=lambda v, beta2, step: v / abs(1 - beta2 * step),
)
mistake(
    "The correction of the bias multiplies instead of dividing.",
    m_hat=lambda m, beta1, step: m * (1 - beta1**step),
    v_hat=lambda v, beta2, step: v * (1 - beta2**step),
)
mistake(
    "The correction of the bias has the same beta for v as for m.", v_hat=lambda v, beta1, step: v / (1 - beta1**step)
)
mistake(
    "The correction of v's bias stands outside of the root.",
    update=lambda m_hat, v, eps, beta2, step: m_hat / (np.sqrt(v) / (1 - beta2**step) + eps),
)

# ------------------------------------------------------------------------------------------------ moments

mistake(
    "The betas are exchanged.",
    m=lambda m_before, clipped, beta2: mean(m_before, beta2, clipped),
    v=lambda v_before, clipped, beta1: mean(v_before, beta1, clipped**2),
    m_hat=lambda m, beta2, step: m / (1 - beta2**step),
    v_hat=lambda v, beta1, step: v / (1 - beta1**step),
)
mistake(
    "beta2 is 0.999, PyTorch's default.",
    v=lambda v_before, clipped: 0.999 * v_before + 0.001 * clipped**2,
    v_hat=lambda v, step: v / (1 - 0.999**step),
)
mistake(
    "beta1 is as large as beta2.",
    m=lambda m_before, clipped, beta2: mean(m_before, beta2, clipped),
    m_hat=lambda m, beta2, step: m / (1 - beta2**step),
)
mistake(
    "beta2 is as small as beta1.",
    v=lambda v_before, clipped, beta1: mean(v_before, beta1, clipped**2),
    v_hat=lambda v, beta1, step: v / (1 - beta1**step),
)
mistake(
    "m and v lack the factor 1 − β of the gradient.",
    m=lambda m_before, clipped, beta1: beta1 * m_before + clipped,
    v=lambda v_before, clipped, beta2: beta2 * v_before + clipped**2,
)
mistake("m lacks the factor 1 − β₁ of the gradient.", m=lambda m_before, clipped, beta1: beta1 * m_before + clipped)
mistake("v lacks the factor 1 − β₂ of the squared gradient.", v=lambda v_before, clipped, beta2: beta2 * v_before + clipped**2)
mistake(
    "m and v have β at the gradient and 1 − β at themselves.",
    m=lambda m_before, clipped, beta1: mean(m_before, 1 - beta1, clipped),
    v=lambda v_before, clipped, beta2: mean(v_before, 1 - beta2, clipped**2),
)
mistake("m has β₁ at the gradient and 1 − β₁ at itself.", m=lambda m_before, clipped, beta1: mean(m_before, 1 - beta1, clipped))
mistake(
    "v has β₂ at the squared gradient and 1 − β₂ at itself.",
    v=lambda v_before, clipped, beta2: mean(v_before, 1 - beta2, clipped**2),
)
mistake("v is of the gradient before clipping.", v=lambda v_before, grad, beta2: mean(v_before, beta2, grad**2))
mistake("m is of the gradient before clipping.", m=lambda m_before, grad, beta1: mean(m_before, beta1, grad))
mistake("v is of m instead of the gradient.", v=lambda v_before, m, beta2: mean(v_before, beta2, m**2))
mistake(
    "v is of the gradient's difference to m, as in AdaBelief.",
    v=lambda v_before, clipped, m, beta2: mean(v_before, beta2, (clipped - m) ** 2),
)
mistake(
    "v is of absolute values instead of squares.",
    v=lambda v_before, clipped, beta2: mean(v_before, beta2, np.abs(clipped)),
)
mistake(
    "v is one number for a tensor: the mean of its squares.",
    v=lambda v_before, clipped, beta2: mean(v_before, beta2, (clipped**2).mean()),
)
mistake(
    "Moments are zeroed before each step.",
    m=lambda clipped, beta1: (1 - beta1) * clipped,
    v=lambda clipped, beta2: (1 - beta2) * clipped**2,
)
mistake(
    "The optimizer is made again for each step: it is always the first one.",
    m_hat=lambda clipped: clipped,
    v_hat=lambda clipped: clipped**2,
)
mistake(
    "Tensors of the same shape share their moments.",
    m=lambda ms_before, clippeds, name, beta1: shared(ms_before, clippeds, name, beta1),
    v=lambda vs_before, clippeds, name, beta2: shared(vs_before, {n: g * g for n, g in clippeds.items()}, name, beta2),
)
mistake(
    "Each step has the gradients of the step before; the first has its own.",
    m=lambda m_before, beta1, clippeds, clippeds_before, name: mean(m_before, beta1, (clippeds_before or clippeds)[name]),
    v=lambda v_before, beta2, clippeds, clippeds_before, name: mean(v_before, beta2, (clippeds_before or clippeds)[name] ** 2),
)
mistake("Gradients are not zeroed between steps: they add up.", grad=lambda raw, grad_before: raw + grad_before)
mistake(
    "Gradients are not zeroed between steps: they add up, as they were clipped.",
    grad=lambda raw, clipped_before: raw + clipped_before,
)

# ------------------------------------------------------------------------------------------------ the step

mistake("The root of v is missing.", update=lambda m_hat, v_hat, eps: m_hat / (v_hat + eps))
mistake("The step has the wrong sign: the loss grows.", new=lambda weight, decay, rate, update: weight - decay + rate * update)
mistake("eps stands inside of the root.", update=lambda m_hat, v_hat, eps: m_hat / np.sqrt(v_hat + eps))
mistake(
    "eps is added to √v before v's bias is corrected.",
    update=lambda m_hat, v, eps, beta2, step: m_hat / (np.sqrt(v) + eps) * math.sqrt(1 - beta2**step),
)
mistake("eps is missing.", update=lambda m_hat, v_hat: m_hat / np.sqrt(v_hat))
mistake("eps is missing; where v is 0, nothing moves.", update=lambda m_hat, v_hat: m_hat / np.sqrt(v_hat + (v_hat == 0)))
mistake("eps is 1e-6.", update=lambda m_hat, v_hat: m_hat / (np.sqrt(v_hat) + 1e-6))
mistake("eps is 1e-5.", update=lambda m_hat, v_hat: m_hat / (np.sqrt(v_hat) + 1e-5))
mistake(
    "The step is AMSGrad's: v never falls.",
    v_hat=lambda v, v_hat_before, beta2, step: np.maximum(v_hat_before * (1 - beta2 ** (step - 1)), v) / (1 - beta2**step),
)
mistake(
    "The step is AMSGrad's, with v corrected before the largest is taken.",
    v_hat=lambda v, v_hat_before, beta2, step: np.maximum(v_hat_before, v / (1 - beta2**step)),
)
mistake(
    "The step is taken before m and v have the new gradient.",
    m_hat=lambda m_before, beta1, step: m_before / (1 - beta1**step),
    v_hat=lambda v_before, beta2, step: v_before / (1 - beta2**step),
)
mistake(
    "The step is taken before m and v have the new gradient; the first one is left out.",
    m_hat=lambda m_before, beta1, step: m_before / (1 - beta1**step),
    v_hat=lambda v_before, beta2, step: v_before / (1 - beta2**step),
    new=lambda weight, decay, rate, update, step: weight - decay - rate * update if step > 1 else weight,
)
mistake(
    "The step is Nesterov's, as in NAdam.",
    m_hat=lambda m, clipped, beta1, step: (beta1 * m + (1 - beta1) * clipped) / (1 - beta1**step),
)
mistake("The step has the gradient instead of m, as RMSProp, with v's bias corrected.", m_hat=lambda clipped: clipped)
mistake("The step is RMSProp's: no m, and no bias is corrected.", m_hat=lambda clipped: clipped, v_hat=lambda v: v)
mistake("The step is SGD's: the gradient times the learning rate.", update=lambda clipped: clipped)
mistake("The step is SGD's with the mean of gradients: v is not used.", update=lambda m_hat: m_hat)
mistake(
    "The step is SGD's with momentum: the sum of gradients.",
    m=lambda m_before, clipped, beta1: beta1 * m_before + clipped,
    update=lambda m: m,
)
mistake("The step is the sign of m.", update=lambda m: np.sign(m))
mistake(
    "The step is Lion's.",
    m=lambda m_before, clipped, beta2: mean(m_before, beta2, clipped),
    update=lambda m_before, clipped, beta1: np.sign(mean(m_before, beta1, clipped)),
)
mistake(
    "The step is Adagrad's.",
    v=lambda v_before, clipped: v_before + clipped**2,
    update=lambda clipped, v, eps: clipped / (np.sqrt(v) + eps),
)
mistake(
    "The step is Adamax's: v is the largest recent gradient.",
    v=lambda v_before, clipped, beta2: np.maximum(beta2 * v_before, np.abs(clipped)),
    update=lambda m_hat, v, eps: m_hat / (v + eps),
)

# ------------------------------------------------------------------------------------------------ weights that stay


def number(name):
    """The number of a tensor's block."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else -1


def stay(what, chosen):
    """A mistake: weights that are chosen by their names and by all names are not updated."""
    def new(weight, decay, rate, update, name, grads):
        return weight if chosen(name, grads) else weight - decay - rate * update

    mistake(f"{what} not updated.", new=new)


stay("Gains are", lambda name, names: names[name].ndim == 1)
stay("The embedding is", lambda name, names: name == "embed")
stay("Embedding and head are", lambda name, names: name in ("embed", "head"))
stay("The last norm and the head are", lambda name, names: name in ("norm", "head"))
stay("The blocks are", lambda name, names: name.startswith("blocks."))
stay("The first block is", lambda name, names: name.startswith("blocks.0."))
stay("The last block is", lambda name, names: number(name) == max(map(number, names)))

# ------------------------------------------------------------------------------------------------ learning rate, steps


def warmed_up(n):
    return lambda lr, step: lr * min(1, step / n)


for n in (2, 3, 5):
    mistake(f"The learning rate warms up over {n} steps: t/{n} of it in step t.", rate=warmed_up(n))

mistake("The learning rate warms up over the steps: t/n of it in step t.", rate=lambda lr, step, steps: lr * step / steps)
mistake("The learning rate warms up from 0: (t − 1)/n of it in step t.", rate=lambda lr, step, steps: lr * (step - 1) / steps)
mistake(
    "The learning rate falls along a cosine over the steps.",
    rate=lambda lr, step, steps: lr * (1 + math.cos(math.pi * (step - 1) / steps)) / 2,
)
mistake("The learning rate falls linearly over the steps.", rate=lambda lr, step, steps: lr * (1 - (step - 1) / steps))
mistake("The learning rate falls with 1/√t.", rate=lambda lr, step: lr / math.sqrt(step))
mistake("The learning rate is 1e-3, PyTorch's default.", rate=lambda: 1e-3)
mistake("One step is missing.", n_steps=lambda steps: steps - 1)
mistake("There is one step too many.", n_steps=lambda steps: steps + 1)
