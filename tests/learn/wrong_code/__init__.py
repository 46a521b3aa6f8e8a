"""Functions as students write them: the exercise, the body, and what its message must say about each wrong result."""

from typing import NamedTuple


class Code(NamedTuple):
    """The body of a backward, or of a forward, and a part of the message for each result that is wrong."""

    op: str
    says: dict[str, str]
    body: str
    blank: str = "backward"
