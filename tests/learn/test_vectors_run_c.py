"""Golden vectors of a llama2.c model: their greedy ids are those of llama2.c's own run.c.

NUMLLAMA_RUN_C is the path of run.c, from https://github.com/karpathy/llama2.c.
"""

import os
import shutil
import string
import struct
import subprocess

import pytest

import numllama as nl
from numllama.interop.llama2c import save
from numllama.learn.vectors import model_vectors

BOS = 1  # run.c begins with it, and ends where it comes again
LETTERS = string.ascii_lowercase  # the text of each token, so that what is printed says which they were


def write_tokenizer(path):
    """tokenizer.bin: the longest text's length, then each token's score, length and text."""
    tokens = [struct.pack("<fi", 0.0, 1) + letter.encode() for letter in LETTERS]
    path.write_bytes(struct.pack("<i", 1) + b"".join(tokens))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.skipif("NUMLLAMA_RUN_C" not in os.environ or not shutil.which("cc"), reason="needs llama2.c's run.c")
def test_run_c_decodes_the_vectors(tmp_path, tied):
    config = nl.ModelConfig(
        len(LETTERS), 16, 2, 4, n_kv_heads=2, ffn_dim=24, max_seq_len=32, rope_layout="interleaved", tie_embeddings=tied,
        init_std=0.3,
    )  # fmt: skip
    model = nl.Transformer(config, seed=1)
    save(model, tmp_path / "model.bin")
    first = nl.generate(model, [BOS], 1, temperature=0)
    vectors = model_vectors(tmp_path / "model.bin", [BOS, *first, 2, 3, 4])
    ids = first + vectors.manifest["decoding"]["ids"]
    assert vectors.manifest["decoding"]["prompt"] == [BOS, *first] and BOS not in ids and len({*ids}) > 3
    write_tokenizer(tmp_path / "tokenizer.bin")
    subprocess.run(["cc", "-O2", "-o", "run", os.environ["NUMLLAMA_RUN_C"], "-lm"], cwd=tmp_path, check=True)
    command = ["./run", "model.bin", "-z", "tokenizer.bin", "-t", "0.0", "-n", str(len(ids) + 1)]
    printed = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert printed.replace("<s>", "").split()[0].startswith("".join(LETTERS[i] for i in ids))
