"""Golden vectors: a small Llama with every number that another implementation has to reproduce, in one folder.

    manifest.json           what each tensor is, the configuration, losses, ids, tolerances
    float64.safetensors     all tensors
    float32.safetensors     the same, rounded: nothing was computed in float32
    npy/float64/NAME.npy    the same as single files, if requested
docs/vectors.md describes the format. float32 can hold the weights exactly, so both files have the same model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numllama import ops
from numllama.checks import check_ids
from numllama.errors import CheckpointError, shown
from numllama.generation import sampling
from numllama.generation.generate import generate
from numllama.interop.load import load
from numllama.learn import plain_llama
from numllama.learn.tracing import check_is_plain
from numllama.model.config import ModelConfig
from numllama.model.parameters import copied_parameters
from numllama.model.transformer import Transformer
from numllama.ops import IGNORE
from numllama.optim import AdamW, clip_grad_norm
from numllama.storage.files import read_json, reading, write_json
from numllama.storage.folders import published
from numllama.storage.tensor_file import safetensors
from numllama.tokenizer.train_bpe import train_on_text
from numllama.version import __version__

FORMAT, VERSION, MANIFEST, TENSORS = "numllama vectors", 1, "manifest.json", "float64.safetensors"
DTYPES = {"float64": (np.float64, np.int64), "float32": (np.float32, np.int32)}  # of real numbers, and of integers
# Relative error, |a - b| / |b| over a tensor, up to which a right implementation in a dtype may differ.
TOLERANCES = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 5e-2}
B, T, NEW_TOKENS, STEPS = 2, 5, 6, 10
ADAMW: dict[str, Any] = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
CLIP = 1.0
FILTERS = {"top_k": (sampling.keep_top_k, 3), "top_p": (sampling.keep_top_p, 0.7), "min_p": (sampling.keep_min_p, 0.2)}
TEXT = "the king shall sing, and the queen shall sing; thinking of the kingly thing"
CASES = ("the thing", "sing", "The  king!\n", "naïve – 王", "")


class Standard(NamedTuple):
    """A configuration, and what is done to its batch."""

    config: dict[str, Any]
    batch: "Callable[[Batch], Batch]" = lambda batch: batch


class Batch(NamedTuple):
    """Integer arrays (B, T); `segments` numbers the documents that are packed into one sequence."""

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray | None = None


def _ignored(batch: Batch) -> Batch:
    """Every second target of the first sequence does not count."""
    targets = batch.targets.copy()
    targets[0, ::2] = IGNORE
    return batch._replace(targets=targets)


def _padded(batch: Batch) -> Batch:
    """The second sequence begins two tokens later: its padding is a document of its own, without targets."""
    targets, segments = batch.targets.copy(), np.zeros_like(batch.tokens)
    targets[1, :2] = IGNORE
    segments[1, 2:] = 1
    return Batch(batch.tokens, targets, segments)


def _packed(batch: Batch) -> Batch:
    """Two documents in the first sequence, three in the second; no token predicts the next document's first one."""
    segments = np.array([[0, 0, 0, 1, 1], [0, 1, 1, 1, 2]])
    targets = batch.targets.copy()
    targets[:, :-1][segments[:, :-1] != segments[:, 1:]] = IGNORE
    return Batch(batch.tokens, targets, segments)


_SMALL = dict(vocab_size=11, dim=16, n_layers=2, n_heads=4, ffn_dim=12, max_seq_len=32, rope_theta=100.0)
_LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
STANDARD = {
    "mha": Standard(_SMALL | dict(ffn_dim=8)),
    "gqa": Standard(_SMALL | dict(n_kv_heads=2)),
    "mqa": Standard(_SMALL | dict(n_kv_heads=1)),
    "interleaved": Standard(_SMALL | dict(n_kv_heads=2, rope_layout="interleaved")),
    "llama3-scaling": Standard(_SMALL | dict(n_kv_heads=2, rope_scaling=_LLAMA3)),
    "tied": Standard(_SMALL | dict(n_kv_heads=2, tie_embeddings=True)),
    "qk-norm": Standard(_SMALL | dict(n_kv_heads=2, ffn_dim=8, qk_norm="rms")),
    "odd-sizes": Standard(dict(vocab_size=13, dim=15, n_layers=2, n_heads=3, n_kv_heads=1, head_dim=6, ffn_dim=7, max_seq_len=9)),
    "large-eps": Standard(_SMALL | dict(n_kv_heads=2, norm_eps=0.5)),
    "ignored": Standard(_SMALL | dict(n_kv_heads=2), _ignored),
    "padded": Standard(_SMALL | dict(n_kv_heads=2), _padded),
    "packed": Standard(_SMALL | dict(n_kv_heads=2), _packed),
}  # fmt: skip


@dataclass(frozen=True)
class Vectors:
    """A model's numbers.

    Attributes
    ----------
    config : ModelConfig
    manifest : dict
        What is not a tensor: see docs/vectors.md.
    tensors : dict of str to array
        In the order of computation; float64 and int64.
    """

    config: ModelConfig
    manifest: dict[str, Any]
    tensors: dict[str, np.ndarray]


# ------------------------------------------------------------------------------------------------ making them


def standard_vectors(name: str, seed: int = 0) -> Vectors:
    """The vectors of a standard configuration; `STANDARD` lists them."""
    if name not in STANDARD:
        raise ValueError(f"name is {shown(name)}, but must be one of {', '.join(STANDARD)}")
    standard, rng = STANDARD[name], np.random.default_rng([seed, *map(ord, name)])
    config = ModelConfig(**standard.config)
    params = Transformer(config, dtype="float64").params
    for value in params.values():  # gains and scores that differ from token to token
        value[...] = (rng.normal(0, 0.4, value.shape) + (value.ndim == 1)).astype(np.float32)
    ids = rng.integers(0, config.vocab_size, (B, T + 1))
    return vectors_of(params, config, standard.batch(Batch(ids[:, :-1], ids[:, 1:])), name=name, seed=seed)


def vectors_of(
    params: Mapping[str, np.ndarray], config: ModelConfig, batch: Batch, *, name: str = "", seed: int = 0
) -> Vectors:
    """The vectors of a plain Llama.

    Parameters
    ----------
    params : mapping of str to array
        Weights; they are converted to float64.
    config : ModelConfig
        RMSNorm, RoPE, SwiGLU, no biases.
    batch : Batch
    name, seed : str, int
        Written into the manifest.
    """
    weights = copied_parameters(config, params, np.dtype(np.float64))
    run = plain_llama.loss_and_grads(weights, config, *batch)
    tensors = {key: array for key, array in batch._asdict().items() if array is not None}
    tensors |= {f"weights/{key}": np.array(value) for key, value in weights.items()}
    tensors |= _rope(config, batch) | _values("values", run.outer.values, [block.values for block in run.blocks])
    tensors |= _values("d_values", run.d_outer, run.d_blocks)
    tensors |= {f"d_weights/{key}": value for key, value in run.grads.items()}
    manifest = {
        "format": FORMAT, "version": VERSION, "name": name, "seed": seed, "config": config.to_dict(), "loss": run.loss,
        "made_by": {"numllama": __version__, "numpy": np.__version__}, "tolerances": TOLERANCES,
    }  # fmt: skip
    for part in (_decoding, _filters, _optimizer):  # the optimizer comes last: it changes the weights
        described, more = part(weights, config, batch)
        manifest[part.__name__.removeprefix("_")], tensors = described, tensors | more
    return Vectors(config, manifest | {"tokenizer": _tokenizer()}, tensors)


def _values(kind: str, outer: Any, blocks: Sequence[Any]) -> dict[str, np.ndarray]:
    """Values, or gradients of the loss with respect to them, by name. Hidden scores are zeros instead of minus infinity."""
    named = {f"{kind}/embedding": outer.embedding}
    for i, block in enumerate(blocks):
        named |= {f"{kind}/layer.{i}.{name}": value for name, value in vars(block).items()}
    named |= {f"{kind}/{name}": np.asarray(getattr(outer, name), np.float64) for name in ("norm", "logits", "loss")}
    return {name: np.where(np.isneginf(value), 0, value) for name, value in named.items()}


def _rope(c: ModelConfig, batch: Batch) -> dict[str, np.ndarray]:
    positions, _ = plain_llama.positions_and_mask(batch.tokens.shape[1], batch.segments)
    cos, sin = ops.rope_table(positions, c.head_dim, c.rope_theta, c.rope_scaling, "float64")
    return {"positions": positions, "rope/cos": cos, "rope/sin": sin}


def _decoding(weights: Any, c: ModelConfig, batch: Batch) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Greedy decoding after the first two tokens of the first sequence: ids, and the logits that each was taken from."""
    model = Transformer(c, params=weights)
    prompt = batch.tokens[0, :2].tolist()
    ids = generate(model, prompt, min(NEW_TOKENS, c.max_seq_len - len(prompt)), temperature=0)
    logits = model.forward(np.array([prompt + ids[:-1]]))[0, len(prompt) - 1 :]                  # (new, V)
    return {"prompt": prompt, "ids": ids}, {"decoding/logits": logits}


def _filters(weights: Any, c: ModelConfig, batch: Batch) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Which tokens the filters of sampling keep of the first sequence's logits: 1 or 0."""
    logits = Transformer(c, params=weights).forward(batch.tokens[:1])[0]                         # (T, V)
    kept = {f"filters/{name}": np.isfinite(keep(logits, most)).astype(np.int64) for name, (keep, most) in FILTERS.items()}
    return {name: most for name, (_, most) in FILTERS.items()}, {"filters/logits": logits} | kept


def _optimizer(weights: Any, c: ModelConfig, batch: Batch) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Steps of AdamW on the same batch, with clipping: losses and norms before each step, and the weights after the last."""
    model = Transformer(c, params=weights)
    optimizer, losses, norms = AdamW(weights, **ADAMW), [], []
    for _ in range(STEPS):
        loss, grads = model.loss_and_grads(batch.tokens, batch.targets, segments=batch.segments)
        losses.append(float(loss))
        norms.append(float(clip_grad_norm(grads, CLIP)))
        optimizer.step(grads)
    settings = ADAMW | {"betas": list(ADAMW["betas"]), "clip": CLIP, "decays": "matrices only"}
    return {**settings, "losses": losses, "norms": norms}, {f"after/{key}": np.array(value) for key, value in weights.items()}


def _tokenizer() -> dict[str, Any]:
    """A small byte-level BPE, whose first ids are the 256 bytes: its merges in order, in hex, and the ids of some texts."""
    tokenizer = train_on_text(TEXT, 256 + 12)
    merges = [[left.hex(), right.hex()] for left, right in tokenizer.merges]
    cases = [{"text": text, "ids": tokenizer.encode(text)} for text in CASES]
    return {"pattern": tokenizer.pattern, "merges": merges, "cases": cases}


# ------------------------------------------------------------------------------------------------ files


def write_vectors(vectors: Vectors, folder: Path, *, npy: bool = False) -> None:
    """Write a folder of vectors; `npy` adds a file for each tensor."""
    entries = [{"name": name, "shape": list(array.shape), "kind": array.dtype.kind} for name, array in vectors.tensors.items()]
    with published(folder, MANIFEST) as part:
        for dtype in DTYPES:
            tensors = {name: _converted(array, dtype) for name, array in vectors.tensors.items()}
            (part / f"{dtype}.safetensors").write_bytes(safetensors().save(tensors))
            for name, array in tensors.items() if npy else ():
                path = part / "npy" / dtype / f"{name}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, array)
        write_json(part / MANIFEST, vectors.manifest | {"tensors": entries})


def write_requested(
    name: str, out: Path, ids: Sequence[int] | None = None, seed: int = 0, npy: bool = False
) -> Iterator[tuple[Path, float]]:
    """Write the vectors of a standard configuration, of all, or of a model's files; yields each folder and its loss."""
    if name in STANDARD or name == "all":
        if ids is not None:
            raise ValueError(f"ids are for a model of your own: {name} has tokens of its own")
        made = ((out / each, standard_vectors(each, seed)) for each in STANDARD) if name == "all" else [
            (out, standard_vectors(name, seed))
        ]
    else:
        made = [(out, model_vectors(Path(name), ids, seed))]
    for folder, vectors in made:
        write_vectors(vectors, folder, npy=npy)
        yield folder, vectors.manifest["loss"]


def model_vectors(path: Path, ids: Sequence[int] | None = None, seed: int = 0) -> Vectors:
    """The vectors of a model's files, on the given ids or on random ones."""
    if not path.exists():
        raise CheckpointError(f"{path} is neither a file or folder nor one of {', '.join(STANDARD)}")
    model = load(path, dtype="float64")
    check_is_plain(model)
    c = model.config
    random = np.random.default_rng(seed).integers(0, c.vocab_size, min(T, c.max_seq_len) + 1)
    tokens = np.array([random if ids is None else ids])
    check_ids("ids", tokens, c.vocab_size)
    if not 3 <= tokens.shape[1] <= c.max_seq_len + 1:
        raise ValueError(f"there are {tokens.shape[1]} ids, but there must be 3 to {c.max_seq_len + 1}")
    return vectors_of(model.params, c, Batch(tokens[:, :-1], tokens[:, 1:]), name=path.name, seed=seed)


def read_vectors(folder: Path) -> Vectors:
    """Read a folder of vectors, in float64."""
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{folder / MANIFEST} is no manifest of vectors")
    if manifest.get("version") != VERSION:
        raise CheckpointError(f"{folder} has vectors of version {shown(manifest.get('version'))}, but this is version {VERSION}")
    with reading(folder / TENSORS):
        tensors = safetensors().load_file(folder / TENSORS)
    with reading(folder / MANIFEST):
        config = ModelConfig.from_dict(manifest["config"])
        names = [entry["name"] for entry in manifest["tensors"]]
        if missing := [name for name in names if name not in tensors]:
            raise CheckpointError(f"{folder} lacks {shown(missing[0], quote=False)}")
    return Vectors(config, manifest, {name: tensors[name] for name in names})


def _converted(array: np.ndarray, dtype: str) -> np.ndarray:
    real, whole = DTYPES[dtype]
    return np.array(array, whole if array.dtype.kind == "i" else real, order="C")
