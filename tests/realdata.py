"""Real data for tests: public files that the project does not contain. A test that needs a missing one is skipped.

    python tests/realdata.py FOLDER            # download what FOLDER lacks; --mirror URL to take the files from elsewhere

Set NUMLLAMA_TEST_DATA to the folder. Every download is compared with its checksum.
"""

import argparse
import hashlib
import os
import sys
import urllib.request
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
GPT2 = "https://huggingface.co/openai-community/gpt2/resolve/main"
STORIES = "https://huggingface.co/karpathy/tinyllamas/resolve/main/stories260K"
TINY_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
FILES = {  # name: (where it is published, SHA-256)
    "tinyshakespeare.txt": (TINY_SHAKESPEARE, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
    "gpt2_vocab.json": (f"{GPT2}/vocab.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    "gpt2_merges.txt": (f"{GPT2}/merges.txt", "ac33235097fe06d4a8fff0feac994644809e6eb6ab70669e1e9fd40ae032428e"),
    "stories260K.bin": (f"{STORIES}/stories260K.bin", "b0a507e7ad0f626624f17112325e66691f9076d622e1d3274d103d00299f2696"),
    "tok512.bin": (f"{STORIES}/tok512.bin", "037cb335abb25d1fa9e8ecae30ed2a3a8ace9302862ebcdc05d51a6bbb10c312"),
}
MERGES_HEADER = b"#version: 0.2\n"  # the tests read the merges without it
TIMEOUT_SECONDS = 20


def real_data(name: str) -> Path:
    """A file in $NUMLLAMA_TEST_DATA, or in ../shared/data next to the project; skips the test if it is in neither."""
    import pytest  # here: downloading needs only Python

    folder = Path(os.environ.get("NUMLLAMA_TEST_DATA") or PROJECT.parent / "shared" / "data")
    if not (folder / name).is_file():
        pytest.skip(f"{name} is neither in $NUMLLAMA_TEST_DATA nor in ../shared/data")
    return folder / name


def download(name: str, folder: Path, mirror: str | None = None) -> None:
    """Download one of FILES into a folder; OSError if that fails or the checksum is wrong."""
    url, checksum = FILES[name]
    with urllib.request.urlopen(f"{mirror}/{name}" if mirror else url, timeout=TIMEOUT_SECONDS) as answer:
        content = answer.read(2**23)
    if name == "gpt2_merges.txt":
        content = content.removeprefix(MERGES_HEADER)
    if hashlib.sha256(content).hexdigest() != checksum:
        raise OSError("its checksum is wrong")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def main(arguments: list[str] | None = None) -> int:
    """Download what is missing; returns the number of files that are still missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files are, or will be")
    parser.add_argument("--mirror", metavar="URL", help="take every file from URL/NAME instead of from its publisher")
    given = parser.parse_args(arguments)
    missing = 0
    for name in FILES:
        if (given.folder / name).is_file():
            continue
        try:
            download(name, given.folder, given.mirror)
            print(f"{name}: downloaded")
        except (OSError, ValueError) as error:
            missing += 1
            print(f"{name}: could not be downloaded ({error})")
    return missing


if __name__ == "__main__":
    sys.exit(main())
