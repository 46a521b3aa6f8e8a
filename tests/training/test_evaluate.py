"""Evaluation in shards: its memory is that of one shard for each worker, its value is the plain mean over all targets."""

import re
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from parallel.ranks_in_threads import together

from numllama.data.batches import Position, all_windows, counted
from numllama.data.conversations import Conversations, Documents
from numllama.model import ModelConfig, Transformer
from numllama.parallel import shards
from numllama.parallel.ranks import Ranks
from numllama.parallel.shards import Workers, cut_batches, shard_rows
from numllama.tokenizer import CharTokenizer
from numllama.training import Dataset, TrainConfig, Trainer, evaluate, trainer, write_tokens
from numllama.training.evaluate import evaluate_file

T, VOCAB, BATCH, SHARDS = 16, 11, 512, 64


def tokens(n, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, n).astype("uint16")


DATA = Dataset(tokens(20_000), tokens(2 * BATCH * T + 5, 1), VOCAB)
DOCUMENTS = [(tokens(T + 1, i).astype(np.int64), np.arange(T + 1) > 3) for i in range(2 * BATCH)]


def build(**changes) -> Transformer:
    return Transformer(ModelConfig(**dict(vocab_size=VOCAB, dim=16, n_layers=2, n_heads=2, max_seq_len=T) | changes), seed=1)


def windows_of(ids):
    return (counted(*window) for window in all_windows(ids, BATCH, T))


def train(data=DATA, **changes) -> Trainer:
    settings = dict(steps=1, batch_size=BATCH, shards=SHARDS, workers=1, eval_batches=2, warmup_steps=0)
    return Trainer(build(), data, TrainConfig(**settings | changes))


def peak(function) -> int:
    """The most bytes that arrays take at once within a call, beyond those before it."""
    function()  # whatever is made once, is made
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        function()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize(
    "data", [DATA, Conversations(Documents(DOCUMENTS), Documents(DOCUMENTS), CharTokenizer("ab"), "talk")], ids=["tokens", "talk"]
)
def test_no_evaluation_takes_more_memory_than_a_training_step(data):
    ours = train(data)
    if isinstance(data, Conversations):
        data.train.rows(T)
    step = peak(lambda: ours.workers.loss_and_grads(ours.batches.batch(Position(1, 0)), ours._plan))
    assert peak(ours.estimate) < 1.5 * step
    assert peak(ours.evaluate) < 1.5 * step


def test_ranks_evaluate_in_shards_too():
    def run(comm):
        ranks, rows = Ranks(build(), comm), []
        plain = ranks.model.loss
        ranks.model.loss = lambda tokens, *args, **kwargs: (rows.append(len(tokens)), plain(tokens, *args, **kwargs))[1]
        return ranks.mean_loss(windows_of(DATA.val), rows=8), max(rows)

    expected = Workers(build(), 1).mean_loss(windows_of(DATA.val), rows=8)
    assert together(2, run) == [(expected, 8)] * 2


def test_a_token_file_is_not_read_into_memory_to_be_evaluated(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "COUNTED_TOKENS", 1000)
    write_tokens(tmp_path / "large.bin", tokens(120_000), VOCAB)
    model = build(dim=4, n_layers=1, n_heads=1, ffn_dim=4)
    tokenizer = CharTokenizer("abcdefghijk")
    taken = peak(lambda: evaluate_file(model, tokenizer, tmp_path / "large.bin"))
    assert taken < 8 * 120_000


def test_what_a_report_says_of_memory_includes_the_evaluation(monkeypatch):
    used = [10.0]
    monkeypatch.setattr(trainer, "peak_memory_mb", lambda pids: used[0])
    ours = train(eval_every=1, steps=2)
    plain = ours.estimate
    monkeypatch.setattr(ours, "estimate", lambda: (used.__setitem__(0, used[0] + 90), plain())[1])
    assert [report.memory_mb for report in ours] == [100.0, 190.0]


# ------------------------------------------------------------------------------------------------ the value


def log_p(model, inputs, targets):
    logits = model.forward(inputs).astype("float64")
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]


@pytest.mark.parametrize("rows", [1, 3, 8, 1000, None])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_value_is_the_mean_over_all_targets_however_it_is_cut(rows, workers):
    model = build()
    windows = list(all_windows(DATA.val[:500], 7, T))
    pool = Workers(model, workers)
    found = pool.mean_loss([counted(*window) for window in windows], rows)
    pool.close()
    expected = -np.concatenate([log_p(model, *window).reshape(-1) for window in windows]).mean()
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch_size, shards", [(12, 5), (BATCH, SHARDS), (3, 100)])
def test_the_number_of_workers_does_not_change_a_bit_of_it(batch_size, shards):
    values = []
    for workers in (1, 2, 5):
        data = replace(DATA, val=DATA.val[: 5 * batch_size * T])
        ours = train(data, batch_size=batch_size, shards=shards, workers=workers)
        values.append((ours.estimate(), ours.evaluate()))
        ours.close()
    assert values[0] == values[1] == values[2]


def test_processes_that_take_over_within_an_evaluation_do_not_change_a_bit_of_it(monkeypatch):
    monkeypatch.setattr(shards, "PROCESSES_AFTER", 0)
    pool = Workers(build(), 2, processes=True)
    found = pool.mean_loss(windows_of(DATA.val), 8)
    assert pool.pids
    pool.close()
    assert found == Workers(build(), 1).mean_loss(windows_of(DATA.val), 8)


def test_windows_are_cut_whole_and_in_order():
    windows = [(np.arange(r * 3).reshape(r, 3), np.arange(r * 3).reshape(r, 3) + 1, np.zeros((r, 3), int)) for r in (5, 1, 4)]
    parts = list(cut_batches([counted(*window) for window in windows], 2))
    assert [len(part[0]) for part in parts] == [2, 2, 1, 1, 2, 2]
    for i in range(3):
        assert np.array_equal(np.concatenate([part[i] for part in parts]), np.concatenate([window[i] for window in windows]))
    assert [len(part[0]) for part in cut_batches([counted(*window) for window in windows], None)] == [5, 1, 4]
    assert [shard_rows(*shape) for shape in ((2048, 256), (12, 5), (3, 100), (7, 1))] == [8, 3, 1, 7]


# ------------------------------------------------------------------------------------------------ how far it is


@pytest.mark.parametrize("data", [DATA, replace(DATA, val=DATA.val[:20]), replace(DATA, val=DATA.val[: 3 * T + 1])])
def test_progress_comes_to_the_number_of_rows(data):
    ours, done = train(data), []
    assert ours.evaluate(done.append) == ours.evaluate()
    assert sum(done) == data.val_rows(T)


def test_an_evaluation_that_takes_long_shows_a_bar(tmp_path, monkeypatch, capsys):
    plain = evaluate.progress_bar
    at_once = {"delay": 0, "mininterval": 0, "leave": True}
    monkeypatch.setattr(evaluate, "progress_bar", lambda **options: plain(**options | at_once))
    write_tokens(tmp_path / "some.bin", tokens(100 * T + 1), VOCAB)
    evaluate_file(build(), None, tmp_path / "some.bin")
    assert re.search(r"evaluating: 100%.*100/100", capsys.readouterr().err)


# ------------------------------------------------------------------------------------------------ bytes


class Spaced:
    """Decodes as SentencePiece does: the first word of a text loses its space."""

    def decode_bytes(self, ids):
        return b"".join(b" %d" % i for i in ids)[1:]


@pytest.mark.parametrize("n", [0, 1, 2, 9, 10, 11, 31])
def test_bytes_are_counted_in_pieces_as_if_in_one(monkeypatch, n):
    monkeypatch.setattr(evaluate, "COUNTED_TOKENS", 10)
    ids = tokens(n)
    assert evaluate._bytes_of(Spaced(), ids) == len(Spaced().decode_bytes(ids))
    letters = CharTokenizer("abcdefghijé")
    assert evaluate._bytes_of(letters, ids) == len(letters.decode(ids).encode())
