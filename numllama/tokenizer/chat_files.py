"""The chat templates in a checkpoint's folder, and the special tokens that they refer to by name.

    chat_template.jinja                     the template
    additional_chat_templates/NAME.jinja    others, by name
    tokenizer_config.json                   in older folders chat_template: a text, or a list of {"name": ..., "template": ...}
    tokenizer_config.json, ...              the special tokens: see :mod:`numllama.tokenizer.config`
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from numllama.errors import CheckpointError, listed, shown
from numllama.storage.fields import TEXT, check
from numllama.storage.files import read_bytes, read_json, reading
from numllama.tokenizer.config import CONFIG, NAMES, beside

TEMPLATE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
DEFAULT, TOOL_USE = "default", "tool_use"


class ChatTemplates(NamedTuple):
    """A folder's chat templates and named special tokens.

    Attributes
    ----------
    templates : dict of str to str
        By name; a single one is the default.
    tokens : dict of str to str
        Special tokens by name: ``bos_token`` and the like.
    """

    templates: dict[str, str]
    tokens: dict[str, str]

    def choose(self, template: str | None = None, tools: Any = None) -> str | None:
        """The template to use, as `transformers` chooses it; None if there is none.

        Parameters
        ----------
        template : str, optional
            A template, or the name of one of several.
        tools
            Functions that the assistant may call; with tools, ``tool_use`` takes precedence over ``default``.
        """
        if template is not None:
            named = self.templates if set(self.templates) != {DEFAULT} else {}
            return named.get(template, template)
        if tools is not None and TOOL_USE in self.templates:
            return self.templates[TOOL_USE]
        if self.templates and DEFAULT not in self.templates:
            names = listed(sorted(self.templates))
            raise ValueError(f"the tokenizer has several chat templates and none is the default: choose one of {names}")
        return self.templates.get(DEFAULT)


def read_chat_templates(folder: str | Path) -> ChatTemplates:
    """The chat templates in a folder, and its special tokens by name.

    Raises
    ------
    CheckpointError
        If a file is damaged, or a template or token in it has the wrong type.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    templates = _files(folder)
    if not templates:
        with reading(folder / CONFIG):
            templates = _in_config(config.get("chat_template"))
    return ChatTemplates(templates, beside(folder, CheckpointError).names)


def templates_in(config: Mapping[str, Any]) -> ChatTemplates:
    """The same from the content of a ``tokenizer_config.json`` that names its special tokens by texts."""
    return ChatTemplates(_in_config(config.get("chat_template")), {name: config[name] for name in NAMES if name in config})


def _files(folder: Path) -> dict[str, str]:
    """The templates in separate files."""
    files = {path.stem: path for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    if (folder / TEMPLATE).exists():
        files[DEFAULT] = folder / TEMPLATE
    templates = {}
    for name, path in files.items():
        with reading(path):
            templates[name] = read_bytes(path).decode("utf-8")
    return templates


def _in_config(value: Any) -> dict[str, str]:
    """The templates in ``tokenizer_config.json``."""
    if value is None:
        return {}
    named = {DEFAULT: value}
    if isinstance(value, list):
        if not all(isinstance(entry, Mapping) and isinstance(entry.get("name"), str) for entry in value):
            raise ValueError(f'chat_template is {shown(value)}, but must be a text or a list of {{"name": ..., "template": ...}}')
        named = {entry["name"]: entry.get("template") for entry in value}
    elif isinstance(value, Mapping):
        named = dict(value)
    for name, template in named.items():
        which = "chat_template" if named == {DEFAULT: value} else f"chat_template {shown(name)}"
        check({which: template}, {which: TEXT})
    return named
