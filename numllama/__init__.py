"""numllama: a Llama language model in pure NumPy, every forward and every backward written by hand."""

from numllama import ops
from numllama.errors import CheckpointError, DataError, DeviceError, NumllamaError, TrainingError
from numllama.generation import KVCache, SamplingConfig, complete, generate, stream
from numllama.gradcheck import GradientError, gradcheck
from numllama.interop import load
from numllama.model import PRESETS, LoraConfig, ModelConfig, Transformer, count_parameters
from numllama.optim import SGD, AdamW, clip_grad_norm, cosine_schedule
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.training import Dataset, StepReport, TrainConfig, Trainer, load_dataset, load_run
from numllama.training.conversations import load_conversations

__version__ = "0.1.0"

__all__ = [
    "ops",
    "gradcheck", "GradientError",
    "ModelConfig", "PRESETS", "LoraConfig", "Transformer", "count_parameters",
    "AdamW", "SGD", "cosine_schedule", "clip_grad_norm",
    "Tokenizer", "CharTokenizer", "Dataset", "load_dataset", "load_conversations",
    "Trainer", "TrainConfig", "StepReport", "load_run",
    "load", "generate", "stream", "complete", "SamplingConfig", "KVCache",
    "NumllamaError", "CheckpointError", "DataError", "DeviceError", "TrainingError",
]
