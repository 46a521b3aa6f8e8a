"""nl.load: whatever a model is stored as, and one sentence where there is none."""

import os
import re

import numpy as np
import pytest
from helpers import assert_same_bits
from interop.checkpoints import Trap, random_model, tokens

import numllama as nl
from numllama.backend import BFLOAT16, INT8
from numllama.interop.huggingface import config_from_huggingface
from numllama.training.checkpoint import find_step


@pytest.fixture
def run(tmp_path):
    """A training run of two checkpoints, whose best is not its latest."""
    model = random_model(vocab_size=23, dropout=0.1)
    data = nl.Dataset(np.arange(400) % 23, np.arange(100) % 23, 23)
    config = nl.TrainConfig(steps=2, batch_size=2, seq_len=8, eval_every=1, workers=1)
    trainer = nl.Trainer(model, data, config, tmp_path / "run")
    for _ in trainer:
        trainer.save()
    trainer.close()
    return tmp_path / "run"


def test_a_training_run_gives_its_best_checkpoint(run):
    expected = nl.load_run(run, which="best")
    model = nl.load(run)
    assert model.config == expected.config
    assert_same_bits(model.params.flat, expected.params.flat)
    assert model.stop_ids == ()


def test_a_step_folder_and_the_weights_in_it_are_that_step(run):
    step = find_step(run, "latest")
    expected = nl.load_run(run, which="latest")
    for path in (step, step / "weights.safetensors", str(step)):
        assert_same_bits(nl.load(path).params.flat, expected.params.flat)


@pytest.mark.parametrize(("dtype", "stored"), [("float64", "float64"), ("bfloat16", BFLOAT16)])
def test_a_training_run_is_read_in_the_dtype_that_is_asked_for(run, dtype, stored):
    model = nl.load(run, dtype=dtype)
    assert_same_bits(model.params.flat, nl.load(run).params.flat.astype(stored))
    assert model.forward(tokens()[:, :8]).dtype == ("float64" if dtype == "float64" else "float32")


def test_a_run_becomes_a_checkpoint_for_others_and_survives_it(run, tmp_path):
    model = nl.load(run)
    model.save(tmp_path / "llama")
    assert_same_bits(nl.load(tmp_path / "llama").params.flat, model.params.flat)
    before = sorted(path.name for path in run.iterdir())
    for path in (run, find_step(run)):
        with pytest.raises(ValueError, match=r"which holds a training run: save the model to another folder$"):
            random_model().save(path)
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_run_without_a_checkpoint_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"version": "0.1.0", "model": {}, "train": {}}')
    with pytest.raises(nl.CheckpointError, match=r"is not a training run with a checkpoint: it has no best\.json$"):
        nl.load(tmp_path)


def test_a_path_that_is_not_there_is_named(tmp_path):
    for name in ("meta-llama/Llama-3.2-1B", "model.safetensors", "model.bin"):
        with pytest.raises(nl.CheckpointError, match=rf"{name} does not exist \(nothing is downloaded: name a folder or a"):
            nl.load(tmp_path / name)


@pytest.mark.parametrize("name", ["model.onnx", "model", "config.json"])
def test_another_kind_of_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"GGUF")
    words = rf"{name} is not a model: it must be a folder, a \.safetensors file, a llama2\.c \.bin or a \.gguf"
    with pytest.raises(nl.CheckpointError, match=words):
        nl.load(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"])
def test_a_pickle_is_refused_and_never_run(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(Trap(tmp_path / "sprung").pickled())
    with pytest.raises(nl.CheckpointError, match=rf"model\{suffix} is a Python pickle, which can run any program"):
        nl.load(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tokenizer.model", "a SentencePiece model, which is a tokenizer and holds no weights"),
        ("weights.npz", "an archive of NumPy arrays, which does not describe a model"),
        ("weights.npy", "a NumPy array, not a model"),
        ("tf_model.h5", "a TensorFlow file, which numllama does not read: convert it to safetensors"),
        ("flax_model.msgpack", "a Flax file, which numllama does not read"),
    ],
)
def test_a_file_of_a_known_kind_that_holds_no_weights_is_named(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    with pytest.raises(nl.CheckpointError, match=rf"{re.escape(name)} is {words}"):
        nl.load(tmp_path / name)


def test_a_folder_whose_weights_are_of_another_kind_names_them(tmp_path):
    random_model().save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "tokenizer.model").touch()
    (tmp_path / "weights.npz").touch()
    with pytest.raises(nl.CheckpointError, match=r"weights\.npz is an archive of NumPy arrays"):
        nl.load(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/model.bin", "a\0b", "pipe.bin", "zero.bin", "zero.safetensors"])
def test_a_path_that_cannot_be_read_is_one_sentence(tmp_path, name):
    os.mkfifo(tmp_path / "pipe.bin")
    for suffix in ("bin", "safetensors"):
        (tmp_path / f"zero.{suffix}").symlink_to("/dev/zero")
    random_model().save(tmp_path)
    with pytest.raises(nl.CheckpointError, match=r"(cannot be read: File name too long|does not exist \(|not a regular file)"):
        nl.load(tmp_path / name, adapter=None)
    with pytest.raises(nl.CheckpointError, match=r"(cannot be read: File name too long|is damaged: |has no adapter_config|json)"):
        nl.load(tmp_path, adapter=tmp_path / name)


def test_an_unknown_dtype_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^dtype is 'int8', but must be one of float32, float64, bfloat16 on 'cpu'$"):
        nl.load(tmp_path, dtype="int8")


def test_weights_and_computation_have_dtypes_of_their_own(tmp_path):
    random_model().save(tmp_path)
    mixed, small = nl.load(tmp_path, compute_dtype="bfloat16"), nl.load(tmp_path, dtype="bfloat16")
    assert (mixed.dtype, mixed.compute_dtype) == (np.float32, BFLOAT16)
    assert (small.dtype, small.compute_dtype) == (BFLOAT16, np.float32)
    assert nl.Transformer(small.config, dtype="bfloat16").dtype == BFLOAT16
    assert nl.Transformer(small.config, compute_dtype="float64").dtype == np.float64


@pytest.mark.parametrize(
    ("dtypes", "words"),
    [
        (dict(compute_dtype="int8"), "compute_dtype is 'int8', but must be one of float32, float64, bfloat16, float16"),
        (
            dict(dtype="float64", compute_dtype="bfloat16"),
            "compute_dtype is 'bfloat16', but must be one of float64 for weights in float64",
        ),
        (
            dict(dtype="bfloat16", compute_dtype="float64"),
            "compute_dtype is 'float64', but must be one of bfloat16, float32 for weights in bfloat16",
        ),
    ],
)
def test_dtypes_that_do_not_go_together_are_named(tmp_path, dtypes, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        nl.load(tmp_path, **dtypes)
    with pytest.raises(ValueError, match=f"^{words}$"):
        nl.Transformer(nl.ModelConfig(9, 8, 1, 2), **dtypes)


def test_weights_stored_as_int8_are_rounded_from_any_source(run, tmp_path):
    random_model(rope_layout="interleaved").save(tmp_path / "model.bin")
    random_model().save(tmp_path / "folder")
    for path in (run, find_step(run), tmp_path / "model.bin", tmp_path / "folder", tmp_path / "folder" / "model.safetensors"):
        model, exact = nl.load(path, store_as="int8"), nl.load(path)
        assert (model.dtype, model.compute_dtype) == (INT8, np.float32)
        assert (model.stop_ids, model.config) == (exact.stop_ids, exact.config)
        for name, weight in exact.params.items():
            step = abs(weight).max(-1, keepdims=True) / 127 if weight.ndim == 2 else 0
            assert (abs(np.asarray(model.params[name]) - weight) <= 0.5001 * step).all(), name
        logits, expected = model.forward(tokens()[:, :8]), exact.forward(tokens()[:, :8])
        assert np.linalg.norm(logits - expected) <= 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(store_as="int4"), "store_as is 'int4', but must be 'int8'"),
        (dict(device="cuda"), "store_as is 'int8', which only 'cpu' computes with, but device is 'cuda'"),
        (
            dict(dtype="bfloat16"),
            "store_as is 'int8', so dtype cannot be 'bfloat16': leave out one of store_as and dtype",
        ),
        (dict(compute_dtype="bfloat16"), "compute_dtype is 'bfloat16', but must be one of float32 for weights in int8"),
    ],
)
def test_what_does_not_go_with_int8_is_named(tmp_path, options, words):
    random_model().save(tmp_path)
    with pytest.raises(ValueError, match=f"^{words}$"):
        nl.load(tmp_path, **{"store_as": "int8", **options})


def test_weights_stored_as_int8_are_for_inference_only(tmp_path):
    random_model().save(tmp_path / "model")
    model = nl.load(tmp_path / "model", store_as="int8")
    with pytest.raises(ValueError, match=r"^weights kept in int8 cannot be trained: load the model with dtype='float32'$"):
        model.loss_and_grads(tokens()[:, :8], tokens()[:, :8])
    with pytest.raises(ValueError, match=r"^weights stored as int8 cannot be trained: load the model without store_as$"):
        nl.AdamW(model.params)
    for path in (tmp_path / "again", tmp_path / "again.bin"):
        with pytest.raises(ValueError, match=r"^weights stored as int8 are rounded and cannot be saved: load the model"):
            model.save(path)
    with pytest.raises(ValueError, match=r"^dtype is 'int8', but must be one of float32, float64, bfloat16, float16$"):
        nl.Transformer(model.config, dtype="int8")


def test_a_weight_that_is_not_finite_is_named_in_int8_too(tmp_path):
    model = random_model()
    model.params["blocks.0.wo"][1, 2] = np.inf
    model.save(tmp_path)
    with pytest.raises(nl.GenerationError, match=r"hold NaN, because its parameter blocks\.0\.wo is not finite$"):
        nl.generate(nl.load(tmp_path, store_as="int8"), [1], 2)


def test_weights_of_another_dtype_than_the_one_given_are_refused():
    model = random_model()
    with pytest.raises(ValueError, match=r"^dtype is 'float64', but params are float32$"):
        nl.Transformer(model.config, dtype="float64", params=model.params)


def test_a_model_goes_to_the_device_that_is_asked_for(tmp_path, device, xp):
    random_model().save(tmp_path)
    model = nl.load(tmp_path, device=device)
    assert isinstance(model.params.flat, xp.ndarray)
    model.save(tmp_path / "again")
    assert_same_bits(nl.load(tmp_path / "again").params.flat, random_model().params.flat)


def test_a_configuration_need_not_come_from_a_file():
    values = dict(model_type="llama", vocab_size=23, hidden_size=16, num_hidden_layers=2, num_attention_heads=4)
    assert config_from_huggingface(values | dict(intermediate_size=20)).dim == 16
