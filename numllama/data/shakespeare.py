"""Tinyshakespeare on any machine: a cached copy, else a download, else a synthetic play."""

import hashlib
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from numllama.data.dataset import Dataset, cache_folder, text_dataset
from numllama.data.synthetic import write_play
from numllama.errors import DataError
from numllama.storage.files import write_bytes
from numllama.tokenizer import CharTokenizer, Tokenizer

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TIMEOUT_SECONDS = 5
SYNTHETIC_PLAY = "synthetic play"


def shakespeare_dataset(
    cache: Path | None = None,
    url: str = URL,
    tokenizer: Tokenizer | CharTokenizer | str | None = None,
    vocab_size: int | None = None,
) -> tuple[Dataset, str]:
    """The data of ``examples/train_shakespeare.py``, and one line that says where they come from.

    Parameters
    ----------
    cache : path, optional
        Folder of the cached copy; default :func:`numllama.data.dataset.cache_folder`.
    url : str
        Where to download from.
    tokenizer : tokenizer or str, optional
    vocab_size : int, optional
        See :func:`numllama.data.dataset.text_dataset`.
    """
    how = tokenizer, vocab_size
    path = (cache or cache_folder()) / "tinyshakespeare.txt"
    text = b""
    with suppress(OSError):
        text = path.read_bytes()
    if _is_shakespeare(text):
        return text_dataset(text.decode(), "tinyshakespeare", *how), f"DATA: tinyshakespeare, the cached copy {path}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            text = answer.read(2**21)
        problem = None if _is_shakespeare(text) else "the download's checksum is wrong"
    except (OSError, HTTPException, ValueError) as error:  # no network, a time-out, an answer that is not HTTP, a bad proxy
        reason = " ".join(str(getattr(error, "reason", error)).split())
        problem = f"no download ({reason})"
    if problem:
        line = f"DATA: NOT Shakespeare but a synthetic play: there is no cached copy, and {problem}"
        return text_dataset(write_play(), SYNTHETIC_PLAY, *how), line
    kept = _keep(path, text)
    return text_dataset(text.decode(), "tinyshakespeare", *how), f"DATA: tinyshakespeare, downloaded and verified{kept}"


def _is_shakespeare(text: bytes) -> bool:
    return hashlib.sha256(text).hexdigest() == SHA256


def _keep(path: Path, text: bytes) -> str:
    """Cache the download; returns what to add to the line about it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text, DataError)
    except (OSError, DataError) as error:
        return f" (not cached: {error})"
    return f", now cached as {path}"
