"""The model: its configuration, its parameters, its blocks, and the whole."""

from numllama.model.config import PRESETS, ModelConfig
from numllama.model.lora import LoraConfig
from numllama.model.parameters import Parameters, count_parameters, initial_parameters, parameter_shapes
from numllama.model.transformer import Transformer

__all__ = [
    "ModelConfig", "PRESETS", "LoraConfig", "Parameters", "Transformer",
    "count_parameters", "initial_parameters", "parameter_shapes",
]
