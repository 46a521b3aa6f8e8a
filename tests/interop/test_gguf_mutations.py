"""Damaged GGUF files, opened: they work, or one sentence says what is wrong, soon and in little memory."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from interop import gguf_mutations
from interop.test_mutations import opened

MUTATIONS = int(os.environ.get("NUMLLAMA_FUZZ", 25))  # CI asks for 2000


@pytest.mark.parametrize("architecture", gguf_mutations.ORIGINALS)
def test_damaged_files_are_opened_or_refused_in_one_sentence(tmp_path, architecture):
    source = tmp_path / "x.gguf"
    gguf_mutations.original(source, architecture)
    n = MUTATIONS if architecture == "llama" else MUTATIONS // 3
    bounds = [n * i // 2 for i in range(3)]
    script = gguf_mutations.__file__
    with ThreadPoolExecutor(2) as pool:
        found = [wrong for half in pool.map(lambda i: opened(source, *bounds[i : i + 2], script), range(2)) for wrong in half]
    assert not found, f"{len(found)} of {n}\n" + "\n".join(map(str, found[:20]))
