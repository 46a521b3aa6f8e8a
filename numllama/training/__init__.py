"""Training: data, the loop, its threads, and checkpoints."""

from numllama.training.checkpoint import load_run
from numllama.training.config import RECIPES, TrainConfig, recipe
from numllama.training.data import Dataset, load_dataset, read_tokens, text_dataset, write_tokens
from numllama.training.trainer import StepReport, Trainer

__all__ = [
    "Dataset", "load_dataset", "text_dataset", "read_tokens", "write_tokens",
    "TrainConfig", "RECIPES", "recipe",
    "Trainer", "StepReport", "load_run",
]
