"""llama2.c's files: a real trained model tells its story, and every file comes back bit for bit."""

import struct

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from interop.checkpoints import SCALING, random_model, tokens
from interop.runc import RunC, read_tokenizer
from realdata import real_data

import numllama as nl
from numllama.interop import llama2c

# What llama2.c's own documents (doc/stories260K.md) show for `run stories260K.bin -z tok512.bin -t 0.0`.
STORY = """\
Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. \
She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, \
"I want to play with your ball, but I can't find it."
"""
BOS = 1


@pytest.fixture(scope="module")
def stories():
    """The real file, and run.c's greedy continuation of an empty prompt: the ids that follow BOS, and the logits of each."""
    path = real_data("stories260K.bin")
    reference, ids, logits = RunC(path), [BOS], []
    for pos in range(200):
        logits.append(reference.forward(ids[-1], pos))
        ids.append(int(logits[-1].argmax()))
    return path, ids, np.array(logits)


def test_the_header_says_the_shape(stories):
    config = nl.ModelConfig.preset("stories260k")
    assert nl.load(stories[0]).config == config
    assert (config.rope_layout, config.tie_embeddings, config.norm_eps) == ("interleaved", True, 1e-5)


def test_logits_equal_run_c_at_every_position(stories):
    path, ids, logits = stories
    ours = nl.load(path).forward(np.array([ids[:-1]]))[0]
    for position in range(len(ours)):
        assert_close(ours[position], logits[position], rtol=1e-5)


def test_it_tells_the_story_that_run_c_tells(stories):
    path, ids, _ = stories
    pieces = read_tokenizer(real_data("tok512.bin"), 512)
    assert nl.generate(nl.load(path), [BOS], 60, temperature=0) == ids[1:61]
    text = b"".join(pieces[i] for i in ids[1:]).decode().removeprefix(" ")
    assert text.startswith(STORY)


def test_it_predicts_its_own_story_well(stories):
    """Validation loss of the published model: 1.3 nats a token; chance: 6.2."""
    path, ids, _ = stories
    model = nl.load(path)
    assert float(model.loss(np.array([ids[:-1]]), np.array([ids[1:]]))) < 1.0


def test_in_int8_it_tells_nearly_the_same_story(stories):
    path, ids, _ = stories
    small, batch = nl.load(path, store_as="int8"), (np.array([ids[:-1]]), np.array([ids[1:]]))
    assert (small.forward(batch[0]).argmax(-1) == batch[1]).mean() > 0.95
    assert abs(float(small.loss(*batch)) - float(nl.load(path).loss(*batch))) < 0.01
    decoded = nl.generate(small, ids[:100], 60, temperature=0)
    assert (small.forward(np.array([ids[:100] + decoded[:-1]]))[0, 99:].argmax(-1) == decoded).mean() > 0.95


def test_the_same_file_is_written_back(stories, tmp_path):
    nl.load(stories[0]).save(tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == stories[0].read_bytes()


def test_a_text_ends_where_the_next_begins(stories):
    assert nl.load(stories[0]).stop_ids == (1, 2)


def test_through_hugging_faces_layout_and_back(stories, tmp_path):
    """The weights come back bit for bit; the tables are computed anew, and run.c computes its own."""
    nl.load(stories[0]).save(tmp_path / "llama")
    model = nl.load(tmp_path / "llama")
    assert model.config.rope_layout == "half"
    model.save(tmp_path / "back.bin")
    ours, theirs = llama2c.read(tmp_path / "back.bin")[1], llama2c.read(stories[0])[1]
    for name, tensor in theirs.items():
        if name in ("cos", "sin"):
            assert np.abs(ours[name] - tensor).max() < 1e-5
        else:
            assert_same_bits(ours[name], tensor)


def test_two_bytes_tell_a_story_too(stories):
    model = nl.load(stories[0], dtype="bfloat16")
    assert nl.generate(model, [BOS], 10, temperature=0) == stories[1][1:11]


# ------------------------------------------------------------------------------------------------ made here


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_model_of_ours_survives_its_format_and_run_c_computes_the_same(tmp_path, layout, tied):
    model = random_model(rope_layout=layout, tie_embeddings=tied)
    model.save(tmp_path / "a.bin")
    loaded = nl.load(tmp_path / "a.bin")
    assert loaded.config == nl.ModelConfig.from_dict(model.config.to_dict() | dict(rope_layout="interleaved"))
    assert_close(loaded.forward(tokens()), model.forward(tokens()), rtol=1e-5)
    if layout == "interleaved":
        assert_same_bits(loaded.params.flat, model.params.flat)
    loaded.save(tmp_path / "b.bin")
    assert (tmp_path / "b.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()
    reference = RunC(tmp_path / "a.bin")
    row = tokens()[0]
    logits = np.array([reference.forward(token, pos) for pos, token in enumerate(row)])
    assert_close(model.forward(row[None])[0], logits, rtol=1e-5)


def version_1(model, shared):
    """As llama2.c's export.py writes version 1."""
    c, p = model.config, model.params
    header = struct.pack("<Ii7iB", 0x616B3432, 1, c.dim, c.ffn_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.vocab_size, 12, shared)
    blocks = [[p[f"blocks.{i}.{name}"] for i in range(c.n_layers)] for name in ("attn_norm", "ffn_norm")]
    blocks += [[p["norm"]], [p["embed"]]]
    matrices = ("wq", "wk", "wv", "wo", "w_gate", "w_down", "w_up")
    blocks += [[p[f"blocks.{i}.{name}"] for i in range(c.n_layers)] for name in matrices]
    blocks += [] if shared else [[p["head"]]]
    return header.ljust(256, b"\0") + b"".join(tensor.tobytes() for block in blocks for tensor in block)


@pytest.mark.parametrize("shared", [True, False])
def test_version_1_is_read(tmp_path, shared):
    model = random_model(rope_layout="interleaved", tie_embeddings=shared)
    (tmp_path / "a.bin").write_bytes(version_1(model, shared))
    loaded = nl.load(tmp_path / "a.bin")
    assert loaded.config == model.config
    assert_same_bits(loaded.params.flat, model.params.flat)


@pytest.mark.parametrize("version", [2, 3, -1])
def test_other_versions_are_refused(tmp_path, version):
    (tmp_path / "a.bin").write_bytes(struct.pack("<Ii", 0x616B3432, version) + bytes(300))
    with pytest.raises(nl.CheckpointError, match=rf"a\.bin is version {version} of llama2\.c's format \(2 is quantised\), but"):
        nl.load(tmp_path / "a.bin")


def test_a_file_that_is_cut_short_or_too_long_is_named(tmp_path):
    random_model().save(tmp_path / "a.bin")
    whole, short = (tmp_path / "a.bin").read_bytes(), r"cut short, or not a llama2\.c model: its header asks for"
    for content, what in [
        (whole[:-4], rf"{short} {len(whole)} bytes, and it has {len(whole) - 4}"),
        (whole[:-1000], short),
        (whole[:29], short),
        (b"What is this? A text, and not a model at all.", r"not a llama2\.c model: "),
        (struct.pack("<7i", 8, 8, 2**31 - 1, 1, 1, 8, 8), short),
        (struct.pack("<7i", *[2**31 - 2] * 3, 1, 1, 8, 8) + bytes(8), short),
        (whole + b"more", r"not a llama2\.c model: its header asks for"),
        (whole[:27], "not a llama2\\.c model: it has only 27 bytes"),
        (b"", "not a llama2\\.c model: it has only 0 bytes"),
        (b"GGUF" + bytes(40), "not a llama2\\.c model: .* must be a whole number of at least 1"),
        (b"\xff" * 40, "not a llama2\\.c model: .* must be a whole number of at least 1"),
    ]:
        (tmp_path / "a.bin").write_bytes(content)
        with pytest.raises(nl.CheckpointError, match=rf"a\.bin is {what}"):
            nl.load(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(norm_eps=1e-6), r"norm_eps is 1e-06, but in a llama2\.c file it can only be 1e-05"),
        (dict(rope_theta=500000.0), r"rope_theta is 500000\.0, but in a llama2\.c file it can only be 10000\.0"),
        (dict(rope_scaling=SCALING), r"rope_scaling is .*, but in a llama2\.c file it can only be None"),
        (dict(head_dim=10), r"head_dim is 10, but in a llama2\.c file it can only be 6"),
        (dict(bias=True), r"bias is True, but in a llama2\.c file it can only be False"),
        (dict(qk_norm="l2"), r"qk_norm is 'l2', but in a llama2\.c file it can only be None"),
        (dict(sliding_window=3), r"sliding_window is 3, but in a llama2\.c file it can only be None"),
        (dict(norm="rmsnorm1p"), r"norm is 'rmsnorm1p', but in a llama2\.c file it can only be 'rmsnorm'"),
        (dict(ffn="moe"), r"ffn is 'moe', but in a llama2\.c file it can only be 'swiglu'"),
        (dict(dim=26, head_dim=6), r"head_dim is 6, but in a llama2\.c file it can only be 6\.5"),
        (dict(dtype="float64"), r"weights are float64, but a llama2\.c file holds float32"),
    ],
    ids=lambda value: None if isinstance(value, str) else "_".join(value),
)
def test_what_the_format_cannot_say_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        random_model(**changes).save(tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


def test_the_format_has_no_place_for_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"cannot hold a tokenizer: save it to another file$"):
        random_model().save(tmp_path / "a.bin", nl.CharTokenizer("abc"))


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    random_model().save(tmp_path / "a.bin")
    before = (tmp_path / "a.bin").read_bytes()

    def full_disk(model):
        yield b"half"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(llama2c, "_parts", full_disk)
    with pytest.raises(nl.CheckpointError, match=r"could not be written: No space left on device$"):
        random_model(tie_embeddings=True).save(tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
