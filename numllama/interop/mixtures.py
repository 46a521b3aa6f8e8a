"""Experts in Hugging Face's layout, which keeps each expert's matrices in tensors of their own.

A name with an asterisk stands for those tensors stacked: ``model.layers.0.mlp.experts.*.up_proj.weight`` of shape (E, F, C).
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

EXPERT = re.compile(r"(?<=\.experts\.)(\d{1,6})(?=\.)")  # its number in a tensor's name


def split_experts(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes of the tensors that a name stands for: one, or with an asterisk one for each expert."""
    if "*" not in name:
        yield name, shape
        return
    for e in range(shape[0]):
        yield name.replace("*", str(e)), shape[1:]


class StackedExperts:
    """The tensors of all experts as one, read on access."""

    def __init__(self, parts: list[tuple[str, Any]]) -> None:
        self.parts = parts  # the name and file of each

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the stacked tensor; one that experts do not share has no second part."""
        shapes = {file.shape(part) for part, file in self.parts}
        return (len(self.parts), *(shapes.pop() if len(shapes) == 1 else ()))

    def __getitem__(self, name: str) -> np.ndarray:
        return np.stack([file[part] for part, file in self.parts])


def stack_experts(files: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The file of each tensor, with those of experts 0, 1, 2, ... under one of `names`; gaps leave them as they are."""
    wanted = set(names)
    groups: dict[str, dict[int, str]] = {}
    for name in files:
        if (found := EXPERT.search(name)) and (stacked := EXPERT.sub("*", name)) in wanted:
            groups.setdefault(stacked, {})[int(found[0])] = name
    complete = {name: parts for name, parts in groups.items() if sorted(parts) == list(range(len(parts)))}
    whole = {name: StackedExperts([(parts[e], files[parts[e]]) for e in sorted(parts)]) for name, parts in complete.items()}
    taken = {part for parts in complete.values() for part in parts.values()}
    return {name: file for name, file in files.items() if name not in taken} | whole
