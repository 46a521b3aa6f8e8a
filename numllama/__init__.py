"""numllama: a Llama language model in pure NumPy, every forward and every backward written by hand."""

from numllama.lazy import lazy
from numllama.version import __version__  # noqa: F401

TYPE_CHECKING = False  # type checkers take it for True; importing `typing` would take longer than all the rest
if TYPE_CHECKING:  # the public API; at run time each name is imported when it is first used
    from numllama import ops
    from numllama.data.conversations import load_conversations
    from numllama.data.dataset import Dataset, load_dataset
    from numllama.errors import CheckpointError, DataError, DeviceError, GenerationError, NumllamaError, TrainingError
    from numllama.generation.config import SamplingConfig
    from numllama.generation.generate import generate, generate_batch, stream
    from numllama.generation.kv_cache import KVCache
    from numllama.generation.text import complete
    from numllama.gradcheck import GradientError, gradcheck
    from numllama.interop.load import load, load_run
    from numllama.learn.compare import Comparison, compare
    from numllama.learn.diagnose import Diagnosis, diagnose
    from numllama.learn.judge import CaseVerdict, Verdict, judge
    from numllama.model.config import PRESETS, ModelConfig
    from numllama.model.lora import LoraConfig
    from numllama.model.parameters import count_parameters
    from numllama.model.transformer import Transformer
    from numllama.optim import SGD, AdamW, clip_grad_norm, cosine_schedule
    from numllama.tokenizer import CharTokenizer, Tokenizer
    from numllama.training.config import TrainConfig
    from numllama.training.trainer import StepReport, Trainer

__all__ = [
    "ops",
    "gradcheck", "GradientError", "compare", "Comparison", "diagnose", "Diagnosis", "judge", "Verdict", "CaseVerdict",
    "ModelConfig", "PRESETS", "LoraConfig", "Transformer", "count_parameters",
    "AdamW", "SGD", "cosine_schedule", "clip_grad_norm",
    "Tokenizer", "CharTokenizer", "Dataset", "load_dataset", "load_conversations",
    "Trainer", "TrainConfig", "StepReport", "load_run",
    "load", "generate", "generate_batch", "stream", "complete", "SamplingConfig", "KVCache",
    "NumllamaError", "CheckpointError", "DataError", "DeviceError", "GenerationError", "TrainingError",
]

lazy(__name__, {
    "numllama.ops": "",
    "numllama.gradcheck": "gradcheck GradientError",
    "numllama.learn.compare": "compare Comparison",
    "numllama.learn.diagnose": "diagnose Diagnosis",
    "numllama.model": "ModelConfig PRESETS LoraConfig Transformer count_parameters",
    "numllama.optim": "AdamW SGD cosine_schedule clip_grad_norm",
    "numllama.tokenizer": "Tokenizer CharTokenizer",
    "numllama.training": "Trainer TrainConfig StepReport",
    "numllama.data.dataset": "Dataset load_dataset",
    "numllama.data.conversations": "load_conversations",
    "numllama.interop.load": "load load_run",
    "numllama.learn.judge": "judge Verdict CaseVerdict",
    "numllama.generation": "generate generate_batch stream complete SamplingConfig KVCache",
    "numllama.errors": "NumllamaError CheckpointError DataError DeviceError GenerationError TrainingError",
})  # fmt: skip
