"""What another Llama is compared with: golden vectors, or a model and a batch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from numllama.checks import check_ids
from numllama.errors import CheckpointError, DataError
from numllama.interop.load import load
from numllama.learn.equations import Equations
from numllama.learn.evaluation import evaluate
from numllama.learn.mistakes.mistake import short_name
from numllama.learn.names import OTHERS
from numllama.learn.tracing import check_is_plain
from numllama.learn.vectors import MANIFEST, STANDARD, Vectors, read_vectors, standard_vectors
from numllama.model.config import ModelConfig
from numllama.model.parameters import copied_parameters
from numllama.model.transformer import Transformer
from numllama.ops import IGNORE

HIDDEN = -500.0  # a score below it hides a key: exp(-500) is 0


@dataclass(frozen=True)
class Reference:
    """A plain Llama and the batch that it is run on.

    Attributes
    ----------
    equations : Equations
    known : dict
        Weights (float64), tokens, targets, segments and settings.
    vectors : dict of str to array
        Golden vectors beside the model's values, if it comes from a folder of vectors: after/..., decoding/..., filters/...
    manifest : dict
    """

    equations: Equations
    known: dict[str, Any]
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> ModelConfig:
        return self.equations.config

    @cached_property
    def values(self) -> dict[str, Any]:
        """All values, weights and gradients, right."""
        wanted = [name for name in self.equations.order if name not in self.known]
        return evaluate(self.equations, wanted, self.known) | {name: self.known[name] for name in self.known if "/" in name}

    def expected(self, name: str) -> np.ndarray:
        """What a tensor should be. Hidden keys' scores are zeros."""
        return self.cleaned(name, np.asarray(self.vectors[name] if name in self.vectors else self.values[name], np.float64))

    def cleaned(self, name: str, array: np.ndarray) -> np.ndarray:
        """Zeros for scores of hidden keys, which may be anything; minus infinity for other scores that hide their key."""
        visible, value = self.values["visible"], short_name(name)
        if value == "scores" and not name.startswith("d_"):
            return np.where(visible, np.where(array < HIDDEN, -math.inf, array), 0)
        return np.where(visible, array, 0) if value == "attention" and name.startswith("d_") else array


def opened_reference(source: Any, tensors: Mapping[str, np.ndarray], tokens: Any = None, targets: Any = None) -> Reference:
    """The reference of :func:`compare`."""
    if isinstance(source, Reference):
        return source
    if isinstance(source, str | Path):
        source = _read(Path(source))
    if isinstance(source, Vectors):
        return _of_vectors(source)
    check_is_plain(source)
    tokens = tensors.get("tokens") if tokens is None else np.asarray(tokens)
    targets = tensors.get("targets") if targets is None else np.asarray(targets)
    if tokens is None:
        raise DataError("a model as the reference needs tokens: give them, or put them into the dump as tokens")
    tokens = _ids("tokens", tokens, source.config.vocab_size)
    if targets is None:
        targets = np.full_like(tokens, IGNORE)
        targets[:, :-1] = tokens[:, 1:]
    targets = np.atleast_2d(targets)
    _ids("targets", np.where(targets == IGNORE, 0, targets), source.config.vocab_size)
    if targets.shape != tokens.shape:
        raise DataError(f"targets have shape {targets.shape}, but tokens {tokens.shape}")
    params = copied_parameters(source.config, source.params, np.dtype(np.float64))
    batch = {"tokens": tokens, "targets": targets} | {name: tensors[name] for name in ("segments",) if name in tensors}
    return _reference(source.config, params, batch)


def _read(path: Path) -> Vectors | Transformer:
    if not path.exists() and str(path) in STANDARD:
        return standard_vectors(str(path))
    if not path.exists():
        raise CheckpointError(f"{path} is neither a file or folder nor one of {', '.join(STANDARD)}")
    return read_vectors(path) if (path / MANIFEST).is_file() else load(path, dtype="float64")


def _ids(name: str, ids: Any, vocab_size: int) -> np.ndarray:
    ids = np.atleast_2d(np.asarray(ids))
    check_ids(name, ids, vocab_size)
    return ids.astype(np.int64)


def _of_vectors(source: Vectors) -> Reference:
    weights = {name[len("weights/") :]: array for name, array in source.tensors.items() if name.startswith("weights/")}
    batch = {name: source.tensors[name] for name in ("tokens", "targets", "segments") if name in source.tensors}
    more = {name: array for name, array in source.tensors.items() if name.startswith(OTHERS)}
    optimizer = source.manifest.get("optimizer", {})
    more |= {f"optimizer/{name}": np.array(optimizer[name]) for name in ("losses", "norms") if name in optimizer}
    reference = _reference(source.config, weights, batch)
    return replace(reference, vectors=more, manifest=source.manifest)


def _reference(config: ModelConfig, weights: Mapping[str, Any], batch: Mapping[str, Any]) -> Reference:
    equations = Equations(config)
    known = equations.settings() | {f"weights/{name}": np.asarray(value) for name, value in weights.items()}
    return Reference(equations, {**known, **batch})


def check_batch(found: Mapping[str, np.ndarray], reference: Reference) -> None:
    """Require the reference's tokens and vocabulary."""
    for name in ("tokens", "targets", "segments"):
        ours = reference.known.get(name)
        if name in found and ours is not None and not np.array_equal(np.atleast_2d(found[name]), ours):
            raise DataError(f"the dump's {name} are not those of the reference")
    V = reference.config.vocab_size
    for name, axes in (("weights/embed", "rows"), ("weights/head", "rows"), ("values/logits", "columns")):
        array = found.get(name)
        if array is not None and array.ndim and V not in (array.shape[0], array.shape[-1]):
            theirs = array.shape[0 if axes == "rows" else -1]
            raise DataError(f"{name} has {theirs} {axes}, but the reference's vocabulary has {V} tokens")
