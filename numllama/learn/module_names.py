"""The names that golden vectors have for what the modules of a PyTorch model compute.

A module has a name for its output, and may have one for its input; ``*`` is the number of a layer. The name of a weight follows
from that of its module's output.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

from numllama.errors import listed
from numllama.learn.names import MODULES, OUTER

Names = Mapping[str, str | tuple[str | None, str | None]]


class by_token(str):
    """The name of a value of heads that a module has by token, (B, T, H·D) or (B, T, H, D); it is stored as (B, H, T, D)."""


WRAPPED = r"(?:\D*\.)?"  # the model may be part of another module
INPUT_OF = {  # by the output of a module that has a weight
    "embedding": "tokens",
    "layer.*.attn_out": by_token("layer.*.head_outputs"),
    "layer.*.ffn_norm": "layer.*.after_attention",
    "layer.*.ffn_out": "layer.*.swiglu",
}
WEIGHT_OF = {output: weight for weight, output in OUTER.values() if weight}
WEIGHT_OF |= {f"layer.*.{output}": f"blocks.*.{weight}" for weight, output in MODULES.values() if weight}


def _known_modules() -> Iterator[tuple[str, str | tuple[str | None, str | None]]]:
    """Every module that transformers, Meta and others have a name for, with the names of its input and output."""
    for modules, (weight, output) in OUTER.items():
        for module in modules.split("|") if weight else ():
            yield module, (INPUT_OF.get(output), output)
    for modules, (weight, output) in MODULES.items():
        for layer, module in product(("layers.*", "h.*", "blocks.*"), modules.split("|")):
            kind = by_token if module in ("self_attn.q_norm", "self_attn.k_norm") else str
            value = kind(f"layer.*.{output}")
            yield f"{layer}.{module}".removesuffix("."), (INPUT_OF.get(value) if weight else None, value)


class Named(NamedTuple):
    """Modules by their names in a model, with the names of their inputs and outputs; parameters, with their own.

    `called` are the modules that a recording requires.
    """

    modules: dict[str, tuple[str | None, str | None]]
    parameters: dict[str, str]
    called: tuple[str, ...]


def named(model: Any, names: Names | None) -> Named:
    """What `names` says of a model's modules and parameters, and for others what their own names say.

    Raises
    ------
    ValueError
        If a name fits no module and no parameter, or if a parameter's own name says nothing.
    """
    if names is not None:
        found, unknown = _matched(model, names)
        if unknown:
            raise ValueError(f"{type(model).__name__} has no module or parameter {listed(unknown)}")
        return _with_known(found, _matched(model, dict(_known_modules()), WRAPPED)[0])
    found, _ = _matched(model, dict(_known_modules()), WRAPPED)
    if unnamed := [name for name, _ in model.named_parameters() if name not in found.parameters]:
        raise ValueError(f"{type(model).__name__} has parameters of unknown meaning, {listed(unnamed)}: pass names=")
    if not found.parameters:
        raise ValueError(f"{type(model).__name__} has no parameters: pass names=")
    return found


def _with_known(given: Named, known: Named) -> Named:
    """The user's names, and the known names of other modules for values that the user does not name."""
    values = {name for pair in given.modules.values() for name in pair}
    modules = {
        module: (None if before in values else before, None if after in values else after)
        for module, (before, after) in known.modules.items()
    }
    weights = {module: name for module, name in known.parameters.items() if name not in given.parameters.values()}
    return Named(modules | given.modules, weights | given.parameters, given.called)


def _matched(model: Any, names: Names, before: str = "") -> tuple[Named, list[str]]:
    """What `names` says of a model, and those that say nothing."""
    inputs = {pattern: None if isinstance(given, str) else given[0] for pattern, given in names.items()}
    outputs = {pattern: given if isinstance(given, str) else given[1] for pattern, given in names.items()}
    parameters = {pattern: name for pattern, name in outputs.items() if name}
    for pattern, name in outputs.items():
        if name in WEIGHT_OF:
            parameters |= {f"{pattern}.weight": WEIGHT_OF[name], f"{pattern}.bias": f"{WEIGHT_OF[name]}_bias"}
    modules = _matches(names, (name for name, _ in model.named_modules()), before)
    weights = _matches(parameters, (name for name, _ in model.named_parameters()), before)
    used = {pattern for pattern, _ in [*modules.values(), *weights.values()]}
    return Named(
        {name: (_numbered(inputs[p], number), _numbered(outputs[p], number)) for name, (p, number) in modules.items()},
        {name: str(_numbered(parameters[p], number)) for name, (p, number) in weights.items()},
        tuple(modules),
    ), [pattern for pattern in names if pattern not in used]


def _matches(patterns: Iterable[str], there: Iterable[str], before: str) -> dict[str, tuple[str, str]]:
    """Each name that a pattern fits, with the pattern and the number that stands for ``*``."""
    expressions = {pattern: re.compile(before + re.escape(pattern).replace(r"\*", r"(\d+)")) for pattern in patterns}
    found = {name: (pattern, e.fullmatch(name)) for name in there for pattern, e in expressions.items() if e.fullmatch(name)}
    return {name: (pattern, (*match.groups(), "*")[0]) for name, (pattern, match) in found.items() if match}


def _numbered(name: str | None, number: str) -> str | None:
    return name and type(name)(name.replace("*", number))
