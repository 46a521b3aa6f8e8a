"""The model: its configuration, its parameters, its blocks, and the whole."""

from numllama.lazy import lazy

__all__ = [
    "ModelConfig", "PRESETS", "LoraConfig", "Parameters", "Transformer",
    "count_parameters", "initial_parameters", "parameter_shapes",
]

lazy(__name__, {
    "numllama.model.config": "ModelConfig PRESETS",
    "numllama.model.lora": "LoraConfig",
    "numllama.model.parameters": "Parameters count_parameters initial_parameters parameter_shapes",
    "numllama.model.transformer": "Transformer",
})  # fmt: skip
