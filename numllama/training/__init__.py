"""Training: data, the loop, its threads, and checkpoints."""

from numllama.lazy import lazy

__all__ = [
    "Dataset", "load_dataset", "text_dataset", "read_tokens", "write_tokens",
    "TrainConfig", "RECIPES", "recipe",
    "Trainer", "StepReport",
]

lazy(__name__, {
    "numllama.data.dataset": "Dataset load_dataset text_dataset",
    "numllama.data.token_files": "read_tokens write_tokens",
    "numllama.training.config": "TrainConfig RECIPES recipe",
    "numllama.training.trainer": "Trainer StepReport",
})  # fmt: skip
