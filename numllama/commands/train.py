"""A whole training run, as the command line does it: data, model, loop, and everything that people look at."""

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from numllama.backend import array_module, default_dtype
from numllama.data.dataset import Dataset, load_dataset, text_dataset, trained_tokenizer
from numllama.data.shakespeare import SYNTHETIC_PLAY, shakespeare_dataset
from numllama.data.synthetic import best_loss, write_play
from numllama.errors import CheckpointError, NumllamaError, shown
from numllama.generation import complete
from numllama.install import install_command
from numllama.model import ModelConfig, Transformer, count_parameters
from numllama.parallel.communicator import Communicator
from numllama.parallel.launched import communicator
from numllama.storage.files import reading
from numllama.storage.folders import locked
from numllama.system.signals import HANG_UP, SCHEDULED, TO_END, ends_when_told, exit_code, handling, ignore
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.training import checkpoint, run_folder
from numllama.training.config import TrainConfig, recipe
from numllama.training.evaluate import evaluation_bar
from numllama.training.metrics import METRICS, read_metrics
from numllama.training.plot import plot_losses
from numllama.training.trainer import StepReport, Trainer

RUNS = Path("runs")
PLAY = Path("stand-in")  # in the place of a file: needs no network, and its best possible loss is known
SAMPLE_CHARACTERS = 400
LEARNT_FROM_THE_TEXT = ("char", "bpe")  # tokenizers
ANY_VOCABULARY = 256  # to check a configuration before the data say which it is
ALONE = Communicator()


@ends_when_told
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
    """Train from the beginning, or go on with a run; returns the exit code.

    Parameters
    ----------
    data : path, optional
        See :func:`numllama.data.dataset.load_dataset`; default tinyshakespeare.
    preset : str, optional
    device : str
    out : path, optional
        The run's folder.
    resume : bool or "auto"
        ``"auto"``: go on with the run if there is one, from its newest checkpoint that is whole; else begin. Settings may be
        given again, as by a scheduler that runs the same command again and again.
    model_changes, train_changes : dict
        Fields of ModelConfig and TrainConfig that differ from the preset's.
    tokenizer : str, optional
        Of a text: ``char``, ``bpe`` or a path; default ``char``.
    vocab_size : int, optional
        Of ``bpe``, which it asks for.
    """
    tokenizer = trained_tokenizer(tokenizer, vocab_size)
    comm = communicator(train_changes.get("parallel", "threads"))
    comm.timeout = train_changes.get("timeout", comm.timeout)
    with comm.guard(), ExitStack() as stack:
        if comm.rank:  # rank 0 tells
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        how = model_changes, train_changes, tokenizer, vocab_size
        code = _train_run(comm, data, preset, comm.device(device), out, resume, *how)
        comm.barrier()  # MPI's own end would keep the cores busy until rank 0 has drawn and written everything
        return code


def _train_run(
    comm: Communicator,
    data: Path | None,
    preset: str | None,
    device: str,
    out: Path | None,
    resume: bool,
    model_changes: dict[str, Any],
    train_changes: dict[str, Any],
    tokenizer: str | None,
    vocab_size: int | None,
) -> int:
    array_module(device)  # this and all settings are checked before any data is read or downloaded
    named, preset = preset, preset or ("shakespeare-cpu" if device == "cpu" else "shakespeare")
    out = out or default_folder(preset, resume)
    auto = resume == "auto"
    if auto and not (out / "config.json").exists():
        resume = False
    if resume:
        saved_data, (saved_tokenizer, saved_size), model_config, config = _read_about(out, data)
        if auto:  # what is said again is no change
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
        alone = dict(parallel="threads", shard_optimizer=False, sum_by=None)  # a run may go on with other ranks, or with none
        if train_changes.get("parallel", "threads") != "threads":
            alone["workers"] = None  # each rank is one
        config = replace(config, **alone | train_changes)
    else:
        check_new(out)
        model_config = ModelConfig.preset(preset, **{"vocab_size": ANY_VOCABULARY, **model_changes})
        config, before, known = replace(recipe(preset), **train_changes), None, tokenizer
    config = replace(config, dtype=config.dtype or default_dtype(device))
    config.check_seq_len(model_config.max_seq_len)
    if known not in (None, *LEARNT_FROM_THE_TEXT):
        known = Tokenizer.load(known)

    dataset = comm.rank_zero_first(lambda: _open_data(data, known, None if resume else vocab_size))
    if not resume:
        model_config = ModelConfig.preset(preset, **{"vocab_size": dataset.vocab_size, **model_changes})
    model = Transformer(model_config, seed=config.seed, device=device, dtype=config.dtype)
    trainer = Trainer(model, dataset, config, out)
    with nullcontext() if comm.rank else only_run_in(out, begun=bool(resume)):
        saved = checkpoint.step_folders(out) or (out / "latest.json").exists()
        if trainer.workers.agree(bool(resume and saved)):  # a run that was killed before its first checkpoint starts again
            for damage in trainer.resume(fall_back=auto):
                where = f"going on from step {trainer.step}" if trainer.step else "beginning anew"
                print(f"{damage}; {where}", flush=True)
        comm.barrier()  # all have seen the folder as it was
        if comm.rank == 0:
            path = str(data if data == PLAY else data.resolve()) if data else None
            size = {} if vocab_size is None else {"vocab_size": vocab_size}
            trainer.write_config(data=path, tokenizer=tokenizer, **size)  # of a resumed run too: its settings may have changed
        return go_on(trainer, _finish, comm, before)


def go_on(
    trainer: Trainer, finish: Callable[[Trainer], None], comm: Communicator = ALONE, before: TrainConfig | None = None
) -> int:
    """Train to the end and `finish`, or until Ctrl-C, and save; returns the exit code.

    `before` are the settings that a resumed run had until now.
    """
    out, config = trainer.out, trainer.config
    model = f"{count_parameters(trainer.model.config):,} parameters, vocabulary {trainer.model.config.vocab_size}"
    print(f"model: {model}, on {trainer.model.device} with {_hands(trainer, comm)}\nrun: {out}, {_steps(trainer)}", flush=True)
    if before and before.steps != config.steps and 0 < trainer.step < config.steps:
        print(_new_schedule(before, config, trainer.step), flush=True)
    if trainer.model.device != "cpu":
        print("the first steps compile kernels for this GPU, or find those of an earlier run", file=sys.stderr, flush=True)
    code, missing = 0, None
    try:
        with _interrupts() as interrupted:
            with ExitStack() as readers:
                if comm.rank == 0:
                    bar = readers.enter_context(_bar(trainer))
                    trainer.tell = partial(bar.write, file=sys.stderr)
                for report in trainer:
                    if comm.rank == 0:
                        _show(bar, report)
                    if trainer.workers.agree(bool(interrupted)) and trainer.step < config.steps:
                        break
            if trainer.step < config.steps:
                ignore(*TO_END)  # one of them, or Ctrl-C, has been obeyed
                folder = trainer.save()
                print(f"interrupted after step {trainer.step}: saved as {folder}; go on with --resume --out {out}")
                code = _code(interrupted, trainer.workers.agree)
        if trainer.step >= config.steps:
            finish(trainer)
    finally:
        missing = trainer.close()
    if missing:
        print(f"error: {missing}", file=sys.stderr)
    return code or (2 if missing else 0)


def _steps(trainer: Trainer) -> str:
    """Which steps there are to do."""
    step, config = trainer.step, trainer.config
    if step >= config.steps:
        return f"has done {step} of {config.steps} steps: nothing is left to train, unless --steps is larger"
    return f"steps {step + 1} to {config.steps} of {config.batch_size} x {config.seq_len} tokens"


def _new_schedule(before: TrainConfig, now: TrainConfig, step: int) -> str:
    """What another number of steps does to the learning rate."""
    return (
        f"the schedule ends at step {now.steps} now, not {before.steps}: the learning rate goes from "
        f"{before.learning_rate(step):.2e} in step {step} to {now.learning_rate(step + 1):.2e} in step {step + 1}"
    )


def _code(interrupted: list[int], any_rank: Callable[[bool], bool]) -> int:
    """The exit code of a run that signals have ended: a scheduler's come before that of a terminal, and this before Ctrl-C."""
    for numbers in (SCHEDULED, HANG_UP):
        if any_rank(any(number in numbers for number in interrupted)):
            return exit_code(numbers[0])
    return exit_code(signal.SIGINT)


def _hands(trainer: Trainer, comm: Communicator) -> str:
    """Who does the work."""
    if trainer.config.parallel == "threads":
        return f"{trainer.workers.workers} worker(s)"
    shards = min(trainer.config.shards, trainer.config.batch_size)
    idle = f", {comm.size - shards} of them idle: a batch has {shards} shard(s), see --shards" if comm.size > shards else ""
    return f"{comm.size} rank(s){idle}"


def _finish(trainer: Trainer) -> None:
    """What people look at: the curve, a text, the loss."""
    out = trainer.out
    loss = final_evaluation(trainer)
    if trainer.workers.rank:
        return
    if trainer.skipped:
        print(f"{trainer.skipped} step(s) were skipped because the loss or its gradient was not finite")
    best_possible = _best_possible(trainer)
    print(f"best checkpoint: {checkpoint.find_step(out, 'best')} (estimate {trainer.best:.4f})")
    print(f"loss curve: {_draw(out, best_possible)}")
    if trainer.data.tokenizer:
        print(f"a sample from the best checkpoint:\n{sample(trainer)}\n")
    if isinstance(trainer.data.tokenizer, Tokenizer) and loss is not None:
        print(f"validation loss for each byte of text: {loss * _tokens_per_byte(trainer.data):.4f}")
    if best_possible is not None:
        print(f"loss of the best possible predictor on the same windows: {best_possible:.4f}")
    print(in_words(loss), flush=True)


def final_evaluation(trainer: Trainer) -> float | None:
    """The loss on the whole validation split, which result.json keeps; None where nobody wants to wait for it."""
    loss = None
    if trainer.config.final_eval:
        with nullcontext() if trainer.workers.rank else evaluation_bar(trainer.data.val_rows(trainer.config.seq_len)) as bar:
            loss = trainer.evaluate(None if bar is None else bar.update)
    if trainer.workers.rank == 0:
        run_folder.write_result(trainer.out, trainer.step, loss)
    return loss


def in_words(loss: float | None) -> str:
    """What the last line says."""
    return "validation loss: not evaluated" if loss is None else f"validation loss: {loss:.4f}"


def sample(trainer: Trainer) -> str:
    """A text from the best checkpoint, which takes the place of the model's weights; it begins at a line."""
    model, tokenizer = trainer.model, trainer.data.tokenizer
    checkpoint.load_checkpoint(checkpoint.find_step(trainer.out, "best"), model)
    known = getattr(tokenizer, "characters", "\n")  # BPE knows every character
    start, settings = "\n" if "\n" in known else known[0], dict(temperature=0.8, seed=0, stop_ids=())
    if model.config.positions == "learned":  # which end: as many tokens as fit
        return complete(model, tokenizer, start, **settings).strip()
    return complete(model, tokenizer, start, SAMPLE_CHARACTERS, window=model.config.max_seq_len, **settings).strip()


def _tokens_per_byte(data: Dataset) -> float:
    """What makes the losses of different vocabularies comparable."""
    return len(data.val) / len(data.tokenizer.decode_bytes(data.val[:]))


def _draw(run: Path, best_possible: float | None) -> str:
    """Where the picture is, or why there is none."""
    try:
        losses = [line for line in read_metrics(run / METRICS) if math.isfinite(line["loss"])]
        if not losses:
            return "not drawn, for metrics.jsonl has no losses"
        return str(plot_losses(losses, run / "loss.png", run.name, best_possible))
    except NumllamaError as error:
        return f"not drawn: {error}"
    except ImportError:
        return f"not drawn, it needs {install_command('plot')}"
    except OSError as error:
        return f"not drawn: {error.strerror}"


def _best_possible(trainer: Trainer) -> float | None:
    if trainer.data.name != SYNTHETIC_PLAY or not isinstance(trainer.data.tokenizer, CharTokenizer):
        return None
    return best_loss(trainer.data.tokenizer.decode(trainer.data.val.tolist()), trainer.config.seq_len)


# ------------------------------------------------------------------------------------------------ folders


def _open_data(data: Path | None, tokenizer: Tokenizer | CharTokenizer | str | None, vocab_size: int | None) -> Dataset:
    if data == PLAY:
        print("DATA: a synthetic play")
        return text_dataset(write_play(), SYNTHETIC_PLAY, tokenizer, vocab_size)
    if data is not None:
        dataset = load_dataset(data, tokenizer, vocab_size)
        print(f"DATA: {data}, {len(dataset.train):,} tokens to train on and {len(dataset.val):,} to validate")
        return dataset
    dataset, line = shakespeare_dataset(tokenizer=tokenizer, vocab_size=vocab_size)
    print(line)
    return dataset


def default_folder(preset: str, resume: bool | str) -> Path:
    """The first name under runs/ that is free; to resume, the last that is not."""
    names = (RUNS / (preset if i == 1 else f"{preset}-{i}") for i in range(1, sys.maxsize))
    last = None
    for folder in names:
        if not (folder / "config.json").exists():
            break
        last = folder
    if resume is True and last is None:
        raise CheckpointError(f"there is no run to resume under {RUNS}{'/'}{preset}: name one with --out")
    return (last if resume else None) or folder


def check_new(out: Path) -> None:
    """ValueError if a run has begun in this folder."""
    if (out / "config.json").exists():
        raise ValueError(f"{out} already holds a run: use --resume to go on with it, or another --out")


@contextmanager
def only_run_in(out: Path, begun: bool) -> Iterator[None]:
    """Keep other processes out of a run's folder until this one ends, however it ends: two would write over each other."""
    with locked(out, doing="trains"):
        if not begun:  # still?
            check_new(out)
        yield


def _read_about(out: Path, data: Path | None = None) -> tuple[Path | None, tuple, ModelConfig, TrainConfig]:
    """How a run was started: its data unless some are given, its tokenizer (and size), model and training settings."""
    path = out / run_folder.CONFIG
    try:
        path.stat()
    except OSError as error:
        why = f"its config.json cannot be read: {error.strerror}"
        raise CheckpointError(f"{out} holds no run to resume, {why}") from error
    about = run_folder.read_config(out)
    with reading(path):
        if data is None and about.get("loop") == run_folder.OWN_LOOP and not about["data"]:
            name = shown(about.get("data_name"))
            raise CheckpointError(f"{out} was begun by another program, on data named {name}: say which they are with --data")
        data = Path(about["data"]) if data is None and about["data"] else data
        tokenizer = about.get("tokenizer"), about.get("vocab_size")
        return data, tokenizer, ModelConfig.from_dict(about["model"]), TrainConfig(**about["train"])


# ------------------------------------------------------------------------------------------------ the loop's readers


def _bar(trainer: Trainer) -> tqdm:
    quiet = not sys.stderr.isatty()
    return tqdm(
        total=trainer.config.steps,
        initial=trainer.step,
        unit="step",
        dynamic_ncols=True,
        mininterval=10 if quiet else 0.2,
    )


def _show(bar: tqdm, report: StepReport) -> None:
    values = f"loss {report.loss:.3f}, lr {report.lr:.1e}, {report.tokens_per_second:,.0f} tokens/s"
    bar.set_postfix_str(values, refresh=False)
    bar.update(1)
    if report.val_loss is not None:
        bar.write(f"step {report.step}: loss {report.loss:.4f}, validation estimate {report.val_loss:.4f}", file=sys.stderr)
    if report.spike is not None:
        words = f"its loss of {report.loss:.4f} lies {report.spike:.1f} standard deviations above the mean of the steps before"
        bar.write(f"step {report.step}: a spike, {words}", file=sys.stderr)
    if report.skipped:
        bar.write(f"step {report.step}: skipped, its loss or gradient was not finite", file=sys.stderr)


@contextmanager
def _interrupts() -> Iterator[list]:
    """Ctrl-C and TO_END let the step in hand finish: the yielded list then holds which. A second Ctrl-C interrupts at once."""
    caught: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if number == signal.SIGINT and signal.SIGINT in caught:
            raise KeyboardInterrupt
        caught.append(number)

    with handling(handler, signal.SIGINT, *TO_END):
        yield caught
