"""Added tokens: strings that become one token wherever they stand in a text, as `tokenizers` finds them.

Special ones (``<|endoftext|>``) are found only if the caller allows them, so that a text that spells one is still a text. The
others (``<think>``, an added word) are found in every text. A token's flags say the rest.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import regex

from numllama.errors import shown
from numllama.storage.fields import FLAG, TEXT, as_json, check, whole
from numllama.tokenizer.cutting import SpecialTokens

# What has the property White_Space: str.isspace() takes more.
WHITE_SPACE = frozenset("\t\n\v\f\r \x85\u00a0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))))
_WORD = regex.compile(r"[\w\u200c\u200d]").match


class AddedToken(NamedTuple):
    """A string that is one token.

    Attributes
    ----------
    content : str
    id : int
    special : bool
        Controls something, and is no part of a text.
    normalized : bool
        Is looked for when the text has been normalized.
    lstrip, rstrip : bool
        Takes the white space in front of it, or behind it.
    single_word : bool
        Does not stand next to a letter or a number.
    """

    content: str
    id: int
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False

    def as_json(self) -> dict[str, Any]:
        """As a ``tokenizer.json`` has it."""
        flags = {name: getattr(self, name) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        return {"id": self.id, "content": self.content, **flags}


FIELDS = {"content": TEXT, "id": whole(most=2**32 - 1)} | dict.fromkeys(AddedToken._fields[2:], FLAG)


def read_added_token(values: Any) -> AddedToken:
    """One of a file's added tokens; ValueError if it is none."""
    if not isinstance(values, dict):
        raise ValueError(f"an added token must be an object, but one is {as_json(values)}")
    check(values, FIELDS, as_json, "of an added token, ")
    if not values.get("content") or "id" not in values:
        raise ValueError(f"an added token needs an id and a content, but one is {as_json(values)}")
    flags = {name: values.get(name, False) for name in AddedToken._fields[2:]}
    return AddedToken(values["content"], values["id"], **flags)


class AddedTokens:
    """Finds added tokens in a text.

    Parameters
    ----------
    tokens : sequence of AddedToken
    normalize : function, optional
        What has been done to the text; the tokens are looked for as they look after that.
    """

    def __init__(self, tokens: Sequence[AddedToken], normalize: Callable[[str], str] | None = None) -> None:
        self._tokens: dict[str, AddedToken] = {}
        for token in sorted(tokens, key=lambda token: not token.special):  # of two that look alike, the special one
            self._tokens.setdefault(normalize(token.content) if normalize else token.content, token)
        self._plain = not any(token.lstrip or token.rstrip or token.single_word for token in tokens)
        self._find = SpecialTokens(self._tokens)
        self.longest = self._find.longest

    def spans(self, text: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int]]:
        """Where they are between two places, with the white space that is theirs, and their ids."""
        done = start
        for begin, stop in self._find.spans(text, start, len(text) if end is None else end):
            token = self._tokens[text[begin:stop]]
            if not self._plain:
                if token.single_word and ((begin and _WORD(text, begin - 1)) or _WORD(text, stop)):
                    continue
                while token.lstrip and begin > done and text[begin - 1] in WHITE_SPACE:
                    begin -= 1
                while token.rstrip and stop < len(text) and text[stop] in WHITE_SPACE:
                    stop += 1
                done = stop
            yield begin, stop, token.id


class Sought(NamedTuple):
    """What is looked for in a text.

    Attributes
    ----------
    first, then : AddedTokens, optional
        In the text, and in the normalized parts that lie between.
    whole : SpecialTokens, optional
        Strings that a long text is not cut through, though it may not be split there.
    """

    first: AddedTokens | None
    then: AddedTokens | None
    whole: SpecialTokens | None


def look_for(tokens: Iterable[AddedToken], forbidden: Iterable[str], normalize: Callable[[str], str] | None) -> Sought:
    """How to look for some tokens in texts that are normalized so, if at all; `forbidden` strings are errors in a text."""
    tokens = list(tokens)
    first = [token for token in tokens if not token.normalized]
    then = [token for token in tokens if token.normalized]
    if normalize is None and not first:
        first, then = then, []
    whole = [*forbidden, *(token.content for token in then), *(token.content for token in first if token.single_word)]
    return Sought(
        AddedTokens(first) if first else None,
        AddedTokens(then, normalize) if then else None,
        SpecialTokens(whole) if whole else None,
    )


def check_unique(tokens: Sequence[AddedToken]) -> None:
    """ValueError if two of them have one content or one id."""
    contents: dict[str, int] = {}
    ids: dict[int, str] = {}
    for token in tokens:
        if contents.setdefault(token.content, token.id) != token.id:
            raise ValueError(f"it gives the added token {shown(token.content)} two ids, {contents[token.content]} and {token.id}")
        if ids.setdefault(token.id, token.content) != token.content:
            raise ValueError(f"it gives two added tokens, {shown(ids[token.id])} and {shown(token.content)}, the id {token.id}")
