"""Chat templates: from a list of messages to the one text that a tuned model was trained on.

A checkpoint brings its template along, a program in Jinja's language, which is therefore not to be trusted. It runs in Jinja's
immutable sandbox: it sees text, numbers, lists and dictionaries, changes none of them, and reaches nothing of Python's.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from numllama.errors import CheckpointError, NumllamaError
from numllama.interop.huggingface import read_json

try:
    import jinja2
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment
except ImportError as error:
    raise NumllamaError('chat templates need Jinja2: pip install "numllama[chat]"') from error

_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


def render_chat_template(
    template: str, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **tokens: Any
) -> str:
    """The text of a conversation, as `transformers`' ``apply_chat_template(..., tokenize=False)`` makes it.

    Parameters
    ----------
    template : str
        In Jinja's language, as in a checkpoint's ``tokenizer_config.json`` or ``chat_template.jinja``.
    messages : sequence of mappings
        ``{"role": "user", "content": "..."}``, oldest first.
    add_generation_prompt : bool
        End with what opens the assistant's answer.
    tokens
        Whatever else the template asks for: ``bos_token="<s>"``, ``tools=[...]``, ``date_string="26 Jul 2024"``.

    Raises
    ------
    CheckpointError
        If the template cannot be parsed, or tries what the sandbox forbids.
    ValueError
        If it refuses these messages, or cannot make a text of them.
    """
    return "".join(_render(template, messages, add_generation_prompt, tokens))


def render_answers(
    template: str, messages: Sequence[Mapping[str, Any]], **tokens: Any
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and where in it the assistant speaks: what a model is tuned to say.

    A template may mark that with ``{% generation %}``. Without marks, an answer is what it adds to the text that asks for it:
    the template is rendered up to each answer, with what opens it, and up to its end, and each of these must be how the next
    begins.

    Parameters
    ----------
    template, messages, tokens
        See :func:`render_chat_template`.

    Returns
    -------
    text : str
    spans : list of (int, int)
        The places of an answer's first character and of the one after its last, which the end-of-turn token is part of.

    Raises
    ------
    ValueError
        If the template writes earlier messages in another way when later ones follow.
    """
    pieces = _render(template, messages, False, tokens)
    text = "".join(pieces)
    if _MARKS.search(template):
        ends = list(accumulate(map(len, pieces)))
        return text, [(end - len(piece), end) for piece, end in zip(pieces, ends, strict=True) if isinstance(piece, _Answer)]
    spans = []
    for i, message in enumerate(messages):
        if message.get("role") == "assistant":
            before = render_chat_template(template, messages[:i], True, **tokens)
            after = render_chat_template(template, messages[: i + 1], False, **tokens)
            if not (after.startswith(before) and text.startswith(after)):
                raise ValueError(
                    f"the chat template changes what stands before the end of message {i + 1} when more follows, so that the "
                    "assistant's part is not known: mark it in the template, {% generation %} ... {% endgeneration %}"
                )
            spans.append((len(before), len(after)))
    return text, spans


def _render(template: str, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, tokens: dict) -> list[str]:
    """The text in pieces; a marked answer is a piece, an :class:`_Answer`."""
    if isinstance(messages, str | bytes | Mapping) or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError('messages must be a list of dictionaries such as {"role": "user", "content": "Hello"}')
    values = {"tools": None, "documents": None, **tokens, "messages": list(messages)}
    try:
        values = json.loads(json.dumps(values))  # plain data: an object's methods might do anything
    except (TypeError, ValueError) as error:
        raise ValueError(f"messages and tokens must be text, numbers, lists and dictionaries: {error}") from error
    compiled = _compile(template)
    try:
        return list(compiled.generate(**values, add_generation_prompt=add_generation_prompt))
    except SecurityError as error:
        raise CheckpointError(f"the chat template does what it must not: {error}") from error
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        raise ValueError(f"the chat template makes no text of these messages: {error}") from error


def read_chat_template(folder: str | Path) -> tuple[str | None, dict[str, str]]:
    """A checkpoint's template, None if it has none, and its special tokens by name (``bos_token`` and the like)."""
    folder = Path(folder)
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    if (folder / "chat_template.jinja").exists():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    tokens = {name: value for name, value in config.items() if name.endswith("_token")}
    tokens = {name: value.get("content") if isinstance(value, dict) else value for name, value in tokens.items()}
    return template, {name: value for name, value in tokens.items() if isinstance(value, str)}


@lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    # The settings, filters and functions that checkpoints' templates count on: those of transformers.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now, "dict": _dict, "namespace": _Namespace}
    try:
        return environment.from_string(template)
    except TemplateSyntaxError as error:
        raise CheckpointError(f"the chat template cannot be read: {error.message} (line {error.lineno})") from error


class _Generation(Extension):
    """``{% generation %}`` ... ``{% endgeneration %}`` marks what the assistant says, for training; the text stays as it is."""

    tags = frozenset({"generation"})

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_answer"), [], [], body).set_lineno(line)

    def _answer(self, caller: Callable[[], str]) -> "_Answer":
        return _Answer(caller())


class _Answer(str):
    """A text that the assistant says."""


class _Namespace(jinja2.utils.Namespace):
    """``namespace()``, without the names that Python keeps to itself."""

    def __init__(*args, **kwargs):  # as Jinja's: a field may be named self
        self, *args = args
        jinja2.utils.Namespace.__init__(self)
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"namespace has no field {name!r}")
        super().__setitem__(name, value)


def _dict(*args: Any, **kwargs: Any) -> dict:
    return dict(*args, **kwargs)


def _to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Jinja's own filter writes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)
