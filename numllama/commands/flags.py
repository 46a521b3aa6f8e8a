"""Flags: the fields of a configuration as options of a command, and the defaults that its help shows."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, make_dataclass
from functools import partial, reduce
from inspect import cleandoc
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

from cyclopts import Parameter, Token


def flowing(doc: str | None) -> str:
    """A docstring whose descriptions are one line each: the terminal knows better where to break them."""
    doc = cleandoc(doc or "") + "\n"  # python -OO has no docstrings
    doc = re.sub(r"(?m)((?:^ {4}.*\n)+)", lambda text: f"    {' '.join(text[0].split())}\n", doc)
    return doc.replace("``", "")


def typed_text(kind: type, tokens: Sequence[Token]) -> str:
    """A text as it is given. One without its flag may be - alone: whatever else begins with it is a flag that there is not."""
    (token,) = tokens
    if token.keyword is None and token.value.startswith("-") and token.value != "-":
        raise ValueError(f"{token.value} is no option of this command")
    return token.value


def no_empty_path(kind: Any) -> Any:
    """An annotation whose paths may not be empty: an empty one is no other name for the current folder."""
    if kind is Path:
        return Annotated[Path, Parameter(converter=_path)]
    if get_origin(kind) is Annotated:
        return Annotated[no_empty_path(kind.__origin__), *kind.__metadata__]
    return reduce(or_, map(no_empty_path, get_args(kind))) if isinstance(kind, UnionType) else kind


def _path(kind: type, tokens: Sequence[Token]) -> Path:
    (token,) = tokens
    if not token.value:
        raise ValueError("it is empty, but must name a file or folder")
    return Path(token.value)


class Defaults:
    """The values that a command has for flags that are not given, for its help.

    Parameters
    ----------
    settings : callable
        The values by name, for the arguments that the command line has beside ``--help``, by name too: ``{"preset": "117m"}``.
    """

    arguments: Sequence[str] = ()  # of the command that is run

    def __init__(self, settings: Callable[[Mapping[str, str]], Mapping[str, Any]]) -> None:
        self.settings = settings

    def shown(self, name: str, _: Any = None) -> str | None:
        """The value of a flag as a text; None where it depends on other things, which its description says."""
        words = [word for argument in self.arguments for word in argument.split("=", 1)]
        given = {flag.removeprefix("--"): value for flag, value in zip(words, [*words[1:], ""], strict=True) if flag[:2] == "--"}
        value = self.settings(given).get(name)
        return None if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def as_flags(config: type, leave_out: Sequence[str] = (), defaults: Defaults | None = None) -> type:
    """The fields of a configuration as optional flags, None where one is not given."""

    def annotation(name: str, kind: Any) -> Any:
        return Annotated[kind | None, Parameter(show_default=partial(defaults.shown, name))] if defaults else kind | None

    names = [(f.name, annotation(f.name, f.type), None) for f in fields(config) if f.name not in leave_out]
    made = make_dataclass(config.__name__, names, frozen=True)
    made.__doc__ = flowing(config.__doc__)
    made.__module__ = __name__
    return made


def given(flags: Any) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in asdict(flags).items() if value is not None}
