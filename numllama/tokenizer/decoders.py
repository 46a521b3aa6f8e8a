"""Decoders: turn tokens into text, in the steps that a ``tokenizer.json`` specifies.

A step consumes the texts of tokens as they arrive, and yields text as soon as it is final. If the output is bytes, invalid
UTF-8 is carried as lone surrogates between steps (Python's ``surrogateescape``).
"""

import codecs
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from numllama.storage.fields import FLAG, OBJECT, TEXT, as_json, whole
from numllama.tokenizer.normalizers import SPACE, fields, kind_of, replacing, steps_of
from numllama.tokenizer.pre_tokenizers import CHARACTER, METASPACE

HEXADECIMAL = "0123456789abcdefABCDEF"
BYTE_TOKENS = {f"<0x{a}{b}>": bytes.fromhex(a + b) for a in HEXADECIMAL for b in HEXADECIMAL}
Texts = Iterator[str]
Apply = Callable[[Texts, bool], Texts]


def _byte_characters() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others are the characters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_characters()
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


_LATIN = {ord(character): byte for character, byte in BYTE_OF.items()}
_LATIN |= {i: 256 for i in range(256) if i not in _LATIN}  # not in the alphabet: fails to encode


def alphabet_bytes(token: str) -> bytes | None:
    """The bytes of a token written in GPT-2's alphabet; None if it is not."""
    try:
        return token.translate(_LATIN).encode("latin-1")
    except UnicodeEncodeError:
        return None


def bytes_of(token: str) -> bytes:
    """The bytes of a token, decoded from GPT-2's alphabet if it is written in that, else as UTF-8."""
    data = alphabet_bytes(token)
    return token.encode("utf-8", "surrogateescape") if data is None else data


class Step(NamedTuple):
    """One step of a decoder.

    Attributes
    ----------
    apply : function
        Takes the texts of tokens, and whether bytes are wanted; returns texts.
    each : function, optional
        The same for one token, if its neighbours do not matter.
    joins : bool
        Its output is one text, in arbitrary parts.
    joined : function, optional
        The same for such parts; without it, the step cannot follow one that joins.
    """

    apply: Apply
    each: Callable[[str], str] | None = None
    joins: bool = False
    joined: Apply | None = None


class Decoder:
    """The steps of a decoder.

    Parameters
    ----------
    values : dict or None
        The entry of a ``tokenizer.json``. None puts a space between tokens, as `tokenizers` does.

    Attributes
    ----------
    bytes : bool
        Whether it only converts tokens to bytes.
    """

    def __init__(self, values: Any) -> None:
        self.values = values
        self.bytes = values is not None and kind_of(values, "decoder") == "ByteLevel"
        steps = [Step(_spaced)] if values is None else steps_of(values, TABLE, "decoder", "decoders")
        self._each: list[Callable[[str], str]] = []
        self._apply: list[Apply] = []
        while steps and (each := steps[0].each):
            self._each.append(each)
            steps.pop(0)
        joined = False
        for step in steps:
            apply = step.joined if joined else step.apply
            if apply is None:
                raise ValueError(f"its decoder is {as_json(values)}, but only Fuse and Strip can follow what joins tokens")
            self._apply.append(apply)
            joined = joined or step.joins

    def __reduce__(self) -> tuple:
        return Decoder, (self.values,)

    def each(self, token: str) -> str:
        """Apply the first steps, which see one token at a time."""
        for each in self._each:
            token = each(token)
        return token

    def joined(self, texts: Iterable[str], as_bytes: bool = False) -> Texts:
        """Apply the remaining steps to a stream of texts; with `as_bytes`, there is one output per token."""
        parts = iter(texts)
        for apply in self._apply:
            parts = apply(parts, as_bytes)
        return parts


# ------------------------------------------------------------------------------------------------ the steps


def _spaced(texts: Texts, as_bytes: bool) -> Texts:
    yield from islice(texts, 1)
    for text in texts:
        yield f" {text}"


def _same(texts: Texts, as_bytes: bool) -> Texts:
    return texts


def _of_each(change: Callable[[str], str], **more: Any) -> Step:
    return Step(lambda texts, as_bytes: map(change, texts), change, **more)


def _byte_level(values: dict) -> Step:
    fields(values, {"add_prefix_space": FLAG, "use_regex": FLAG, "trim_offsets": FLAG})

    def apply(texts: Texts, as_bytes: bool) -> Texts:
        if as_bytes:
            yield from (bytes_of(text).decode("utf-8", "surrogateescape") for text in texts)
            return
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for text in texts:
            yield decoder.decode(bytes_of(text))
        yield decoder.decode(b"", final=True)

    return Step(apply, joins=True, joined=apply)


def _byte_fallback(values: dict) -> Step:
    return Step(_bytes_joined)


def _bytes_joined(texts: Texts, as_bytes: bool) -> Texts:
    """Decode each run of byte tokens as UTF-8; if the run is invalid, every byte becomes U+FFFD."""
    if as_bytes:
        yield from (BYTE_TOKENS.get(text, text.encode()).decode("utf-8", "surrogateescape") for text in texts)
        return
    held: list[bytes] = []
    for text in texts:
        if (byte := BYTE_TOKENS.get(text)) is not None:
            held.append(byte)
            continue
        if held:
            yield from _characters(held)
            held = []
        yield text
    yield from _characters(held)


def _characters(held: list[bytes]) -> list[str]:
    try:
        return [b"".join(held).decode("utf-8")] if held else []
    except UnicodeDecodeError:
        return ["\ufffd"] * len(held)


def _replace(values: dict) -> Step:
    fields(values, {"pattern": OBJECT, "content": TEXT}, "pattern", "content")
    return _of_each(replacing(values["pattern"], values["content"]))


def _strip(values: dict) -> Step:
    fields(values, {"content": CHARACTER, "start": whole(most=1000), "stop": whole(most=1000)}, "content", "start", "stop")
    content, start, stop = values["content"], values["start"], values["stop"]

    def strip(text: str) -> str:
        front = min(start, len(text) - len(text.lstrip(content)))
        back = min(stop, len(text) - len(text.rstrip(content)))
        return text[front : max(front, len(text) - back)]

    def joined(texts: Texts, as_bytes: bool) -> Texts:
        front, held = start, ""
        for text in texts:
            if not front and not stop:
                yield text
                yield from texts
                return
            beginning = len(text) - len(text.lstrip(content))
            taken = min(front, beginning)
            front = front - taken if beginning == len(text) else 0
            text = held + text[taken:]
            keep = min(stop, len(text) - len(text.rstrip(content)))
            held = text[len(text) - keep :]
            yield text[: len(text) - keep]

    return _of_each(strip, joined=joined)


def _metaspace(values: dict) -> Step:
    fields(values, METASPACE)
    sign = values.get("replacement", SPACE)
    scheme = values.get("prepend_scheme") or ("always" if values.get("add_prefix_space", True) else "never")

    def apply(texts: Texts, as_bytes: bool) -> Texts:
        for text in islice(texts, 1):
            yield text.replace(sign, " " if scheme == "never" else "")
        for text in texts:
            yield text.replace(sign, " ")

    return Step(apply)


TABLE = {
    "ByteLevel": _byte_level, "ByteFallback": _byte_fallback, "Replace": _replace, "Strip": _strip, "Metaspace": _metaspace,
    "Fuse": lambda values: Step(_same, joins=True, joined=_same),
}  # fmt: skip
