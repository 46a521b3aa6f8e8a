"""Record what a model in PyTorch computes, under the names of golden vectors: values, weights, and gradients of the loss.

    with recording(model) as dump:                       # dump["values/layer.0.q"], dump["d_weights/blocks.0.wq"], ...
        model(tokens, labels=tokens).loss.backward()
    dump.save("mine.safetensors")

Hooks on modules give values, hooks on tensors their gradients; `record` gives values from inside a forward. The first call
counts: a second forward, or one that is repeated to save memory, changes nothing.
PyTorch is imported only where a module of it is given. docs/record.md is the guide, with a recipe for JAX.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from numllama.errors import listed, shown
from numllama.learn.module_names import Names, by_token, named
from numllama.ops import IGNORE
from numllama.storage.files import write_bytes, write_file
from numllama.storage.tensor_file import safetensors

__all__ = ["Dump", "by_token", "layer", "record", "recording"]

INPUTS = ("tokens", "targets")
KINDS = {"values": "layer", "d_values": "layer", "weights": "blocks", "d_weights": "blocks"}  # and a layer's name there
LAYER_VALUES = (
    "attn_norm", "q", "k", "v", "q_norm", "k_norm", "q_rotated", "k_rotated", "scores", "attention", "head_outputs",
    "attn_out", "after_attention", "ffn_norm", "gate", "up", "swiglu", "ffn_out", "after_ffn",
)  # fmt: skip
LEAST_SCORE = -3e4  # a lower score is a hidden key's: masks add minus infinity, -1e9, or the least number of the dtype


class Dump(dict[str, np.ndarray]):
    """Arrays by the names of golden vectors: docs/vectors.md."""

    def save(self, path: str | Path) -> None:
        """Write all arrays to a ``.safetensors`` or ``.npz`` file."""
        suffix = Path(path).suffix
        if suffix == ".safetensors":
            write_bytes(path, safetensors().save({name: np.ascontiguousarray(array) for name, array in self.items()}))
        elif suffix == ".npz":
            write_file(path, lambda file: np.savez(file, **self))  # type: ignore[arg-type]
        else:
            raise ValueError(f"path is {shown(str(path))}, but must end in .safetensors or .npz")


# ------------------------------------------------------------------------------------------------ what users call


@contextmanager
def recording(
    model: Any = None, names: Names | None = None, *, gradients: bool = True, head_dim: int | None = None
) -> Iterator[Dump]:
    """Record what a model computes in this block; all hooks are removed at its end.

    Parameters
    ----------
    model : torch.nn.Module, optional
        Without one, only what `record` is given is recorded.
    names : mapping of str to str or pair of str, optional
        The name of each module's output, or of its input and output: ``{"stack.*.query": "layer.*.q"}``, where ``*`` is the
        number of a layer. A parameter may have a name too: ``{"stack.*.norm.gain": "blocks.*.attn_norm"}``. Default: what
        modules are called in transformers, in Meta's code and in others.
    gradients : bool
        Record gradients too; ``loss.backward()`` is then called in this block.
    head_dim : int, optional
        The size of a head, for ``by_token``. Default: the attribute ``head_dim`` of the model's attention.

    Yields
    ------
    Dump
        A dict of arrays by the names of golden vectors; bfloat16 becomes float32.

    Raises
    ------
    ValueError
        If a name is no module's, or if without `names` a parameter has an unknown one. At the end of the block, if a module was
        not called, or backward was not.
    """
    if model is not None and not hasattr(model, "named_modules"):
        raise TypeError(f"model is a {type(model).__name__}, but must be a torch.nn.Module")
    current = _Recording(gradients)
    with ExitStack() as hooks:
        hooks.callback(current.remove_hooks)
        if model is not None:
            _hook(model, names, head_dim, current, hooks)
        hooks.callback(_active.reset, _active.set((*_active.get(), current)))
        yield current.dump
    current.check()


def record(name: str, value: Any) -> Any:
    """Record a tensor, and its gradient, under a name; returns the tensor. Outside of :func:`recording` it does nothing else.

    Parameters
    ----------
    name : str
        A value: ``"logits"``, ``"layer.0.q"``, or ``"q"`` in a block of ``with layer(0)``. Other arrays begin with their kind:
        ``"weights/blocks.0.wq"``, ``"d_values/layer.0.q"``.
    value : torch.Tensor or array
        An array that is not PyTorch's has no gradient of its own: record it as another array.
    """
    for each in _active.get():
        each.add(_key(name), value)
    return value


@contextmanager
def layer(index: int) -> Iterator[None]:
    """In this block, names are those of layer `index`, counted from 0."""
    token = _layer.set(index)
    try:
        yield
    finally:
        _layer.reset(token)


_active: ContextVar[tuple["_Recording", ...]] = ContextVar("recordings", default=())
_layer: ContextVar[int | None] = ContextVar("layer", default=None)


def _key(name: str) -> str:
    """A name's key in the dump: layer.0.q -> values/layer.0.q."""
    if name in INPUTS:
        return name
    kind, short = name.split("/", 1) if "/" in name else ("values", name)
    if kind not in KINDS:
        raise ValueError(f"{shown(name)} begins with {shown(kind)}, but must begin with one of {', '.join(KINDS)}")
    if _layer.get() is not None and not short.startswith(f"{KINDS[kind]}."):
        short = f"{KINDS[kind]}.{_layer.get()}.{short}"
    if short in LAYER_VALUES and KINDS[kind] == "layer":
        raise ValueError(f"{short} is a value of a layer: record it in a block of `with layer(0)`, or as layer.0.{short}")
    return f"{kind}/{short}"


# ------------------------------------------------------------------------------------------------ the recording


def _as_it_is(array: np.ndarray) -> np.ndarray:
    return array


class _Recording:
    """A dump, and the hooks that fill it."""

    def __init__(self, gradients: bool):
        self.dump, self.gradients = Dump(), gradients
        self.handles: list[Any] = []
        self.not_called: dict[str, None] = {}  # modules, in the model's order
        self.awaited: list[str] = []  # gradients

    def add(self, key: str, tensor: Any, arrange: Callable[[np.ndarray], np.ndarray] = _as_it_is) -> None:
        if key in self.dump:
            return
        array = arrange(_copied(tensor))
        self.dump[key] = np.where(array < LEAST_SCORE, np.zeros_like(array), array) if key.endswith(".scores") else array
        if self.gradients and getattr(tensor, "requires_grad", False):
            self.awaited.append(f"d_{key}")
            self.handles.append(tensor.register_hook(partial(self.add_gradient, f"d_{key}", arrange)))

    def add_gradient(self, key: str, arrange: Callable[[np.ndarray], np.ndarray], gradient: Any) -> None:
        if key not in self.dump:
            self.dump[key] = arrange(_copied(gradient))

    def remove_hooks(self) -> None:
        for handle in self.handles:
            handle.remove()

    def check(self) -> None:
        """Raise ValueError if modules, or backward, were not called."""
        if self.not_called:
            raise ValueError(f"these modules were not called during the recording: {listed(list(self.not_called))}")
        if self.awaited and not any(key in self.dump for key in self.awaited):
            raise ValueError("backward was not called during the recording: call it there, or pass gradients=False")


def _copied(tensor: Any) -> np.ndarray:
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        tensor = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor  # NumPy has no bfloat16
    return np.asarray(tensor).copy()


# ------------------------------------------------------------------------------------------------ hooks on modules


def _hook(model: Any, names: Names | None, head_dim: int | None, current: _Recording, hooks: ExitStack) -> None:
    """Record a model's weights, and hook its modules."""
    found, modules, parameters = named(model, names), dict(model.named_modules()), dict(model.named_parameters())
    if head_dim is None:
        head_dim = next((module.head_dim for module in modules.values() if hasattr(module, "head_dim")), None)
    for name, ours in found.parameters.items():
        current.add(f"weights/{ours}", parameters[name])
    current.not_called |= dict.fromkeys(found.called)
    for name, (input_name, output_name) in found.modules.items():
        hook = partial(_add_from_module, current, name, head_dim)
        current.handles += [
            modules[name].register_forward_pre_hook(partial(_before, hook, input_name), with_kwargs=True),
            modules[name].register_forward_hook(partial(_after, hook, output_name)),
        ]
    current.handles.append(model.register_forward_hook(partial(_add_loss, current), with_kwargs=True))
    layers = {module: module.layer_idx for module in modules.values() if hasattr(module, "layer_idx")}
    for interface in {id(each): each for each in map(_attention_interface, layers) if each is not None}.values():
        hooks.enter_context(_recorded_attention(interface, layers, current))


def _before(hook: Callable[[str | None, Any], None], name: str | None, _module: Any, args: tuple, kwargs: dict) -> None:
    hook(name, args or tuple(kwargs.values()))


def _after(hook: Callable[[str | None, Any], None], name: str | None, _module: Any, _args: tuple, output: Any) -> None:
    hook(name, output)


def _add_from_module(current: _Recording, module: str, head_dim: int | None, name: str | None, value: Any) -> None:
    """Record an input or output, or the first of several."""
    current.not_called.pop(module, None)
    value = value[0] if isinstance(value, tuple) and value else value
    if name is None:
        return
    if not hasattr(value, "register_hook"):
        raise ValueError(f"{module} has a {type(value).__name__} for {name}, but only a tensor can be recorded")
    current.add(_key(name), value, partial(_by_head, head_dim) if isinstance(name, by_token) else _as_it_is)


def _by_head(head_dim: int | None, array: np.ndarray) -> np.ndarray:
    """(B, T, H·D) or (B, T, H, D) -> (B, H, T, D)."""
    if array.ndim == 3:
        if head_dim is None:
            raise ValueError("the model has no attribute head_dim: pass head_dim to recording()")
        array = array.reshape(*array.shape[:2], -1, head_dim)
    return array.swapaxes(1, 2)


def _add_loss(current: _Recording, _model: Any, _args: tuple, kwargs: dict, output: Any) -> None:
    """The loss of one of transformers' models, and the targets: a label is its token's own id, a target the next token's."""
    if getattr(output, "loss", None) is None:
        return
    current.add("values/loss", output.loss)
    if kwargs.get("shift_labels") is not None:
        current.add("targets", kwargs["shift_labels"])
    elif kwargs.get("labels") is not None:
        current.add("targets", kwargs["labels"], _shifted)


def _shifted(labels: np.ndarray) -> np.ndarray:
    return np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)


# ------------------------------------------------------------------------------------------------ inside attention


def _attention_interface(module: Any) -> Any:
    """The table in which transformers' attention looks up the function that computes it; None for other modules."""
    for each in type(module).__mro__:
        found = getattr(sys.modules.get(each.__module__), "ALL_ATTENTION_FUNCTIONS", None)
        if hasattr(found, "get_interface"):
            return found
    return None


@contextmanager
def _recorded_attention(interface: Any, layers: Mapping[Any, int], current: _Recording) -> Iterator[None]:
    """Record queries and keys as transformers' attention functions get them, and the softmax if one is called inside."""
    get_interface, around = interface.get_interface, vars(interface).get("get_interface")

    def recorded_interface(*args: Any, **kwargs: Any) -> Callable:
        return partial(attention, get_interface(*args, **kwargs))

    def attention(function: Callable, module: Any, q: Any, k: Any, *args: Any, **kwargs: Any) -> Any:
        if module not in layers:
            return function(module, q, k, *args, **kwargs)
        at = f"values/layer.{layers[module]}."
        current.add(f"{at}q_rotated", q)
        current.add(f"{at}k_rotated", k)
        with _seen_softmax(lambda scores, out: (current.add(f"{at}scores", scores), current.add(f"{at}attention", out))):
            return function(module, q, k, *args, **kwargs)

    interface.get_interface = recorded_interface
    try:
        yield
    finally:
        del interface.get_interface
        if around is not None:  # that of a recording around this one
            interface.get_interface = around


def _seen_softmax(see: Callable[[Any, Any], Any]) -> Any:
    """A block in which `see` gets the input and the output of each softmax."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Seen(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func in (torch.softmax, torch.Tensor.softmax, torch.nn.functional.softmax):
                see(args[0], out)
            return out

    return Seen()
