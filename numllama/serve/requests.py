"""Parse API requests: from the bytes of a body to texts to generate, or a one-sentence error.

The fields are OpenAI's; top_k, min_p, repetition_penalty, skip_special_tokens and special are ours. Sampling settings default to
the checkpoint's generation_config.json, and then to OpenAI's defaults.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from numbers import Integral, Real
from typing import Any

from numllama.errors import CheckpointError
from numllama.generation.chat import chat_prompt, has_chat_template
from numllama.generation.config import SamplingConfig
from numllama.generation.text import opening
from numllama.serve.engine import Engine, Request
from numllama.storage.fields import FLAG, TEXT, Kind, check, is_number, whole

NEW_TOKENS = 256  # default of max_tokens
MAX_TEXTS, MAX_STOPS, MAX_TOP_LOGPROBS, MAX_FIELDS = 8, 4, 20, 64
ROLES = ("system", "developer", "user", "assistant")
CALLS = {"tool_calls", "function_call"}


class BadRequest(ValueError):
    """A request that cannot be answered: the message, the field at fault, and the HTTP status."""

    def __init__(self, message: str, field: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.field, self.status, self.code = field, status, code


@dataclass(frozen=True)
class ParsedRequest:
    """A whole API request.

    Attributes
    ----------
    requests : list of Request
        The texts to generate, n for each prompt.
    n : int
    stream, include_usage : bool
        How to respond.
    logprobs : int, optional
        Number of alternatives for each token; None: no log-probabilities.
    """

    requests: list[Request]
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    logprobs: int | None = None


def _number(low: float, high: float, kind: type = Real) -> Kind:
    what, fits = ("a whole number", whole().fits) if kind is Integral else ("a number", is_number)
    return Kind(lambda value: fits(value) and low <= value <= high, f"must be {what} from {low} to {high}")


RULES = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "top_k": Kind(whole(-1, inf).fits, "must be a whole number of at least 1, or 0 or -1 for all"),
    "min_p": _number(0, 1),
    "repetition_penalty": _number(0.1, 10),
    "seed": _number(0, 2**63 - 1, Integral),
    "max_tokens": Kind(whole(0, inf).fits, "must be a whole number of at least 1, or 0 with echo"),
    "max_completion_tokens": Kind(whole(1, inf).fits, "must be a whole number of at least 1"),
    "n": _number(1, MAX_TEXTS, Integral),
    "model": TEXT,
    "stream": FLAG,
    "stream_options": Kind(
        lambda value: isinstance(value, Mapping) and set(value) <= {"include_usage", "include_obfuscation"},
        "must be {include_usage: true or false}",
    ),
    "top_logprobs": _number(0, MAX_TOP_LOGPROBS, Integral),
    "echo": FLAG,
    "special": FLAG,
    "skip_special_tokens": FLAG,
}
SINGLE_ROUTE_FIELDS = ("max_completion_tokens", "top_logprobs", "echo", "special")
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
# Features of other servers that this one lacks: a request may name them with a value that has no effect.
NEUTRAL = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "best_of": (1,), "echo": (False,), "suffix": ("",),
    "response_format": ({"type": "text"},), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "parallel_tool_calls": (True, False), "modalities": (["text"],),
}  # fmt: skip
CALLER_FIELDS = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


def parse(content: bytes) -> dict[str, Any]:
    """The fields of a request, without those that are null."""
    try:
        body = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise BadRequest("the request is not UTF-8") from None
    except RecursionError:
        raise BadRequest("the request is nested too deeply") from None
    except ValueError as error:
        raise BadRequest(f"the request is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest("the request must be a JSON object")
    return {name: value for name, value in body.items() if value is not None}


def completion(body: Mapping[str, Any], engine: Engine, model_name: str) -> ParsedRequest:
    """Parse a request to ``/v1/completions``."""
    settings = _common(body, ("prompt", "logprobs", "echo", "special"), model_name)
    logprobs = body.get("logprobs")
    if logprobs is not None:
        _check("logprobs", logprobs, _number(0, MAX_TOP_LOGPROBS, Integral))
    prompts = _prompts(body.get("prompt"))
    n = body.get("n", 1)
    if len(prompts) * n > MAX_TEXTS:
        raise BadRequest(
            f"{len(prompts)} prompts with n = {n} make {len(prompts) * n} texts, but at most {MAX_TEXTS} are allowed", "prompt"
        )
    options = dict(echo=body.get("echo", False), special=body.get("special", True))
    return _parsed(body, [(prompt, ()) for prompt in prompts], n, settings, logprobs, engine, **options)


def chat_completion(body: Mapping[str, Any], engine: Engine, model_name: str) -> ParsedRequest:
    """Parse a request to ``/v1/chat/completions``."""
    settings = _common(body, ("messages", "logprobs", "top_logprobs", "max_completion_tokens"), model_name)
    if "logprobs" in body:
        _check("logprobs", body["logprobs"], RULES["stream"])
    if "top_logprobs" in body and not body.get("logprobs"):
        raise BadRequest("top_logprobs needs logprobs: true", "top_logprobs")
    logprobs = body.get("top_logprobs", 0) if body.get("logprobs") else None
    messages = _messages(body.get("messages"))
    try:
        engine.check_length(*(message["content"] for message in messages if message.get("content")))
        _check_rendered(engine.tokenizer, messages)
        prompt = chat_prompt(engine.tokenizer, messages, opening(engine.model, engine.tokenizer))
    except (ValueError, CheckpointError) as error:  # a template that fails would fail again
        raise BadRequest(str(error), getattr(error, "field", None) or "messages") from error
    return _parsed(body, [prompt], body.get("n", 1), settings, logprobs, engine, special=False)


def _parsed(body, prompts, n, settings, logprobs, engine, **options) -> ParsedRequest:
    stop = body.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(word, str) and word for word in stops):
        raise BadRequest(f"stop must be a text of at least one character, or a list of up to {MAX_STOPS}", "stop")
    most = engine.new_tokens
    given = next((name for name in ("max_completion_tokens", "max_tokens") if name in body), None)
    if given and body[given] > most:
        raise BadRequest(f"{given} is {_shown(body[given])}, but this server generates at most {most}", given)
    new = body[given] if given else min(NEW_TOKENS, most)
    if new == 0 and not options.get("echo"):
        raise BadRequest("max_tokens is 0, but must be a whole number of at least 1, or 0 with echo", given)
    settings = engine.defaults | settings
    seed = settings.pop("seed", None)
    options["skip_special_tokens"] = body.get("skip_special_tokens", True)
    requests = []
    for prompt, own_stops in prompts:
        for i in range(n):
            sampling = SamplingConfig(**settings, seed=None if seed is None else seed + i)
            requests.append(Request(prompt, new, sampling, (*stops, *own_stops), logprobs, **options))
    usage = bool(body.get("stream_options", {}).get("include_usage"))
    return ParsedRequest(requests, n, body.get("stream", False), usage, logprobs)


def _common(body: Mapping[str, Any], own: Sequence[str], model_name: str) -> dict[str, Any]:
    """Check the fields that both routes share; returns the sampling settings."""
    for name, value in body.items():
        if name in RULES and (name not in SINGLE_ROUTE_FIELDS or name in own):
            _check(name, value, RULES[name])
        elif name in NEUTRAL:
            if not any((type(value) is type(v) and value == v) or value == v == 0 for v in NEUTRAL[name]):
                raise BadRequest(f"{name} is {_shown(value)}, but this server does not support it", name)
        elif name not in own and name not in CALLER_FIELDS and name != "stop":
            known = ", ".join(sorted({*RULES, "stop"} - set(SINGLE_ROUTE_FIELDS) | set(own)))
            raise BadRequest(f"there is no field {_shown(name)}, only {known}", name)
    if body.get("model", model_name) != model_name:
        message = f"model is {_shown(body['model'])}, but this server has {model_name!r}"
        raise BadRequest(message, "model", status=404, code="model_not_found")
    return {name: body[name] for name in SAMPLING if name in body}


def _check(name: str, value: Any, kind: Kind) -> None:
    try:
        check({name: value}, {name: kind}, _shown)
    except ValueError as error:
        raise BadRequest(str(error), name) from None


def _prompts(prompt: Any) -> list[str | list[int]]:
    """The prompts: one text, a list of texts, ids, or a list of lists of ids."""
    if prompt is None:
        raise BadRequest("prompt is missing", "prompt")
    prompts = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else [prompt]
    if len(prompts) > MAX_TEXTS:
        raise BadRequest(f"prompt has {len(prompts)} texts, but at most {MAX_TEXTS} are allowed", "prompt")
    for one in prompts:
        ids = isinstance(one, list) and all(isinstance(i, int) and not isinstance(i, bool) and abs(i) < 2**31 for i in one)
        if not isinstance(one, str) and not ids:
            raise BadRequest("prompt must be a text or token ids, or a list of them", "prompt")
    return prompts


def _messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise BadRequest('messages must be a list such as [{"role": "user", "content": "Hello"}]', "messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: Any, name: str) -> dict[str, Any]:
    """A message for the template, without fields that are null or empty."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise BadRequest(f"{name} must have a role: {', '.join(ROLES)}", "messages")
    content = message.get("content")
    role = "system" if message["role"] == "developer" else message["role"]
    more = {key: value for key, value in message.items() if key not in ("role", "content") and value not in (None, "", [], {})}
    if isinstance(content, list):
        content = "".join(_part(part, f"{name}'s content[{i}]") for i, part in enumerate(content))
    if content is None and CALLS & more.keys():  # an answer that consists of a call
        return {"role": role, **more}
    if not isinstance(content, str):
        raise BadRequest(f"{name}'s content must be a text", "messages")
    return {"role": role, "content": content, **more}


def _part(part: Any, name: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise BadRequest(f'{name} must be a text: {{"type": "text", "text": "Hello"}}', "messages")
    if more := [key for key, value in part.items() if key not in ("type", "text") and value is not None]:
        raise BadRequest(f"{name} has {_shown(more[0])}, but this server does not support it", "messages")
    return part["text"]


def _check_rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError for a field that the template ignores: without it the text would be the same."""
    fields = [(i, field) for i, message in enumerate(messages) for field in message if field not in ("role", "content")]
    if len(fields) > MAX_FIELDS:
        raise ValueError(f"the messages have {len(fields)} fields besides role and content, but at most {MAX_FIELDS} are allowed")
    if fields and not has_chat_template(tokenizer):
        i, field = fields[0]
        raise ValueError(f"messages[{i}] has {_shown(field)}, but this model has no chat template to render it")
    text = tokenizer.apply_chat_template(messages, tokenize=False) if fields else ""
    for i, field in fields:
        without = {key: value for key, value in messages[i].items() if key != field}
        try:
            same = tokenizer.apply_chat_template([*messages[:i], without, *messages[i + 1 :]], tokenize=False) == text
        except (ValueError, CheckpointError):  # the template fails without it, so it uses it
            same = False
        if same:
            raise ValueError(f"messages[{i}] has {_shown(field)}, but this model's chat template ignores it")


def _shown(value: Any) -> str:
    """A value for an error message, shortened."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number with thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
