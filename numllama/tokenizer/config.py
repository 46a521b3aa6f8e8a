"""Special tokens, as described by the files next to a vocabulary.

    tokenizer_config.json      names (bos_token and the like), and all added tokens with their flags and ids
    special_tokens_map.json    names, in older folders
    added_tokens.json          ids of added tokens, in older folders

The first takes precedence: if it lists the added tokens, as current versions of `transformers` do, the others are ignored.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numllama.errors import DataError, NumllamaError, shown
from numllama.storage.fields import OBJECT, as_json, check
from numllama.storage.files import read_json
from numllama.tokenizer.added_tokens import AddedToken, read_added_token

CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")


class Beside(NamedTuple):
    """The content of those files.

    Attributes
    ----------
    config : dict
        ``tokenizer_config.json``.
    names : dict of str to str
        The named special tokens.
    special : dict of str to dict
        All special tokens that are named or listed, and their flags if given.
    ids : dict of str to int
        The content of ``added_tokens.json``.
    """

    config: dict[str, Any]
    names: dict[str, str]
    special: dict[str, dict]
    ids: dict[str, int]

    def tokens(self, vocab: Mapping[str, int], added: Sequence[AddedToken] = ()) -> list[AddedToken]:
        """Added tokens: the known ones, and those in these files that have an id."""
        known = {token.content: token for token in added}
        if (listed := self.config.get("added_tokens_decoder")) is not None:
            known |= {token.content: token for token in _listed(listed)}
        for content, i in self.ids.items():
            special = content in self.special
            known.setdefault(content, AddedToken(content, i, special=special, normalized=not special))
        for content, flags in self.special.items():
            if content in vocab and content not in known:
                known[content] = read_added_token({**flags, "content": content, "id": vocab[content], "special": True})
        return list(known.values())


def beside(folder: Path, error: type[NumllamaError] = DataError) -> Beside:
    """Read these files of a folder; `error` if one of them is damaged."""
    config = _read(folder / CONFIG, error)
    whole = config.get("added_tokens_decoder") is not None
    more = {} if whole else _read(folder / MAP, error)
    ids = {} if whole else _read(folder / ADDED, error)
    for content, i in ids.items():
        if type(i) is not int or not 0 <= i < 2**32 or not content:
            raise error(f"{folder / ADDED} is damaged: it gives {shown(content)} the id {as_json(i)}")
    names, special = {}, {}
    for path, values in ((folder / CONFIG, config), (folder / MAP, more)):
        for name, value in values.items():
            if name.endswith("_token") and (name in NAMES or isinstance(value, str | dict)):
                content, flags = _named(value, f"{path} is damaged: {name}", error)
                if content:
                    names[name], special[content] = content, flags
        for name in LISTS:
            for value in _several(values.get(name), f"{path} is damaged: {name}", error):
                content, flags = _named(value, f"{path} is damaged: one of {name}", error)
                if content:
                    special[content] = flags
    return Beside(config, names, special, ids)


def _read(path: Path, error: type[NumllamaError]) -> dict[str, Any]:
    return read_json(path, error) if path.exists() else {}


def _named(value: Any, where: str, error: type[NumllamaError]) -> tuple[str, dict]:
    """A special token given as a text, or as an object with flags; "" if there is none."""
    flags = {name: flag for name, flag in value.items() if name in AddedToken._fields} if isinstance(value, dict) else {}
    content = flags.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str) and (content is not None or (isinstance(value, dict) and value)):
        raise error(f"{where} is {shown(value)}, but must be a text")
    return content or "", flags


def _several(value: Any, where: str, error: type[NumllamaError]) -> list:
    if value is None or isinstance(value, list):
        return value or []
    if isinstance(value, dict):  # by name
        return list(value.values())
    raise error(f"{where} is {shown(value)}, but must be a list")


def _listed(listed: Any) -> list[AddedToken]:
    check({"added_tokens_decoder": listed}, {"added_tokens_decoder": OBJECT}, as_json, f"in its {CONFIG}, ")
    tokens = []
    for i, values in listed.items():
        if not (i.isascii() and i.isdigit() and len(i) < 11) or not isinstance(values, dict):
            raise ValueError(f"added_tokens_decoder of its {CONFIG} has {shown(i)}: {as_json(values)}, which is no id and token")
        tokens.append(read_added_token({**values, "id": int(i)}))
    return tokens
