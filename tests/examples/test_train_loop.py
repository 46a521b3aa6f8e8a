"""The training loop on one page: what it learns is what the Trainer learns."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_bits

import numllama as nl
from numllama.data.synthetic import write_play
from numllama.system.blas import one_blas_thread

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_loop.py"


@pytest.fixture(scope="module")
def loop():
    spec = importlib.util.spec_from_file_location("train_loop", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_weights_are_the_trainers_bit_for_bit(loop, capsys):
    text = write_play(20_000)
    with one_blas_thread():  # as in the Trainer: on many cores BLAS may sum in another order
        model, tokenizer = loop.train(text, steps=60)
    tokens = np.array(tokenizer.encode(text))
    settings = nl.TrainConfig(steps=60, batch_size=loop.BATCH, seq_len=loop.T, lr=loop.LR, warmup_steps=30, shards=1, workers=1)
    ours = nl.Transformer(model.config, seed=0)
    with nl.Trainer(ours, nl.Dataset(tokens, tokens, tokenizer.vocab_size), settings) as trainer:
        losses = {report.step: report.loss for report in trainer}
    assert_same_bits(model.params.flat, ours.params.flat)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("loss ")[2][:5] for line in lines] == [f"{losses[step]:.3f}" for step in (1, 50, 60)]
    assert losses[60] < 0.8 * losses[1]


def test_it_is_a_page_that_is_read_from_top_to_bottom(loop):
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    assert sum(line.lstrip().startswith(("def ", "class ")) for line in lines) == 1
