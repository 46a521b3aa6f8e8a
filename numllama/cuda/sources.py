"""Kernel sources as text: ``kernels/NAME.cu`` with its includes pasted in, its defines, and what its kernels declare."""

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import BFLOAT16, real_dtype

PACKAGED = Path(__file__).parent / "kernels"
KERNELS = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[2] / "kernels"  # in a wheel, or a checkout

C_NAMES = {
    np.dtype(np.float32): "float", np.dtype(np.float64): "double", BFLOAT16: "bfloat16", np.dtype(np.float16): "half",
    np.dtype(np.int32): "int", np.dtype(np.int64): "long long",
    np.dtype(np.uint8): "unsigned char", np.dtype(np.uint16): "unsigned short", np.dtype(np.uint32): "unsigned",
}  # fmt: skip
DTYPES = {name: dtype for dtype, name in C_NAMES.items()} | {"Index": np.dtype(np.int64)}


class Parameter(NamedTuple):
    """One parameter of a kernel: its type in C, what that is in NumPy (None: any), and whether it is a pointer."""

    c_type: str
    dtype: np.dtype | None
    is_pointer: bool


class Program(NamedTuple):
    """A kernel source with its defines, ready to be compiled.

    Attributes
    ----------
    name : str
        The file's, without ``.cu``.
    defines : tuple of (str, str)
    text : str
        Defines, ``common.cuh`` and the file, as one text: a cache of compiled kernels does not look into included files.
    kernels : dict
        The parameters of each kernel by its name.
    """

    name: str
    defines: tuple[tuple[str, str], ...]
    text: str
    kernels: dict[str, tuple[Parameter, ...]]

    def __hash__(self) -> int:
        return hash((self.name, self.defines))


def c_name(value: Any) -> str:
    """A define's value as C reads it."""
    return C_NAMES[value] if isinstance(value, np.dtype) else str(int(value) if isinstance(value, bool) else value)


@cache
def compiled_text(source: str, defines: tuple[tuple[str, str], ...]) -> Program:
    """``kernels/SOURCE.cu`` as one text with nothing left to include, and what its kernels take."""
    lines = [f"#define {name} {value}" for name, value in defines]
    seen: set[str] = set()
    for file in ("common.cuh", f"{source}.cu"):
        _paste(file, lines, seen)
    text = "\n".join(lines) + "\n"
    return Program(source, defines, text, _kernels(text, dict(defines)))


def _paste(file: str, lines: list[str], seen: set[str]) -> None:
    """Append a file's lines, with each file that it includes in its place, once."""
    if file in seen:
        return
    seen.add(file)
    lines.append(f'#line 1 "{file}"')
    for number, line in enumerate((KERNELS / file).read_text(encoding="utf-8").splitlines(), 1):
        if included := re.match(r'\s*#include "([\w.]+)"', line):
            _paste(included[1], lines, seen)
            lines.append(f'#line {number + 1} "{file}"')
        elif line.strip() != "#pragma once":
            lines.append(line)


def _kernels(text: str, defines: dict[str, str]) -> dict[str, tuple[Parameter, ...]]:
    """The parameters of every ``extern "C" __global__ void name(...)``."""
    given = {"DTYPE": "float", **defines}
    known = DTYPES | {name: DTYPES[given[of]] for of, name in re.findall(r"typedef (\w+) (\w+);", text) if of in given}
    known["Real"] = real_dtype(known["Element"])
    pattern = r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)'
    kernels = {}
    for name, declared in re.findall(pattern, re.sub(r"//.*", "", text)):
        parameters = []
        for one in filter(None, map(str.strip, declared.split(","))):
            words = re.sub(r"\b(const|__restrict__)\b|\*", " ", one).split()
            c_type = " ".join(words[:-1])
            parameters.append(Parameter(c_type, known.get(c_type), "*" in one))
        kernels[name] = tuple(parameters)
    return kernels
