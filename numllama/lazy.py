"""Packages that import their public names on first use, so that `numllama --help` needs none of the math."""

import sys
from importlib import import_module
from types import ModuleType


def lazy(package: str, homes: dict[str, str]) -> None:
    """Make a package import its public names on first use.

    Parameters
    ----------
    package : str
        Its ``__name__``.
    homes : dict
        Maps each module to the names it defines, separated by spaces. No names: the module itself is public.
    """
    module = sys.modules[package]
    module.__class__ = LazyPackage
    names = {name: home for home, names in homes.items() for name in names.split() or [home.rpartition(".")[2]]}
    module.__dict__["_homes"], module.__dict__["_modules"] = names, {home for home in homes if not homes[home]}


class LazyPackage(ModuleType):
    """See :func:`lazy`."""

    _homes: dict[str, str]
    _modules: set[str]

    def __getattr__(self, name: str) -> object:
        home = self._homes.get(name)
        if home is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        module = import_module(home)
        self.__dict__[name] = value = module if home in self._modules else getattr(module, name)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and name in self._homes and value.__name__ not in self._modules:
            return  # importing a file must not replace its function of the same name
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes})
