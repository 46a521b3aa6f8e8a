"""What `numllama finetune` does: train all weights, or an adapter, on conversations.

    OUT/step-000060/ ...    checkpoints, as in any training run; with an adapter, of the adapter only
    OUT/adapter/            the best adapter, in the format of `peft`
    OUT/model/              the best model (an adapter is merged into it), with tokenizer and chat template
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from numllama.backend import TWO_BYTES, array_module, default_dtype, known_dtype
from numllama.commands.run_folders import check_new, default_folder, only_run_in
from numllama.commands.train_run import final_evaluation, go_on, in_words, seq_len_of
from numllama.data.conversations import Conversations, load_conversations
from numllama.errors import CheckpointError, DataError, NumllamaError, shown, visible
from numllama.generation.chat import has_chat_template
from numllama.generation.text import opening
from numllama.interop import huggingface, peft
from numllama.interop.load import open_model
from numllama.interop.packages import find_model
from numllama.model.lora import LoraConfig
from numllama.model.transformer import Transformer
from numllama.storage.files import reading, write_bytes
from numllama.storage.folders import published
from numllama.system.signals import exits_on_signals
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.training import checkpoint, run_folder
from numllama.training.config import TUNING, TUNING_VALUES, TrainConfig, tuning_lr
from numllama.training.trainer import Trainer

TEMPLATE_FILES = ("tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


@dataclass(frozen=True)
class Tuning:
    """A model to fine-tune, and its data.

    Attributes
    ----------
    model : path
        Any model that :func:`numllama.load` reads.
    data, val_data : path
        See :func:`numllama.data.conversations.load_conversations`.
    tokenizer : path, optional
        Default: the one next to the model.
    chat_template : path, optional
        A Jinja file; default: the model's own template.
    lora : LoraConfig, optional
        The adapter to train; without one, all weights are trained.
    dtype : str, optional
        dtype of the weights below an adapter; see :func:`numllama.load`.
    """

    model: Path
    data: Path
    val_data: Path | None = None
    tokenizer: Path | None = None
    chat_template: Path | None = None
    lora: LoraConfig | None = None
    dtype: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        paths = {name: value for name, value in vars(self).items() if name not in ("lora", "dtype")}
        values: dict[str, Any] = {name: None if path is None else str(path.resolve()) for name, path in paths.items()}
        return values | {"lora": self.lora.to_dict() if self.lora else None, "dtype": self.dtype}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Tuning":
        """The inverse of :meth:`to_dict`."""
        others: dict[str, Any] = {"lora": LoraConfig(**values["lora"]) if values["lora"] else None, "dtype": values.get("dtype")}
        paths: dict[str, Any] = {name: path and Path(path) for name, path in values.items() if name not in others}
        return cls(**paths, **others)


@exits_on_signals
def finetune_run(
    tuning: Tuning, out: Path | None, device: str, epochs: float | None, train_changes: dict[str, Any], show: int = 0
) -> int:
    """Start a fine-tuning run; returns the exit code.

    Parameters
    ----------
    tuning : Tuning
    out : path, optional
        The run's folder; default: a new one under runs/.
    device : str
    epochs : float, optional
        Passes over the rows, unless ``steps`` is given; default 3.
    train_changes : dict
        Fields of TrainConfig that differ from fine-tuning's defaults.
    show : int
        Print this many conversations as the model would see them, and stop.
    """
    if show < 0:
        raise ValueError(f"show is {show}, but must be a number of conversations")
    _check_one_process(train_changes)
    TrainConfig(**train_changes)  # check before reading the model
    if epochs is not None and not epochs > 0:
        raise ValueError(f"epochs is {epochs}, but must be a positive number")
    out = out or default_folder(f"{tuning.model.resolve().name}-tuned", resume=False)
    tuning = replace(tuning, model=find_model(tuning.model))  # the run keeps the path, not a package's name
    if not show:
        check_new(out)
    model, data = _open(tuning, device, train_changes.get("compute_dtype"), train_changes.get("seed", 0))
    config = _recipe(tuning, model, data, epochs or TUNING["epochs"], train_changes)
    if show:
        print("\n\n".join(islice(shown_conversations(data, seq_len_of(config)), show)))
        return 0
    trainer = Trainer(model, data, config, out, workers=config.make_workers(model))
    with only_run_in(out, begun=False):
        return _go_on(tuning, trainer, data, out)


@exits_on_signals
def resume_run(out: Path, device: str, train_changes: dict[str, Any]) -> int:
    """Resume an interrupted fine-tuning run; returns the exit code."""
    _check_one_process(train_changes)
    saved = run_folder.read_config(out)
    try:
        tuning, config = Tuning.from_dict(saved["tuning"]), TrainConfig(**saved["train"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{out} holds no fine-tuning run to resume: in config.json, missing or invalid: {error}") from error
    before, config = config, replace(config, **train_changes)
    model, data = _open(tuning, device, config.compute_dtype, config.seed)
    trainer = Trainer(model, data, config, out, workers=config.make_workers(model))
    with only_run_in(out, begun=True):
        if checkpoint.step_folders(out) or (out / "latest.json").exists():  # else the run was killed before its first checkpoint
            trainer.resume()
        return _go_on(tuning, trainer, data, out, before)


def _check_one_process(train_changes: dict[str, Any]) -> None:
    parallel = train_changes.get("parallel", "threads")
    if parallel != "threads":
        raise ValueError(f"parallel is {shown(parallel)}, but fine-tuning runs in one process: it must be 'threads'")


def _open(tuning: Tuning, device: str, compute_dtype: str | None, seed: int) -> tuple[Transformer, Conversations]:
    """The model, with a new adapter if one is trained, and the tokenized conversations."""
    array_module(device)  # check the device before reading anything
    if not tuning.data.exists():
        raise DataError(f"{tuning.data} does not exist")
    template = None
    if tuning.chat_template is not None:
        with reading(f"the chat template {tuning.chat_template}", DataError):
            template = tuning.chat_template.read_text(encoding="utf-8")
    dtype = tuning.dtype
    if dtype is None and device != "cpu":
        compute_dtype = compute_dtype or default_dtype(device)
        dtype = compute_dtype if tuning.lora else None  # frozen weights need no float32
    if tuning.lora is None and dtype is not None and known_dtype(dtype) in TWO_BYTES:
        raise ValueError(f"dtype is {dtype}, but weights in two bytes cannot be trained: only an adapter can")
    model, tokenizer = open_model(tuning.model, tuning.tokenizer, device=device, dtype=dtype, compute_dtype=compute_dtype)
    if model.adapter is not None:
        model.merge_adapter()
    data = load_conversations(
        tuning.data, tokenizer, val_path=tuning.val_data, chat_template=template, opening=opening(model, tokenizer)
    )
    new_stops = [i for i in data.stop_ids if i not in model.stop_ids]
    if new_stops:  # answers end there, even if the checkpoint does not list these tokens
        model.generation_config = {**model.generation_config, "eos_token_id": [*model.stop_ids, *new_stops]}
    if tuning.lora:
        model.add_adapter(tuning.lora, seed=seed)
    return model, data


def _recipe(
    tuning: Tuning, model: Transformer, data: Conversations, epochs: float, changes: dict[str, Any]
) -> TrainConfig:
    """The settings of fine-tuning. Few conversations get short rows and small batches; otherwise there would be too few steps."""
    seq_len = changes.get("seq_len") or min(data.train.longest(), model.config.max_seq_len, TUNING["seq_len"])
    data.check(model.config.vocab_size, seq_len)
    rows = len(data.train.rows(seq_len))
    batch_size = changes.get("batch_size") or max(1, min(TUNING["tokens"] // seq_len, rows // TUNING["steps"]))
    steps = changes.get("steps") or max(1, ceil(epochs * rows / batch_size))
    defaults = dict(
        steps=steps,
        lr=tuning_lr(model.config.dim, full=tuning.lora is None),
        batch_size=batch_size,
        seq_len=seq_len,
        warmup_steps=int(TUNING["warmup"] * steps),
        eval_every=max(1, ceil(rows / batch_size)),
        compute_dtype=model.compute_dtype.name,
    )
    return TrainConfig(**{**TUNING_VALUES, **defaults, **changes})


def _go_on(tuning: Tuning, trainer: Trainer, data: Conversations, out: Path, before: TrainConfig | None = None) -> int:
    """Report what is trained on, train, and write the results."""
    model, seq_len = trainer.model, seq_len_of(trainer.config)
    trainer.write_config(lambda folder: _copy_template(tuning, data.tokenizer, folder), tuning=tuning.to_dict())
    rows = data.train.rows(seq_len)
    print(
        f"DATA: {tuning.data}, {len(data.train.documents):,} conversations in {len(rows):,} rows to train on "
        f"and {len(data.val.documents):,} to validate"
    )
    for sentence in _incomplete(data, seq_len):
        print(sentence)
    if model.adapter:
        size, lora = model.trainable.flat.size, model.adapter.config
        beside = f" and all of {' and '.join(lora.modules_to_save)}" if lora.modules_to_save else ""
        print(f"trainable: {size:,} parameters of an adapter, {len(lora.targets)} matrices per layer{beside}")
    return go_on(trainer, lambda trainer: _finish(tuning, trainer, data.tokenizer, out), before=before)


def shown_conversations(data: Conversations, seq_len: int) -> Iterator[str]:
    """Each conversation as the model sees it; the lines that are trained on are marked."""
    for number, (ids, said) in enumerate(data.train.documents, start=1):
        ids, said, length = ids[: seq_len + 1], said[: seq_len + 1], len(ids)
        lines = [f"conversation {number}: {length} tokens, {said[1:].sum()} of them trained on"]
        starts = [0, *np.flatnonzero(said[1:] != said[:-1]) + 1]
        for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
            mark = "train |" if said[start] else "      |"
            text = visible(data.tokenizer.decode(ids[start:stop].tolist()))  # a terminal would obey control characters
            lines += [f"{mark} {line}" for line in text.replace("\n", "⏎\n").removesuffix("\n").split("\n")]
        if length > len(ids):
            lines.append(f"(cut off here: seq_len is {seq_len})" if said[1:].any() else f"(left out: seq_len is {seq_len})")
        yield "\n".join(lines)


def _incomplete(data: Conversations, seq_len: int) -> Iterator[str]:
    """One sentence for each reason why some conversations are not trained on completely."""
    cut_off = data.train.cut_off(seq_len) + data.val.cut_off(seq_len)
    left_out = data.train.left_out(seq_len) + data.val.left_out(seq_len)
    if cut_off:
        yield f"{cut_off:,} of them are longer than seq_len, {seq_len} tokens, and are cut off"
    if left_out:
        yield f"{left_out:,} of them are left out, because no answer begins in their first {seq_len} tokens (see --seq-len)"
    if data.spelled:
        yield f"{data.spelled:,} of them spell special tokens, which are read as plain text"
    if data.unended:
        yield f"{data.unended:,} answers end without a special token, so they do not teach the model where to stop"


def _finish(tuning: Tuning, trainer: Trainer, tokenizer: Tokenizer | CharTokenizer, out: Path) -> None:
    """Evaluate the best checkpoint, and write it in the formats of other programs."""
    model = trainer.model
    best = checkpoint.find_step(out, "best")
    checkpoint.load_checkpoint(best, model)
    loss = final_evaluation(trainer)
    if trainer.skipped:
        print(f"{trainer.skipped} step(s) were skipped because the loss or its gradient was not finite")
    if model.adapter:
        with published(out / "adapter", peft.CONFIG, checksums=True) as part:
            model.save_adapter(part, base=tuning.model.resolve())
            _save_tokenizer(tuning, tokenizer, part)
        print(f"adapter: {out / 'adapter'}")
        model.merge_adapter()
    with published(out / "model", huggingface.CONFIG, checksums=True) as part:
        model.save(part)
        _save_tokenizer(tuning, tokenizer, part)
    print(f"model: {out / 'model'}, from the best checkpoint, {best.name}\n{in_words(loss)}", flush=True)


def _save_tokenizer(tuning: Tuning, tokenizer: Tokenizer | CharTokenizer, folder: Path) -> None:
    tokenizer.save(folder)
    _copy_template(tuning, tokenizer, folder)


def _copy_template(tuning: Tuning, tokenizer: Tokenizer | CharTokenizer, folder: Path) -> None:
    """Copy the files that define the chat template."""
    known = getattr(tokenizer, "folder", None)  # a CharTokenizer has none
    try:
        if has_chat_template(tokenizer) or tuning.chat_template:
            for name in TEMPLATE_FILES:
                source = known / name if known else None
                if source and source.exists() and source.resolve() != (folder / name).resolve():
                    write_bytes(folder / name, source.read_bytes())
        if tuning.chat_template:
            write_bytes(folder / "chat_template.jinja", tuning.chat_template.read_bytes())
    except OSError as error:
        raise NumllamaError(f"the chat template could not be written to {folder}: {error.strerror}") from error
