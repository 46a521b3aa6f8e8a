"""Where the arrays that a candidate is given live: in memory with poison around them, in any of three array libraries."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import BFLOAT16, to_numpy
from numllama.errors import shown

MARGIN = 64  # elements of poison before and after an array
FRAMEWORKS = ("numpy", "torch", "cupy")


class Framework(NamedTuple):
    """From NumPy to a library's arrays on a device, and back."""

    asarray: Callable[[np.ndarray], Any]
    numpy: Callable[[Any], np.ndarray]


def framework_of(name: str, device: str) -> Framework:
    """The functions of an array library, imported when it is used."""
    if name not in FRAMEWORKS:
        raise ValueError(f"framework is {shown(name)}, but must be one of {', '.join(FRAMEWORKS)}")
    if name == "numpy" and device != "cpu":
        raise ValueError(f"device is {shown(device)}, but NumPy's arrays live on the cpu: framework may be 'torch' or 'cupy'")
    try:
        library: Any = importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"framework is {name!r}, but it is not installed") from error
    if name != "torch":
        return Framework(library.array, as_numpy)

    def asarray(array: np.ndarray) -> Any:
        if array.dtype == BFLOAT16:  # which PyTorch does not read from NumPy
            return library.from_numpy(array.view(np.int16).copy()).view(library.bfloat16).to(device)
        return library.from_numpy(array.copy()).to(device)

    return Framework(asarray, as_numpy)


def as_numpy(value: Any) -> np.ndarray:
    """A NumPy array of its own from whatever holds one: PyTorch's, CuPy's and JAX's arrays, numbers, nested lists."""
    if hasattr(value, "detach"):  # PyTorch's
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            return value.contiguous().view(importlib.import_module("torch").int16).numpy().view(BFLOAT16).copy()
        return value.numpy().copy()
    return np.array(to_numpy(value), copy=True, subok=False)


class Placed:
    """An array inside a larger one that holds poison: NaN, or 0 between integers.

    Attributes
    ----------
    array : array of the framework
        What a candidate is given.
    """

    def __init__(self, values: np.ndarray, layout: str, framework: Framework) -> None:
        self._shape, self._layout, self._framework = values.shape, layout, framework
        self._image = self._around(values)
        self._base = framework.asarray(self._image)
        self.array = self._view(self._base)

    def write(self, values: np.ndarray) -> None:
        """Other values at the same place in memory."""
        self._image = self._around(values)
        self._base[...] = self._framework.asarray(self._image)

    def is_intact(self) -> bool:
        """Whether array and poison are what was written."""
        return self._framework.numpy(self._base).tobytes() == self._image.tobytes()

    def is_intact_around(self) -> bool:
        """Whether the poison is what was written."""
        return self._around(self._framework.numpy(self.array)).tobytes() == self._framework.numpy(self._base).tobytes()

    def _around(self, values: np.ndarray) -> np.ndarray:
        size = values.size * (2 if self._layout == "strided" else 1) + 2 * MARGIN
        image = np.full(size, 0 if values.dtype.kind in "iu" else np.nan, values.dtype)
        self._view(image)[...] = values
        return image

    def _view(self, base: Any) -> Any:
        inside, shape = base[MARGIN:-MARGIN], self._shape
        if self._layout == "strided":
            return inside.reshape((*shape, 2))[..., 0]
        if self._layout == "transposed" and len(shape) > 1:
            return inside.reshape((*shape[:-2], shape[-1], shape[-2])).swapaxes(-1, -2)
        return inside.reshape(shape)
