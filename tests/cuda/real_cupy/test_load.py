"""Models of others, and runs, on a GPU: in two bytes each, unless somebody asks for more."""

import os
import subprocess
import sys
from pathlib import Path

import cupy
import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from tiny import CONFIG, trainer

import numllama as nl
from numllama import ModelConfig, Transformer
from numllama.backend import BFLOAT16, to_numpy
from numllama.model.lora import LoraConfig

HERE = Path(__file__).parent
SMALL = ModelConfig.from_dict({**CONFIG.to_dict(), "dropout": 0.0})
TOKENS = np.arange(12).reshape(2, 6) % 61


@pytest.fixture
def folder(tmp_path):
    """A model as a hub has it: in bfloat16."""
    model = Transformer(SMALL, seed=1)
    model.params.flat[...] = model.params.flat.astype(BFLOAT16)
    model.save(tmp_path / "float32")
    nl.load(tmp_path / "float32", dtype="bfloat16").save(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_in_bfloat16_stays_in_it(gpu, folder):
    model = nl.load(folder, device="cuda")
    assert model.compute_dtype == model.dtype == BFLOAT16
    assert model.weights["blocks.0.wq"].data.ptr == model.params["blocks.0.wq"].data.ptr  # no second copy
    assert model.weights["norm"].dtype == np.float32
    masters = nl.load(folder, device="cuda", compute_dtype="bfloat16")
    assert_same_bits(to_numpy(model.forward(TOKENS)).astype(np.float32), to_numpy(masters.forward(TOKENS)).astype(np.float32))
    expected = nl.load(folder).forward(TOKENS)
    assert_close(to_numpy(model.forward(TOKENS)).astype(np.float32), expected, rtol=3e-2)
    assert nl.generate(model, [1, 2, 3], 5, temperature=0.0) == nl.generate(masters, [1, 2, 3], 5, temperature=0.0)


def test_memory_is_two_bytes_a_parameter(gpu, folder):
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.used_bytes()
    model = nl.load(folder, device="cuda")
    assert pool.used_bytes() - before < 2.2 * model.params.flat.size


@pytest.mark.parametrize(("dtype", "stored"), [("float32", "float32"), ("float16", "float16"), ("float64", "float64")])
def test_whatever_is_asked_for(gpu, folder, dtype, stored):
    model = nl.load(folder, dtype=dtype, device="cuda")
    assert (model.compute_dtype, model.dtype) == (dtype, stored)
    assert_close(to_numpy(model.forward(TOKENS)).astype(np.float64), nl.load(folder).forward(TOKENS), rtol=2e-2)


def test_a_gpu_that_does_not_multiply_bfloat16_gets_float32(folder):
    """In a process of its own: CuPy asks a GPU once what it is."""
    program = f"""
import cuda_on_cpu
cuda = cuda_on_cpu.install()
cuda.capability = 75
import numllama
assert numllama.load({str(folder)!r}, device="cuda").compute_dtype == "float32"
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parents[2])))}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", ["int8", "bfloat"])
def test_another_dtype_is_refused(gpu, folder, dtype):
    with pytest.raises(ValueError, match=r"must be one of float32, float64, bfloat16, float16 on 'cuda'$"):
        nl.load(folder, dtype=dtype, device="cuda")


def test_what_is_in_two_bytes_cannot_be_trained(gpu, folder):
    with pytest.raises(ValueError, match="cannot be trained: load the model with dtype='float32'"):
        nl.load(folder, device="cuda").loss_and_grads(TOKENS, TOKENS)


@pytest.mark.parametrize("trained", ["float32", "bfloat16"])
def test_a_run(gpu, tmp_path, trained):
    made = trainer(tmp_path / "run", dtype=trained, config=SMALL)
    list(made)
    made.close()
    model = nl.load(tmp_path / "run", device="cuda")
    assert model.compute_dtype == model.dtype == BFLOAT16
    expected = nl.load(tmp_path / "run", dtype="float32", device="cpu")
    assert_close(to_numpy(model.params.flat).astype(np.float32), expected.params.flat.astype(BFLOAT16).astype(np.float32), rtol=0)


@pytest.mark.parametrize("modules", [(), ("embed", "head")], ids=["updates", "whole_matrices_too"])
def test_an_adapter(gpu, tmp_path, folder, modules):
    model, config = nl.load(folder), LoraConfig(rank=2, modules_to_save=modules)
    new = nl.load(folder, device="cuda")
    expected = to_numpy(new.forward(TOKENS))
    new.add_adapter(config)
    assert_same_bits(new.forward(TOKENS), expected)
    model.add_adapter(config, seed=1)
    model.adapter.params.flat[...] = np.random.default_rng(0).normal(0, 0.1, model.adapter.params.flat.shape)
    model.save_adapter(tmp_path / "adapter", base=folder)
    loaded = nl.load(tmp_path / "adapter", device="cuda")
    assert loaded.params.flat.dtype == BFLOAT16 and loaded.adapter.params.flat.dtype == np.float32
    assert_close(to_numpy(loaded.forward(TOKENS)).astype(np.float32), model.forward(TOKENS), rtol=3e-2)
    loss, grads = loaded.loss_and_grads(TOKENS, TOKENS)
    expected_loss, expected = model.loss_and_grads(TOKENS, TOKENS)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-2)
    for name, gradient in grads.items():
        gradient = to_numpy(gradient)
        assert (gradient * expected[name]).sum() / np.linalg.norm(gradient) / np.linalg.norm(expected[name]) > 0.99
    merged = nl.load(tmp_path / "adapter", device="cuda")
    merged.merge_adapter()
    assert_close(to_numpy(merged.forward(TOKENS)).astype(np.float32), model.forward(TOKENS), rtol=3e-2)
