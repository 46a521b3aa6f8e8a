"""Training: data, the loop, its threads, and checkpoints."""

from numllama.lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:  # at run time each name is imported when it is first used
    from numllama.data.dataset import Dataset, load_dataset, text_dataset
    from numllama.data.token_files import read_tokens, write_tokens
    from numllama.training.config import RECIPES, TrainConfig, recipe
    from numllama.training.trainer import StepReport, Trainer

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
