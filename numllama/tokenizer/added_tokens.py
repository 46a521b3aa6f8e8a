"""Added tokens: strings that become one token anywhere in a text, found as `tokenizers` finds them.

Special ones (``<|endoftext|>``) are found only if the caller allows them, so that a text may spell one and remain a text. The
others (``<think>``, an added word) are found in every text. A token's flags specify the rest.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import regex

from numllama.errors import shown
from numllama.storage.fields import FLAG, TEXT, as_json, check, whole
from numllama.tokenizer.cutting import SpecialTokens

# Characters with the property White_Space; str.isspace() accepts more.
WHITE_SPACE = frozenset("\t\n\v\f\r \x85\u00a0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))))
_WORD = regex.compile(r"[\w\u200c\u200d]").match


class AddedToken(NamedTuple):
    """A string that is one token.

    Attributes
    ----------
    content : str
    id : int
    special : bool
        Is a control token, not part of a text.
    normalized : bool
        Is searched for after normalization.
    lstrip, rstrip : bool
        Absorbs the white space before it, or after it.
    single_word : bool
        Matches only where no letter or number is adjacent.
    """

    content: str
    id: int
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False

    def as_json(self) -> dict[str, Any]:
        """The entry in a ``tokenizer.json``."""
        flags = {name: getattr(self, name) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        return {"id": self.id, "content": self.content, **flags}


FIELDS = {"content": TEXT, "id": whole(most=2**32 - 1)} | dict.fromkeys(AddedToken._fields[2:], FLAG)


def read_added_token(values: Any) -> AddedToken:
    """Read one of a file's added tokens; ValueError if it is invalid."""
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
        Normalizer already applied to the text; it is applied to the tokens too before the search.
    """

    def __init__(self, tokens: Sequence[AddedToken], normalize: Callable[[str], str] | None = None) -> None:
        self._tokens: dict[str, AddedToken] = {}
        for token in sorted(tokens, key=lambda token: not token.special):  # if two look alike, the special one wins
            self._tokens.setdefault(normalize(token.content) if normalize else token.content, token)
        self._plain = not any(token.lstrip or token.rstrip or token.single_word for token in tokens)
        self._find = SpecialTokens(self._tokens)
        self.longest = self._find.longest

    def spans(self, text: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int]]:
        """Begin, end and id of each token between two positions; spans include absorbed white space."""
        done = start
        for begin, stop in self._find.spans(text, start, len(text) if end is None else end):
            token = self._tokens[text[begin:stop]]
            if not self._plain:
                if token.single_word and ((begin and _WORD(text, begin - 1)) or _WORD(text, stop)):
                    continue
                while token.lstrip and begin > done and text[begin - 1] in WHITE_SPACE:
                    begin -= 1
                begin = max(begin, done) if token.lstrip else begin
                while token.rstrip and stop < len(text) and text[stop] in WHITE_SPACE:
                    stop += 1
                done = stop
                if begin >= stop:  # the token before it has absorbed it
                    continue
            yield begin, stop, token.id


class Sought(NamedTuple):
    """The tokens to search for in a text.

    Attributes
    ----------
    first, then : AddedTokens, optional
        Searched for in the text, and in the normalized parts between its matches.
    whole : SpecialTokens, optional
        Strings that are never cut when a long text is chunked, even if the text is not split there.
    """

    first: AddedTokens | None
    then: AddedTokens | None
    whole: SpecialTokens | None


def look_for(tokens: Iterable[AddedToken], forbidden: Iterable[str], normalize: Callable[[str], str] | None) -> Sought:
    """The search for `tokens` in texts that `normalize` normalizes, if given; `forbidden` strings are errors in a text."""
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
    """ValueError if two tokens share a content or an id."""
    contents: dict[str, int] = {}
    ids: dict[int, str] = {}
    for token in tokens:
        if contents.setdefault(token.content, token.id) != token.id:
            raise ValueError(f"it gives the added token {shown(token.content)} two ids, {contents[token.content]} and {token.id}")
        if ids.setdefault(token.id, token.content) != token.content:
            raise ValueError(f"it gives two added tokens, {shown(ids[token.id])} and {shown(token.content)}, the id {token.id}")
