"""What a mistake is."""

from typing import NamedTuple


class Mistake(NamedTuple):
    """What is wrong, where, the text that is replaced, by what, and the test that must fail."""

    what: str
    file: str
    right: str
    wrong: str
    test: str
