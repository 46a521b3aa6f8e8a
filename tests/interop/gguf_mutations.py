"""GGUF files with something wrong in them, and what opening them does.

    python tests/interop/gguf_mutations.py ORIGINAL FIRST LAST      # prints a line of JSON for each that is not as it should be
"""

import json
import resource
import struct
import sys
import tempfile
import time
import tracemalloc
import warnings
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent.parent))  # as a script

from interop.mutations import SECONDS, wrong_with

NUMBERS = [0, 1, 2, 3, 7, 8, 9, 30, 31, 100, 2**16, 2**24, 2**31 - 1, 2**32 - 1, 2**33, 2**40, 2**62, 2**63, 2**64 - 1]
SPARE = 2**20  # bytes of memory that have nothing to do with the size of the file


LLAMA_3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
FACTORS = dict(short_factor=[1.0] * 16, long_factor=[2.0] * 16)
LONGROPE = dict(rope_type="longrope", factor=2.0, original_max_position_embeddings=32, **FACTORS)
GEMMA = dict(norm="rmsnorm1p", ffn="geglu", norm_placement="both", qk_norm="rms", embed_scale=128**0.5, attn_scale=32**-0.5)
ORIGINALS = {  # by architecture
    "llama": dict(rope_scaling=LLAMA_3),
    "qwen3moe": dict(ffn="moe", n_experts=4, n_experts_per_token=2, qk_norm="rms", ffn_dim=128),
    "phi3": dict(rope_scaling=LONGROPE, family="phi3", sliding_window=40),
    "gemma3": dict(**GEMMA, sliding_window=8, window_layers=(0,), local_rope_theta=1e4),
}


def original(path, architecture):
    """A small model in float16 with a tokenizer: larger than what Python itself allocates while it opens one."""
    import numllama as nl
    from numllama.interop.load import save

    tokens = {**{i: bytes([i]) for i in range(256)}, 256: b"he", 257: b"ll", 258: b"hell"}
    tokenizer = nl.Tokenizer(tokens, [(b"h", b"e"), (b"l", b"l"), (b"he", b"ll")], {"<s>": 259, "</s>": 260})
    shape = dict(vocab_size=264, dim=128, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=512, max_seq_len=64)
    model = nl.Transformer(nl.ModelConfig(**{**shape, "rope_theta": 500.0, **ORIGINALS[architecture]}), seed=1)
    model.generation_config = {"bos_token_id": 259, "eos_token_id": [260]}
    save(model, path, tokenizer, "float16")


def mutate(random, content):
    """The file with something wrong, mostly in its header: a number, a text, a piece."""
    header = content.index(b"blk.1.attn_norm.weight") + 2000
    content = bytearray(content)
    done = []
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        what = random.choice(["number", "number", "number", "byte", "name", "cut", "insert", "remove", "weights", "any"])
        at = random.randrange(header)
        if what == "number":
            size, number = random.choice([("<I", 4), ("<Q", 8)]), random.choice(NUMBERS)
            struct.pack_into(size[0], content, at, number % 2 ** (8 * size[1]))
        elif what == "byte":
            content[at] ^= 1 << random.randrange(8)
        elif what == "name":
            names = [b".attention.", b".rope.", b"expert", b"llama.", b"tokenizer.ggml.", b"blk.", b"general.", b".weight"]
            names += [b"gpt2", b"llama"]
            places = [i for name in names for i in [content.find(name, at)] if i >= 0]
            if places:
                content[random.choice(places)] = random.randrange(256)
        elif what == "cut":
            del content[random.choice([at, random.randrange(len(content))]) :]
            header = min(header, len(content))
        elif what == "insert":
            content[at:at] = random.randbytes(random.randint(1, 40))
        elif what == "remove":
            del content[at : at + random.randint(1, 40)]
        elif what == "weights":
            at = random.randrange(len(content))
            content[at : at + 64] = random.randbytes(len(content[at : at + 64]))
        else:
            content[random.randrange(len(content))] = random.randrange(256)
        done.append(f"{what} at {at}")
        if len(content) < 64:
            break
        header = min(header, len(content) - 8)
    return bytes(content), "; ".join(done)


def actions(path):
    """What a user might do with the file."""
    import numllama as nl

    def model():
        nl.generate(nl.load(path), [1, 2], 2, temperature=0)

    def tokenizer():
        opened = nl.Tokenizer.load(path)
        opened.decode(opened.encode("hello", disallowed_special=()))

    return model, tokenizer


def main(source, first, last):
    """Open mutations `first` to `last`; what each one is, is said before it is opened."""
    warnings.simplefilter("ignore")  # weights of a flipped bit overflow
    content = Path(source).read_bytes()
    for action in actions(Path(source)):
        action()
    resource.setrlimit(resource.RLIMIT_DATA, (2 * 10**9, 2 * 10**9))
    worst = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        for number in range(int(first), int(last)):
            damaged, what = mutate(Random(number), content)
            print(json.dumps({"began": number, "what": what}), flush=True)
            path.write_bytes(damaged)
            for i, action in enumerate(actions(path)):
                began = time.process_time()
                tracemalloc.start()
                wrong = wrong_with(action)
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                worst = max(worst, peak)
                if peak > 4 * len(damaged) + SPARE:
                    wrong = f"{peak:,} bytes for a file of {len(damaged):,}"
                if wrong or time.process_time() - began > SECONDS:
                    found = {"number": number, "what": what, "action": i, "wrong": wrong or "took too long"}
                    print(json.dumps(found), flush=True)
    print(json.dumps({"ended": int(last), "peak": worst}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
