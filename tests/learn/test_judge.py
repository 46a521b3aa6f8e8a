"""`nl.judge` finds what is wrong with a kernel, and nothing in one that is right."""

import json
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from learn import kernels
from learn.fakes import FAKES

import numllama as nl
from numllama.backend import known_dtype
from numllama.learn import judge_bench
from numllama.learn.error_bounds import Bounded, Format
from numllama.learn.judge_bench import Bench, Call, closeness
from numllama.learn.judge_guard import Guard, RefusedCall
from numllama.learn.judge_memory import framework_of
from numllama.learn.judge_ops import CASES, JUDGED

SEED = 0  # a test fails because of a change, not because of today's random numbers
DTYPES = ("float32", "float64", "bfloat16", "float16")
rmsnorm, rmsnorm_backward = kernels.pair("rmsnorm")


@pytest.mark.parametrize("fake", FAKES, ids=lambda fake: f"{fake.op}-{fake.what.replace(' ', '_')}")
def test_a_fake_is_caught(fake):
    verdict = nl.judge(fake.op, forward=fake.forward, backward=fake.backward, seed=SEED, cases=[fake.case], **fake.options)
    (case,) = verdict.cases
    assert not verdict and not case.passed, str(verdict)
    assert fake.says in case.problem


def test_there_are_enough_fakes_and_each_case_is_needed():
    assert len(FAKES) >= 60
    assert len({fake.what for fake in FAKES}) == len(FAKES)
    assert {fake.case for fake in FAKES} == set(CASES)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("op", kernels.OPS)
def test_a_right_kernel_passes(op, dtype):
    verdict = nl.judge(op, kernels.pair(op), seed=SEED, dtype=dtype)
    assert verdict, str(verdict)


@pytest.mark.parametrize("dtype", ["float32", *(pytest.param(each, marks=pytest.mark.thorough) for each in DTYPES[1:])])
@pytest.mark.parametrize("op", JUDGED)
def test_the_packages_own_ops_pass(op, dtype, monkeypatch):
    """They are let through here."""
    monkeypatch.setattr(Guard, "on", lambda self: nullcontext())
    row = JUDGED[op]
    forward = getattr(nl.ops, f"{op}_forward", row.forward)
    backward = getattr(nl.ops, f"{op}_backward", row.backward)
    verdict = nl.judge(
        op, seed=1, dtype=dtype, forward=lambda *a: forward(*a, **row.options),
        backward=lambda dout, cache: backward(float(dout) if getattr(dout, "ndim", 1) == 0 else dout, cache),
    )  # fmt: skip
    assert verdict, str(verdict)


# ------------------------------------------------------------------------------------------------ bounds


@pytest.mark.parametrize(("dtype", "most"), [
    ("float32", 1e-3), pytest.param("float16", 0.2, marks=pytest.mark.thorough), ("bfloat16", 0.5),
])  # fmt: skip
@pytest.mark.parametrize("op", [op for op in JUDGED if op != "mixture_of_experts"])
def test_bounds_are_far_below_the_results(op, dtype, most):
    for name, expected in expected_of(op, "plain", dtype).items():
        size = np.sqrt((expected.value**2).mean())
        assert np.isfinite(expected.error).all()
        assert np.median(expected.error) < most * size, name


def expected_of(op, case, dtype):
    row, format = JUDGED[op], Format.of(known_dtype(dtype))
    bench = Bench(row, len, len, framework_of("numpy", "cpu"), format, writes=False, same_bits=True)
    call = Call(*bench._draw(CASES[case], np.random.default_rng(0)), "contiguous", bench.framework)
    outs, cache = bench._expected_forward(call.arguments)
    douts = [bench._bounded(dout) for dout in call.douts]
    gradients = judge_bench.as_tuple(bench.own_backward(judge_bench.one_or_all(douts), cache))
    return dict(zip((*row.results, *row.gradients), (*outs, *gradients), strict=True))


FLOAT32 = Format.of(np.dtype("float32"))


@pytest.mark.parametrize("function", [
    lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, lambda x, y: x / y, lambda x, y: x @ y.T, lambda x, y: np.exp(x),
    lambda x, y: np.log(abs_(x)), lambda x, y: np.sqrt(abs_(x)), lambda x, y: np.tanh(x), lambda x, y: -x, lambda x, y: x.sum(-1),
    lambda x, y: x.mean(0), lambda x, y: (x - y) / (x * x).sum(-1, keepdims=True), lambda x, y: np.where(x > y, x, 0.1) * 0.3,
])  # fmt: skip
def test_the_error_of_float32_is_below_its_bound_and_not_far(function):
    """In float32, from arguments that are off by as much as they may be."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((40, 50)).astype(np.float32) for _ in range(2))
    near = [np.nextafter(a, rng.choice([-9, 9], a.shape).astype(np.float32)) for a in (x, y)]
    expected = function(Bounded.input(x, FLOAT32), Bounded.input(y, FLOAT32))
    error = abs(function(*near).astype(np.float64) - expected.value)
    assert (error <= expected.error).all()
    assert error.max() > expected.error.max() / 1000


def abs_(x):
    return np.sqrt(x * x)


def test_what_would_lose_the_bounds_is_refused():
    x = Bounded.input(np.ones((2, 3), np.float32), FLOAT32)
    for lose in (np.asarray, np.concatenate, np.cumsum, np.arctan):
        with pytest.raises((TypeError, KeyError)):
            lose(x)


# ------------------------------------------------------------------------------------------------ how it is called


def test_forward_and_backward_may_be_judged_alone_or_as_a_pair_or_as_an_object():
    class Norm:
        forward, backward = staticmethod(rmsnorm), staticmethod(rmsnorm_backward)

    def alone(dout, *arguments):
        return rmsnorm_backward(dout, rmsnorm(*arguments)[1])

    for given, directions in [
        ({"candidate": rmsnorm}, ("forward",)), ({"forward": lambda *a: rmsnorm(*a)[0]}, ("forward",)),
        ({"backward": alone}, ("backward",)), ({"candidate": (None, alone)}, ("backward",)),
        ({"candidate": Norm}, ("forward", "backward")), ({"candidate": (rmsnorm, rmsnorm_backward)}, ("forward", "backward")),
        ({"forward": rmsnorm, "backward": lambda *a: (*rmsnorm_backward(*a), None)}, ("forward", "backward")),
    ]:  # fmt: skip
        verdict = nl.judge("rmsnorm", **given)
        assert verdict, str(verdict)
        assert verdict.directions == directions


def test_a_kernel_may_write_to_what_it_is_given():
    def forward(x, weight, eps, out):
        out[...], cache = rmsnorm(x, weight, eps)
        return cache

    def backward(dout, cache, out):
        out[0][...], out[1][...] = rmsnorm_backward(dout, cache)

    def alone(dout, x, weight, eps, out):
        backward(dout, rmsnorm(x, weight, eps)[1], out)

    assert nl.judge("rmsnorm", (forward, backward), style="out")
    assert nl.judge("rmsnorm", forward=forward, style="out")
    assert nl.judge("rmsnorm", backward=alone, style="out")


def test_sums_in_any_order_may_have_other_bits():
    def forward(x, weight, eps):
        order = np.random.default_rng().permutation(x.shape[-1])
        r = 1 / np.sqrt(np.cumsum(x[..., order] ** 2, -1)[..., -1:] / np.float32(x.shape[-1]) + eps)
        return x * r * weight

    assert nl.judge("rmsnorm", forward, same_bits=False)
    assert "other bits" in nl.judge("rmsnorm", forward, cases=["long"]).cases[0].problem


def test_a_seed_repeats_the_arguments_and_without_one_they_are_new():
    seen = []

    def forward(x, *a):
        seen.append(x.copy())
        return rmsnorm(x, *a)[0]

    first = nl.judge("rmsnorm", forward, cases=["plain"])
    second = nl.judge("rmsnorm", forward, seed=first.seed)
    third = nl.judge("rmsnorm", forward, cases=["plain"])
    assert first.cases[0] == second.cases[0] and first.seed != third.seed
    assert (seen[0] == seen[4]).all() and (seen[0] != seen[-4]).all()
    assert (seen[0] != seen[1]).all() and (seen[0] != seen[2]).all() and (seen[1] == seen[3]).all()


def test_the_verdict_is_json():
    verdict = nl.judge("rmsnorm", lambda x, *a: x * np.nan, seed=7)
    assert not verdict.passed and len(verdict.cases) == len(CASES) - 2
    read = json.loads(verdict.to_json(), parse_constant=lambda text: pytest.fail(text))
    assert read == verdict.to_dict()
    assert (read["op"], read["dtype"], read["seed"], read["directions"]) == ("rmsnorm", "float32", 7, ["forward"])
    assert read["cases"][0]["problem"].startswith("out[0, 0, 0] is nan, not ")
    assert read["cases"][0]["error"] is None and read["cases"][0]["index"] == [0, 0, 0]
    assert "FAILED (seed 7)" in str(verdict) and "plain       out[0, 0, 0] is nan" in str(verdict)


@pytest.mark.parametrize(("given", "sentence"), [
    (dict(op="rmsnrom", forward=rmsnorm), "op is 'rmsnrom', but must be one of linear, "),
    (dict(op="rmsnorm"), "nothing to judge: give a candidate, a forward or a backward"),
    (dict(op="rmsnorm", candidate=rmsnorm, forward=rmsnorm), "candidate is given, so forward and backward must not be"),
    (dict(op="rmsnorm", forward=3), "forward is 3, but must be a function"),
    (dict(op="rmsnorm", forward=rmsnorm, dtype="int8"), "dtype is 'int8', but must be one of float32, "),
    (dict(op="rmsnorm", forward=rmsnorm, style="x"), "style is 'x', but must be one of return, out"),
    (dict(op="rmsnorm", forward=rmsnorm, framework="x"), "framework is 'x', but must be one of numpy, torch, cupy"),
    (dict(op="rmsnorm", forward=rmsnorm, device="cuda"), "device is 'cuda', but NumPy's arrays live on the cpu"),
    (dict(op="rmsnorm", forward=rmsnorm, cases=["masked"]), "cases holds 'masked', but those of rmsnorm are plain, "),
])  # fmt: skip
def test_bad_arguments_are_named(given, sentence):
    with pytest.raises(ValueError) as error:
        nl.judge(**given)
    assert str(error.value).startswith(sentence)


PAGE = Path(__file__).parents[2] / "docs" / "judge.md"


@pytest.mark.skipif(not PAGE.exists(), reason="tests without the documents")
def test_the_page_is_true(capsys):
    page = PAGE.read_text(encoding="utf-8")
    names: dict = {}
    for example in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(example, names)
    (shown,) = re.findall(r"```text\n(.*?)```", page, re.S)
    printed = capsys.readouterr().out
    assert all(line.split(" is ")[0] in printed for line in shown.splitlines() if line != "  ...")
    assert f"# {', '.join(names['first'])}\n" in page
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in page.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in row} == {*JUDGED, *CASES}


# ------------------------------------------------------------------------------------------------ the guard


def test_the_ops_are_themselves_again_afterwards():
    x = np.ones((2, 3))
    before, code = nl.ops.softmax_forward(x)[0], nl.ops.softmax_forward.__code__
    guard = Guard()
    with pytest.raises(RefusedCall), guard.on():
        nl.ops.softmax_forward(x)
    assert guard.calls == ["numllama/dispatch.py: softmax_forward"]
    assert nl.ops.softmax_forward.__code__ is code
    assert (nl.ops.softmax_forward(x)[0] == before).all()
    assert not nl.judge("softmax", lambda x: nl.ops.softmax_forward(x)[0])
    assert (nl.ops.softmax_forward(x)[0] == before).all()


def test_an_interrupt_is_not_a_verdict():
    def forward(*a):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nl.judge("rmsnorm", forward)
    assert nl.judge("rmsnorm", rmsnorm)


def test_closeness_of_what_is_infinite():
    assert closeness(dict(error=None, bound=None)) == closeness(dict(error=0.0, bound=0.0)) == 0.0
    assert closeness(dict(error=1.0, bound=4.0)) == 0.25
