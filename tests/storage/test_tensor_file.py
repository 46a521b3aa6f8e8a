"""safetensors files: what the safetensors package writes is read, and the other way round; damage is named."""

import io
import json
import os
import tracemalloc

import numpy as np
import pytest
from helpers import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, save

from numllama.backend import BFLOAT16
from numllama.errors import CheckpointError
from numllama.storage.tensor_file import TensorFile, write_tensors

FLOATS = [np.dtype("f2"), np.dtype("f4"), np.dtype("f8"), BFLOAT16]
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def random(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@given(st.dictionaries(st.text().filter(lambda name: name != "__metadata__"), SHAPES, max_size=4), st.sampled_from(FLOATS))
def test_what_the_safetensors_package_writes_is_read(tmp_path_factory, shapes, dtype):
    tensors = {name: random(shape, dtype, seed) for seed, (name, shape) in enumerate(shapes.items())}
    path = tmp_path_factory.mktemp("file") / "a.safetensors"
    path.write_bytes(save(tensors))
    file = TensorFile(path)
    assert set(file) == set(tensors)
    for name, tensor in tensors.items():
        assert file.shape(name) == tensor.shape
        assert_same_bits(file[name], tensor)


@given(st.lists(SHAPES.filter(bool), max_size=4), st.sampled_from(FLOATS[:3]))
def test_what_is_written_the_safetensors_package_reads(shapes, dtype):
    tensors = {f"tensor {i}": random(shape, dtype, i) for i, shape in enumerate(shapes)}
    file = io.BytesIO()
    write_tensors(file, dtype, {name: tensor.shape for name, tensor in tensors.items()}, tensors.values())
    read = load(file.getvalue())
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert_same_bits(read[name], tensor)


def test_bfloat16_is_written_as_the_safetensors_package_writes_it():
    tensor = random((3, 4), BFLOAT16)
    file = io.BytesIO()
    write_tensors(file, BFLOAT16, {"a": (3, 4)}, [tensor])
    assert file.getvalue().endswith(tensor.tobytes())
    header = json.loads(file.getvalue()[8:-24])
    assert header == {"__metadata__": {"format": "pt"}, "a": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]}}


def test_strided_tensors_are_written_in_order():
    file = io.BytesIO()
    write_tensors(file, np.dtype("f4"), {"a": (4, 3)}, [random((3, 4), "f4").T])
    assert_same_bits(load(file.getvalue())["a"], np.ascontiguousarray(random((3, 4), "f4").T))


@pytest.mark.parametrize("spaces", range(4))
def test_tensors_may_begin_at_any_byte(tmp_path, spaces):
    tensor = random((3, 4), "f4")
    header = json.dumps({"a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}}).encode() + b" " * spaces
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + tensor.tobytes())
    assert_same_bits(TensorFile(path)["a"].copy(), tensor)


# ------------------------------------------------------------------------------------------------ memory


def test_reading_maps_the_file_and_copies_nothing(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"a": random((1000, 1000), "f4")}))
    tracemalloc.start()
    try:
        tensor = TensorFile(path)["a"]
        total = float(tensor.sum())
        assert tracemalloc.get_traced_memory()[1] < 200_000  # of 4,000,000 bytes
    finally:
        tracemalloc.stop()
    assert total == float(random((1000, 1000), "f4").sum())
    assert not tensor.flags.writeable


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    names = [f"tensor {i}" for i in range(20)]
    tracemalloc.start()
    try:
        with open(tmp_path / "a.safetensors", "wb") as file:
            write_tensors(file, np.dtype("f4"), dict.fromkeys(names, (1000, 100)), (np.ones((1000, 100), "f4") for _ in names))
        assert tracemalloc.get_traced_memory()[1] < 4 * 400_000
    finally:
        tracemalloc.stop()
    assert len(TensorFile(tmp_path / "a.safetensors")) == 20


# ------------------------------------------------------------------------------------------------ damage


def test_a_file_that_is_cut_short_anywhere_is_named(tmp_path):
    whole = save({"a": random((3, 4), "f4"), "b": random(5, "f4")})
    path = tmp_path / "a.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"a\.safetensors (is cut short|is not a safetensors file)"):
            TensorFile(path)


def test_the_sentence_says_how_much_is_there(tmp_path):
    path = tmp_path / "a.safetensors"
    whole = save({"a": random((3, 4), "f4")})
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=rf"a\.safetensors is cut short: it has {len(whole) - 1} bytes of {len(whole)}$"):
        TensorFile(path)


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
DAMAGED = {
    "json": (b"{]", "its header is not that of a safetensors file"),
    "utf8": (b'{"a": "\xff"}', "its header is not that of a safetensors file"),
    "entry": ({"a": 3}, "'a' is 3 in its header, but must have dtype, shape, data_offsets"),
    "list": ({"a": [ENTRY]}, r"'a' is \[\{.* in its header, but must have"),
    "no_dtype": ({"a": {"shape": [2, 2], "data_offsets": [0, 16]}}, "'a' is {.* in its header, but must have dtype"),
    "null": ({"a": {**ENTRY, "shape": None}}, "of 'a', shape is null, but must be a list of sizes"),
    "below_0": ({"a": {**ENTRY, "shape": [-2, -2]}}, r"of 'a', shape is \[-2, -2\], but must be a list of sizes"),
    "float": ({"a": {**ENTRY, "shape": [2.0, 2]}}, r"of 'a', shape is \[2.0, 2\], but must be a list of sizes"),
    "truth": ({"a": {**ENTRY, "shape": [True, 4]}}, r"of 'a', shape is \[true, 4\], but must be a list of sizes"),
    "huge": ({"a": {**ENTRY, "shape": [10**400, 0]}}, r"of 'a', shape is \[1000+\.\.\., but must be a list of sizes"),
    "shape": ({"a": {**ENTRY, "shape": 4}}, "of 'a', shape is 4, but must be a list of sizes"),
    "before": ({"a": {**ENTRY, "data_offsets": [-16, 0]}}, "of 'a', data_offsets is .*, but must be where"),
    "backwards": ({"a": {**ENTRY, "data_offsets": [16, 0]}}, "of 'a', data_offsets is .*, but must be where"),
    "one_offset": ({"a": {**ENTRY, "data_offsets": [0]}}, "of 'a', data_offsets is .*, but must be where"),
    "dtypes": ({"a": {**ENTRY, "dtype": ["F32"]}}, r'''of 'a', dtype is \["F32"\], but must be a text'''),
    "bytes": ({"a": {**ENTRY, "shape": [2, 3]}}, r"'a' has 16 bytes, which is not its shape \(2, 3\)"),
    "overlap": ({"a": ENTRY, "b": {**ENTRY, "shape": [2], "data_offsets": [8, 16]}}, "'b' begins at byte 8, but .* 16"),
    "same_place": ({"a": ENTRY, "b": ENTRY}, "'b' begins at byte 0, but the tensor before it ends at byte 16"),
    "hole": ({"a": {**ENTRY, "shape": [2], "data_offsets": [8, 16]}}, "'a' begins at byte 8, but .* 0"),
    "more": ({"a": {**ENTRY, "shape": [2], "data_offsets": [0, 8]}}, "8 bytes at its end belong to no tensor"),
    "twice": (f'{{"a": {json.dumps(ENTRY)}, "a": {json.dumps(ENTRY)}}}'.encode(), "'a' stands twice in its header"),
    "dtype_twice": (b'{"a": {"dtype": "F16", "dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}', "'dtype' stands twice"),
    "long": ({"x" * 10_000: {**ENTRY, "dtype": ["y" * 10_000]}}, "of 'x{50}.*dtype is .*y{50}"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_header_is_named(tmp_path, name):
    header, words = DAMAGED[name]
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(CheckpointError, match=rf"a\.safetensors is damaged: {words}") as caught:
        TensorFile(path)
    assert len(str(caught.value)) < 400
    if name != "twice":  # of which the package of that name takes the second one
        with pytest.raises(SafetensorError):
            load(path.read_bytes())


def test_a_dtype_of_many_letters_is_cut(tmp_path):
    header = json.dumps({"x" * 10_000: {**ENTRY, "dtype": "y" * 10_000}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    file = TensorFile(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"x+\.\.\. is stored as y+\.\.\., but only BF16") as caught:
        file["x" * 10_000]
    assert len(str(caught.value)) < 500


def test_a_header_that_is_nested_too_deeply_is_named(tmp_path):
    header = b'{"a": ' + 100_000 * b"["
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=r"a\.safetensors is nested too deeply$"):
        TensorFile(tmp_path / "a.safetensors")


def test_tensors_may_stand_in_any_order_and_hold_nothing(tmp_path):
    header = {"b": {**ENTRY, "data_offsets": [16, 32]}, "none": {**ENTRY, "shape": [0, 7], "data_offsets": [16, 16]}, "a": ENTRY}
    header = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(range(32)))
    expected, file = load((tmp_path / "a.safetensors").read_bytes()), TensorFile(tmp_path / "a.safetensors")
    for name in ("a", "b", "none"):
        assert_same_bits(file[name].copy(), expected[name])


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_refused_unread(tmp_path, kind):
    path = tmp_path / "a.safetensors"
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    with pytest.raises(CheckpointError, match=r"a\.safetensors is (not a regular file|a folder, but a file is needed)$"):
        TensorFile(path)


def test_integers_are_refused_by_name(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"a": np.ones(3, "int8"), "b": np.ones(3, "f4")}))
    file = TensorFile(path)
    assert_same_bits(file["b"], np.ones(3, "f4"))
    with pytest.raises(CheckpointError, match="a is stored as I8, but only BF16, F16, F32, F64 can be read"):
        file["a"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and so on", b"GGUF\x03\x00\x00\x00 and so on", b"\xff" * 40])
def test_another_kind_of_file_is_named(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.safetensors is not a safetensors file$"):
        TensorFile(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no none\.safetensors$"):
        TensorFile(tmp_path / "none.safetensors")
