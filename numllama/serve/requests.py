"""What a program asks for: from the bytes of a request to texts to write, or one sentence that says what is wrong.

The fields are OpenAI's, with their defaults but for the number of tokens; top_k, min_p and repetition_penalty are ours.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from typing import Any, NamedTuple

from numllama.generation import SamplingConfig
from numllama.generation.chat import chat_prompt
from numllama.serve.engine import Engine, Request

NEW_TOKENS = 256  # where nobody says how many
MOST_TEXTS, MOST_STOPS, MOST_RUNNERS_UP = 8, 4, 20
ROLES = ("system", "developer", "user", "assistant")


class BadRequest(ValueError):
    """A request that cannot be answered: the sentence, the field, and the HTTP status."""

    def __init__(self, sentence: str, field: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(sentence)
        self.field, self.status, self.code = field, status, code


@dataclass(frozen=True)
class Asked:
    """A whole request: texts to write, n for each prompt, and how to answer. `logprobs` is the number of runners-up, or None."""

    requests: list[Request]
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    logprobs: int | None = None


class Rule(NamedTuple):
    """What a field may be, in Python and in words."""

    kind: type
    allowed: Callable[[Any], bool]
    words: str


def _number(low: float, high: float, kind: type = Real) -> Rule:
    what = "a whole number" if kind is Integral else "a number"
    return Rule(kind, lambda value: low <= value <= high, f"{what} from {low} to {high}")


RULES = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "top_k": Rule(Integral, lambda value: value >= -1, "a whole number of at least 1, or 0 or -1 for all"),
    "min_p": _number(0, 1),
    "repetition_penalty": _number(0.1, 10),
    "seed": _number(0, 2**63 - 1, Integral),
    "max_tokens": Rule(Integral, lambda value: value >= 1, "a whole number of at least 1"),
    "max_completion_tokens": Rule(Integral, lambda value: value >= 1, "a whole number of at least 1"),
    "n": _number(1, MOST_TEXTS, Integral),
    "model": Rule(str, lambda value: True, "a text"),
    "stream": Rule(bool, lambda value: True, "true or false"),
    "stream_options": Rule(
        Mapping, lambda value: set(value) <= {"include_usage", "include_obfuscation"}, "{include_usage: true or false}"
    ),
    "top_logprobs": _number(0, MOST_RUNNERS_UP, Integral),
}
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
# What others' servers do and this one does not may stand in a request as long as it asks for nothing.
NEUTRAL = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "best_of": (1,), "echo": (False,), "suffix": ("",),
    "response_format": ({"type": "text"},), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "parallel_tool_calls": (True, False), "modalities": (["text"],),
}  # fmt: skip
ABOUT_THE_CALLER = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


def parse(content: bytes) -> dict[str, Any]:
    """The fields of a request that were given."""
    try:
        body = json.loads(content.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError:
        raise BadRequest("the request is not UTF-8") from None
    except RecursionError:
        raise BadRequest("the request is nested too deeply") from None
    except ValueError as error:
        raise BadRequest(f"the request is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest("the request must be a JSON object")
    return {name: value for name, value in body.items() if value is not None}


def completion(body: Mapping[str, Any], engine: Engine, model_name: str) -> Asked:
    """Of ``/v1/completions``."""
    settings = _common(body, ("prompt", "logprobs"), model_name)
    logprobs = body.get("logprobs")
    if logprobs is not None:
        _check("logprobs", logprobs, _number(0, MOST_RUNNERS_UP, Integral))
    prompts = _prompts(body.get("prompt"))
    n = body.get("n", 1)
    if len(prompts) * n > MOST_TEXTS:
        raise BadRequest(
            f"{len(prompts)} prompts with n = {n} are {len(prompts) * n} texts, but {MOST_TEXTS} are the most", "prompt"
        )
    return _asked(body, [(prompt, ()) for prompt in prompts], n, settings, logprobs, engine)


def chat_completion(body: Mapping[str, Any], engine: Engine, model_name: str) -> Asked:
    """Of ``/v1/chat/completions``."""
    settings = _common(body, ("messages", "logprobs", "top_logprobs", "max_completion_tokens"), model_name)
    if "logprobs" in body:
        _check("logprobs", body["logprobs"], RULES["stream"])
    if "top_logprobs" in body and not body.get("logprobs"):
        raise BadRequest("top_logprobs needs logprobs: true", "top_logprobs")
    logprobs = body.get("top_logprobs", 0) if body.get("logprobs") else None
    try:
        prompt = chat_prompt(engine.tokenizer, _messages(body.get("messages")))
    except ValueError as error:
        raise BadRequest(str(error), getattr(error, "field", None) or "messages") from error
    return _asked(body, [prompt], body.get("n", 1), settings, logprobs, engine)


def _asked(body, prompts, n, settings, logprobs, engine) -> Asked:
    stop = body.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(word, str) and word for word in stops):
        raise BadRequest(f"stop must be a text of at least one character, or a list of up to {MOST_STOPS}", "stop")
    most = engine.new_tokens
    given = next((name for name in ("max_completion_tokens", "max_tokens") if name in body), None)
    if given and body[given] > most:
        raise BadRequest(f"{given} is {_shown(body[given])}, but {most} are the most that are written here", given)
    new = body[given] if given else min(NEW_TOKENS, most)
    seed = settings.pop("seed", None)
    requests = []
    for prompt, own_stops in prompts:
        for i in range(n):
            sampling = SamplingConfig(**settings, seed=None if seed is None else seed + i, stop_ids=engine.model.stop_ids)
            requests.append(Request(prompt, new, sampling, (*stops, *own_stops), logprobs))
    usage = bool(body.get("stream_options", {}).get("include_usage"))
    return Asked(requests, n, body.get("stream", False), usage, logprobs)


def _common(body: Mapping[str, Any], own: Sequence[str], model_name: str) -> dict[str, Any]:
    """Check all fields but those of one route; returns the settings for sampling."""
    for name, value in body.items():
        if name in NEUTRAL:
            if not any((type(value) is type(v) and value == v) or value == v == 0 for v in NEUTRAL[name]):
                raise BadRequest(f"{name} is {_shown(value)}, but this server does not do that", name)
        elif name in RULES and (name not in ("max_completion_tokens", "top_logprobs") or name in own):
            _check(name, value, RULES[name])
        elif name not in own and name not in ABOUT_THE_CALLER and name != "stop":
            known = ", ".join(sorted({*RULES, *own, "stop"} - {"max_completion_tokens", "top_logprobs"} | set(own)))
            raise BadRequest(f"there is no field {_shown(name)} here, but {known}", name)
    if body.get("model", model_name) != model_name:
        sentence = f"model is {_shown(body['model'])}, but this server has {model_name!r}"
        raise BadRequest(sentence, "model", status=404, code="model_not_found")
    return {name: body[name] for name in SAMPLING if name in body}


def _check(name: str, value: Any, rule: Rule) -> None:
    right = isinstance(value, rule.kind) and (rule.kind is bool or not isinstance(value, bool))
    if isinstance(value, float) and not isfinite(value):
        right = False
    if not right or not rule.allowed(value):
        raise BadRequest(f"{name} is {_shown(value)}, but must be {rule.words}", name)


def _prompts(prompt: Any) -> list[str | list[int]]:
    """One text, a list of texts, ids, or a list of lists of ids."""
    if prompt is None:
        raise BadRequest("prompt is missing", "prompt")
    prompts = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else [prompt]
    if len(prompts) > MOST_TEXTS:
        raise BadRequest(f"prompt has {len(prompts)} texts, but {MOST_TEXTS} are the most", "prompt")
    for one in prompts:
        ids = isinstance(one, list) and all(isinstance(i, int) and not isinstance(i, bool) and abs(i) < 2**31 for i in one)
        if not isinstance(one, str) and not ids:
            raise BadRequest("prompt must be a text or token ids, or a list of them", "prompt")
    return prompts


def _messages(messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise BadRequest('messages must be a list such as [{"role": "user", "content": "Hello"}]', "messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: Any, name: str) -> dict[str, str]:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise BadRequest(f"{name} must have a role: {', '.join(ROLES)}", "messages")
    content = message.get("content")
    if isinstance(content, list):  # parts
        texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
        content = None if None in texts or not all(isinstance(text, str) for text in texts) else "".join(texts)
    if not isinstance(content, str):
        raise BadRequest(f"{name}'s content must be a text", "messages")
    role = message["role"]
    return {"role": "system" if role == "developer" else role, "content": content}


def _shown(value: Any) -> str:
    """A value in a sentence, cut short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")
