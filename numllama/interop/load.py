"""Load a model, whatever it is stored as, and save it as others read it."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from numllama.backend import BFLOAT16, DTYPES, TWO_BYTES, array_module, compute_dtype, default_dtype, real_dtype
from numllama.errors import CheckpointError, shown
from numllama.interop import huggingface, llama2c, peft
from numllama.interop.pickles import refuse_other
from numllama.model import LoraConfig, ModelConfig, Transformer
from numllama.model.parameters import copied_parameters
from numllama.storage.checksums import check_files
from numllama.storage.files import reading
from numllama.storage.folders import published, read_steadily
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.training import checkpoint
from numllama.training.checkpoint import STATE
from numllama.training.run_folder import check_run, is_run, read_config

IN_TWO_BYTES = tuple(dtype.name for dtype in TWO_BYTES)


def load(
    path: str | PathLike, dtype: str | None = None, device: str = "cpu", adapter: str | PathLike | None = None
) -> Transformer:
    """A model from disk.

    Parameters
    ----------
    path : path
        A folder as Hugging Face's (``config.json`` and ``model.safetensors``, or shards with an index), such a
        ``.safetensors`` file, a llama2.c ``.bin``, or a training run (its best checkpoint) or one step folder of it. Or the
        folder of an adapter that says where its model lies.
    dtype : str, optional
        ``"float32"`` or ``"float64"``, or ``"bfloat16"`` to keep the weights in two bytes each: on a CPU, which computes in
        float32 then, for a model that would not fit otherwise; on a GPU, which computes in them, also ``"float16"``. Default
        on a CPU float32, or a training run's float64; on a GPU bfloat16, or float32 if it is from before 2020 (Ampere).
    device : str
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    adapter : path, optional
        A folder with low-rank updates, as `peft` writes them: see :mod:`numllama.interop.peft`.

    Raises
    ------
    CheckpointError
        If there is nothing to load, if it is damaged, a pickle, or of a kind that this code cannot honour.

    Notes
    -----
    Files are mapped into memory and copied tensor by tensor into the model, so that only the model itself takes memory.
    """
    xp = array_module(device)  # before anything is read
    choices = *DTYPES, *(two.name for two in TWO_BYTES if xp is not np or two == BFLOAT16)
    if dtype not in (None, *choices):
        raise ValueError(f"dtype is {shown(dtype)}, but must be one of {', '.join(choices)} on {shown(device)}")
    if xp is not np and dtype is None:
        dtype = default_dtype(device)
    path, adapter = Path(path), None if adapter is None else Path(adapter)
    with reading(path):
        return read_steadily(path, lambda: _load(path, dtype, device, adapter, ()))


def _load(path: Path, dtype: str | None, device: str, adapter: Path | None, above: tuple[Path, ...]) -> Transformer:
    """The model, below the adapters in the folders `above`."""
    if adapter is None and (path / peft.CONFIG).exists() and not (path / huggingface.CONFIG).exists():
        above = (*above, path.resolve())
        path, adapter = peft.base_of(path), path
        if path.resolve() in above:
            raise CheckpointError(f"{adapter} is an adapter for a model that is an adapter for it")
    if adapter is not None:
        model = _load(path, dtype, device, None, above)
        if model.adapter is not None:  # an adapter that was tuned further
            model.merge_adapter()
        with reading(adapter):
            peft.load_adapter(model, adapter)
        return model
    if not path.exists():
        raise CheckpointError(f"{path} does not exist (nothing is downloaded: name a folder or a file)")
    if _is_run(path):
        return _load_run(path if path.is_dir() else path.parent, dtype, device)
    refuse_other(path)
    if path.suffix == ".bin":
        config, tensors = llama2c.read(path)
        model = _model(config, tensors, dtype, device)
        model.generation_config = dict(llama2c.GENERATION)
        if "cos" in tensors:
            model.llama2c_tables = tensors["cos"].copy(), tensors["sin"].copy()
        return model
    if path.suffix == ".safetensors":
        found = huggingface.read(path.parent, path)
    elif path.is_dir():
        found = huggingface.read(path)
    else:
        raise CheckpointError(f"{path} is no model that can be read: a folder, a .safetensors file or a llama2.c .bin is")
    check_files(path if path.is_dir() else path.parent)
    config, tensors, generation_config = found
    model = _model(config, tensors, dtype, device)
    model.generation_config = generation_config
    return model


def load_run(path: str | Path, device: str = "cpu", dtype: str | None = None, which: str = "best") -> Transformer:
    """The model of a training run.

    Parameters
    ----------
    path : path
        A run's folder, or one step folder of it.
    device, dtype : str
        Where to put the model; default dtype as it was trained, on a CPU float32 for what was trained in two bytes.
    which : str
        ``"best"`` or ``"latest"``, which ``"best"`` is too of a run that was stopped before its first estimate.
    """
    path = Path(path)
    if not (path / f"{which}.json").exists() and (path / "latest.json").exists():
        which = "latest"
    folder = checkpoint.find_step(path, which)
    state = checkpoint.read_state(folder)
    check_run(folder.parent)
    for pointer in ("latest", "best"):
        if (folder.parent / f"{pointer}.json").exists():
            checkpoint.read_pointer(folder.parent / f"{pointer}.json")
    trained = real_dtype(compute_dtype(state["dtype"])).name if device == "cpu" else state["dtype"]
    config, lora = checkpoint.model_config(folder, state), checkpoint.lora_config(folder, state)
    checkpoint.check_header(folder, config, lora)
    if lora:
        model = _load_adapted(folder.parent, state["lora"], device, dtype)
    else:
        model = Transformer(config, device=device, dtype=dtype or trained)
    checkpoint.load_checkpoint(folder, model)
    return model


def _load_adapted(run: Path, lora: dict[str, Any], device: str, dtype: str | None) -> Transformer:
    """The model below a run's adapter, with an adapter that is yet to be filled."""
    about = read_config(run)
    base = about.get("tuning", {}).get("model")
    if not isinstance(base, str) or not Path(base).exists():
        raise CheckpointError(f"{run} holds an adapter for the model {base}, which is not there")
    model = load(base, dtype, device)
    if model.adapter is not None:
        model.merge_adapter()
    model.add_adapter(LoraConfig(**lora))
    return model


def open_model(
    path: Path, tokenizer: Path | None, device: str, dtype: str | None
) -> tuple[Transformer, Tokenizer | CharTokenizer]:
    """A model and its tokenizer."""
    return load(path, dtype, device), load_tokenizer(path, tokenizer)


def load_tokenizer(model: Path, tokenizer: Path | None) -> Tokenizer | CharTokenizer:
    """The tokenizer that is named, or that lies beside a model; of one step of a training run, beside the step."""
    folder = model if model.is_dir() else model.parent
    return Tokenizer.load(tokenizer or (folder.parent if folder.name.startswith("step-") else folder))


def save(model: Transformer, path: str | PathLike, tokenizer: Any = None) -> None:
    """Write a model as others read it.

    Parameters
    ----------
    model : Transformer
    path : path
        A folder, for Hugging Face's layout: ``config.json``, ``model.safetensors`` in the dtype of the weights, and
        ``generation_config.json``. It opens in ``transformers`` if the model is a Llama; anything else is written in the same
        layout for :func:`load`. Or a name that ends in ``.bin``, for llama2.c.
    tokenizer : optional
        Is told to save itself into the folder.

    Raises
    ------
    CheckpointError
        If it cannot be written; what was there before is still there.
    ValueError
        If llama2.c's format cannot hold the model.
    """
    path = Path(path)
    if model.adapter is not None:
        raise ValueError("the model has an adapter: merge_adapter() makes it part of the weights, save_adapter() saves it alone")
    if path.suffix == ".bin":
        if tokenizer is not None:
            raise ValueError(f"a llama2.c file has no place for a tokenizer: save it beside {path.name}")
        llama2c.save(model, path)
        return
    if path.suffix == ".safetensors" or path.is_file():
        raise ValueError(f"path is {path}, but must be a folder or end in .bin")
    if _is_run(path):
        raise ValueError(f"path is {path}, which holds a training run: save the model to another folder")
    with published(path, huggingface.CONFIG) as part:
        huggingface.save_folder(model, part)
        if tokenizer is not None:
            tokenizer.save(part)


def _is_run(path: Path) -> bool:
    """A run's folder, a step folder, or the weights in one."""
    folder = path.parent if path.suffix == ".safetensors" else path
    if any((folder / name).exists() for name in (STATE, "best.json", "latest.json")):
        return True
    return is_run(folder)  # one that has no checkpoint yet


def _load_run(folder: Path, dtype: str | None, device: str) -> Transformer:
    in_two_bytes = dtype in IN_TWO_BYTES  # and without the float32 that training needs
    model = load_run(folder, *(("cpu", None) if in_two_bytes else (device, dtype)))
    if in_two_bytes:
        if model.adapter is not None:
            model.merge_adapter()
        model = _model(model.config, model.params, dtype, device)
    run = folder.parent if (folder / STATE).exists() else folder
    if (run / huggingface.GENERATION).exists():  # of a model that was fine-tuned
        model.generation_config = huggingface.generation_config(run, {})
    return model


def _model(config: ModelConfig, tensors: Mapping[str, Any], dtype: str | None, device: str) -> Transformer:
    xp = array_module(device)
    stored = dtype or "float32"
    computed = "float32" if xp is np and stored in IN_TWO_BYTES else stored
    params = copied_parameters(config, tensors, np.dtype(compute_dtype(stored)), xp)
    return Transformer(config, device=device, dtype=computed, params=params)
