"""Refuse files that hold no readable weights, above all pickles: opening a pickle can run any program."""

from pathlib import Path

from numllama.errors import CheckpointError

SUFFIXES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle")
OTHERS = {
    ".npz": "an archive of NumPy arrays, which does not describe a model",
    ".npy": "a NumPy array, not a model",
    ".model": "a SentencePiece model, which is a tokenizer and holds no weights",
    ".h5": "a TensorFlow file, which numllama does not read: convert it to safetensors",
    ".msgpack": "a Flax file, which numllama does not read: convert it to safetensors",
}


def refuse_other(path: Path) -> None:
    """Raise CheckpointError for a file of a known kind without readable weights."""
    refuse_pickle(path)
    if path.suffix in OTHERS and path.is_file():
        raise CheckpointError(f"{path} is {OTHERS[path.suffix]}")


def refuse_others(folder: Path) -> None:
    """Raise CheckpointError for the first such file in a folder without weights; a tokenizer's .model may be there."""
    for path in sorted(folder.iterdir()):
        if path.suffix != ".model":
            refuse_other(path)


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError for a pickle, recognised by its name, or a .bin by its first bytes. It is never unpickled."""
    if path.is_file() and (path.suffix in SUFFIXES or (path.suffix == ".bin" and _begins_like_a_pickle(path))):
        raise CheckpointError(
            f"{path} is a Python pickle, which can run any program when it is opened, so it is never read: "
            "convert it to safetensors, which holds only numbers (with transformers' save_pretrained)"
        )


def _begins_like_a_pickle(path: Path) -> bool:
    """Whether a file begins like a zip archive (torch.save's format), or with PROTO, its version and a non-zero opcode."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return start == b"PK\x03\x04" or (len(start) == 4 and start[0] == 0x80 and start[1] <= 5 and start[2] != 0)
