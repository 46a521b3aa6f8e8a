"""What is seen of a mistake: the error of a gradient check, an element of the output, or a loss curve. Computed, not told."""

import textwrap
from functools import cache
from typing import Any

import numpy as np

from numllama import ops
from numllama.errors import shown
from numllama.gradcheck import GradientError
from numllama.learn.course import block
from numllama.learn.course.bugs import Bug
from numllama.learn.course.examples import as_tuple, example

STEPS = (0, 30, 60, 90, 120)
V, C, F, T, BATCH = 8, 12, 16, 8, 16  # the sizes of the small model that is trained
NAMES = ("attn_gain", "wq", "wk", "wv", "wo", "ffn_gain", "w_gate", "w_up", "w_down")


@cache
def symptom_of(bug: Bug, text: str) -> str:
    """What a file with the mistake does, in a few lines."""
    names = functions_of(text)
    if bug.symptom == "training":
        wrong = losses(names["block_forward"], names["block_backward"])
        rows = [("step", STEPS), ("loss", wrong), ("without it", right_losses())]
        return "\n".join(f"{title:12}" + "".join(f"{each:>8}" for each in row) for title, row in rows)
    if bug.symptom == "gradcheck":
        return _error_of(names["test_gradients"])
    forward, args = names[f"{bug.base}_forward"], example(bug.base)
    given = ", ".join(f"an array {arg.shape}" if isinstance(arg, np.ndarray) else shown(arg) for arg in args)
    out, expected = (as_tuple(each(*args)[0])[0] for each in (forward, getattr(ops, f"{bug.base}_forward")))
    index = worst_index(out, expected)
    place = f"[{', '.join(map(str, index))}]" if index else ""
    found = f"out{place} is {out[index]:.6g}, and another implementation gives {expected[index]:.6g}"
    return textwrap.fill(f"{bug.base}_forward of {given}:", 110) + f"\n{found}"


@cache
def functions_of(text: str) -> dict[str, Any]:
    """What a file with a mistake defines."""
    names: dict[str, Any] = {"__name__": "mistaken"}
    exec(compile(text, "mistaken", "exec"), names)  # the package's own source, with one of its own mistakes
    return names


def _error_of(test: Any) -> str:
    try:
        test()
    except GradientError as error:
        return textwrap.fill(f"GradientError: {error}", 110)
    raise AssertionError("the gradient check finds nothing")


@cache
def right_losses() -> tuple[str, ...]:
    """The losses with the right block."""
    return losses(block.block_forward, block.block_backward)


def worst_index(actual: np.ndarray, expected: np.ndarray) -> tuple[int, ...]:
    """The element that is furthest off; one that is not a number comes first."""
    with np.errstate(invalid="ignore"):
        off = np.where(actual == expected, 0.0, np.abs(np.asarray(actual, np.float64) - expected))
    off = np.where(np.isfinite(off), off, np.inf)
    return tuple(int(i) for i in np.unravel_index(int(off.argmax()), off.shape))


def losses(forward: Any, backward: Any) -> tuple[str, ...]:
    """A small model's losses, with one block of these functions between an embedding and a head, trained by Adam."""
    rng = np.random.default_rng(0)
    params = _weights(rng)
    moments = {name: (np.zeros_like(value), np.zeros_like(value)) for name, value in params.items()}
    cos, sin = ops.rope_table(np.arange(T), block.D, 100.0, dtype="float64")
    seen = []
    for step in range(STEPS[-1] + 1):
        tokens, targets = _text(step)
        x, embed_cache = ops.embedding_forward(tokens, params["embed"])
        w = block.Values({name: params[name] for name in NAMES})
        a = forward(x, w, cos, sin)
        logits, head_cache = ops.linear_forward(a.after_ffn, params["head"])
        loss, loss_cache = ops.cross_entropy_forward(logits, targets)
        if step in STEPS:
            seen.append(f"{loss:.2f}")
        dx, dhead = ops.linear_backward(ops.cross_entropy_backward(1.0, loss_cache), head_cache)
        d = backward(dx, a, w)
        grads = {name: d[name] for name in NAMES} | {"embed": ops.embedding_backward(d.x, embed_cache), "head": dhead}
        for name, grad in grads.items():
            m, v = moments[name]
            m += 0.1 * (grad - m)
            v += 0.01 * (grad * grad - v)
            size = 0.02 / (1 - 0.9 ** (step + 1)) / np.sqrt(v / (1 - 0.99 ** (step + 1)) + 1e-16)
            params[name] = params[name] - size * m
    return tuple(seen)


def _weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    H, K, D = block.H, block.K, block.D
    shapes = {"embed": (V, C), "head": (V, C), "wq": (H * D, C), "wk": (K * D, C), "wv": (K * D, C), "wo": (C, H * D),
              "w_gate": (F, C), "w_up": (F, C), "w_down": (C, F)}  # fmt: skip
    return {name: 0.3 * rng.standard_normal(shape) for name, shape in shapes.items()} | {
        "attn_gain": np.ones(C), "ffn_gain": np.ones(C),
    }  # fmt: skip


@cache
def _text(step: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch in which each token follows from the one before its predecessor, and from a coin: the loss is log 2 at best."""
    rng = np.random.default_rng([step, 1])
    text = rng.integers(0, V, (BATCH, T + 1))
    coins = rng.integers(0, 2, (BATCH, T + 1))
    for t in range(2, T + 1):
        text[:, t] = (3 * text[:, t - 2] + 1 + coins[:, t]) % V
    targets = text[:, 1:].copy()
    targets[:, 0] = ops.IGNORE  # its token follows from nothing
    return text[:, :-1], targets
