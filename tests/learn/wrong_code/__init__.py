"""Functions as students write them: the exercise, the body, and what its message must say about each wrong result."""

from typing import NamedTuple


class Code(NamedTuple):
    """The body of a backward, of a forward, or of a function by its name, and a part of the message for each wrong result."""

    op: str
    says: dict[str, str]
    body: str
    blank: str = "backward"
