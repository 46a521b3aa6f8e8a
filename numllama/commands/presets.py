"""The settings of a preset, as the help of `train` and `plan` shows them."""

from collections.abc import Mapping
from typing import Any

from numllama.model.config import PRESETS, ModelConfig


def preset_name(arguments: Mapping[str, str]) -> str:
    """The preset that `train` starts from, given the command line's arguments."""
    named = arguments.get("preset")
    return named if named in PRESETS else "shakespeare" if arguments.get("device", "cpu") != "cpu" else "shakespeare-cpu"


def model_settings(arguments: Mapping[str, str]) -> dict[str, Any]:
    """The preset's ModelConfig, as a dict."""
    return ModelConfig.preset(preset_name(arguments), vocab_size=1000).to_dict()
