"""Small models on disk, and a random one to put there."""

import json
import pickle

import numpy as np
from safetensors.numpy import load_file, save_file

from numllama.model import ModelConfig, Transformer

# Heads of 6: the permutation between RoPE's layouts is its own inverse where heads are of 4.
SHAPE = dict(vocab_size=23, dim=24, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=20, max_seq_len=12)
SCALING = dict(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8)
LLAMAS = {
    "grouped": {},
    "all_heads": dict(n_kv_heads=4),
    "one_kv_head": dict(n_kv_heads=1),
    "tied": dict(tie_embeddings=True),
    "interleaved": dict(rope_layout="interleaved"),
    "interleaved_biases": dict(rope_layout="interleaved", bias=True, n_kv_heads=1),
    "scaled_rope": dict(rope_scaling=SCALING, rope_theta=100.0),
    "wide_heads": dict(head_dim=10),
    "norm_eps": dict(norm_eps=0.1),
    "attention_biases": dict(bias="attention", rope_layout="interleaved"),
    "ffn_biases": dict(bias="ffn"),
    "training": dict(dropout=0.25, init_std=0.1, init="truncated_normal"),
}
OTHERS = {
    "gpt2": dict(norm="layernorm", positions="learned", ffn="gelu", bias=True, tie_embeddings=True, n_kv_heads=4),
    "qk_norm": dict(qk_norm="rms", rope_layout="interleaved", bias=True),
    "l2_norm": dict(qk_norm="l2"),
    "no_positions": dict(positions="none"),
    "partial_rope": dict(rotary_dim=4, rope_layout="interleaved"),
    "experts": dict(ffn="moe", n_experts=4, n_experts_per_token=2, router_score="sigmoid", router_normalised=False),
}


def random_model(dtype="float32", **changes):
    """A model whose parameters are all random, gains and biases too."""
    model = Transformer(ModelConfig(**SHAPE | changes), dtype=dtype)
    model.params.flat[:] = np.random.default_rng(0).standard_normal(model.params.flat.shape) * 0.3
    return model


def tokens(seed=1):
    return np.random.default_rng(seed).integers(0, SHAPE["vocab_size"], (2, 10))


def edit_json(path, **changes):
    """Change some keys of a JSON file; None removes one."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def edit_tensors(folder, change):
    """Rewrite model.safetensors with what `change` does to its dictionary."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.copy() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def shard(folder, n=3):
    """The same checkpoint in n files and an index, as transformers writes large ones."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
    for i, name in enumerate(names):
        save_file({key: tensors[key] for key in sorted(tensors)[i::n]}, folder / name, {"format": "pt"})
    weight_map = {key: names[i % n] for i, key in enumerate(sorted(tensors))}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return names


class Trap:
    """A pickle of it writes a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")

    def pickled(self):
        return pickle.dumps(self)
