"""What a finished run is judged by: a sample of text, the loss curve, and losses to compare with."""

import math
from pathlib import Path
from typing import Any

from numllama.data.batches import TrainingData
from numllama.data.shakespeare import SYNTHETIC_PLAY
from numllama.data.synthetic import best_loss
from numllama.errors import NumllamaError
from numllama.generation.text import complete
from numllama.install import install_command
from numllama.model.transformer import Transformer
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.training import checkpoint
from numllama.training.metrics import METRICS, read_metrics
from numllama.training.plot import plot_losses

SAMPLE_CHARACTERS = 400


def sample(model: Transformer, tokenizer: Tokenizer | CharTokenizer, run: Path) -> str:
    """Text from the run's best checkpoint, which is loaded into the model; it starts on a new line."""
    checkpoint.load_checkpoint(checkpoint.find_step(run, "best"), model)
    known = getattr(tokenizer, "characters", "\n")  # BPE knows every character
    start = "\n" if "\n" in known else known[0]
    settings: dict[str, Any] = dict(temperature=0.8, seed=0, stop_ids=())
    if model.config.positions == "learned":  # positions run out: generate as many tokens as fit
        return complete(model, tokenizer, start, **settings).strip()
    return complete(model, tokenizer, start, SAMPLE_CHARACTERS, window=model.config.max_seq_len, **settings).strip()


def tokens_per_byte(data: TrainingData, tokenizer: Tokenizer) -> float:
    """Tokens per byte of the validation text; it makes losses of different vocabularies comparable."""
    return len(data.val) / len(tokenizer.decode_bytes(data.val[:]))


def draw(run: Path, best_possible: float | None) -> str:
    """Path of the loss curve, or why it is not drawn."""
    try:
        losses = [line for line in read_metrics(run / METRICS) if math.isfinite(line["loss"])]
        if not losses:
            return "not drawn: metrics.jsonl has no losses"
        return str(plot_losses(losses, run / "loss.png", run.name, best_possible))
    except NumllamaError as error:
        return f"not drawn: {error}"
    except ImportError:
        return f"not drawn, because it needs {install_command('plot')}"
    except OSError as error:
        return f"not drawn: {error.strerror}"


def best_possible_loss(data: TrainingData, seq_len: int) -> float | None:
    """Loss of the best possible predictor on the synthetic play, per character; None for other data."""
    if data.name != SYNTHETIC_PLAY or not isinstance(data.tokenizer, CharTokenizer):
        return None
    return best_loss(data.tokenizer.decode(data.val[:].tolist()), seq_len)
