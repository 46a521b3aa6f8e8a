"""What `numllama train` does: data, model, training loop, and the results that it prints."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from numllama.backend import array_module, default_dtype
from numllama.commands.progress import interrupts, progress_bar, show_step
from numllama.commands.run_folders import check_new, default_folder, only_run_in
from numllama.commands.run_results import best_possible_loss, draw, sample, tokens_per_byte
from numllama.cpu.doctor import slow_bfloat16
from numllama.data.dataset import Dataset, load_dataset, text_dataset, trained_tokenizer
from numllama.data.shakespeare import SYNTHETIC_PLAY, shakespeare_dataset
from numllama.data.synthetic import write_play
from numllama.errors import CheckpointError, shown
from numllama.model.config import ModelConfig
from numllama.model.parameters import count_parameters
from numllama.model.transformer import Transformer
from numllama.parallel.communicator import Communicator
from numllama.parallel.launched import communicator
from numllama.storage.files import reading
from numllama.system.signals import HANG_UP, SCHEDULED, TO_END, exit_code, exits_on_signals, ignore
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.training import checkpoint, run_folder
from numllama.training.config import TrainConfig, recipe
from numllama.training.evaluate import evaluation_bar
from numllama.training.trainer import Trainer

SYNTHETIC = Path("stand-in")  # instead of a file: needs no network, and its lowest possible loss is known
MADE_FROM_THE_TEXT = ("char", "bpe")  # tokenizers
ANY_VOCABULARY = 256  # stands in for the real size while the configuration is checked, before any data are read
ALONE = Communicator()


@exits_on_signals
def train_run(
    data: Path | None,
    preset: str | None,
    device: str,
    out: Path | None,
    resume: bool | str,
    model_changes: dict[str, Any],
    train_changes: dict[str, Any],
    tokenizer: str | None = None,
    vocab_size: int | None = None,
) -> int:
    """Start or resume a training run; returns the exit code.

    Parameters
    ----------
    data : path, optional
        See :func:`numllama.data.dataset.load_dataset`; default tinyshakespeare.
    preset : str, optional
    device : str
    out : path, optional
        The run's folder.
    resume : bool or "auto"
        ``"auto"``: resume the run from its newest intact checkpoint, or start it. Settings may be repeated, so that a scheduler
        can run the same command again and again.
    model_changes, train_changes : dict
        Fields of ModelConfig and TrainConfig that differ from the preset's.
    tokenizer : str, optional
        For a text: ``char``, ``bpe`` or a path; default ``char``.
    vocab_size : int, optional
        Vocabulary size of ``bpe``; implies ``bpe``.
    """
    tokenizer = trained_tokenizer(tokenizer, vocab_size)
    comm = communicator(train_changes.get("parallel", "threads"))
    comm.timeout = train_changes.get("timeout", comm.timeout)
    with comm.guard(), ExitStack() as stack:
        if comm.rank:  # only rank 0 prints
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        how = model_changes, train_changes, tokenizer, vocab_size
        code = _train_run(comm, data, preset, comm.device(device), out, resume, *how)
        comm.barrier()  # without it, MPI's finalize would busy-wait until rank 0 has written everything
        return code


def _train_run(
    comm: Communicator,
    data: Path | None,
    preset: str | None,
    device: str,
    out: Path | None,
    resume: bool | str,
    model_changes: dict[str, Any],
    train_changes: dict[str, Any],
    tokenizer: str | None,
    vocab_size: int | None,
) -> int:
    array_module(device)  # check the device and all settings before reading or downloading data
    named, preset = preset, preset or ("shakespeare-cpu" if device == "cpu" else "shakespeare")
    out = out or default_folder(preset, resume)
    auto = resume == "auto"
    if auto and not (out / "config.json").exists():
        resume = False
    if resume:
        saved_data, (saved_tokenizer, saved_size), model_config, config = _read_about(out, data)
        if auto:  # repeated settings are not changes
            if named:
                model_changes = ModelConfig.preset(named, **{"vocab_size": model_config.vocab_size, **model_changes}).to_dict()
            model_changes = {name: value for name, value in model_changes.items() if getattr(model_config, name) != value}
            if vocab_size in (None, saved_size) and tokenizer == (saved_tokenizer or "char"):
                tokenizer = vocab_size = None
        if model_changes:
            raise ValueError(f"a resumed run keeps its model, so {', '.join(model_changes)} cannot change")
        if tokenizer:
            name = "tokenizer" if vocab_size is None else "vocab_size"
            raise ValueError(f"a resumed run keeps its tokenizer, so {name} cannot change")
        tokenizer, vocab_size, data, before = saved_tokenizer, saved_size, data or saved_data, config
        known = out if tokenizer not in (None, "char") else tokenizer
        alone: dict[str, Any] = dict(parallel="threads", shard_optimizer=False, sum_by=None)  # the ranks may differ this time
        if train_changes.get("parallel", "threads") != "threads":
            alone["workers"] = None  # each rank is one worker
        config = replace(config, **alone | train_changes)
    else:
        check_new(out)
        model_config = ModelConfig.preset(preset, **{"vocab_size": ANY_VOCABULARY, **model_changes})
        config, before, known = replace(recipe(preset), **train_changes), None, tokenizer
    config = replace(config, compute_dtype=config.compute_dtype or default_dtype(device))
    config.check_seq_len(model_config.max_seq_len)
    encoder = cast("str | None", known) if known in (None, *MADE_FROM_THE_TEXT) else Tokenizer.load(known)

    dataset = comm.rank_zero_first(lambda: _open_data(data, encoder, None if resume else vocab_size))
    if not resume:
        model_config = ModelConfig.preset(preset, **{"vocab_size": dataset.vocab_size, **model_changes})
    model = Transformer(model_config, seed=config.seed, device=device, compute_dtype=config.compute_dtype)
    trainer = Trainer(model, dataset, config, out, workers=config.make_workers(model))
    with nullcontext() if comm.rank else only_run_in(out, begun=bool(resume)):
        saved = checkpoint.step_folders(out) or (out / "latest.json").exists()
        if trainer.workers.any_rank(bool(resume and saved)):  # a run killed before its first checkpoint starts over
            for damage in trainer.resume(fall_back=auto):
                where = f"resuming from step {trainer.step}" if trainer.step else "starting over"
                print(f"{damage}; {where}", flush=True)
        comm.barrier()  # every rank has looked at the folder before it changes
        if comm.rank == 0:
            path = str(data if data == SYNTHETIC else data.resolve()) if data else None
            size: dict[str, Any] = {} if vocab_size is None else {"vocab_size": vocab_size}
            trainer.write_config(data=path, tokenizer=tokenizer, **size)  # also when resuming: settings may have changed
        return go_on(trainer, _finish, comm, before)


def go_on(
    trainer: Trainer, finish: Callable[[Trainer], None], comm: Communicator = ALONE, before: TrainConfig | None = None
) -> int:
    """Train to the end and `finish`, or save when interrupted; returns the exit code.

    `before` holds a resumed run's previous settings.
    """
    out, config = trainer.out, trainer.config
    model = f"{count_parameters(trainer.model.config):,} parameters, vocabulary {trainer.model.config.vocab_size}"
    print(f"model: {model}, on {trainer.model.device} with {_hands(trainer, comm)}\nrun: {out}, {_steps(trainer)}", flush=True)
    if before and before.steps != config.steps and 0 < trainer.step < config.steps:
        print(_new_schedule(before, config, trainer.step), flush=True)
    if trainer.model.device != "cpu":
        print("the first steps compile kernels for this GPU, unless an earlier run has", file=sys.stderr, flush=True)
    elif config.compute_dtype == "bfloat16" and (slow := slow_bfloat16()):
        print(slow, file=sys.stderr, flush=True)
    code, missing = 0, None
    try:
        with interrupts() as interrupted:
            with ExitStack() as readers:
                if comm.rank == 0:
                    bar = readers.enter_context(progress_bar(config.steps, trainer.step))
                    trainer.tell = partial(bar.write, file=sys.stderr)
                for report in trainer:
                    if comm.rank == 0:
                        show_step(bar, report)
                    if trainer.workers.any_rank(bool(interrupted)) and trainer.step < config.steps:
                        break
            if trainer.step < config.steps:
                ignore(*TO_END)  # one signal was enough
                folder = trainer.save()
                print(f"interrupted after step {trainer.step}: saved as {folder}; continue with --resume --out {out}")
                code = _code(interrupted, trainer.workers.any_rank)
        if trainer.step >= config.steps:
            finish(trainer)
    finally:
        missing = trainer.close()
    if missing:
        print(f"error: {missing}", file=sys.stderr)
    return code or (2 if missing else 0)


def _steps(trainer: Trainer) -> str:
    """The remaining steps, in words."""
    step, config = trainer.step, trainer.config
    if step >= config.steps:
        return f"{step} of {config.steps} steps are done: nothing is left to train, unless you raise --steps"
    return f"steps {step + 1} to {config.steps} of {config.batch_size} x {config.seq_len} tokens"


def _new_schedule(before: TrainConfig, now: TrainConfig, step: int) -> str:
    """How a changed number of steps changes the learning rate, in words."""
    return (
        f"the schedule now ends at step {now.steps}, not {before.steps}: the learning rate goes from "
        f"{before.learning_rate(step):.2e} in step {step} to {now.learning_rate(step + 1):.2e} in step {step + 1}"
    )


def _code(interrupted: list[int], any_rank: Callable[[bool], bool]) -> int:
    """Exit code of an interrupted run: a scheduler's signals take precedence over SIGHUP, and SIGHUP over Ctrl-C."""
    for numbers in (SCHEDULED, HANG_UP):
        if any_rank(any(number in numbers for number in interrupted)):
            return exit_code(numbers[0])
    return exit_code(signal.SIGINT)


def _hands(trainer: Trainer, comm: Communicator) -> str:
    """How many workers or ranks do the work, in words."""
    if trainer.config.parallel == "threads":
        return f"{trainer.workers.workers} worker(s)"
    shards = min(trainer.config.shards or 1, trainer.config.batch_size)
    idle = f", {comm.size - shards} of them idle: a batch has {shards} shard(s), see --shards" if comm.size > shards else ""
    return f"{comm.size} rank(s){idle}"


def _finish(trainer: Trainer) -> None:
    """Print the results: checkpoint, loss curve, a sample, losses."""
    out, data = folder_of(trainer), trainer.data
    loss = final_evaluation(trainer)
    if trainer.workers.rank:
        return
    if trainer.skipped:
        print(f"{trainer.skipped} step(s) were skipped because the loss or its gradient was not finite")
    best_possible = best_possible_loss(data, seq_len_of(trainer.config))
    print(f"best checkpoint: {checkpoint.find_step(out, 'best')} (estimate {trainer.best:.4f})")
    print(f"loss curve: {draw(out, best_possible)}")
    if data.tokenizer:
        print(f"a sample from the best checkpoint:\n{sample(trainer.model, data.tokenizer, out)}\n")
    if isinstance(data.tokenizer, Tokenizer) and loss is not None:
        print(f"validation loss per byte of text: {loss * tokens_per_byte(data, data.tokenizer):.4f}")
    if best_possible is not None:
        print(f"loss of the best possible predictor on the same windows: {best_possible:.4f}")
    print(in_words(loss), flush=True)


def final_evaluation(trainer: Trainer) -> float | None:
    """Loss on the whole validation split, also written to result.json; None with --no-final-eval."""
    loss = None
    if trainer.config.final_eval:
        with nullcontext() if trainer.workers.rank else evaluation_bar(trainer.data.val_rows(seq_len_of(trainer.config))) as bar:
            loss = trainer.evaluate(None if bar is None else bar.update)
    if trainer.workers.rank == 0:
        run_folder.write_result(folder_of(trainer), trainer.step, loss)
    return loss


def in_words(loss: float | None) -> str:
    """The last line of a run."""
    return "validation loss: not evaluated" if loss is None else f"validation loss: {loss:.4f}"


def folder_of(trainer: Trainer) -> Path:
    """The run's folder."""
    assert trainer.out is not None  # commands give every trainer one
    return trainer.out


def seq_len_of(config: TrainConfig) -> int:
    """Tokens in a sequence."""
    assert config.seq_len is not None  # a trainer's config always has one, and so has fine-tuning's
    return config.seq_len


def _open_data(data: Path | None, tokenizer: Tokenizer | CharTokenizer | str | None, vocab_size: int | None) -> Dataset:
    if data == SYNTHETIC:
        print("DATA: a synthetic play, generated here")
        return text_dataset(write_play(), SYNTHETIC_PLAY, tokenizer, vocab_size)
    if data is not None:
        dataset = load_dataset(data, tokenizer, vocab_size=vocab_size)
        print(f"DATA: {data}, {len(dataset.train):,} tokens to train on and {len(dataset.val):,} to validate")
        return dataset
    dataset, line = shakespeare_dataset(tokenizer=tokenizer, vocab_size=vocab_size)
    print(line)
    return dataset


def _read_about(out: Path, data: Path | None = None) -> tuple[Path | None, tuple, ModelConfig, TrainConfig]:
    """How a run was started: its data (or those given), tokenizer and its size, model and training settings."""
    path = out / run_folder.CONFIG
    try:
        path.stat()
    except OSError as error:
        raise CheckpointError(f"{out} holds no run to resume: config.json cannot be read: {error.strerror}") from error
    about = run_folder.read_config(out)
    with reading(path):
        if data is None and about.get("loop") == run_folder.OWN_LOOP and not about["data"]:
            name = shown(about.get("data_name"))
            raise CheckpointError(f"{out} was started by another program, on data named {name}: pass the data with --data")
        data = Path(about["data"]) if data is None and about["data"] else data
        tokenizer = about.get("tokenizer"), about.get("vocab_size")
        return data, tokenizer, ModelConfig.from_dict(about["model"]), TrainConfig(**about["train"])
