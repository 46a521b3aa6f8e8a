"""`numllama plan`."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

from cyclopts import Parameter

from numllama.commands.flags import Defaults, as_flags, command, given
from numllama.commands.options import AS_TEXT, Output
from numllama.commands.presets import model_settings
from numllama.model.config import ModelConfig
from numllama.training.plan import Plan, planned_recipe

PRESET = "llama-3-8b"


def _model_settings(arguments: Mapping[str, str]) -> dict[str, Any]:
    return model_settings({"preset": PRESET, **arguments})


def _plan_settings(arguments: Mapping[str, str]) -> dict[str, Any]:
    longest = min(Plan.seq_len, _model_settings(arguments)["max_seq_len"])
    preset = arguments.get("preset", PRESET)
    return {field.name: field.default for field in fields(Plan)} | planned_recipe(preset, longest) | {"seq_len": longest}


ModelFlags = as_flags(ModelConfig, ("vocab_size", "rope_scaling"), Defaults(_model_settings))
PlanFlags = as_flags(Plan, ("config",), Defaults(_plan_settings))
ModelOptions = Annotated[ModelFlags, Parameter(name="*", group="Model (defaults: the preset's)")]
RunOptions = Annotated[PlanFlags, Parameter(name="*", group="Run")]
NO_MODEL_FLAGS, NO_PLAN_FLAGS = ModelFlags(), PlanFlags()


@command()
def plan(
    *,
    preset: str = PRESET,
    output: Output = AS_TEXT,
    model: ModelOptions = NO_MODEL_FLAGS,
    run: RunOptions = NO_PLAN_FLAGS,
) -> int:
    """Estimate a training run: memory by part, FLOPs, communication, time and cost.

    Example: numllama plan --preset llama-3-8b --gpus 64 --tokens 160e9 --shard-optimizer --recompute

    Parameters
    ----------
    preset
        The model; shakespeare-cpu and shakespeare also set the run, as in `train`.
    """
    config = ModelConfig.preset(preset, **given(model))
    longest = min(Plan.seq_len, config.max_seq_len)
    planned = Plan(config, **{"seq_len": longest, **planned_recipe(preset, longest), **given(run)})
    output.print(planned.values(), planned.text())
    return 0
