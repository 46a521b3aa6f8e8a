"""The loop: against plain NumPy, stopped and gone on with, disturbed, and what its reports say."""

import hashlib
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from helpers import assert_close

from numllama.backend import to_numpy
from numllama.data.batches import all_windows, counted, random_batch
from numllama.errors import CheckpointError, DataError, TrainingError
from numllama.interop import load_run
from numllama.model import ModelConfig, Transformer
from numllama.training import Dataset, StepReport, TrainConfig, Trainer, checkpoint, text_dataset

DATA = text_dataset("the quick brown fox jumps over the lazy dog. " * 20, "a fox")
T = 8
SMALL = TrainConfig(
    steps=12, batch_size=6, seq_len=T, lr=1e-2, warmup_steps=3, shards=3, workers=1, eval_every=100, eval_batches=2
)


def build(dtype=None, dropout=0.0, device="cpu", compute_dtype=None, **changes) -> Transformer:
    shape = dict(vocab_size=DATA.vocab_size, dim=16, n_layers=1, n_heads=2, max_seq_len=T, dropout=dropout)
    return Transformer(ModelConfig(**shape | changes), seed=2, dtype=dtype, compute_dtype=compute_dtype, device=device)


def train(out=None, model=None, data=DATA, **changes) -> Trainer:
    """A trainer that is yet to run; its model has dropout unless it is given."""
    return Trainer(model or build(dropout=0.2), data, replace(SMALL, **changes), out)


def go(trainer, until=None) -> list[StepReport]:
    """Run to the end, or until a step is done."""
    reports = []
    for report in trainer:
        reports.append(report)
        if report.step == until:
            break
    trainer.close()
    return reports


def bits(trainer) -> str:
    """A checksum of all that the trainer has learnt."""
    parts = (trainer.model.params, *trainer.optimizer.state.values())
    return hashlib.sha256(b"".join(params.flat.tobytes() for params in parts)).hexdigest()


# ------------------------------------------------------------------------------------------------ learning


def test_the_loss_falls_to_almost_nothing_where_everything_can_be_learnt():
    data = text_dataset("abcd" * 100, "four letters")
    model = build(vocab_size=4)
    trainer = train(model=model, data=data, steps=60, lr=2e-2)
    before = trainer.evaluate()
    reports = go(trainer)
    assert before == pytest.approx(math.log(4), abs=0.1)
    assert reports[0].loss == pytest.approx(math.log(4), abs=0.1)
    assert reports[-1].loss < 0.05
    assert trainer.evaluate() < 0.05


def adamw(w, g, m, v, t, lr, c, decay):
    m[...] = c.beta1 * m + (1 - c.beta1) * g
    v[...] = c.beta2 * v + (1 - c.beta2) * g**2
    m_hat, v_hat = m / (1 - c.beta1**t), v / (1 - c.beta2**t)
    w[...] = w - lr * decay * w - lr * m_hat / (np.sqrt(v_hat) + 1e-8)


def sgd(w, g, u, _, t, lr, c, decay):
    u[...] = c.beta1 * u + g + decay * w
    w[...] = w - lr * u


@pytest.mark.parametrize("clip", [0.05, 100.0])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_plain_loop_gives_the_same_parameters(optimizer, shards, clip):
    """Batch, gradient, clip, step: written down once more, without shards, buffers and pieces."""
    model, plain = build("float64"), build("float64")
    trainer = train(model=model, optimizer=optimizer, shards=shards, clip=clip, steps=5, weight_decay=0.3)
    reports, c = go(trainer), trainer.config
    update = adamw if optimizer == "adamw" else sgd
    states = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in plain.params.items()}
    for step, report in enumerate(reports, start=1):
        starts = np.random.default_rng([0, step]).integers(0, len(DATA.train) - T, size=6)
        tokens = np.array([DATA.train[start : start + T] for start in starts])
        targets = np.array([DATA.train[start + 1 : start + T + 1] for start in starts])
        loss, grads = plain.loss_and_grads(tokens, targets)
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        cosine = 1e-3 + (1e-2 - 1e-3) * 0.5 * (1 + math.cos(math.pi * (step - 3) / (5 - 3)))
        lr = 1e-2 * step / 3 if step < 3 else cosine
        for name, g in grads.items():
            g = g * min(1, clip / (norm + 1e-6))
            update(plain.params[name], g, *states[name], step, lr, c, 0.3 if g.ndim == 2 else 0.0)
        assert report.loss == pytest.approx(float(loss), rel=1e-12)
        assert report.grad_norm == pytest.approx(norm, rel=1e-10)
        assert report.lr == pytest.approx(lr, rel=1e-14)
        assert (norm > clip) == (clip == 0.05)
    for name in plain.params:
        assert_close(model.params[name], plain.params[name], rtol=1e-12)


def test_the_dropout_masks_are_named_by_seed_and_step_and_shard():
    model, plain = build("float64", dropout=0.3), build("float64", dropout=0.3)
    trainer = train(model=model, shards=1, seed=7, steps=3)
    for report in trainer:
        batch = random_batch(DATA.train, 6, T, 7, report.step)
        loss, grads = plain.loss_and_grads(*batch, key=(7, report.step, 0))
        assert report.loss == float(loss)
        assert report.grad_norm == pytest.approx(np.linalg.norm(grads.flat), rel=1e-12)
        plain.params.flat[...] = model.params.flat


@pytest.mark.parametrize("n_workers", [2, 3])
def test_a_run_is_the_same_bits_for_any_number_of_workers(n_workers):
    one, many = train(), train(workers=n_workers)
    losses = [report.loss for report in go(one)]
    assert [report.loss for report in go(many)] == losses
    assert bits(many) == bits(one)


def test_another_seed_is_another_run():
    assert [report.loss for report in go(train(seed=1))] != [report.loss for report in go(train(seed=0))]


def test_evaluations_between_the_steps_do_not_change_the_run(tmp_path):
    often, never = train(tmp_path, eval_every=1), train(eval_every=100)
    assert [report.loss for report in go(often)] == [report.loss for report in go(never)]
    assert bits(often) == bits(never)


def test_a_gpu_trains_as_the_cpu_does(device):
    expected = [report.loss for report in go(train(model=build(), steps=5))]
    actual = [report.loss for report in go(train(model=build(device=device), steps=5))]
    assert actual == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------------------------------------ reports


def test_there_is_one_report_for_each_step():
    assert [report.step for report in go(train())] == list(range(1, 13))


def test_a_report_says_how_fast_it_went():
    for report in go(train(steps=3)):
        assert report.tokens_per_second == pytest.approx(6 * T / (report.ms_per_step / 1000))
        assert report.ms_per_step > 0
        assert report.memory_mb >= 0
        assert not report.skipped


def test_the_loss_of_a_report_is_the_one_before_the_step():
    model = build()
    expected = float(model.loss(*random_batch(DATA.train, 6, T, 0, 1)))
    assert go(train(model=model), until=1)[0].loss == pytest.approx(expected, rel=1e-6)


def test_estimates_come_every_so_many_steps_and_at_the_end():
    reports = go(train(eval_every=5))
    assert [report.step for report in reports if report.val_loss is not None] == [5, 10, 12]


def test_a_report_without_an_estimate_has_none_in_its_values():
    first, last = go(train(steps=2))
    assert "val_loss" not in first.to_dict()
    assert last.to_dict()["val_loss"] == last.val_loss
    assert set(last.to_dict()) - {"val_loss"} == set(first.to_dict())


# ------------------------------------------------------------------------------------------------ the learning rate


def test_the_learning_rate_rises_over_the_warm_up_and_falls_along_a_cosine():
    rates = [report.lr for report in go(train(lr=1.0, min_lr=0.2, warmup_steps=4, steps=12))]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[3:] == pytest.approx([0.6 + 0.4 * math.cos(math.pi * i / 8) for i in range(9)])
    assert rates[-1] == 0.2


def test_the_lowest_learning_rate_is_a_tenth_of_the_highest_unless_it_is_given():
    assert go(train())[-1].lr == pytest.approx(1e-3)
    assert go(train(min_lr=0.0))[-1].lr == 0


def test_without_a_warm_up_the_first_step_is_almost_the_fastest():
    rates = [report.lr for report in go(train(warmup_steps=0))]
    assert rates == sorted(rates, reverse=True)
    assert 0.98e-2 < rates[0] < 1e-2


# ------------------------------------------------------------------------------------------------ validation


def log_p(model, tokens, targets):
    logits = to_numpy(model.forward(tokens)).astype("float64")
    return np.take_along_axis(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), targets[..., None], -1)[..., 0]


def test_evaluate_is_the_mean_loss_over_the_whole_split():
    trainer = train(model=build("float64", dropout=0.3))
    val = DATA.val
    losses = []
    for start in range(0, len(val) - 1, T):
        window = val[start : start + T + 1].astype(int)
        losses += (-log_p(trainer.model, window[None, :-1], window[None, 1:])[0]).tolist()
    assert len(losses) == len(val) - 1
    assert (len(val) - 1) % T  # the last window is a short one
    assert trainer.evaluate() == pytest.approx(np.mean(losses), rel=1e-12)


def test_evaluate_does_not_depend_on_the_batch_size_or_the_workers():
    model = build("float64")
    values = [train(model=model, batch_size=b, workers=w).evaluate() for b, w in ((1, 1), (5, 2), (100, 3))]
    assert values == pytest.approx([values[0]] * 3, rel=1e-12)


def test_estimate_is_the_mean_over_batches_of_the_validation_split():
    trainer = train(model=build("float64"), eval_batches=3, seed=4)
    batches = [random_batch(DATA.val, 6, T, 4, 2**32 + i) for i in range(3)]
    expected = np.mean([-log_p(trainer.model, *batch).mean() for batch in batches])
    assert trainer.estimate() == pytest.approx(expected, rel=1e-12)


def test_estimate_gives_the_same_value_however_often_it_is_asked():
    trainer = train()
    value = trainer.estimate()
    assert trainer.estimate() == value
    go(trainer, until=2)
    trainer.model.params.flat[...] = build().params.flat
    assert train().estimate() == value


def test_a_validation_split_shorter_than_a_window_is_estimated_on_shorter_ones():
    data = replace(DATA, val=DATA.val[:4])
    trainer = train(data=data)
    assert math.isfinite(trainer.estimate())
    assert trainer.evaluate() == trainer.workers.mean_loss(counted(*window) for window in all_windows(data.val, 6, T))


# ------------------------------------------------------------------------------------------------ going on


OPTIMIZERS = [dict(optimizer="adamw"), dict(optimizer="sgd"), dict(optimizer="sgd", beta1=0.0)]


@pytest.mark.parametrize("changes", [*OPTIMIZERS, dict(recompute=True)], ids=str)
@pytest.mark.parametrize("stop", [1, 7])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(tmp_path, stop, changes):
    straight = train(**changes)
    expected = go(straight)
    first = train(tmp_path, **changes)
    go(first, until=stop)
    first.save()
    second = train(tmp_path, **changes)
    second.model.params.flat[...] = 7
    second.resume()
    assert second.step == stop
    rest = go(second)
    assert [(r.step, r.loss, r.lr, r.grad_norm) for r in rest] == [(r.step, r.loss, r.lr, r.grad_norm) for r in expected[stop:]]
    assert bits(second) == bits(straight)
    assert second.optimizer.steps == straight.optimizer.steps == 12


def test_the_lowest_estimate_so_far_is_remembered(tmp_path):
    first = train(tmp_path)
    go(first, until=2)
    first.save(val_loss=0.5)
    first.save()
    second = train(tmp_path)
    second.resume()
    assert second.best == 0.5
    go(second, until=3)
    second.save(val_loss=0.7)
    assert checkpoint.find_step(tmp_path, "best").name == "step-000002"
    assert checkpoint.find_step(tmp_path).name == "step-000003"


def test_the_best_pointer_follows_the_lowest_estimate_only(tmp_path):
    trainer = train(tmp_path)
    for loss, best in ((3.0, 1), (4.0, 1), (3.0, 1), (2.0, 4), (float("nan"), 4), (None, 4)):
        go(trainer, until=trainer.step + 1)
        trainer.save(val_loss=loss)
        assert checkpoint.find_step(tmp_path, "best").name == f"step-{best:06d}"
        assert checkpoint.find_step(tmp_path).name == f"step-{trainer.step:06d}"


def test_a_trainer_saves_where_it_estimates(tmp_path):
    trainer = train(tmp_path, eval_every=5)
    for step in (5, 10, 12):  # whoever leaves the loop finds the checkpoint
        next(report for report in trainer if report.val_loss is not None)
        assert (trainer.step, checkpoint.find_step(tmp_path).name) == (step, f"step-{step:06d}")


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    go(train(eval_every=1, steps=2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["save", "resume"])
def test_a_trainer_without_a_folder_says_so_when_one_is_needed(method):
    with pytest.raises((ValueError, CheckpointError), match="out"):
        getattr(train(), method)()


def test_to_resume_a_run_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a training run"):
        train(tmp_path).resume()


@pytest.mark.parametrize("changes", [dict(train=DATA.train[:-1]), dict(vocab_size=DATA.vocab_size - 1)], ids=list)
def test_other_data_is_refused_before_anything_is_changed(tmp_path, changes):
    first = train(tmp_path)
    go(first, until=1)
    first.save()
    other = train(tmp_path, data=replace(DATA, **changes))
    before = bits(other)
    with pytest.raises(CheckpointError, match="other data: a fox"):
        other.resume()
    assert (bits(other), other.step, other.optimizer.steps) == (before, 0, 0)


# ------------------------------------------------------------------------------------------------ not a number


def not_finite_at(trainer, steps, monkeypatch, what="loss", value=math.nan):
    """Let the loss, or one gradient, of some steps be `value`."""
    plain = trainer.workers.loss_and_grads

    def broken(*args, key, **kwargs):
        loss, grads = plain(*args, key=key, **kwargs)
        if key[1] in steps and what == "gradient":
            grads.flat[3] = value
        return value if key[1] in steps and what == "loss" else loss, grads

    monkeypatch.setattr(trainer.workers, "loss_and_grads", broken)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(monkeypatch, what, value):
    trainer = train()
    not_finite_at(trainer, {2, 4}, monkeypatch, what, value)
    go(trainer, until=1)
    before = bits(trainer)
    assert go(trainer, until=2)[0].skipped
    assert bits(trainer) == before
    reports = go(trainer)
    assert [report.step for report in reports if report.skipped] == [4]
    assert trainer.skipped == 2
    assert trainer.optimizer.steps == 10
    assert all(math.isfinite(report.loss) for report in reports if not report.skipped)


def test_four_in_a_row_do_not_end_a_run_and_a_good_step_starts_the_count_anew(monkeypatch):
    trainer = train()
    not_finite_at(trainer, {1, 2, 3, 4, 6, 7, 8, 9}, monkeypatch)
    assert len(go(trainer)) == 12
    assert trainer.skipped == 8


def test_five_in_a_row_end_the_run_and_say_where(monkeypatch):
    trainer = train()
    not_finite_at(trainer, range(3, 99), monkeypatch)
    with pytest.raises(TrainingError, match=r"5 steps in a row, up to step 7; there is no checkpoint yet"):
        go(trainer)


def test_a_run_that_was_ended_does_not_go_on_when_it_is_asked_again(monkeypatch):
    trainer = train()
    not_finite_at(trainer, range(1, 99), monkeypatch)
    for _ in range(2):
        with pytest.raises(TrainingError):
            go(trainer)
    assert trainer.step <= 6


def test_the_count_in_a_row_survives_a_stop(tmp_path, monkeypatch):
    first = train(tmp_path)
    not_finite_at(first, range(2, 99), monkeypatch)
    go(first, until=4)
    first.save()
    second = train(tmp_path)
    second.resume()
    assert second.skipped == 3
    not_finite_at(second, range(2, 99), monkeypatch)
    with pytest.raises(TrainingError, match="up to step 6"):
        go(second)


def test_the_last_good_checkpoint_is_named(tmp_path, monkeypatch):
    trainer = train(tmp_path, eval_every=2)
    not_finite_at(trainer, range(4, 99), monkeypatch)
    with pytest.raises(TrainingError, match="the last good checkpoint is") as caught:
        go(trainer)
    name = str(checkpoint.find_step(tmp_path))
    assert name in str(caught.value)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_checkpoint_of_broken_weights_is_not_called_good(tmp_path):
    trainer = train(tmp_path, eval_every=2)
    go(trainer, until=3)
    good = checkpoint.find_step(tmp_path)
    trainer.model.params["head"][0, 0] = math.nan
    with pytest.raises(TrainingError, match="the last good checkpoint is") as caught:
        go(trainer)
    assert f"{good};" in str(caught.value)
    assert np.isfinite(load_run(good).params.flat).all()


# ------------------------------------------------------------------------------------------------ what cannot be


def test_sequences_longer_than_the_model_allows_are_refused():
    with pytest.raises(ValueError, match=f"seq_len is {T + 1}, but the model's max_seq_len is {T}"):
        train(seq_len=T + 1)


def test_the_default_seq_len_is_the_models_max_seq_len():
    assert train(seq_len=None).config.seq_len == T


def test_data_of_a_larger_vocabulary_than_the_models_is_refused():
    with pytest.raises(DataError, match="vocabulary"):
        train(model=build(vocab_size=DATA.vocab_size - 1))


def test_ids_beyond_their_own_vocabulary_are_named():
    data = Dataset(np.full(100, 9), np.full(10, 9), vocab_size=5)
    with pytest.raises(ValueError, match=r"tokens holds 9, but must lie in 0\.\.4"):
        go(train(model=build(vocab_size=5), data=data))


IMPOSSIBLE = [
    *((name, 0) for name in ("steps", "batch_size", "seq_len", "shards", "workers", "eval_every", "eval_batches")),
    *((name, value) for name in ("lr", "clip") for value in (0.0, -1.0, math.nan)),
    *((name, value) for name in ("min_lr", "warmup_steps", "weight_decay", "seed") for value in (-1, math.nan)),
    *((name, value) for name in ("beta1", "beta2") for value in (-0.1, 1.0, math.nan)),
    *((name, None) for name in ("steps", "batch_size", "eval_every", "lr", "seed")),
    ("steps", 2.5),
    ("batch_size", "12"),
    ("optimizer", "adam"),
]


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE)
def test_an_impossible_setting_is_named(name, value):
    with pytest.raises((ValueError, TypeError), match=f"{name} is "):
        TrainConfig(**{name: value})


def test_settings_go_through_a_dict_and_back():
    assert TrainConfig(**SMALL.to_dict()) == SMALL


def test_two_trainers_can_take_turns():
    alone = [[report.loss for report in go(train(seed=seed))] for seed in (0, 1)]
    together = [(a.loss, b.loss) for a, b in zip(train(seed=0), train(seed=1), strict=True)]
    assert [list(losses) for losses in zip(*together, strict=True)] == alone


def test_the_settings_of_the_process_are_put_back_when_a_loop_is_left():
    before = sys.getswitchinterval()
    go(train(), until=2)
    assert sys.getswitchinterval() == before


def test_a_model_of_float64_trains_in_float64():
    trainer = train(model=build("float64"))
    go(trainer, until=2)
    learnt = trainer.model.params.flat
    assert learnt.dtype == trainer.optimizer.state["m"].flat.dtype == "float64"
    assert not np.array_equal(learnt, learnt.astype("float32"))
