"""Files that are given where weights are expected and are not read: pickles above all, for opening one runs it as a program."""

from pathlib import Path

from numllama.errors import CheckpointError

SUFFIXES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle")
OTHERS = {
    ".npz": "an archive of NumPy arrays, which says nothing of the model that they are from",
    ".npy": "a NumPy array, which is no model",
    ".model": "a SentencePiece model, which is a tokenizer and holds no weights",
    ".h5": "a file of TensorFlow's, which is not read: convert it to safetensors",
    ".msgpack": "a file of Flax's, which is not read: convert it to safetensors",
}


def refuse_other(path: Path) -> None:
    """Raise CheckpointError for a file of a known kind that holds no weights, or none that are read."""
    refuse_pickle(path)
    if path.suffix in OTHERS and path.is_file():
        raise CheckpointError(f"{path} is {OTHERS[path.suffix]}")


def refuse_others(folder: Path) -> None:
    """Raise CheckpointError for the first such file in a folder without weights, in which a tokenizer is in its place."""
    for path in sorted(folder.iterdir()):
        if path.suffix != ".model":
            refuse_other(path)


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError for a pickle: by its name, or for a .bin by how it begins. Nothing of it is interpreted."""
    if path.is_file() and (path.suffix in SUFFIXES or (path.suffix == ".bin" and _begins_like_a_pickle(path))):
        raise CheckpointError(
            f"{path} is a Python pickle, which can run any program when it is opened, and so it is never read: "
            "convert it to safetensors, which holds numbers alone (transformers' save_pretrained does that)"
        )


def _begins_like_a_pickle(path: Path) -> bool:
    """A zip archive, as torch.save writes it, or the bare opcode PROTO, its version and another opcode (none is 0)."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return start == b"PK\x03\x04" or (len(start) == 4 and start[0] == 0x80 and start[1] <= 5 and start[2] != 0)
