"""What a mistake of the subject is, and the standard configurations that mistakes differ on."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

ALL = (
    "mha", "gqa", "mqa", "interleaved", "llama3-scaling", "tied",
    "qk-norm", "odd-sizes", "large-eps", "ignored", "padded", "packed",
)  # fmt: skip
IGNORED = ("ignored", "padded", "packed")  # targets of -100
DOCUMENTS = ("padded", "packed")
ALONE = ("mha", "mqa", "odd-sizes")  # one key head, or one for each query head


def but(*names: str) -> tuple[str, ...]:
    """All configurations but these."""
    return tuple(name for name in ALL if name not in names)


GROUPED = but(*ALONE)  # two key heads for four query heads
UNTIED = but("tied")
SQUARE = but("odd-sizes")  # wq and wo are square


class Mistake(NamedTuple):
    """One mistake.

    Attributes
    ----------
    key : str
    op : str
        The first number that is wrong: ``q_rotated``; ``d q_rotated`` is its gradient, ``d_weights wq`` a weight's.
        ``optimizer losses`` and ``optimizer norms`` alternate: the loss of a step comes before its norm.
    sentence : str
        What is wrong, to a reader.
    where : tuple of str
        The standard configurations on which numbers change.
    methods : mapping
        The subject's methods that are written wrongly.
    same_as : tuple of str
        Keys of the mistakes with the same first wrong numbers on all of `where`: what is wrong does not tell them apart.
    instead : mapping
        The first wrong number on configurations where it is not `op`.
    """

    key: str
    op: str
    sentence: str
    where: tuple[str, ...]
    methods: Mapping[str, Callable[..., Any]]
    same_as: tuple[str, ...] = ()
    instead: Mapping[str, str] = {}

    def first(self, configuration: str) -> str:
        """The first wrong number on a configuration."""
        return self.instead.get(configuration, self.op)


def mistake(
    key: str,
    op: str,
    sentence: str,
    where: tuple[str, ...] = ALL,
    *,
    same_as: tuple[str, ...] = (),
    instead: Mapping[str, str] = {},
    **methods: Callable[..., Any],
) -> Mistake:
    """A row of a table of mistakes: keywords are the methods that replace the subject's."""
    return Mistake(key, op, sentence, where, methods, same_as, instead)


def right(name: str) -> Callable[..., Any]:
    """The subject's right method of that name, for a mistake that builds on it."""
    return lambda self, *args: getattr(super(type(self), self), name)(*args)
