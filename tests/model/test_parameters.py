"""Parameters: one flat buffer, its named views, and the initial values."""

from dataclasses import replace
from itertools import pairwise
from math import prod, sqrt

import numpy as np
import pytest

from numllama.model import ModelConfig, Parameters, Transformer, count_parameters, initial_parameters, parameter_shapes

SMALL = dict(vocab_size=23, dim=16, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=20, max_seq_len=9)
CONFIGS = {
    "llama": ModelConfig(**SMALL),
    "tied": ModelConfig(**SMALL, tie_embeddings=True),
    "qk_norm": ModelConfig(**SMALL, qk_norm="rms", head_dim=6),
    "gpt2": ModelConfig(**SMALL, norm="layernorm", positions="learned", ffn="gelu", bias=True, tie_embeddings=True),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def start(view: np.ndarray, params: Parameters) -> int:
    """Where a view begins in the flat buffer, in elements."""
    return (view.__array_interface__["data"][0] - params.flat.__array_interface__["data"][0]) // view.itemsize


def make(config: ModelConfig, dtype: str = "float32", seed: int = 0) -> Parameters:
    return initial_parameters(config, seed, np.dtype(dtype))


# ------------------------------------------------------------------------------------------------ names and layout


def test_a_llama_has_these_names_and_shapes():
    block = {"wq": (16, 16), "wk": (8, 16), "wv": (8, 16), "wo": (16, 16)}
    block |= {"w_gate": (20, 16), "w_up": (20, 16), "w_down": (16, 20), "attn_norm": (16,), "ffn_norm": (16,)}
    expected = {"embed": (23, 16), "head": (23, 16), "norm": (16,)}
    expected |= {f"blocks.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    assert parameter_shapes(CONFIGS["llama"]) == expected


def test_a_gpt2_has_these_names_and_shapes():
    block = {"wq": (16, 16), "wk": (8, 16), "wv": (8, 16), "wo": (16, 16), "w_up": (20, 16), "w_down": (16, 20)}
    block |= {f"{name}_bias": (shape[0],) for name, shape in block.items()}
    block |= {"attn_norm": (16,), "attn_norm_bias": (16,), "ffn_norm": (16,), "ffn_norm_bias": (16,)}
    expected = {"embed": (23, 16), "pos_embed": (9, 16), "norm": (16,), "norm_bias": (16,)}
    expected |= {f"blocks.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    assert parameter_shapes(CONFIGS["gpt2"]) == expected


def test_a_tied_head_is_no_parameter():
    assert set(parameter_shapes(CONFIGS["llama"])) - set(parameter_shapes(CONFIGS["tied"])) == {"head"}


def test_qk_norm_has_a_gain_as_long_as_a_head():
    shapes = parameter_shapes(CONFIGS["qk_norm"])
    assert shapes["blocks.1.q_norm"] == shapes["blocks.1.k_norm"] == (6,)


def test_l2_qk_norm_has_no_gain():
    assert parameter_shapes(ModelConfig(**SMALL, qk_norm="l2")) == parameter_shapes(CONFIGS["llama"])


def test_a_head_dim_of_its_own_widens_the_projections():
    shapes = parameter_shapes(ModelConfig(**SMALL, head_dim=6))
    found = [shapes[f"blocks.0.{name}"] for name in ("wq", "wk", "wv", "wo")]
    assert found == [(24, 16), (12, 16), (12, 16), (16, 24)]


@every_config
@pytest.mark.parametrize("changes", [{}, dict(n_layers=5), dict(bias=True, norm="layernorm")], ids=["as_is", "deep", "biases"])
def test_the_number_of_parameters_is_that_of_all_shapes(config, changes):
    config = replace(config, **changes)
    assert count_parameters(config) == sum(map(prod, parameter_shapes(config).values()))


@pytest.mark.parametrize("changes", [dict(n_layers=10**12), dict(vocab_size=2**62), dict(dim=2**40), dict(ffn_dim=10**15)])
def test_what_no_machine_can_hold_is_counted_but_not_built(changes):
    config = ModelConfig(**SMALL | changes)
    assert count_parameters(config) > 10**13
    with pytest.raises(ValueError, match=r"(cannot be built|more than the memory of any machine holds)$"):
        Transformer(config)


@every_config
def test_matrices_come_before_gains_and_biases(config):
    axes = [len(shape) for shape in parameter_shapes(config).values()]
    assert axes == sorted(axes, reverse=True)
    assert set(axes) == {1, 2}


@every_config
def test_matrices_are_exactly_what_has_two_axes(config):
    params = make(config)
    assert params.matrices.size == sum(view.size for view in params.values() if view.ndim == 2)
    params.matrices[:] = 7
    assert all((view == 7).all() == (view.ndim == 2) for view in params.values())


@every_config
def test_the_views_tile_the_flat_buffer_in_order(config):
    params = make(config)
    ends = [start(view, params) + view.size for view in params.values()]
    assert [start(view, params) for view in params.values()] == [0, *ends[:-1]]
    assert ends[-1] == params.flat.size == count_parameters(config)
    assert {name: view.shape for name, view in params.items()} == parameter_shapes(config)


@pytest.mark.parametrize("names", [("wq", "wk", "wv"), ("w_gate", "w_up")], ids=["attention", "ffn"])
def test_matrices_that_read_the_same_input_lie_next_to_each_other(names):
    params = make(CONFIGS["llama"])
    for block in params.blocks:
        for one, other in pairwise(names):
            assert start(block[other], params) == start(block[one], params) + block[one].size


def test_a_view_writes_to_the_flat_buffer_and_back():
    params = make(CONFIGS["llama"])
    params["blocks.1.wk"][3, 5] = 42
    assert params.flat[start(params["blocks.1.wk"], params) + 3 * 16 + 5] == 42
    params.flat[:] = 3
    assert all((view == 3).all() for view in params.values())


def test_assigning_to_a_name_copies_into_the_view():
    params = make(CONFIGS["llama"])
    view, value = params["norm"], np.arange(16, dtype="float32")
    params["norm"] = value
    assert params["norm"] is view
    assert np.array_equal(params.flat[-16:], value)
    value[0] = 99
    assert view[0] == 0
    with pytest.raises(KeyError):
        params["norm_bias"] = value
    with pytest.raises(ValueError, match="broadcast"):
        params["norm"] = np.zeros(5)


@every_config
def test_blocks_hold_the_same_views_under_short_names(config):
    params = make(config)
    assert len(params.blocks) == config.n_layers
    long = {f"blocks.{i}.{name}": view for i, block in enumerate(params.blocks) for name, view in block.items()}
    assert set(long) == {name for name in params if name.startswith("blocks.")}
    assert all(view is params[name] for name, view in long.items())


def test_blocks_are_numbered_beyond_nine():
    params = make(ModelConfig(**SMALL | dict(n_layers=12)))
    assert len(params.blocks) == 12
    assert all(block["wq"] is params[f"blocks.{i}.wq"] for i, block in enumerate(params.blocks))


def test_get_gives_a_view_or_the_default():
    params = make(CONFIGS["llama"])
    assert params.get("norm") is params["norm"]
    assert params.get("norm_bias") is None
    assert params.get("norm_bias", 5) == 5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zeros_like_has_the_same_layout_and_a_buffer_of_its_own(dtype):
    params = make(CONFIGS["gpt2"], dtype)
    zeros = params.zeros_like()
    assert list(zeros) == list(params)
    assert zeros.flat.dtype == dtype
    assert not zeros.flat.any()
    zeros.flat[:] = 1
    assert not (params.flat == 1).all()


# ------------------------------------------------------------------------------------------------ initial values

WIDE = dict(vocab_size=300, dim=64, n_layers=8, n_heads=4, ffn_dim=96)


def test_matrices_start_normal_and_the_ones_that_write_to_the_residual_stream_smaller():
    params = make(ModelConfig(**WIDE, init_std=0.05))
    for name, view in params.items():
        if view.ndim == 2:
            std = 0.05 / sqrt(16) if name.endswith((".wo", ".w_down")) else 0.05
            values = view.astype("float64") / std
            n = view.size
            assert abs(values.mean()) < 5 / sqrt(n), name
            assert abs(values.std() - 1) < 5 / sqrt(2 * n), name  # five of its own standard deviations
            assert abs((values**4).mean() - 3) < 5 * sqrt(96 / n), name


def test_gains_start_at_one_and_biases_at_zero():
    for config in CONFIGS.values():
        vectors = {name: view for name, view in make(config).items() if view.ndim == 1}
        assert all((view == (0 if name.endswith("_bias") else 1)).all() for name, view in vectors.items())


def test_a_truncated_normal_stays_within_three_standard_deviations():
    plain, cut = (make(ModelConfig(**WIDE, init=init)) for init in ("normal", "truncated_normal"))
    residual = [name for name in cut if name.endswith((".wo", ".w_down"))]
    other = [name for name in cut if cut[name].ndim == 2 and name not in residual]
    for names, std in ((residual, 0.02 / sqrt(16)), (other, 0.02)):
        assert max(abs(plain[name]).max() for name in names) > 3 * std
        assert 2.9 * std < max(abs(cut[name]).max() for name in names) <= 3 * std * (1 + 1e-6)


def test_truncation_draws_again_only_what_lies_outside():
    plain, cut = (make(ModelConfig(**WIDE, init=init)) for init in ("normal", "truncated_normal"))
    inside = abs(plain["embed"]) <= 3 * 0.02
    assert np.array_equal(plain["embed"][inside], cut["embed"][inside])
    assert (plain["embed"] != cut["embed"])[~inside].all()
    assert len(np.unique(cut["embed"][~inside])) == (~inside).sum()  # drawn, not clipped to the bound


@pytest.mark.parametrize("init", ["normal", "truncated_normal"])
def test_a_seed_means_the_same_model_in_every_dtype(init):
    config = ModelConfig(**SMALL, init=init)
    single, double = make(config, "float32"), make(config, "float64")
    assert (single.flat.dtype, double.flat.dtype) == ("float32", "float64")
    assert np.array_equal(double.flat, single.flat.astype("float64"))


def test_a_seed_gives_the_same_values_each_time_and_another_seed_others():
    config = CONFIGS["qk_norm"]
    assert np.array_equal(make(config, seed=3).flat, make(config, seed=3).flat)
    one, other = make(config, seed=3), make(config, seed=4)
    assert all((one[name] != other[name]).mean() > 0.99 for name in one if one[name].ndim == 2)


def test_no_two_matrices_start_alike():
    params = make(CONFIGS["qk_norm"])
    firsts = [float(view[0, 0]) for name, view in params.items() if view.ndim == 2 and not name.endswith((".wo", ".w_down"))]
    assert len(set(firsts)) == len(firsts)


def test_the_counts_agree():
    for config in CONFIGS.values():
        assert count_parameters(config) == sum(prod(shape) for shape in parameter_shapes(config).values())
