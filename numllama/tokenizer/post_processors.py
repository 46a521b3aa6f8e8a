"""Post-processors: the special tokens around a text, as specified by a ``tokenizer.json``."""

from collections.abc import Sequence
from typing import Any

from numllama.storage.fields import as_json
from numllama.tokenizer.normalizers import kind_of

Around = tuple[list[int], list[int]]  # ids before a text, and after it


def around(values: Any, depth: int = 0) -> Around:
    """The ids that a post-processor puts before and after a text; ValueError if it does something else."""
    if values is None:
        return [], []
    kind = kind_of(values, "post_processor")
    if kind == "ByteLevel":  # trims offsets, which are not used here
        return [], []
    if kind == "TemplateProcessing":
        return _template(values)
    if kind in ("BertProcessing", "RobertaProcessing"):
        return [_pair(values, "cls")], [_pair(values, "sep")]
    if kind == "Sequence" and isinstance(values.get("processors"), list) and depth < 4:
        before, after = [], []
        for processor in values["processors"]:
            outer = around(processor, depth + 1)
            before, after = outer[0] + before, after + outer[1]
        return before, after
    raise ValueError(f"its post_processor is {as_json(values)}, which is not known here")


def template(before: Sequence[tuple[str, int]], after: Sequence[tuple[str, int]] = ()) -> dict[str, Any] | None:
    """The post-processor that puts these tokens and ids around a text."""
    if not before and not after:
        return None

    def special(tokens: Sequence[tuple[str, int]], text: int) -> list[dict]:
        return [{"SpecialToken": {"id": token, "type_id": text}} for token, _ in tokens]

    def text(name: str, number: int) -> list[dict]:
        return [*special(before, number), {"Sequence": {"id": name, "type_id": number}}, *special(after, number)]

    known = {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in [*before, *after]}
    return {"type": "TemplateProcessing", "single": text("A", 0), "pair": text("A", 0) + text("B", 1), "special_tokens": known}


def _template(values: dict) -> Around:
    single, known = values.get("single"), values.get("special_tokens")
    if not isinstance(single, list) or not isinstance(known, dict):
        raise ValueError("its TemplateProcessing needs a list called single and an object called special_tokens")
    ids: Around = ([], [])
    texts = 0
    for piece in single:
        if isinstance(piece, dict) and isinstance(piece.get("Sequence"), dict) and piece["Sequence"].get("id") == "A":
            texts += 1
        elif isinstance(piece, dict) and isinstance(piece.get("SpecialToken"), dict):
            ids[min(texts, 1)].extend(_ids(known, piece["SpecialToken"].get("id")))
        else:
            raise ValueError(f"its TemplateProcessing holds {as_json(piece)}, which is not known here")
    if texts != 1:
        raise ValueError(f"its TemplateProcessing puts a text {texts} times, but once is needed")
    return ids


def _ids(known: dict, name: Any) -> list[int]:
    token = known.get(name) if isinstance(name, str) else None
    ids = token.get("ids") if isinstance(token, dict) else None
    if not isinstance(ids, list) or not all(map(_is_id, ids)):
        raise ValueError(f"its TemplateProcessing does not say which ids {as_json(name)} has")
    return ids


def _pair(values: dict, name: str) -> int:
    pair = values.get(name)
    if not isinstance(pair, list) or len(pair) != 2 or not _is_id(pair[1]):
        raise ValueError(f"its {values['type']} has {as_json(pair)} as {name}, but a token and its id are needed")
    return pair[1]


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32
