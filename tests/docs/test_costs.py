"""The costs on each op's page agree with a count while the op runs: the largest terms, within 3 %."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from numllama import ops

PAGES = Path(__file__).parents[2] / "docs" / "ops"
pytestmark = pytest.mark.skipif(not PAGES.exists(), reason="tests without the documents")

# As many rows as ids, so that the embedding reads each row of its weight exactly once.
SIZES = dict(N=210, C=301, F=260, V=210, I=240, O=330, R=24, n=250, B=4, H=8, T=96, S=160, D=256, E=4, k=2)

DONE: Counter = Counter()


class Counted(np.ndarray):
    """An array that counts its arithmetic in DONE."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        inputs, into = [plain(x) for x in inputs], tuple(plain(x) for x in out)
        result = getattr(ufunc, method)(*inputs, **kwargs, **({"out": into} if into else {}))
        DONE[kind_of(ufunc, inputs, result)] += steps(ufunc, method, inputs, result)
        return out[0] if out else counted(result)


def plain(x):
    return x.view(np.ndarray) if isinstance(x, Counted) else x


def counted(x):
    return x.view(Counted) if isinstance(x, np.ndarray) else x


def kind_of(ufunc, inputs, result):
    if ufunc.__name__ in ("exp", "tanh"):
        return ufunc.__name__
    return "FLOPs" if any(np.asarray(x).dtype.kind == "f" for x in (*inputs, result)) else "integer operations"


def steps(ufunc, method, inputs, result):
    if ufunc in (np.matmul, np.vecdot):                                # a multiplication and an addition for each term
        return 2 * np.size(result) * inputs[0].shape[-1]
    if method in ("reduce", "reduceat"):
        return np.size(inputs[0]) - np.size(result)
    return np.size(result)


def arguments(op):
    """The arguments of an op's forward."""
    N, C, F, V, I, O, R, n, B, H, T, S, D, E, k = SIZES.values()  # noqa: E741
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    heads = normal(1, 1, T, D), normal(1, 1, S, D), normal(1, 1, S, D), np.zeros(T, int), np.full(T, S)
    return {
        "linear": lambda: (normal(N, I), normal(O, I)),
        "lora": lambda: (normal(N, I), normal(R, I), normal(O, R), 0.5),
        "embedding": lambda: (rng.permutation(V), normal(V, C)),
        "softmax": lambda: (normal(N, n),),
        "cross_entropy": lambda: (normal(N, V), rng.integers(0, V, N)),
        "swiglu": lambda: (normal(N, F), normal(N, F)),
        "gelu": lambda: (normal(N, F),),
        "geglu": lambda: (normal(N, F), normal(N, F)),
        "softcap": lambda: (normal(N, n), 2.0),
        "rmsnorm": lambda: (normal(N, C), normal(C), 1e-5),
        "layernorm": lambda: (normal(N, C), normal(C), normal(C), 1e-5),
        "add_rmsnorm": lambda: (normal(N, C), normal(N, C), normal(C), 1e-5),
        "dropout": lambda: (normal(N), 0.5, np.ones((2, 1), np.uint32)),    # a key that counts the arithmetic done with it
        "rope": lambda: (normal(B, H, T, D), normal(T, D // 2), normal(T, D // 2)),
        "attention": lambda: heads,
        "flash_attention": lambda: heads,
        "mixture_of_experts": lambda: (normal(N, C), normal(E, C), normal(E, F, C), normal(E, F, C), normal(E, C, F), k),
    }[op]()  # fmt: skip


def counts(op):
    """For each direction the arithmetic by kind, and the bytes."""
    args = tuple(map(counted, arguments(op)))
    DONE.clear()
    out, cache = getattr(ops, f"{op}_forward")(*args)
    yield "forward", DONE.copy(), moved(args, out, cache)
    dout = tuple(map(np.ones_like, out)) if isinstance(out, tuple) else np.ones_like(out)
    DONE.clear()
    gradients = getattr(ops, f"{op}_backward")(dout, cache)
    read = cache[:1] if op == "embedding" else cache                   # it caches the weight only for its shape
    yield "backward", DONE.copy(), moved(dout, read, gradients)


def moved(*values):
    """The bytes of all arrays in nested tuples, each once."""
    found, todo = {}, list(values)
    while todo:
        value = todo.pop()
        if isinstance(value, tuple):
            todo += value
        elif isinstance(value, np.ndarray):
            found[id(value)] = value
    return sum(value.nbytes for value in found.values())


def stated(op):
    """The page's figures: for each direction the arithmetic by kind, and the bytes."""
    (section,) = re.findall(r"^## Cost\n(.*?)^## ", (PAGES / f"{op}.md").read_text(encoding="utf-8"), re.S | re.M)
    assert section.count("| | FLOPs | bytes |\n") == 1
    for direction, work, size in re.findall(r"^\| (forward|backward) \| (.*?) \| (.*?) \|$", section, re.M):
        terms = re.findall(r"\$([^$]+)\$ (exp|tanh|integer operations)", work)
        kinds = {"FLOPs": 0 if work == "none" else value(work)} | {kind: value(f"${term}$") for term, kind in terms}
        yield direction, kinds, value(size)


def value(cell):
    """The value of the first formula of a cell, in which adjacent letters are multiplied."""
    formula = re.match(r"\$([\w() +]+)\$", cell)[1]
    return eval(re.sub(r"(?<=[\w)])(?=[A-Za-z(])", "*", formula), {}, SIZES)


@pytest.mark.parametrize("op", sorted(path.stem for path in PAGES.glob("*.md") if path.stem != "index"))
def test_the_cost_on_a_page_is_what_the_op_does(without_onednn, op):
    pages, runs = list(stated(op)), list(counts(op))
    assert [direction for direction, *_ in pages] == ["forward", "backward"]
    for (direction, work, size), (_, done, n_bytes) in zip(pages, runs, strict=True):
        allowed = 0.03 * max(sum(work.values()), size / 4)
        for kind in work | done:
            assert abs(done[kind] - work.get(kind, 0)) <= allowed, (direction, kind, dict(done), work)
        assert abs(n_bytes - size) <= 0.03 * size, (direction, n_bytes, size)
