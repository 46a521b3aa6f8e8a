"""The model: its configuration, its parameters, its blocks, and the whole."""

from numllama.lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:  # at run time each name is imported when it is first used
    from numllama.model.config import PRESETS, ModelConfig
    from numllama.model.lora import LoraConfig
    from numllama.model.parameters import Parameters, count_parameters, initial_parameters, parameter_shapes
    from numllama.model.transformer import Transformer

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
