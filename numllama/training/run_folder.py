"""A run's folder: the files beside its checkpoints, what tells it from other runs, and whether all in it was written there.

    RUN/config.json        how the run was started, its name among all runs, and a checksum of itself
    RUN/checksums.json     of the tokenizer's files and whatever else is written once
    RUN/result.json        what came of it, and a checksum of itself

Every file says which run it belongs to. Runs of older versions have neither names nor checksums.json, and open all the same.
"""

from pathlib import Path
from typing import Any

from numllama.errors import CheckpointError, DamagedError
from numllama.storage.fields import OBJECT, TEXT, as_json, check, optional
from numllama.storage.files import check_files, read_json, read_verified, reading, with_checksum, write_json

CONFIG, RESULT = "config.json", "result.json"
FIELDS = {"model": OBJECT, "train": OBJECT, "data": optional(TEXT), "tokenizer": optional(TEXT), "id": TEXT}
UNSEALED = ("version", "data_name", "data", "tokenizer", "model", "train", "tuning")  # a config.json of before its checksum


def read_config(run: Path) -> dict[str, Any]:
    """How a run was started: its config.json, verified."""
    path = run / CONFIG
    values = read_verified(path, unsealed=UNSEALED)
    with reading(path, DamagedError):
        values["model"], values["train"]
        check(values, FIELDS, as_json)
    return values


def is_run(folder: Path) -> bool:
    """Whether a folder's config.json is a run's, as far as that can be read: a model's is something else."""
    path = folder / CONFIG
    with reading(path):
        if not path.exists():
            return False
    return {"model", "train"} <= set(read_json(path))


def identity(run: Path) -> str | None:
    """What tells a run from all others; None of one that has no config.json, or that an older version has begun."""
    with reading(run, CheckpointError):
        if not (run / CONFIG).exists():
            return None
    return read_config(run).get("id") if is_run(run) else None


def check_run(run: Path) -> None:
    """Raise DamagedError unless the small files of a run are what was written there."""
    if not is_run(run):
        return
    own = read_config(run).get("id")
    listed, path = check_files(run), run / RESULT
    result = read_verified(path, unsealed=("step", "validation_loss")) if path.exists() else {}
    for name, values in (("checksums.json", listed or {}), (RESULT, result)):
        if values.get("id", own) != own:
            raise DamagedError(f"{run / name} belongs to another run than {run}")


def write_result(run: Path, step: int, loss: float | None) -> None:
    """Write what came of a run."""
    write_json(run / RESULT, with_checksum({"id": identity(run), "step": step, "validation_loss": loss}))
