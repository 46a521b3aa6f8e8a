"""Experts as published: a file holds a tensor for each, and a model all of them together."""

import pytest
from helpers import assert_same_bits
from safetensors.numpy import load_file, save_file

import numllama as nl

MIXTRAL = nl.ModelConfig(97, 48, 2, 8, n_kv_heads=2, ffn_dim=40, ffn="moe", n_experts=12, n_experts_per_token=2)


def test_each_expert_is_a_tensor_of_its_own(tmp_path):
    model = nl.Transformer(MIXTRAL, seed=1)
    model.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for e in range(12):  # 10 does not come before 2
        stored = tensors[f"model.layers.1.block_sparse_moe.experts.{e}.w2.weight"]
        assert_same_bits(stored, model.params["blocks.1.experts_down"][e])
    again = nl.load(tmp_path)
    for name, value in model.params.items():
        assert_same_bits(again.params[name], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name: "0.block_sparse_moe.experts.1.w1" not in name, r"lacks model\.layers\.0\.block_sparse_moe\.experts\."),
        (lambda name: "experts.11.w2" not in name, r"experts\.\*\.w2\.weight has shape \(11, 48, 40\), but \(12, 48, 40\) is"),
    ],
    ids=["a gap", "the last"],
)  # fmt: skip
def test_an_expert_that_is_missing_is_named(tmp_path, change, message):
    nl.Transformer(MIXTRAL).save(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if change(name)}, path, {"format": "pt"})
    with pytest.raises(nl.CheckpointError, match=message):
        nl.load(tmp_path)
