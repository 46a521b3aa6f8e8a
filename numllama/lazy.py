"""Packages whose public names are imported when they are first asked for: `numllama --help` needs none of the math."""

import sys
from importlib import import_module
from types import ModuleType


def lazy(package: str, homes: dict[str, str]) -> None:
    """Let a package find its public names by itself.

    Parameters
    ----------
    package : str
        Its ``__name__``.
    homes : dict
        Module -> the names that are defined there, between spaces; no names for the module itself.
    """
    module = sys.modules[package]
    module.__class__ = LazyPackage
    names = {name: home for home, names in homes.items() for name in names.split() or [home.rpartition(".")[2]]}
    module.__dict__["_homes"], module.__dict__["_modules"] = names, {home for home in homes if not homes[home]}


class LazyPackage(ModuleType):
    """See :func:`lazy`."""

    def __getattr__(self, name: str) -> object:
        home = self._homes.get(name)
        if home is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        module = import_module(home)
        self.__dict__[name] = value = module if home in self._modules else getattr(module, name)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and name in self._homes and value.__name__ not in self._modules:
            return  # a function with the name of its file: importing the file must not put the file in its place
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes})
