"""Recording by calls, with NumPy; tests/parity/learn/ records models in PyTorch and JAX."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from numllama.learn.plain_llama import loss_and_grads
from numllama.learn.record import LAYER_VALUES, layer, record, recording
from numllama.learn.vectors import standard_vectors


def test_a_call_returns_its_array_and_does_nothing_else_outside_of_a_recording():
    x = np.ones(3)
    assert record("nonsense/of any kind", x) is x
    with recording() as dump:
        assert record("logits", x) is x
    assert record("norm", x) is x
    x[:] = 2  # what was recorded is a copy
    assert {name: array.tolist() for name, array in dump.items()} == {"values/logits": [1, 1, 1]}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("tokens", "tokens"), ("targets", "targets"), ("loss", "values/loss"), ("layer.0.q", "values/layer.0.q"),
        ("d_values/layer.0.q", "d_values/layer.0.q"), ("weights/blocks.1.wq", "weights/blocks.1.wq"),
        ("weights/norm", "weights/norm"),
    ],
)  # fmt: skip
def test_a_name_is_a_value_unless_it_begins_with_its_kind(name, key):
    with recording() as dump:
        record(name, 1.0)
    assert list(dump) == [key]


def test_names_in_a_block_for_a_layer():
    with recording() as dump:
        with layer(1):
            record("tokens", 0)
            record("layer.3.q", 1)
            with layer(2):
                record("weights/wq", 2)
            record("d_values/q", 3)
        record("norm", 4)
    assert {name: int(array) for name, array in dump.items()} == {
        "tokens": 0, "values/layer.3.q": 1, "weights/blocks.2.wq": 2, "d_values/layer.1.q": 3, "values/norm": 4
    }  # fmt: skip


def test_the_first_call_counts_in_each_of_several_recordings():
    with recording() as outer:
        record("norm", 1)
        with recording() as inner:
            record("norm", 2)
            record("logits", 3)
    assert {name: int(array) for name, array in outer.items()} == {"values/norm": 1, "values/logits": 3}
    assert {name: int(array) for name, array in inner.items()} == {"values/norm": 2, "values/logits": 3}


@pytest.mark.parametrize("mask", [-np.inf, -1e9, np.finfo(np.float16).min])
def test_scores_of_hidden_keys_are_zeros_whatever_the_mask_adds(mask):
    with recording() as dump:
        record("layer.0.scores", np.array([[-700.5, mask]], np.float32))
        record("layer.0.q", np.array([-1e9]))
    assert dump["values/layer.0.scores"].tolist() == [[-700.5, 0]] and dump["values/layer.0.scores"].dtype == np.float32
    assert dump["values/layer.0.q"] == -1e9


def test_the_plain_llama_records_itself(tmp_path):
    made = standard_vectors("qk-norm")
    params = {name.removeprefix("weights/"): array for name, array in made.tensors.items() if name.startswith("weights/")}
    with recording() as dump:
        run = loss_and_grads(params, made.config, record("tokens", made.tensors["tokens"]), made.tensors["targets"])
        for i, block in enumerate(run.blocks):
            with layer(i):
                for name, value in vars(block.values).items():
                    record(name, value)
                    record(f"d_values/{name}", getattr(run.d_blocks[i], name))
    assert all(np.array_equal(array, made.tensors[name]) for name, array in dump.items())
    assert len(dump) == 1 + made.config.n_layers * 2 * len(LAYER_VALUES)
    for suffix, read in (("safetensors", load_file), ("npz", np.load)):
        dump.save(tmp_path / f"mine.{suffix}")
        again = read(tmp_path / f"mine.{suffix}")
        assert sorted(again) == sorted(dump) and all(np.array_equal(again[name], dump[name]) for name in dump)


def test_the_names_are_those_of_the_vectors():
    names = {name.split(".", 2)[2] for name in standard_vectors("qk-norm").tensors if name.startswith("values/layer.")}
    assert names == set(LAYER_VALUES)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("q", r"q is a value of a layer: record it in a block of `with layer\(0\)`, or as layer.0.q$"),
        ("gradients/q", "'gradients/q' begins with 'gradients', but must begin with one of values, d_values, weights, "),
    ],
)
def test_names_that_the_vectors_do_not_have(name, wrong):
    with pytest.raises(ValueError, match=wrong), recording():
        record(name, 1)
    record(name, 1)  # the recording has ended


def test_what_is_no_module_and_no_file():
    with pytest.raises(TypeError, match=r"model is a dict, but must be a torch.nn.Module"), recording({}):
        raise AssertionError
    with recording() as dump:
        record("loss", 1.0)
    with pytest.raises(ValueError, match=r"path is 'mine.txt', but must end in .safetensors or .npz"):
        dump.save("mine.txt")
