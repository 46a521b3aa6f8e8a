"""What an op is given is checked in one place: wrong kinds, numbers out of range, and numbers that would widen float32."""

import math

import ml_dtypes
import numpy as np
import pytest

import numllama as nl
from numllama import ops
from numllama.checks import checked_arguments
from numllama.optim.adamw import adamw_update  # accelerated too, and no op: its arguments pass as they are

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(1, 2, 3, 4)  # (B, H, T, D), or rows of 4
GAIN = np.ones(4, np.float32)
TABLE = ops.rope_table(np.arange(3), 4, 100.0)
# Each op with good arguments, and the names of those of its arguments that are arrays of floats.
CALLS = {
    "linear": (dict(x=X, weight=X[0, 0], bias=np.ones(3, np.float32)), "x weight bias"),
    "embedding": (dict(tokens=np.arange(2), weight=X[0, 0]), "weight"),
    "rmsnorm": (dict(x=X, weight=GAIN, eps=1e-5), "x weight"),
    "add_rmsnorm": (dict(x=X, branch=X, weight=GAIN, eps=1e-5), "x branch weight"),
    "layernorm": (dict(x=X, weight=GAIN, bias=GAIN, eps=1e-5), "x weight bias"),
    "rope": (dict(x=X, cos=TABLE[0], sin=TABLE[1]), "x cos sin"),
    "softmax": (dict(x=X), "x"),
    "attention": (dict(q=X, k=X, v=X), "q k v"),
    "flash_attention": (dict(q=X, k=X, v=X), "q k v"),
    "swiglu": (dict(gate=X, up=X), "gate up"),
    "gelu": (dict(x=X), "x"),
    "geglu": (dict(gate=X, up=X), "gate up"),
    "softcap": (dict(x=X, cap=2.0), "x"),
    "cross_entropy": (dict(logits=X[0], targets=np.zeros((2, 3), int)), "logits"),
    "dropout": (dict(x=X, p=0.5, key=(1, 2)), "x"),
    "lora": (dict(x=X, a=X[0, 0], b=X[0, :1].reshape(4, 3), scale=2.0), "x a b"),
}
SHAPELESS = ("no axis", "no numbers")  # dropout takes any shape
FLOATS = [(op, name) for op, (_, names) in CALLS.items() for name in names.split()]
WRONG_ARRAYS = {
    "integers": np.ones((2, 4), int),
    "booleans": np.ones((2, 4), bool),
    "complex": np.ones((2, 4), np.complex64),
    "objects": np.full((2, 4), None),
    "texts": np.full((2, 4), "x"),
    "a list": [[1.0, 2.0]],
    "text": "text",
    "a number": 1.0,
    "a NumPy number": np.float32(1),
    "a memoryview": memoryview(np.ones(4)),
    "no axis": np.asarray(1.0),
    "no numbers": np.ones((3, 0)),
}


def call(op, **changes):
    arguments, _ = CALLS[op]
    return getattr(ops, f"{op}_forward")(**{**arguments, **changes})


@pytest.mark.parametrize("op", CALLS)
def test_the_calls_above_are_good_but_for_what_is_changed(op):
    out, _ = call(op)
    assert np.isfinite(out[0] if isinstance(out, tuple) else out).all()


@pytest.mark.parametrize(
    "op, name, wrong",
    [(*case, wrong) for case in FLOATS for wrong in WRONG_ARRAYS if case[0] != "dropout" or wrong not in SHAPELESS],
)
def test_an_argument_that_is_no_array_of_floats_is_named(op, name, wrong):
    with pytest.raises((TypeError, ValueError), match=rf"^{name} (is|has|must be) ") as caught:
        call(op, **{name: WRONG_ARRAYS[wrong]})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("op, name", FLOATS)
def test_by_position_it_is_named_too(op, name):
    arguments = list(CALLS[op][0].values())
    arguments[list(CALLS[op][0]).index(name)] = [1, 2]
    with pytest.raises(TypeError, match=f"^{name} is "):
        getattr(ops, f"{op}_forward")(*arguments)


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("wrong", ["integers", "complex", "a list", "text", "a memoryview"])
def test_a_gradient_that_is_no_array_of_floats_is_named(op, wrong):
    _, cache = call(op)
    gradient = WRONG_ARRAYS[wrong]
    with pytest.raises((TypeError, ValueError), match=r"^douts?"):
        getattr(ops, f"{op}_backward")((gradient, gradient) if op == "add_rmsnorm" else gradient, cache)


@pytest.mark.parametrize("cache", [None, [X, GAIN, GAIN], "cache", X])
def test_a_cache_that_is_none_is_named(cache):
    with pytest.raises(TypeError, match=r"^cache is .*, but must be what the forward function returned"):
        ops.rmsnorm_backward(X, cache)


@pytest.mark.parametrize("op, name", [("embedding", "tokens"), ("cross_entropy", "targets")])
@pytest.mark.parametrize("wrong", [[1, 2], "text", None, 1, np.ones((2, 3)), np.ones((2, 3), bool)])
def test_ids_that_are_no_integers_are_named(op, name, wrong):
    with pytest.raises(TypeError, match=f"^{name} (is|must be) "):
        call(op, **{name: wrong})


NUMBERS = [
    ("rmsnorm", "eps"), ("add_rmsnorm", "eps"), ("layernorm", "eps"),
    ("attention", "scale"), ("flash_attention", "scale"), ("lora", "scale"), ("dropout", "p"), ("cross_entropy", "count"),
]  # fmt: skip


@pytest.mark.parametrize("op, name", NUMBERS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 10**400, 1e300, True, "1", [1.0], 1j, np.float64("nan")])
def test_a_number_that_is_none_or_not_finite_is_named(op, name, wrong):
    with pytest.raises((TypeError, ValueError), match=f"^{name} is "):
        call(op, **{name: wrong})


@pytest.mark.parametrize("op, name", [n for n in NUMBERS if n[1] not in ("scale",)])
def test_a_negative_number_is_named(op, name):
    with pytest.raises(ValueError, match=f"^{name} is -1"):
        call(op, **{name: -1.0})


def test_a_count_of_zero_is_named():
    with pytest.raises(ValueError, match=r"^count is 0.*, but must be positive"):
        call("cross_entropy", count=0)


@pytest.mark.parametrize("theta", [0, -1.0, math.nan, math.inf, True, "x", None])
def test_a_base_of_rope_that_turns_nothing_is_named(theta):
    with pytest.raises((TypeError, ValueError), match=r"^theta is "):
        ops.rope_table(np.arange(3), 4, theta)


SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"factor": 0}, "scaling's factor is 0"),
        ({"factor": math.nan}, "scaling's factor is nan"),
        ({"low_freq_factor": 4.0}, "scaling's high_freq_factor must be larger"),
        ({"original_max_position_embeddings": "8192"}, "scaling's original_max_position_embeddings is '8192'"),
    ],
)
def test_a_scaling_of_rope_that_cannot_be_is_named(change, words):
    ops.rope_table(np.arange(3), 4, 100.0, SCALING)
    with pytest.raises((TypeError, ValueError), match=f"^{words}"):
        ops.rope_table(np.arange(3), 4, 100.0, SCALING | change)
    with pytest.raises(ValueError, match=r"^scaling lacks factor"):
        ops.rope_table(np.arange(3), 4, 100.0, {})


@pytest.mark.parametrize("op, name, value", [("rmsnorm", "eps", 1e-5), ("lora", "scale", 2.0), ("attention", "scale", 0.5)])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_numpys_numbers_do_not_widen_float32(op, name, value, kind):
    out, _ = call(op, **{name: kind(value)})
    expected, _ = call(op, **{name: float(kind(value))})
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, "float32", "float64"])
def test_every_floating_point_dtype_passes(dtype):
    out, _ = ops.rmsnorm_forward(X.astype(dtype), GAIN.astype(dtype), 0)
    assert out.dtype == dtype


def test_optional_arguments_may_be_none_and_other_functions_pass_as_they_are():
    out, _ = ops.attention_forward(X, X, X, None, None, None, None)
    np.testing.assert_array_equal(out, call("attention")[0])
    w = np.ones(3)
    adamw_update(w, np.ones(3), np.zeros(3), np.zeros(3), 1, 0.1, (0.9, 0.99), 1e-8, 0.0)
    np.testing.assert_allclose(w, 0.9, rtol=1e-6)


@pytest.mark.parametrize("op, name", FLOATS)
def test_inside_a_layer_only_shapes_are_checked_again(op, name):
    @checked_arguments()
    def layer():
        with pytest.raises(ValueError, match=r"^weight has shape"):
            ops.linear_forward(X, GAIN)
        try:
            call(op, **{name: np.ones((2, 4), int)})
        except (TypeError, ValueError, IndexError) as error:  # of shapes
            return str(error)
        return ""

    assert "must be real" not in layer()
    with pytest.raises(TypeError, match=f"^{name} must be real"):
        call(op, **{name: np.ones((2, 4), int)})


def test_checks_are_made_again_after_an_error_inside():
    @checked_arguments()
    def layer():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        layer()
    with pytest.raises(TypeError, match=r"^gate must be real"):
        ops.swiglu_forward(np.ones((2, 4), int), X)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_a_models_numbers_are_pythons_because_its_layers_do_not_check_them(kind):
    config = nl.ModelConfig(
        9, dim=8, n_layers=1, n_heads=2, max_seq_len=8, norm_eps=kind(1), dropout=kind(0), rope_theta=kind(2)
    )
    lora = nl.LoraConfig(rank=np.int64(2), alpha=kind(4))
    assert {type(config.norm_eps), type(config.dropout), type(lora.scale_of("blocks.0.wq"))} == {float}
