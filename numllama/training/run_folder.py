"""A run's folder: the files next to its checkpoints, the run's unique name, and checks that every file belongs to it.

    RUN/config.json        how the run was started, its unique name, checksums of the tokenizer's files and of itself
    RUN/result.json        final step and loss, and a checksum of itself

Every file names the run that it belongs to. Runs of older versions have no names or lists of files, but still open.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numllama.backend import TWO_BYTES, to_numpy
from numllama.data.dataset import Dataset
from numllama.errors import CheckpointError, DamagedError
from numllama.storage.checksums import CONFIG, check_files, checksum, file_checksum, read_verified, with_checksum
from numllama.storage.fields import OBJECT, TEXT, as_json, check, optional, whole
from numllama.storage.files import is_there, json_bytes, read_json, reading, write_bytes, write_json
from numllama.storage.folders import published
from numllama.tokenizer import CharTokenizer
from numllama.version import __version__

if TYPE_CHECKING:
    from numllama.model import Parameters, Transformer
    from numllama.training.config import TrainConfig

RESULT, GENERATION = "result.json", "generation_config.json"
FIELDS = {
    **dict.fromkeys(("model", "train", "tuning", "files"), OBJECT),
    **dict.fromkeys(("data", "tokenizer", "data_name"), optional(TEXT)),
    "id": TEXT,
    "vocab_size": optional(whole(1)),
}
LOW_PRECISION = tuple(dtype.name for dtype in TWO_BYTES)
LEGACY_KEYS = ("version", "data_name", "data", "tokenizer", "model", "train", "tuning")  # in a config.json without checksum
STARTED = ("data", "tokenizer", "vocab_size", "tuning", "loop")  # how to start a run again
OWN_LOOP = "own"
LOOKED_AT = 2**16  # approximate number of parameters in a fingerprint
WITHOUT_EFFECT = (  # on weights, except `steps`, which a resumed run may raise
    "steps", "workers", "parallel", "shard_optimizer", "timeout", "graph", "eval_batches", "final_eval", "keep",
)  # fmt: skip


def begin(
    run: Path,
    model: "Transformer",
    data: Any,
    config: "TrainConfig",
    write: Callable[[Path], object] | None,
    start: Mapping[str, Any],
    resumed: bool,
    name: str | None = None,
) -> str:
    """Write the files next to a run's checkpoints; returns the run's unique name.

    Parameters
    ----------
    run : path
        The folder, which must exist.
    model : Transformer
    data : Dataset or Conversations
    config : TrainConfig
    write : callable, optional
        Writes more files to the folder that it is given.
    start : mapping
        How to start the run again; default: derived from the data.
    resumed : bool
        The run was started before: it keeps its name, and its files if they are intact.
    name : str, optional
        That name, from the run's checkpoint; default: from its config.json.
    """
    before = {}
    if resumed and is_there(run / CONFIG):
        with suppress(DamagedError):
            before = read_config(run)
    name, files = str(name or before.get("id") or name_of(model, data, config)), before.get("files")
    if not resumed:
        for left in (CONFIG, RESULT):  # left by a run killed before its first checkpoint
            (run / left).unlink(missing_ok=True)
    if files is None or not _are_there(run):
        files = _write_files(run, model, data, write)
    about = {
        "version": __version__,
        "id": name,
        "data_name": data.name,
        **(start or {key: before[key] for key in STARTED if key in before} or start_of(data)),
        "model": model.config.to_dict(),
        "train": config.to_dict(),
        "files": files,
    }
    content = json_bytes(with_checksum(about))
    if not is_there(run / CONFIG) or (run / CONFIG).read_bytes() != content:
        write_bytes(run / CONFIG, content)
    return name


def _are_there(run: Path) -> bool:
    with suppress(DamagedError):
        return check_files(run) is not None
    return False


def name_of(model: "Transformer", data: Any, config: "TrainConfig") -> str:
    """A run's unique name: runs with the same name produce the same bits, in any folder."""
    settings = {name: value for name, value in config.to_dict().items() if name not in WITHOUT_EFFECT}
    weights = fingerprint(model.trainable)
    return checksum({"model": model.config.to_dict(), "train": settings, "data": data.fingerprint(), "weights": weights})[:32]


def fingerprint(params: "Parameters") -> str:
    """A checksum of a sample of the parameters, evenly spaced."""
    some = to_numpy(params.flat[:: max(1, params.flat.size // LOOKED_AT)])
    return hashlib.sha256(some.tobytes()).hexdigest()


def _write_files(
    run: Path, model: "Transformer", data: Any, write: Callable[[Path], object] | None
) -> dict[str, str]:
    """Write the tokenizer and all other files that are written once; returns their checksums."""
    with published(run) as part:
        if data.tokenizer:
            data.tokenizer.save(part)
        if model.generation_config:
            write_json(part / GENERATION, model.generation_config)
        if write:
            write(part)
        return {path.name: file_checksum(path) for path in sorted(part.iterdir()) if not path.name.startswith(".")}


def start_of(data: Any) -> dict[str, Any]:
    """How to restart a run of a custom loop from the command line, as far as its data tell."""
    path = Path(data.name)
    if not isinstance(data, Dataset) or not is_there(path):
        return {"data": None, "tokenizer": None, "loop": OWN_LOOP}
    is_text = path.is_file() and path.suffix not in (".bin", ".npy")
    kind = ("char" if isinstance(data.tokenizer, CharTokenizer) else "bpe") if is_text else None
    return {"data": str(path.resolve()), "tokenizer": kind, "loop": OWN_LOOP}


def read_config(run: Path) -> dict[str, Any]:
    """How a run was started: its config.json, verified."""
    path = run / CONFIG
    values = read_verified(path, legacy_keys=LEGACY_KEYS)
    with reading(path, DamagedError):
        _ = values["model"], values["train"]
        check(values, FIELDS, as_json)
        _rename_dtype(values["train"], values.get("tuning"))
    return values


def _rename_dtype(train: dict[str, Any], tuning: dict[str, Any] | None) -> None:
    """Older versions had a single `dtype`; with an adapter on two-byte weights, it meant the dtype of the weights."""
    if "dtype" in train:
        dtype = train.pop("dtype")
        if tuning is not None and tuning.get("lora") and dtype in LOW_PRECISION:
            tuning["dtype"] = dtype
        else:
            train["compute_dtype"] = dtype


def is_run(folder: Path) -> bool:
    """Whether a folder's config.json, even if damaged, is a run's; a model's has other keys."""
    path = folder / CONFIG
    with reading(path):
        if not path.exists():
            return False
    return len({"model", "train", "data_name", "seal"} & set(read_json(path))) > 1  # damage may have removed one


def identity(run: Path) -> str | None:
    """A run's unique name; None if it has no config.json, or was started by an older version."""
    with reading(run, CheckpointError):
        if not (run / CONFIG).exists():
            return None
    return read_config(run).get("id") if is_run(run) else None


def check_run(run: Path) -> None:
    """Raise DamagedError if a small file of a run is damaged or belongs to another run."""
    try:
        if not is_run(run):
            return
    except CheckpointError as error:
        raise DamagedError(str(error)) from error
    own, path = read_config(run).get("id"), run / RESULT
    check_files(run)
    result = read_verified(path, legacy_keys=("step", "validation_loss")) if path.exists() else {}
    if result.get("id", own) != own:
        raise DamagedError(f"{path} belongs to another run than {run}")


def write_result(run: Path, step: int, loss: float | None) -> None:
    """Write a run's result.json."""
    write_json(run / RESULT, with_checksum({"id": identity(run), "step": step, "validation_loss": loss}))
