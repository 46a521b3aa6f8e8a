"""Optimizers, schedule and clipping against PyTorch's, over a hundred steps in float64."""

from math import cos, pi, sqrt

import numpy as np
import pytest

from numllama.model import Parameters
from numllama.optim import SGD, AdamW, clip_grad_norm, cosine_schedule

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

SHAPES = {"a": (13, 7), "b": (5, 11), "gain": (7,), "shift_bias": (13,)}
STEPS = 100


def random_params(seed) -> Parameters:
    size = sum(int(np.prod(shape)) for shape in SHAPES.values())
    return Parameters(SHAPES, np.random.default_rng(seed).standard_normal(size))


def groups(params: Parameters, weight_decay: float) -> tuple[list, list]:
    """The same parameters in torch, and as two groups: decay is for matrices only."""
    tensors = [torch.tensor(view, requires_grad=True) for view in params.values()]
    matrices, vectors = ([w for w in tensors if (w.ndim == 2) == flag] for flag in (True, False))
    return tensors, [dict(params=matrices, weight_decay=weight_decay), dict(params=vectors, weight_decay=0.0)]


def assert_together(params: Parameters, tensors: list) -> None:
    for (name, view), tensor in zip(params.items(), tensors, strict=True):
        true = tensor.detach().numpy()
        assert np.linalg.norm(view - true) <= 1e-12 * np.linalg.norm(true), name


def run_together(ours, theirs, tensors, scheduler=None):
    """Step both by the same hundred gradients and compare after each."""
    for step in range(1, STEPS + 1):
        grads = random_params(step)
        for tensor, gradient in zip(tensors, grads.values(), strict=True):
            tensor.grad = torch.tensor(gradient)
        ours.step(grads)
        theirs.step()
        if scheduler is not None:
            scheduler.step()
        assert_together(ours.params, tensors)


@pytest.mark.parametrize(
    "settings",
    [dict(), dict(betas=(0.8, 0.999), eps=1e-3), dict(weight_decay=0.0), dict(weight_decay=0.5)],
    ids=["defaults", "slower_moments", "no_decay", "more_decay"],
)
def test_adamw(settings):
    settings = dict(lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1) | settings
    params = random_params(0)
    tensors, both = groups(params, settings["weight_decay"])
    theirs = torch.optim.AdamW(both, **settings)
    ours = AdamW(params, **settings)
    run_together(ours, theirs, tensors)
    moments = [theirs.state[tensor] for tensor in tensors]
    assert_together(ours.state["m"], [moment["exp_avg"] for moment in moments])
    assert_together(ours.state["v"], [moment["exp_avg_sq"] for moment in moments])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd(momentum, weight_decay):
    params = random_params(0)
    tensors, both = groups(params, weight_decay)
    theirs = torch.optim.SGD(both, lr=0.05, momentum=momentum)
    run_together(SGD(params, lr=0.05, momentum=momentum, weight_decay=weight_decay), theirs, tensors)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_with_a_rate_that_falls_as_one_over_the_root_of_t(momentum):
    params = random_params(0)
    tensors, both = groups(params, 0.1)
    theirs = torch.optim.SGD(both, lr=0.05, momentum=momentum)
    scheduler = torch.optim.lr_scheduler.LambdaLR(theirs, lambda epoch: 1 / sqrt(epoch + 1))  # torch counts from 0
    ours = SGD(params, lr=0.05, momentum=momentum, weight_decay=0.1, inverse_sqrt=True)
    run_together(ours, theirs, tensors, scheduler)


def torch_rates(make_scheduler, max_lr, steps) -> list[float]:
    """The learning rates that a torch scheduler gives to the first, second, ... step of an optimizer."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=max_lr)
    scheduler, rates = make_scheduler(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


# SequentialLR calls its own schedulers in a way that torch deprecates.
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
@pytest.mark.parametrize("warmup", [1, 2, 10])
def test_cosine_schedule_equals_linear_warmup_and_cosine_annealing(warmup):
    """Steps count from 1, torch's epochs from 0: the warm-up ends, and the cosine starts, at epoch warmup - 1."""

    def scheduler(optimizer):
        lr_scheduler = torch.optim.lr_scheduler
        cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS - warmup, eta_min=3e-5)
        if warmup == 1:
            return cosine
        rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / warmup, end_factor=1.0, total_iters=warmup - 1)
        return lr_scheduler.SequentialLR(optimizer, [rise, cosine], milestones=[warmup - 1])

    ours = [cosine_schedule(step, 3e-4, 3e-5, warmup, STEPS) for step in range(1, STEPS + 1)]
    assert ours == pytest.approx(torch_rates(scheduler, 3e-4, STEPS), rel=1e-12)
    assert ours[warmup - 1] == 3e-4


def test_cosine_schedule_from_step_zero_equals_lambda_lr():
    """With LambdaLR a scheduler's epoch is the step itself, rates of zero and the flat end included."""

    def factor(epoch):
        if epoch < 10:
            return epoch / 10
        return 0.1 + 0.9 * (1 + cos(pi * min((epoch - 10) / 70, 1))) / 2

    expected = torch_rates(lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, factor), 3e-4, STEPS)
    ours = [cosine_schedule(step, 3e-4, 3e-5, 10, 80) for step in range(STEPS)]
    assert ours == pytest.approx(expected, rel=1e-12)
    assert ours[0] == 0
    assert ours[80:] == [3e-5] * 20


def test_clip_grad_norm():
    clipped = 0
    for step in range(STEPS):
        grads = random_params(step)
        grads.flat *= 10 ** (step % 5 - 3)
        tensors, _ = groups(grads, 0.0)
        for tensor, gradient in zip(tensors, grads.values(), strict=True):
            tensor.grad = torch.tensor(gradient)
        expected = torch.nn.utils.clip_grad_norm_(tensors, 1.0).item()
        norm = clip_grad_norm(grads, 1.0)
        assert norm == pytest.approx(expected, rel=1e-12)
        assert_together(grads, [tensor.grad for tensor in tensors])
        clipped += norm > 1
    assert 0 < clipped < STEPS
