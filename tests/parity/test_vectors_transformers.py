"""Golden vectors against transformers: logits, loss and every parameter's gradient, in float64, from the files' own weights."""

import numpy as np
import pytest
from helpers import assert_close

import numllama as nl
from numllama.learn.vectors import STANDARD, read_vectors, standard_vectors, write_vectors
from numllama.model.parameters import copied_parameters

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

# transformers' Llama has no documents of their own, and divides the width by the heads.
ALONE = [name for name in STANDARD if name not in ("padded", "packed", "odd-sizes")]


@pytest.mark.parametrize("name", ALONE)
def test_transformers_computes_the_same_forward_and_backward(name, tmp_path):
    write_vectors(standard_vectors(name), tmp_path / "vectors")
    made = read_vectors(tmp_path / "vectors")
    weights = {key.removeprefix("weights/"): value for key, value in made.tensors.items() if key.startswith("weights/")}
    params = copied_parameters(made.config, weights, np.dtype(np.float64))
    model = nl.Transformer(made.config, params=params)
    model.save(tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
    targets = torch.tensor(made.tensors["targets"])
    logits = theirs(torch.tensor(made.tensors["tokens"])).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    assert_close(made.tensors["values/logits"], logits.detach().numpy(), rtol=1e-6)  # their RoPE table is in float32
    assert made.manifest["loss"] == pytest.approx(loss.item(), rel=1e-6)
    gradients = {key: p.grad.numpy().copy() for key, p in theirs.named_parameters()}
    for key, p in theirs.named_parameters():
        p.data = torch.tensor(gradients[key])
    theirs.save_pretrained(tmp_path / "gradients")  # by their names, and read by ours
    found = nl.load(tmp_path / "gradients", dtype="float64")
    for key, gradient in found.params.items():
        if made.config.rope_layout == "interleaved" and key.rpartition(".")[2] in ("wq", "wk"):
            gradient = interleaved(gradient, made.config, key)
        assert_close(made.tensors[f"d_weights/{key}"], gradient, rtol=1e-5)


def interleaved(rows, config, key):
    """Rows of each head from halves back to neighbours."""
    heads = config.n_heads if key.endswith("wq") else config.n_kv_heads
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)
