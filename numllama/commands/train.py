"""`numllama train`: its flags and help. What it does is in `train_run.py`."""

from typing import Annotated, Literal

from cyclopts import Parameter

from numllama.commands.flags import Defaults, FilePath, as_flags, command, given
from numllama.commands.presets import model_settings, preset_name
from numllama.model.config import ModelConfig
from numllama.training.config import TrainConfig, recipe

ModelFlags = as_flags(ModelConfig, ("vocab_size", "rope_scaling"), Defaults(model_settings))
TrainFlags = as_flags(TrainConfig, defaults=Defaults(lambda arguments: recipe(preset_name(arguments)).to_dict()))
ModelOptions = Annotated[ModelFlags, Parameter(name="*", group="Model (defaults: the preset's)")]
TrainOptions = Annotated[TrainFlags, Parameter(name="*", group="Training (defaults: the preset's)")]
NO_MODEL_FLAGS, NO_TRAIN_FLAGS = ModelFlags(), TrainFlags()


@command(output_optional=True)
def train(
    *,
    data: FilePath | None = None,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    preset: str | None = None,
    device: str = "cpu",
    out: FilePath | None = None,
    resume: bool | Literal["auto"] = False,
    model: ModelOptions = NO_MODEL_FLAGS,
    training: TrainOptions = NO_TRAIN_FLAGS,
) -> int:
    """Train a model on Shakespeare, or on any text or prepared tokens.

    Example: numllama train --data book.txt --steps 3000 --out runs/book

    Parameters
    ----------
    data
        A text file, a token file (.bin, .npy), a folder with train and val token files, or stand-in, a synthetic play. Default
        tinyshakespeare.
    tokenizer
        How to tokenize a text: char, bpe (trained on the text), or the path of a tokenizer. Default char.
    vocab_size
        Train a byte-level BPE tokenizer of this size on the text. Default 1024 with --tokenizer bpe.
    preset
        Model and training settings to start from. Default shakespeare-cpu, or shakespeare on a GPU.
    device
        cpu, cuda, or cuda:N.
    out
        Folder of the run. Default: a new one under runs/.
    resume
        Resume the run in --out, or the newest run. auto: start if there is no run, fall back to the previous checkpoint if the
        newest is damaged, and accept repeated settings.
    """
    from numllama.commands.train_run import train_run

    if tokenizer == "":
        raise ValueError("tokenizer is empty, but must be char, bpe or the path of a tokenizer")
    return train_run(data, preset, device, out, resume, given(model), given(training), tokenizer, vocab_size)
