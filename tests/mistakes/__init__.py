"""Mistakes that are easy to make, each as an exact substitution in the code, and the test that must catch it.

A file for each package. `test_mistakes.py` makes every mistake in a copy of the project and sees the named test fail. If the line
to be changed is no longer there, exactly once, that is a failure too: the table follows the code.
"""

from importlib import import_module
from pkgutil import iter_modules

FILES = sorted(module.name for module in iter_modules(__path__) if module.name != "mistake")
MISTAKES = [mistake for file in FILES for mistake in import_module(f"mistakes.{file}").MISTAKES]
