"""How functions and dataclasses become flags of the command line, and how help shows their defaults."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, make_dataclass
from functools import partial
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

from cyclopts import Parameter, Token

from numllama.system.output import output_is_optional

F = TypeVar("F", bound=Callable[..., int])
C = TypeVar("C", bound=type)


def command(*, output_optional: bool = False) -> Callable[[F], F]:
    """Make a function a command, described by its docstring; its parameters are the arguments and flags.

    A command whose result is on disk runs to its end even when its output cannot be written: `output_optional`.
    """

    def prepare(function: F) -> F:
        function.__doc__ = flowing(function.__doc__)
        return output_is_optional()(function) if output_optional else function

    return prepare


@dataclass_transform(frozen_default=True)
def options(cls: C) -> C:
    """Make a class a dataclass whose fields are flags of each command that takes one."""
    cls.__doc__ = flowing(cls.__doc__)
    return Parameter(name="*")(dataclass(frozen=True)(cls))


def flowing(doc: str | None) -> str:
    """A docstring with each paragraph and description joined into one line, so that the terminal can wrap it."""
    doc = cleandoc(doc or "") + "\n"  # python -OO has no docstrings
    text, *fields = re.split(r"(?m)^(?=\w+\n---)", doc)  # before "Parameters", and from there
    text = re.sub(r"(?<=\S)\n(?=\S)", " ", text)
    doc = text + re.sub(r"(?m)((?:^ {4}.*\n)+)", lambda lines: f"    {' '.join(lines[0].split())}\n", "".join(fields))
    return doc.replace("``", "")


def typed_text(kind: type, tokens: Sequence[Token]) -> str:
    """A positional text. It may be "-"; anything longer that begins with "-" is a misspelled flag."""
    (token,) = tokens
    if token.keyword is None and token.value.startswith("-") and token.value != "-":
        raise ValueError(f"{token.value} is not an option of this command")
    return token.value


def not_empty(kind: type, tokens: Sequence[Token]) -> Path:
    """A path, refused if it is empty: ``Path("")`` would be the current folder."""
    (token,) = tokens
    if not token.value:
        raise ValueError("it is empty, but must name a file or folder")
    return Path(token.value)


FilePath = Annotated[Path, Parameter(converter=not_empty)]


class Defaults:
    """The values that a command uses for flags that are not given, as its help shows them.

    Parameters
    ----------
    settings : callable
        Maps the other arguments of the command line to values by name. Arguments are by name too: ``{"preset": "117m"}``.
    """

    arguments: Sequence[str] = ()  # of the command line

    def __init__(self, settings: Callable[[Mapping[str, str]], Mapping[str, Any]]) -> None:
        self.settings = settings

    def shown(self, name: str, _: Any = None) -> str | None:
        """The default of a flag as text; None if it depends on other things, which the description explains."""
        words = [word for argument in self.arguments for word in argument.split("=", 1)]
        given = {flag.removeprefix("--"): value for flag, value in zip(words, [*words[1:], ""], strict=True) if flag[:2] == "--"}
        value = self.settings(given).get(name)
        return None if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def as_flags(config: type, leave_out: Sequence[str] = (), defaults: Defaults | None = None) -> Any:
    """The fields of a configuration as optional flags; a flag that is not given is None."""

    def annotation(name: str, kind: Any) -> Any:
        return Annotated[kind | None, Parameter(show_default=partial(defaults.shown, name))] if defaults else kind | None

    names = [(f.name, annotation(f.name, f.type), None) for f in fields(config) if f.name not in leave_out]
    made = make_dataclass(config.__name__, names, frozen=True)
    made.__doc__ = flowing(config.__doc__)
    made.__module__ = __name__
    return made


def given(flags: Any) -> dict[str, Any]:
    """The flags that were given, by name."""
    return {name: value for name, value in asdict(flags).items() if value is not None}
