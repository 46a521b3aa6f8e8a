"""Fine-tuning on conversations, as the command line does it: all weights, or an adapter.

    OUT/step-000060/ ...    checkpoints, as of any training run; with an adapter, of the adapter alone
    OUT/adapter/            the best one, as `peft` keeps it
    OUT/model/              the best model, merged if there is an adapter, with tokenizer and chat template
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from numllama.backend import TWO_BYTES, array_module, default_dtype, known_dtype
from numllama.commands.train_run import check_new, default_folder, ends_when_told, final_evaluation, go_on, in_words, only_run_in
from numllama.data.conversations import Conversations, load_conversations
from numllama.errors import CheckpointError, DataError, NumllamaError, shown, visible
from numllama.generation.chat import has_chat_template
from numllama.generation.text import opening
from numllama.interop import huggingface, peft
from numllama.interop.load import open_model
from numllama.model import LoraConfig, Transformer
from numllama.storage.files import reading, write_bytes
from numllama.storage.folders import published
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.training import checkpoint, run_folder
from numllama.training.config import TUNING, TUNING_VALUES, TrainConfig, tuning_lr
from numllama.training.trainer import Trainer

TEMPLATE_FILES = ("tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


@dataclass(frozen=True)
class Tuning:
    """What is tuned, and on what.

    Attributes
    ----------
    model : path
        Whatever :func:`numllama.load` reads.
    data, val_data : path
        See :func:`numllama.data.conversations.load_conversations`.
    tokenizer : path, optional
        Default the one beside the model.
    chat_template : path, optional
        A file in Jinja's language; default the model's own.
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
        paths = {name: None if path is None else str(path.resolve()) for name, path in paths.items()}
        return paths | {"lora": self.lora.to_dict() if self.lora else None, "dtype": self.dtype}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Tuning":
        """The inverse of :meth:`to_dict`."""
        others = {"lora": LoraConfig(**values["lora"]) if values["lora"] else None, "dtype": values.get("dtype")}
        paths = {name: None if path is None else Path(path) for name, path in values.items() if name not in others}
        return cls(**paths, **others)


@ends_when_told
def finetune_run(
    tuning: Tuning, out: Path | None, device: str, epochs: float | None, train_changes: dict[str, Any], show: int = 0
) -> int:
    """Fine-tune from the beginning; returns the exit code.

    Parameters
    ----------
    tuning : Tuning
    out : path, optional
        The run's folder; default a new one under runs/.
    device : str
    epochs : float, optional
        How often each row is seen, where ``steps`` is not given; default 3.
    train_changes : dict
        Fields of TrainConfig that differ from the defaults of fine-tuning.
    show : int
        Print so many conversations as the model would see them, and do nothing else.
    """
    if show < 0:
        raise ValueError(f"show is {show}, but must be a number of conversations")
    _check_alone(train_changes)
    TrainConfig(**train_changes)  # checked before the model is read
    if epochs is not None and not epochs > 0:
        raise ValueError(f"epochs is {epochs}, but must be a positive number")
    out = out or default_folder(f"{tuning.model.resolve().name}-tuned", resume=False)
    if not show:
        check_new(out)
    model, data = _open(tuning, device, train_changes.get("compute_dtype"), train_changes.get("seed", 0))
    config = _recipe(tuning, model, data, epochs or TUNING["epochs"], train_changes)
    if show:
        print("\n\n".join(islice(shown_conversations(data, config.seq_len), show)))
        return 0
    trainer = Trainer(model, data, config, out, workers=config.make_workers(model))
    with only_run_in(out, begun=False):
        return _go_on(tuning, trainer)


@ends_when_told
def resume_run(out: Path, device: str, train_changes: dict[str, Any]) -> int:
    """Go on with a fine-tuning that was interrupted."""
    _check_alone(train_changes)
    about = run_folder.read_config(out)
    try:
        tuning, config = Tuning.from_dict(about["tuning"]), TrainConfig(**about["train"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{out} holds no fine-tuning to resume: its config.json lacks or mistakes {error}") from error
    before, config = config, replace(config, **train_changes)
    trainer = Trainer(*_open(tuning, device, config.compute_dtype, config.seed), config, out)
    with only_run_in(out, begun=True):
        if checkpoint.step_folders(out) or (out / "latest.json").exists():  # else it was killed before its first checkpoint
            trainer.resume()
        return _go_on(tuning, trainer, before)


def _check_alone(train_changes: dict[str, Any]) -> None:
    parallel = train_changes.get("parallel", "threads")
    if parallel != "threads":
        raise ValueError(f"parallel is {shown(parallel)}, but fine-tuning is done by one process: it must be 'threads'")


def _open(tuning: Tuning, device: str, compute_dtype: str | None, seed: int) -> tuple[Transformer, Conversations]:
    """The model, with a new adapter if there is to be one, and the conversations as its tokens."""
    array_module(device)  # before anything is read
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
    if new_stops:  # an answer ends there, whatever the checkpoint said
        model.generation_config = {**model.generation_config, "eos_token_id": [*model.stop_ids, *new_stops]}
    if tuning.lora:
        model.add_adapter(tuning.lora, seed=seed)
    return model, data


def _recipe(
    tuning: Tuning, model: Transformer, data: Conversations, epochs: float, changes: dict[str, Any]
) -> TrainConfig:
    """The settings of fine-tuning. Few conversations make short rows and small batches, or a model would end where it began."""
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


def _go_on(tuning: Tuning, trainer: Trainer, before: TrainConfig | None = None) -> int:
    model, data, seq_len = trainer.model, trainer.data, trainer.config.seq_len
    trainer.write_config(lambda folder: _copy_template(tuning, data.tokenizer, folder), tuning=tuning.to_dict())
    rows = data.train.rows(seq_len)
    print(
        f"DATA: {tuning.data}, {len(data.train.documents):,} conversations in {len(rows):,} rows to learn from "
        f"and {len(data.val.documents):,} to validate"
    )
    for sentence in _about(data, seq_len):
        print(sentence)
    if model.adapter:
        print(f"learnt: {model.trainable.flat.size:,} parameters of an adapter, {len(model.adapter.config.targets)} maps a layer")
    return go_on(trainer, lambda trainer: _finish(tuning, trainer), before=before)


def shown_conversations(data: Conversations, seq_len: int) -> Iterator[str]:
    """Each conversation as the model sees it, in lines of what is learnt and what is not."""
    for number, (ids, said) in enumerate(data.train.documents, start=1):
        ids, said, length = ids[: seq_len + 1], said[: seq_len + 1], len(ids)
        lines = [f"conversation {number}: {length} tokens, {said[1:].sum()} of them learnt"]
        starts = [0, *np.flatnonzero(said[1:] != said[:-1]) + 1]
        for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
            mark = "learnt |" if said[start] else "       |"
            text = visible(data.tokenizer.decode(ids[start:stop].tolist()))  # a terminal would obey what it is not shown
            lines += [f"{mark} {line}" for line in text.replace("\n", "⏎\n").removesuffix("\n").split("\n")]
        if length > len(ids):
            lines.append(f"(cut off here, by seq_len {seq_len})" if said[1:].any() else f"(left out: seq_len is {seq_len})")
        yield "\n".join(lines)


def _about(data: Conversations, seq_len: int) -> Iterator[str]:
    """What a reader should know of the conversations that are not trained on as a whole."""
    cut_off = data.train.cut_off(seq_len) + data.val.cut_off(seq_len)
    left_out = data.train.left_out(seq_len) + data.val.left_out(seq_len)
    if cut_off:
        yield f"{cut_off:,} of them are longer than seq_len, which is {seq_len}, and are cut off there"
    if left_out:
        yield f"{left_out:,} of them are left out: no word of an answer stands within the first {seq_len} tokens (see --seq-len)"
    if data.spelled:
        yield f"{data.spelled:,} of them spell special tokens, which are ordinary text there"
    if data.unended:
        yield f"{data.unended:,} answers end with no special token, so the model does not learn from them where to stop"


def _finish(tuning: Tuning, trainer: Trainer) -> None:
    """Evaluate the best checkpoint, and write it as others read it."""
    model, tokenizer, out = trainer.model, trainer.data.tokenizer, trainer.out
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
    """The files that say how a conversation is written."""
    try:
        if has_chat_template(tokenizer) or tuning.chat_template:
            for name in TEMPLATE_FILES:
                source = tokenizer.folder / name if tokenizer.folder else None
                if source and source.exists() and source.resolve() != (folder / name).resolve():
                    write_bytes(folder / name, source.read_bytes())
        if tuning.chat_template:
            write_bytes(folder / "chat_template.jinja", tuning.chat_template.read_bytes())
    except OSError as error:
        raise NumllamaError(f"the chat template could not be written to {folder}: {error.strerror}") from error
