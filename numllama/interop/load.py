"""Load a model from any format that numllama knows, and save it in those that other programs read."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import BFLOAT16, DTYPES, INT8, TWO_BYTES, array_module, default_dtype, known_dtype, model_dtypes, real_dtype
from numllama.errors import CheckpointError, shown
from numllama.interop import gguf, gguf_write, huggingface, llama2c, peft
from numllama.interop.packages import find_model
from numllama.interop.pickles import refuse_other
from numllama.model import LoraConfig, ModelConfig, Transformer
from numllama.model.parameters import copied_parameters
from numllama.storage.checksums import check_files
from numllama.storage.files import reading
from numllama.storage.folders import published, read_steadily
from numllama.storage.gguf_file import SUFFIX
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.tokenizer.formats import only_gguf
from numllama.training import checkpoint
from numllama.training.checkpoint import STATE
from numllama.training.run_folder import check_run, is_run, read_config


class Placement(NamedTuple):
    """Where to put a model, and the dtypes of its weights and activations; None where nothing was requested."""

    device: str = "cpu"
    dtype: str | None = None
    compute_dtype: str | None = None


def load(
    path: str | PathLike,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    compute_dtype: str | None = None,
    store_as: str | None = None,
    adapter: str | PathLike | None = None,
) -> Transformer:
    """Load a model.

    Parameters
    ----------
    path : path
        A folder in Hugging Face's layout (``config.json`` and ``model.safetensors``, or shards with an index), such a
        ``.safetensors`` file, a llama2.c ``.bin``, a ``.gguf`` of llama.cpp or a folder with one, a training run (its best
        checkpoint), one step folder of a run, the folder of an adapter that names its model, or the name of an installed package
        that ships a ``.gguf``.
    device : str
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    dtype : str, optional
        dtype of the weights: ``"float32"``, ``"float64"`` or ``"bfloat16"``, on a GPU also ``"float16"``. Two bytes per weight
        are for models that would not fit otherwise. Default on a CPU float32, or float64 for a run trained in it; on a GPU
        bfloat16, or float32 if the GPU is older than Ampere (2020).
    compute_dtype : str, optional
        dtype of matrix products and activations. ``"bfloat16"`` or ``"float16"`` with float32 weights is mixed precision, for
        training. Default the dtype of the weights; on a CPU float32 for weights in two bytes. But oneDNN, if it is installed and
        the CPU can, multiplies weights stored in bfloat16 by activations that are rounded to bfloat16.
    store_as : str, optional
        ``"int8"`` rounds each row of a matrix to whole multiples of its largest number / 127, for inference on a CPU. oneDNN, if
        it is installed and the CPU can, multiplies them by activations that are rounded in the same way.
    adapter : path, optional
        A folder with low-rank updates, as `peft` writes them: see :mod:`numllama.interop.peft`.

    Raises
    ------
    CheckpointError
        If there is nothing to load, if it is damaged, a pickle, or needs something that numllama does not compute.

    Notes
    -----
    Files are memory-mapped and copied tensor by tensor, so that loading takes only the memory of the model itself.
    """
    if store_as is not None:
        _check_store_as(store_as, device, dtype)
    xp = array_module(device)  # before anything is read
    choices = *DTYPES, *(two.name for two in TWO_BYTES if xp is not np or two == BFLOAT16)
    if dtype not in (None, *choices):
        raise ValueError(f"dtype is {shown(dtype)}, but must be one of {', '.join(choices)} on {shown(device)}")
    if xp is not np and dtype is None and compute_dtype is None:
        dtype = default_dtype(device)
    model_dtypes(store_as or dtype, compute_dtype)  # before anything is read
    path, adapter = find_model(Path(path)), None if adapter is None else Path(adapter)
    with reading(path):
        return read_steadily(path, lambda: _load(path, Placement(device, store_as or dtype, compute_dtype), adapter, ()))


def _check_store_as(store_as: str, device: str, dtype: str | None) -> None:
    if store_as != INT8.name:
        raise ValueError(f"store_as is {shown(store_as)}, but must be 'int8'")
    if device != "cpu":
        raise ValueError(f"store_as is 'int8', which only 'cpu' computes with, but device is {shown(device)}")
    if dtype is not None:
        raise ValueError(f"store_as is 'int8', so dtype cannot be {shown(dtype)}: leave out one of store_as and dtype")


def _load(path: Path, where: Placement, adapter: Path | None, above: tuple[Path, ...]) -> Transformer:
    """Load a model on which the adapters in the folders `above` are based."""
    if adapter is None and (path / peft.CONFIG).exists() and not (path / huggingface.CONFIG).exists():
        above = (*above, path.resolve())
        path, adapter = peft.base_of(path), path
        if path.resolve() in above:
            raise CheckpointError(f"{adapter} is an adapter for a model that is an adapter for it")
    if adapter is not None:
        model = _load(path, where, None, above)
        if model.adapter is not None:  # an adapter that was fine-tuned further
            model.merge_adapter()
        with reading(adapter):
            peft.load_adapter(model, adapter)
        return model
    if not path.exists():
        raise CheckpointError(f"{path} does not exist (nothing is downloaded: name a folder or a file)")
    if _is_run(path):
        return _load_run(path if path.is_dir() else path.parent, where)
    refuse_other(path)
    if path.suffix == ".bin":
        config, tensors = llama2c.read(path)
        model = _model(config, tensors, where)
        model.generation_config = dict(llama2c.GENERATION)
        llama2c.keep_tables(model, tensors)
        return model
    if (file := gguf_of(path)) is not None:
        found = gguf.read(file)
    elif path.suffix == ".safetensors":
        found = huggingface.read(path.parent, path)
    elif path.is_dir():
        found = huggingface.read(path)
    else:
        raise CheckpointError(f"{path} is not a model: it must be a folder, a .safetensors file, a llama2.c .bin or a .gguf")
    check_files(path if path.is_dir() else path.parent)
    model = _model(found.config, found.tensors, where)
    model.generation_config = found.generation_config
    return model


def load_run(
    path: str | PathLike,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    compute_dtype: str | None = None,
    which: str = "best",
) -> Transformer:
    """Load the model of a training run.

    Parameters
    ----------
    path : path
        A run's folder, or one step folder of it.
    device : str
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    dtype, compute_dtype : str, optional
        dtype of the weights, and of products and activations. Default those of training; on a CPU both are float32 for a run in
        mixed precision.
    which : str
        ``"best"`` or ``"latest"``. The best checkpoint of a run without an evaluation is the latest.
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
    if dtype is None and compute_dtype is None:
        compute_dtype = real_dtype(known_dtype(state["dtype"])).name if device == "cpu" else state["dtype"]
    config, lora = checkpoint.model_config(folder, state), checkpoint.lora_config(folder, state)
    checkpoint.check_header(folder, config, lora)
    if lora:
        model = _load_adapted(folder.parent, state["lora"], Placement(device, dtype, compute_dtype))
    else:
        model = Transformer(config, device=device, dtype=dtype, compute_dtype=compute_dtype)
    checkpoint.load_checkpoint(folder, model)
    return model


def _load_adapted(run: Path, lora: dict[str, Any], where: Placement) -> Transformer:
    """The base model of a run, with a new adapter whose values are loaded later."""
    settings = read_config(run)
    base = settings.get("tuning", {}).get("model")
    if not isinstance(base, str) or not find_model(Path(base)).exists():
        raise CheckpointError(f"{run} holds an adapter for the model {base}, which is not there")
    model = load(base, **where._asdict())
    if model.adapter is not None:
        model.merge_adapter()
    model.add_adapter(LoraConfig(**lora))
    return model


class OpenedModel(NamedTuple):
    """A model and its tokenizer."""

    model: Transformer
    tokenizer: Tokenizer | CharTokenizer


def open_model(
    path: Path,
    tokenizer: Path | None = None,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    compute_dtype: str | None = None,
    store_as: str | None = None,
) -> OpenedModel:
    """Load a model and its tokenizer; see :func:`load` and :func:`load_tokenizer`."""
    model = load(path, device=device, dtype=dtype, compute_dtype=compute_dtype, store_as=store_as)
    return OpenedModel(model, load_tokenizer(path, tokenizer))


def load_tokenizer(model: Path, tokenizer: Path | None = None) -> Tokenizer | CharTokenizer:
    """Load the named tokenizer, by default the one in the model's folder; for a step folder, the one in the run's folder."""
    model = find_model(model)
    if tokenizer is None and model.suffix == SUFFIX:
        return Tokenizer.load(model)
    folder = model if model.is_dir() else model.parent
    return Tokenizer.load(tokenizer or (folder.parent if folder.name.startswith("step-") else folder))


def save(model: Transformer, path: str | PathLike, tokenizer: Any = None, dtype: str | None = None) -> None:
    """Save a model in a format that other programs read.

    Parameters
    ----------
    model : Transformer
    path : path
        A folder, for Hugging Face's layout: ``config.json``, ``model.safetensors`` in the dtype of the weights, and
        ``generation_config.json``. It opens in ``transformers`` if the model is of a family there; others are saved in the same
        layout for :func:`load`. A name that ends in ``.bin`` is written for llama2.c, one that ends in ``.gguf`` for llama.cpp.
    tokenizer : optional
        Saved into the same folder or ``.gguf``.
    dtype : str, optional
        How a ``.gguf`` stores matrices: ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"q8_0"``. Default as the model does.

    Raises
    ------
    CheckpointError
        If it cannot be written; the previous files stay as they are.
    ValueError
        If llama2.c's format or GGUF cannot hold the model.
    """
    path = Path(path)
    if model.adapter is not None:
        raise ValueError("the model has an adapter: merge_adapter() makes it part of the weights, save_adapter() saves only it")
    if model.dtype == INT8:
        raise ValueError("weights stored as int8 are rounded and cannot be saved: load the model without store_as")
    if path.suffix == SUFFIX:
        gguf_write.save(model, path, tokenizer, dtype)
        return
    if dtype is not None:
        raise ValueError(f"dtype is {shown(dtype)}, but only a .gguf can store weights in another way than the model does")
    if path.suffix == ".bin":
        if tokenizer is not None:
            raise ValueError("a llama2.c file cannot hold a tokenizer: save it to another file")
        llama2c.save(model, path)
        return
    if path.suffix == ".safetensors" or path.is_file():
        raise ValueError(f"path is {path}, but must be a folder or end in .bin or .gguf")
    if _is_run(path):
        raise ValueError(f"path is {path}, which holds a training run: save the model to another folder")
    with published(path, huggingface.CONFIG) as part:
        huggingface.save_folder(model, part)
        if tokenizer is not None:
            tokenizer.save(part)


def gguf_of(path: Path) -> Path | None:
    """The GGUF file that a path or package names, or that is in a folder which holds a model in no other form."""
    path = find_model(path)
    if path.suffix == SUFFIX:
        return path
    return only_gguf(path) if path.is_dir() and not (path / huggingface.CONFIG).exists() else None


def _is_run(path: Path) -> bool:
    """Whether a path is a run's folder, a step folder, or the weights in one."""
    folder = path.parent if path.suffix == ".safetensors" else path
    if any((folder / name).exists() for name in (STATE, "best.json", "latest.json")):
        return True
    return is_run(folder)  # a run without a checkpoint


def _load_run(folder: Path, where: Placement) -> Transformer:
    is_rounded = where.dtype is not None and model_dtypes(where.dtype, None)[0] in (*TWO_BYTES, INT8)
    model = load_run(folder) if is_rounded else load_run(folder, **where._asdict())
    if is_rounded:  # from the float32 that training keeps
        if model.adapter is not None:
            model.merge_adapter()
        model = _model(model.config, model.params, where)
    run = folder.parent if (folder / STATE).exists() else folder
    if (run / huggingface.GENERATION).exists():  # the model was fine-tuned
        model.generation_config = huggingface.generation_config(run, {})
    return model


def _model(config: ModelConfig, tensors: Mapping[str, Any], where: Placement) -> Transformer:
    xp = array_module(where.device)
    weights, compute = model_dtypes(where.dtype, where.compute_dtype, on_cpu=xp is np)
    params = copied_parameters(config, tensors, weights, xp)
    return Transformer(config, device=where.device, compute_dtype=compute, params=params)
