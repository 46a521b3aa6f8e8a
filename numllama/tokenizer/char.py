"""One token for each character: the simplest tokenizer, and enough for Shakespeare."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from numllama.errors import DataError
from numllama.storage.folders import published
from numllama.tokenizer.vocabulary import checked_id


class CharTokenizer:
    """Ids are positions in a sorted string of characters.

    Parameters
    ----------
    characters : iterable of str
        The characters that can be encoded; order and repetitions do not matter.
    """

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = "".join(sorted(set(characters)))
        self._codes = _code_points(self.characters)
        self.folder: Path | None = None  # where it was loaded from

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; ValueError, with the position, for a character that is not in the vocabulary."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """Like :meth:`encode`, for long texts: returns an integer array."""
        codes = _code_points(text)
        if not self.characters and len(codes):
            raise ValueError("the tokenizer knows no characters at all")
        ids = np.minimum(np.searchsorted(self._codes, codes), self.vocab_size - 1)
        unknown = np.flatnonzero(self._codes[ids] != codes)
        if len(unknown):
            at = int(unknown[0])
            raise ValueError(
                f"character {text[at]!r} at position {at} is not among the {self.vocab_size} that this tokenizer knows"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; ids without a character are skipped."""
        return "".join(self.characters[i] for i in map(checked_id, ids) if i < self.vocab_size)

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Decode ids as they arrive."""
        return (text for i in ids if (text := self.decode([i])))

    def save(self, folder: str | Path) -> Path:
        """Write ``tokenizer.json`` into a folder."""
        text = json.dumps({"type": "characters", "characters": list(self.characters)}) + "\n"
        with published(folder, "tokenizer.json", error=DataError) as part:
            (part / "tokenizer.json").write_text(text, encoding="utf-8")
        return Path(folder) / "tokenizer.json"

    @classmethod
    def load(cls, path: str | Path) -> "CharTokenizer":
        """Read a ``tokenizer.json``, or the one in a folder."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not a readable tokenizer: {error}") from error
        characters = values.get("characters") if isinstance(values, dict) else None
        if not isinstance(characters, list) or not all(isinstance(c, str) and len(c) == 1 for c in characters):
            raise DataError(f"{path} is not a tokenizer of characters")
        return cls(characters)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
