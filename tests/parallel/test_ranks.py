"""Ranks: what one process gives, to the bit, whoever runs the shards; ZeRO-1; and what is sent when."""

import hashlib
import math
import re
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from parallel.ranks_in_threads import together
from parallel.whole_batch import loss_and_grads
from training.test_trainer import DATA, SMALL, T, bits, go

from numllama import blocks
from numllama.data.batches import Position, counted
from numllama.data.dataset import Dataset
from numllama.errors import NumllamaError
from numllama.install import install_command
from numllama.model import ModelConfig, Transformer
from numllama.ops import IGNORE
from numllama.optim import AdamW
from numllama.parallel import communicator, launched, ranks
from numllama.parallel.communicator import Communicator, Request
from numllama.parallel.ranks import Ranks, make_buckets
from numllama.parallel.shards import Workers
from numllama.training import Trainer, checkpoint

ROWS, VOCAB = 7, 13


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """So small that every rank owns several parts of the flat buffer, and that parts end inside tensors."""
    monkeypatch.setattr(blocks, "PIECE_ELEMENTS", 101)
    monkeypatch.setattr(ranks, "BUCKET_PIECES", 4)


def build(dtype="float32", n_layers=3, **changes):
    shape = dict(vocab_size=VOCAB, dim=16, n_layers=n_layers, n_heads=2, max_seq_len=T, init_std=0.2, dropout=0.2)
    return Transformer(ModelConfig(**shape | changes), seed=1, dtype=dtype)


def batch(step=0):
    tokens, targets = np.random.default_rng(step).integers(0, VOCAB, (2, ROWS, T))
    return tokens, np.where(np.arange(T) < np.array([8, 1, 0, 5, 8, 2, 3])[:, None], targets, IGNORE)


def steps(pool, shards, n=3, lr=1e-2, clip=0.3):
    """Losses, norms and parameters after some steps."""
    optimizer, results = AdamW(pool.params), []
    for step in range(n):
        loss, grads = loss_and_grads(pool, *batch(step), shards, key=(0, step))
        results.append((loss, pool.clip(grads, clip)))
        pool.step(optimizer, grads, lr)
    return results, pool.model.params.flat, optimizer


def alone(shards, dtype="float32", **changes):
    pool = Workers(build(dtype, **changes), 1)
    return steps(pool, shards)[:2]


# ------------------------------------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("shards", [1, 2, 5, 7])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_any_number_of_ranks_gives_the_bits_of_one_process(size, shards, sharded):
    expected, params = alone(shards)
    for results, actual, _ in together(size, lambda comm: steps(Ranks(build(), comm, sharded), shards)):
        assert results == expected
        assert_same_bits(actual, params)
    assert min(norm for _, norm in expected) > 0.3  # clipping did something


@pytest.mark.parametrize("changes", [dict(tie_embeddings=True), dict(positions="learned", norm="layernorm", bias=True)], ids=str)
def test_so_it_is_for_other_layouts(changes):
    expected, params = alone(4, **changes)
    for results, actual, _ in together(3, lambda comm: steps(Ranks(build(**changes), comm, True), 4)):
        assert results == expected
        assert_same_bits(actual, params)


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 1e-6)])
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("keeps_order", [True, False])
def test_sums_by_rank_are_the_same_up_to_rounding_with_one_message_a_step(dtype, rtol, size, keeps_order):
    expected, params = alone(7, dtype)
    sum_by = "rank" if keeps_order else None

    def run(comm):
        pool = Ranks(build(dtype), comm, sharded=True, sum_by=sum_by)
        results, actual, _ = steps(pool, 7)
        return results, actual, comm.log.count("reduce_scatter") - 2 * 3, len(pool._buckets)

    for results, actual, messages, buckets in together(size, run, keeps_order=keeps_order):
        assert np.array(results) == pytest.approx(np.array(expected), rel=rtol)
        assert_close(actual, params, rtol)
        assert messages == 3 * buckets  # beside the losses' and the norms'


def test_more_ranks_than_shards_leave_some_idle():
    expected, params = alone(2)
    for sum_by in ("shard", "rank"):
        for results, actual, _ in together(4, lambda comm, by=sum_by: steps(Ranks(build(), comm, sum_by=by), 2)):
            assert results == expected
            assert_same_bits(actual, params)


def test_recompute_and_accumulation_give_the_bits_of_the_plain_step():
    """Two shards on each rank, one after the other, with less kept."""
    tokens, targets = batch()
    expected, grads = loss_and_grads(Workers(build(), 2), tokens, targets, 4, key=(0, 0))

    def run(comm):
        loss, sums = loss_and_grads(Ranks(build(), comm), tokens, targets, 4, key=(0, 0), recompute=True)
        return loss, sums.flat

    for loss, actual in together(2, run):
        assert loss == expected
        assert_same_bits(actual, grads.flat)


def test_everybody_begins_with_the_parameters_of_rank_0():
    expected, params = alone(3)

    def run(comm):
        model = build()
        model.params.flat[...] += comm.rank
        return steps(Ranks(model, comm), 3)

    for results, actual, _ in together(3, run):
        assert results == expected
        assert_same_bits(actual, params)


class Counted:
    """Tokens that count how many were read."""

    def __init__(self, tokens):
        self.tokens, self.read = tokens, 0

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, part):
        self.read += part.stop - part.start
        return self.tokens[part]


@pytest.mark.parametrize("sampling", ["random", "epochs"])
@pytest.mark.parametrize(("size", "rows"), [(1, [6]), (2, [4, 2]), (3, [2, 2, 2]), (4, [2, 2, 2, 0])])
def test_each_rank_reads_the_rows_that_it_computes_and_no_others(sampling, size, rows):
    changes = dict(sampling=sampling, steps=5)
    straight = Trainer(build(vocab_size=DATA.vocab_size), DATA, replace(SMALL, **changes))
    expected = [(r.step, r.loss, r.grad_norm) for r in go(straight)]

    def run(comm):
        data = replace(DATA, train=Counted(DATA.train))
        pool = train(comm, data=data, **changes)
        data.train.read = 0  # whether all have the same data, each rank has seen for itself
        reports = list(pool)
        assert all(r.tokens_per_second == pytest.approx(6 * T / (r.ms_per_step / 1e3)) for r in reports)  # of all ranks
        pool.close()
        return [(r.step, r.loss, r.grad_norm) for r in reports], data.train.read / (T + 1)

    for rank, (reports, read) in enumerate(together(size, run)):
        assert reports == expected
        assert read in (5 * rows[rank], 6 * rows[rank] if sampling == "epochs" else 0)  # one batch may have been read ahead


class Masked(Dataset):
    """A dataset in which a third of the targets are ignored."""

    def batches(self, *shape):
        return MaskedBatches(super().batches(*shape))


class MaskedBatches:
    def __init__(self, source):
        self.source, self.validation, self.fingerprint = source, source.validation, source.fingerprint

    def batch(self, position, rows=None):
        tokens, targets, _, _ = self.source.batch(position)
        return counted(tokens, np.where(targets % 3 == 0, IGNORE, targets)).rows(rows)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ignored_targets_count_nowhere_whoever_runs_the_shards(size):
    data = Masked(DATA.train, DATA.val, DATA.vocab_size, DATA.tokenizer, DATA.name)
    straight = Trainer(build(vocab_size=DATA.vocab_size), data, SMALL)
    expected = [(r.loss, r.grad_norm) for r in go(straight)]
    tokens, targets, _, count = straight.batches.batch(Position(1, 0))
    assert 0 < count == (targets != IGNORE).sum() < targets.size
    loss = build(vocab_size=DATA.vocab_size).loss_and_grads(tokens, targets)[0]
    assert float(build(vocab_size=DATA.vocab_size, dropout=0.0).loss(tokens, targets)) == pytest.approx(float(loss), rel=0.2)
    assert expected[0][0] == pytest.approx(float(loss), rel=0.2)  # but for dropout
    for reports in together(size, lambda comm: [(r.loss, r.grad_norm) for r in train(comm, data=data)]):
        assert reports == expected


def test_an_evaluation_is_split_and_gives_the_bits_of_one_process():
    windows = [counted(*batch(i)) for i in range(75)]
    windows.append(counted(*(part[:1, :3] for part in batch(99))))
    expected = Workers(build(), 1).mean_loss(windows)
    seen = []

    def run(comm):
        pool = Ranks(model := build(), comm)
        plain = model.loss
        model.loss = lambda *args, **kwargs: (seen.append(comm.rank), plain(*args, **kwargs))[1]
        return pool.mean_loss(windows)

    assert together(3, run) == [expected] * 3
    assert sorted(seen.count(rank) for rank in range(3)) == [25, 25, 26]


# ------------------------------------------------------------------------------------------------ ZeRO-1


@given(size=st.integers(1, 5), n_layers=st.integers(1, 4), piece=st.integers(1, 5000), tied=st.booleans())
def test_each_parameter_has_one_owner_and_whole_pieces_stay_together(size, n_layers, piece, tied):
    params = build(n_layers=n_layers, tie_embeddings=tied).params
    blocks.PIECE_ELEMENTS = piece
    owners = np.full(params.flat.size, -1)
    for rank in range(size):
        own = 0
        for bucket in sorted(make_buckets(params, rank, size)):
            start, stop = (bucket.start + bucket.bounds[rank + i] for i in (0, 1))
            assert (owners[start:stop] == -1).all()
            assert start % piece == 0 or start == params.flat.size
            assert bucket.own == slice(own, own := own + stop - start)
            owners[start:stop] = rank
    assert (owners >= 0).all()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_sharded_optimizer_keeps_a_part_of_the_moments(size):
    total = build().params.flat.size
    kept = [o.state["m"].flat.size for _, _, o in together(size, lambda comm: steps(Ranks(build(), comm, True), 4))]
    assert sum(kept) == total
    assert max(kept) < 1.2 * total / size


def train(comm, out=None, sharded=True, data=DATA, n_layers=3, **changes):
    """A trainer with this communicator."""
    model = build(vocab_size=DATA.vocab_size, n_layers=n_layers)
    config = replace(SMALL, parallel="mpi", shard_optimizer=sharded, **changes)
    return Trainer(model, data, config, out, workers=Ranks(model, comm, sharded))


@pytest.mark.parametrize("sizes", [(2, 3), (4, 1), (1, 2)], ids=str)
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, sizes):
    straight = Trainer(build(vocab_size=DATA.vocab_size), DATA, SMALL)
    expected = [(r.step, r.loss, r.grad_norm) for r in go(straight)]

    def first(comm):
        pool = train(comm, tmp_path)
        for report in pool:
            if report.step == 5:
                break
        pool.save(val_loss=1.0)
        assert pool.best == 1.0

    def second(comm):
        pool = train(comm, tmp_path)
        pool.resume()
        reports = [(r.step, r.loss, r.grad_norm) for r in pool]
        whole = pool.workers.gather_optimizer(pool.optimizer)
        return reports, pool.model.params.flat, whole.state["m"].flat, whole.state["v"].flat

    for comm_size, run in zip(sizes, (first, second), strict=True):
        results = together(comm_size, run)
    assert checkpoint.find_step(tmp_path).name == "step-000012"
    for reports, *arrays in results:
        assert reports == expected[5:]
        assert hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest() == bits(straight)


# ------------------------------------------------------------------------------------------------ what is sent when


def test_a_bucket_is_sent_as_soon_as_backward_is_done_with_it_and_no_sooner(monkeypatch):
    """Backward goes from the last layer to the first; what is sent never changes afterwards."""
    model, events = build(n_layers=4, dropout=0.0), []
    plain = ranks.RankGradients.layer_done
    monkeypatch.setattr(ranks.RankGradients, "layer_done", lambda self, i: (events.append(i), plain(self, i))[1])

    class Recorder(Communicator):
        def reduce_scatter(self, array, bounds, into, add=False, senders=None):
            if array.size > 1:
                events.append("sent")
                copies.append((array, array.copy()))
            return super().reduce_scatter(array, bounds, into, add, senders)

    copies = []
    pool = Ranks(model, Recorder())
    _, grads = loss_and_grads(pool, *batch(), 1)
    assert_same_bits(grads.flat, loss_and_grads(Workers(build(n_layers=4, dropout=0.0), 1), *batch(), 1)[1].flat)
    sent = [events[: events.index(layer)].count("sent") for layer in (3, 2, 1, 0)]
    assert sent[0] == 0
    assert 0 < sent[1] < sent[2] < sent[3] < events.count("sent")
    assert events.count("sent") == len(pool._buckets)
    for array, copy in copies:
        assert_same_bits(array, copy)


def test_a_request_is_finished_once_and_only_when_it_is_done():
    answers, finished = iter([False, False, True]), []
    request = Request(lambda: next(answers), lambda: finished.append(1))
    assert not request.done()
    request.wait()
    assert request.done()
    assert finished == [1]


def test_a_flag_of_any_rank_is_seen_by_all():
    assert together(3, lambda comm: Ranks(build(), comm).any_rank(comm.rank == 1)) == [True] * 3
    assert together(3, lambda comm: Ranks(build(), comm).any_rank(False)) == [False] * 3


REVERSED = replace(DATA, train=DATA.train[::-1].copy())


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("lr", dict(lr=0.5)),
        ("batch_size, seed", dict(batch_size=7, seed=3)),
        ("data", dict(data=REVERSED)),
        ("model", dict(n_layers=2)),
    ],
)
def test_a_rank_that_would_do_something_else_ends_the_job_before_the_first_step(named, changes):

    def run(comm):
        with pytest.raises(NumllamaError, match=f"^rank 1 differs from rank 0 in {named}: all ranks need the same") as caught:
            train(comm, **(changes if comm.rank == 1 else {}))
        return str(caught.value)

    assert len(set(together(3, run))) == 1


@pytest.mark.parametrize("seeds", [(0, 0, 1), (0, 0)], ids=["another", "none"])
def test_ranks_that_find_different_checkpoints_do_not_go_on_with_them(tmp_path, seeds):
    """As where a folder is each machine's own."""
    for rank, seed in enumerate(seeds):
        first = Trainer(build(vocab_size=DATA.vocab_size), DATA, replace(SMALL, seed=seed), tmp_path / str(rank))
        go(first, until=2)
        first.save()

    def run(comm):
        with pytest.raises(NumllamaError, match=r"^rank 2 differs from rank 0 in checkpoint: "):
            train(comm, tmp_path / str(comm.rank)).resume(fall_back=True)

    together(3, run)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 10])
def test_all_reduce_is_the_sum_in_the_order_of_the_ranks(size, length):
    def run(comm):
        array = np.full(length, [1e8, 1.0, -1e8][comm.rank], dtype="float32")
        comm.all_reduce(array)
        return array.tolist()

    expected = float(np.float32(np.float32(1e8) + np.float32(1)) - np.float32(1e8)) if size == 3 else 1e8
    assert together(size, run) == [[expected] * length] * size


# ------------------------------------------------------------------------------------------------ errors


class Ended(Exception):
    """In place of the end of all processes."""


class Aborting(Communicator):
    rank, size = 2, 4

    def abort(self, message, code=1):
        raise Ended(message, code)


@pytest.mark.parametrize(("kind", "code"), [
    (NumllamaError, 2), (ValueError, 2), (OSError, 2), (KeyboardInterrupt, 130), (RuntimeError, 1),
])
def test_an_error_of_one_rank_ends_all(monkeypatch, kind, code):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(Ended, match="no data") as caught, Aborting().guard():
        raise kind("no data")
    assert caught.value.args[1] == code


def test_a_signal_to_one_rank_where_there_is_nothing_to_save_ends_all(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(Ended, match="signal") as caught, Aborting().guard():
        raise SystemExit(0)
    assert caught.value.args[1] == 0


class Silence(communicator.MPI):
    """Rank 1 of 4, whose messages never arrive; the others have told what `mail` says: (rank, messages begun)."""

    def __init__(self, *mail):
        self.rank, self.size, self.timeout = 1, 4, 0.2
        self.mail, self.sent = list(mail), []
        self._hosts, self._begun, self._told, self._heard, self._telling = [f"node{r}" for r in range(4)], 0, 0, [0] * 4, []
        self._comm, self._mpi = self, self
        self.Status = lambda: self

    def isend(self, begun, rank, tag):
        self.sent.append((begun, rank))

    def iprobe(self, tag):
        return bool(self.mail)

    def recv(self, tag, status):
        self.source, begun = self.mail.pop(0)
        return begun


@pytest.mark.parametrize(
    ("mail", "blamed"),
    [
        ([], "no answer from rank 0 on node0, rank 2 on node2, rank 3 on node3 for 0.2 seconds"),
        ([(0, 3), (3, 5), (2, 1)], "no answer from rank 2 on node2 for"),  # it last waited long ago
        ([(0, 3), (2, 3), (3, 3), (3, 1)], "a message that all ranks wait for has not arrived for"),
    ],
)
def test_who_does_not_wait_as_well_is_blamed_for_a_message_that_does_not_arrive(mail, blamed):
    comm = Silence(*mail)
    for _ in range(2):
        comm.request(lambda: True).wait()
    start = time.monotonic()
    with pytest.raises(NumllamaError, match=re.escape(blamed)):
        comm.request(lambda: False).wait()
    assert 0.2 < time.monotonic() - start < 5
    assert comm.sent == [(3, 0), (3, 2), (3, 3)]  # once, though it asked again and again


def test_an_error_of_a_process_alone_stays_as_it_is():
    with pytest.raises(ValueError, match="no data"), Communicator().guard():
        raise ValueError("no data")


def test_without_mpi4py_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(NumllamaError, match=re.escape(install_command("mpi"))):
        communicator.MPI()


@pytest.mark.parametrize("name", communicator.LAUNCHERS)
def test_processes_that_would_each_train_alone_are_refused(monkeypatch, name):
    monkeypatch.setenv(name, "4")
    launched.communicator.cache_clear()
    with pytest.raises(NumllamaError, match="4 processes were started, each of which would train alone: add --parallel mpi"):
        launched.communicator("threads")


IMPOSSIBLE = [
    (dict(parallel="mpl"), "parallel is 'mpl', but must be one of 'threads', 'mpi', 'nccl'"),
    (dict(parallel="mpi", sum_by="gpu"), "sum_by is 'gpu', but must be one of 'shard', 'rank'"),
    (dict(parallel="mpi", workers=2), "workers is 2, but each rank is one worker"),
    (dict(shard_optimizer=True), "parallel must be mpi or nccl"),
    (dict(sum_by="rank"), "parallel must be mpi or nccl"),
]


@pytest.mark.parametrize(("changes", "sentence"), IMPOSSIBLE)
def test_an_impossible_setting_is_named(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(SMALL, **{"workers": None} | changes)


def test_sums_by_shard_need_a_communicator_that_keeps_the_order():
    with pytest.raises(ValueError, match="sum_by is 'shard', but these ranks can only sum by rank"):
        together(1, lambda comm: Ranks(build(), comm, sum_by="shard"), keeps_order=False)


def test_a_norm_that_is_not_finite_is_so_on_all_ranks():
    def run(comm):
        pool = Ranks(build(), comm, sharded=True)
        _, grads = loss_and_grads(pool, *batch(), 3)
        if comm.rank == 1:
            grads.flat[0] = math.inf
        return pool.clip(grads, 1.0)

    assert together(3, run) == [math.inf] * 3
