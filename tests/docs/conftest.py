"""Slides are made by Sphinx: where it is not installed, their rule is not tested. `.ci/run` tests it with the book."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("sphinx") else ["test_slides.py"]
