"""The fields of a checkpoint's state.json and of the pointers to it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numllama.errors import CheckpointError, shown
from numllama.storage.fields import OBJECT, TEXT, Kind, as_json, check, is_number, number, one_of, optional, require, whole

LOADED = ("step", "model", "dtype", "optimizer_steps", "sha256")  # required in every state.json
RESUMED = ("train", "data", "val_loss", "best", "skipped", "skipped_in_a_row")  # also required to resume a run
POINTER = {"pointer": optional(TEXT), "run": optional(TEXT), "log": optional(OBJECT)}
NUMBERS = Kind(lambda value: isinstance(value, list) and all(map(is_number, value)), "must be a list of numbers")
FIELDS = {
    "format": whole(),
    "step": whole(),
    "run": optional(TEXT),
    "model": OBJECT,
    "lora": optional(OBJECT),
    "below": optional(OBJECT),
    "dtype": one_of("float32", "float64", "bfloat16", "float16"),
    "optimizer_steps": whole(),
    "sha256": Kind(
        lambda value: isinstance(value, dict) and all(isinstance(digest, str) for digest in value.values()),
        "must be the checksums of files",
    ),
    "train": OBJECT,
    "data": OBJECT,
    "val_loss": optional(number()),
    "best": optional(number()),
    "best_step": optional(whole()),
    "losses": NUMBERS,
    "skipped": whole(),
    "skipped_in_a_row": whole(),
    "scale": Kind(lambda value: NUMBERS.fits(value) and len(value) == 2, "must be a scale and a number of steps"),
}


def check_state(state: Mapping[str, Any], needed: Sequence[str]) -> None:
    """ValueError if a field is missing or invalid."""
    require(state, needed)
    check(state, FIELDS, as_json)


def check_continues(folder: Path, state: Mapping[str, Any], data: Mapping[str, Any], optimizer: str) -> None:
    """CheckpointError if a step folder was written by a run on different data or with another optimizer."""
    saved = state["data"]
    if any(saved.get(name, data[name]) != data[name] for name in ("train_tokens", "vocab_size", "sha256")):
        raise CheckpointError(f"{folder} was trained on other data: {shown(saved.get('name'), quote=False)}")
    was = state["train"].get("optimizer")
    if was != optimizer:
        raise CheckpointError(f"{folder} was trained with {was}, whose moments fit no other, but optimizer is {shown(optimizer)}")
