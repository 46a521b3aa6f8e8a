"""A run's folder: the files beside its checkpoints, what tells it from other runs, and whether all in it was written there.

    RUN/config.json        how the run was started, its name among all runs, checksums of the tokenizer's files and of itself
    RUN/result.json        what came of it, and a checksum of itself

Every file says which run it belongs to. Runs of older versions have neither names nor a list of files, and open all the same.
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
LEGACY_KEYS = ("version", "data_name", "data", "tokenizer", "model", "train", "tuning")  # a config.json of before its checksum
STARTED = ("data", "tokenizer", "vocab_size", "tuning", "loop")  # how to start a run again
OWN_LOOP = "own"
LOOKED_AT = 2**16  # of a model's parameters, to tell it from others
WITHOUT_EFFECT = (  # on weights; steps have one, but a run may get more of them
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
    """Write what is in a run's folder beside its checkpoints; returns the run's name among all runs.

    Parameters
    ----------
    run : path
        The folder, which is there.
    model : Transformer
    data : Dataset or Conversations
    config : TrainConfig
    write : callable, optional
        Given a folder, writes more files into it.
    start : mapping
        How to start the run again; default what can be told from the data.
    resumed : bool
        The run has begun before: it keeps its name, and its files if they are what was written.
    name : str, optional
        Which that is, as its checkpoint says; default, as its config.json does.
    """
    before = {}
    if resumed and is_there(run / CONFIG):
        with suppress(DamagedError):
            before = read_config(run)
    name, files = str(name or before.get("id") or name_of(model, data, config)), before.get("files")
    if not resumed:
        for left in (CONFIG, RESULT):  # of a run that was killed before its first checkpoint
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
    """What tells a run from others: runs of one name come to the same bits, wherever they are."""
    settings = {name: value for name, value in config.to_dict().items() if name not in WITHOUT_EFFECT}
    weights = fingerprint(model.trainable)
    return checksum({"model": model.config.to_dict(), "train": settings, "data": data.fingerprint(), "weights": weights})[:32]


def fingerprint(params: "Parameters") -> str:
    """A checksum of some of the parameters, spread over all."""
    some = to_numpy(params.flat[:: max(1, params.flat.size // LOOKED_AT)])
    return hashlib.sha256(some.tobytes()).hexdigest()


def _write_files(
    run: Path, model: "Transformer", data: Any, write: Callable[[Path], object] | None
) -> dict[str, str]:
    """Write the tokenizer and whatever else is written once; returns their checksums."""
    with published(run) as part:
        if data.tokenizer:
            data.tokenizer.save(part)
        if model.generation_config:
            write_json(part / GENERATION, model.generation_config)
        if write:
            write(part)
        return {path.name: file_checksum(path) for path in sorted(part.iterdir()) if not path.name.startswith(".")}


def start_of(data: Any) -> dict[str, Any]:
    """How to start a run of somebody's own loop again from the command line, as far as its data say."""
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
    """Older versions had one `dtype`, which for an adapter's frozen weights in two bytes was that of the weights."""
    if "dtype" in train:
        dtype = train.pop("dtype")
        if tuning is not None and tuning.get("lora") and dtype in LOW_PRECISION:
            tuning["dtype"] = dtype
        else:
            train["compute_dtype"] = dtype


def is_run(folder: Path) -> bool:
    """Whether a folder's config.json is a run's, as far as that can be read: a model's is something else."""
    path = folder / CONFIG
    with reading(path):
        if not path.exists():
            return False
    return len({"model", "train", "data_name", "seal"} & set(read_json(path))) > 1  # damage may have taken one


def identity(run: Path) -> str | None:
    """What tells a run from all others; None of one that has no config.json, or that an older version has begun."""
    with reading(run, CheckpointError):
        if not (run / CONFIG).exists():
            return None
    return read_config(run).get("id") if is_run(run) else None


def check_run(run: Path) -> None:
    """Raise DamagedError unless the small files of a run are what was written there."""
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
    """Write what came of a run."""
    write_json(run / RESULT, with_checksum({"id": identity(run), "step": step, "validation_loss": loss}))
