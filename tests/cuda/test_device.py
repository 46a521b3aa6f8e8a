"""Everything that --device cuda does, with a CuPy that has no GPU: training, evaluation, checkpoints, generation."""

import numpy as np
import pytest
from fake_cupy import fake_gpu
from helpers import assert_close

import numllama as nl
from numllama import ModelConfig, TrainConfig, Trainer, Transformer
from numllama.backend import to_numpy
from numllama.cli import main
from numllama.training.data import Dataset

CONFIG = ModelConfig(vocab_size=61, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=64, max_seq_len=24, dropout=0.1)
TOKENS = (np.arange(4000) ** 2 // 7 % 61).astype("uint16")
SETTINGS = TrainConfig(steps=4, batch_size=3, lr=1e-2, warmup_steps=2, eval_every=2, eval_batches=1, workers=1, shards=1)


@pytest.fixture
def gpu(compiler):
    with fake_gpu() as backend:
        yield backend


def trainer(out=None, device="cuda", dtype="float32", config=CONFIG, **changes):
    model = Transformer(config, seed=0, device=device, dtype=dtype)
    data = Dataset(TOKENS[:3000], TOKENS[3000:], config.vocab_size)
    return Trainer(model, data, TrainConfig(**{**SETTINGS.to_dict(), **changes}), out)


def losses(run):
    return [(report.loss, report.grad_norm, report.val_loss) for report in run]


VARIANTS = {
    "llama": {},
    "tied": dict(tie_embeddings=True, rope_layout="interleaved", qk_norm="l2"),
    "gpt2": dict(norm="layernorm", ffn="gelu", positions="learned", bias=True, qk_norm="rms"),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_gives_the_losses_of_the_cpu(gpu, variant, dtype):
    config = ModelConfig.from_dict({**CONFIG.to_dict(), **VARIANTS[variant]})
    expected = losses(trainer(device="cpu", dtype=dtype, config=config))
    for one, other in zip(losses(trainer(dtype=dtype, config=config)), expected, strict=True):
        for value, expected_value in zip(one, other, strict=True):
            assert value == (expected_value and pytest.approx(expected_value, rel=1e-4 if dtype == "float32" else 3e-2))


@pytest.mark.parametrize("changes", [dict(optimizer="sgd", lr=0.1), dict(shards=2), dict(recompute=True)], ids=str)
def test_settings_of_a_run(gpu, changes):
    expected = losses(trainer(device="cpu", **changes))
    np.testing.assert_allclose(np.array(losses(trainer(**changes)), float), np.array(expected, float), rtol=1e-3)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(gpu, tmp_path):
    whole = losses(trainer(tmp_path / "whole"))
    first = trainer(tmp_path / "parts")
    for report in first:
        if report.step == 2:
            break
    second = trainer(tmp_path / "parts")
    second.resume()
    assert losses(second) == whole[2:]


def test_generation(gpu):
    prompts = [[1, 2, 3], [4]]
    cpu, device = Transformer(CONFIG, seed=0), Transformer(CONFIG, seed=0, device="cuda")
    top_p, min_p = dict(seed=3, top_p=0.7, repetition_penalty=1.3), dict(seed=1, min_p=0.1, n=2)
    for settings in (dict(temperature=0.0), dict(seed=3, top_k=5), top_p, min_p):
        assert nl.generate(device, prompts, 8, **settings) == nl.generate(cpu, prompts, 8, **settings)
    _, chances = nl.generate(device, [1, 2], 5, temperature=0.0, logprobs=True, window=3)
    np.testing.assert_allclose(chances, nl.generate(cpu, [1, 2], 5, temperature=0.0, logprobs=True, window=3)[1], rtol=1e-4)


def test_a_packed_batch_and_a_loss(gpu):
    cpu, device = Transformer(CONFIG, seed=0), Transformer(CONFIG, seed=0, device="cuda")
    tokens, targets = TOKENS[None, :9].astype(int), TOKENS[None, 1:10].astype(int)
    segments = np.array([[0, 0, 0, 1, 1, 1, 2, 2, 2]])
    loss, grads = device.loss_and_grads(tokens, targets, segments=segments)
    expected, expected_grads = cpu.loss_and_grads(tokens, targets, segments=segments)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert_close(grads.flat, expected_grads.flat, rtol=1e-4)
    assert float(device.loss(tokens, targets)) == pytest.approx(float(cpu.loss(tokens, targets)), rel=1e-5)


def test_a_model_is_saved_and_loaded(gpu, tmp_path):
    model = Transformer(CONFIG, seed=5, device="cuda")
    model.save(tmp_path / "saved")
    loaded = nl.load(tmp_path / "saved", device="cuda")
    assert_close(loaded.params.flat, to_numpy(model.params.flat), rtol=1e-7)


def test_the_command_line(gpu, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 80, encoding="utf-8")
    small = "--dim 32 --n-layers 1 --n-heads 4 --max-seq-len 16 --batch-size 2 --eval-batches 1 --eval-every 3"
    command = f"train --data {text} --device cuda --steps 6 --out {tmp_path / 'run'} {small}"
    with pytest.raises(SystemExit, match=r"^0$"):
        main(command.split())
    assert "validation loss:" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^0$"):
        main(f"generate {tmp_path / 'run'} --device cuda --prompt To --max-new-tokens 5".split())


def test_a_model_in_two_bytes_draws_from_float32(gpu):
    device = Transformer(CONFIG, seed=0, device="cuda", dtype="bfloat16")
    seen = []
    gpu_sort = np.partition
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "partition", lambda x, *args, **kwargs: (seen.append(x.dtype), gpu_sort(x, *args, **kwargs))[1])
        nl.generate(device, [1, 2, 3], 3, seed=0, top_k=5)
    assert set(map(str, seen)) == {"float32"}
