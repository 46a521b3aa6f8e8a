"""Encode conversations, the same way for training, chat and the server.

Training encodes a whole conversation, chat only the part before an answer. The second must be a prefix of the first, or a
model is prompted with tokens it was never trained on. So a text is cut at the end of each prompt, and no token crosses a cut.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from numllama.errors import NumllamaError
from numllama.tokenizer.bpe import Tokenizer
from numllama.tokenizer.char import CharTokenizer
from numllama.tokenizer.chat_files import ChatTemplates, read_chat_templates, templates_in
from numllama.tokenizer.chat_template import Conversation, Written, marks_answers, write
from numllama.tokenizer.renderer import Failure
from numllama.tokenizer.spans import encode_spans
from numllama.tokenizer.spelled import Control, Tokens

PARAGRAPH = "\n\n"  # without a chat template, each message is a paragraph, and so is the answer


class Encoded(NamedTuple):
    """A conversation's ids.

    Attributes
    ----------
    ids : integer array, shape (n,)
    said : boolean array, shape (n,)
        The mask of the assistant's tokens.
    ends : tuple of int or None
        The special token that ends each answer, if any.
    spelled : bool
        Whether messages spell special tokens.
    """

    ids: np.ndarray
    said: np.ndarray
    ends: tuple[int | None, ...]
    spelled: bool


class ConversationEncoder:
    """Encodes conversations.

    Parameters
    ----------
    tokenizer : Tokenizer or CharTokenizer
    chat_template : str, optional
        A Jinja template, or the name of one of the tokenizer's own. Default the tokenizer's own; without one, messages are
        paragraphs of one text.
    opening : sequence of int
        Ids at the beginning of such a text; a template writes its own.
    sanitize_control_tokens : bool
        Treat special tokens spelled in a message as ordinary text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | CharTokenizer,
        chat_template: str | None = None,
        opening: Sequence[int] = (),
        sanitize_control_tokens: bool = True,
    ) -> None:
        self.tokenizer, self.chat_template, self.opening = tokenizer, chat_template, list(opening)
        self.sanitize = sanitize_control_tokens
        self.found = chat_templates(tokenizer)
        if isinstance(tokenizer, CharTokenizer) and chat_template is not None:
            raise ValueError("chat_template is given, but a tokenizer of characters has no special tokens to write one with")
        self.by_template = chat_template is not None or bool(self.found.templates)

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded | Failure]:
        """Encode conversations; returns an exception in place of one that cannot be encoded."""
        written = self.write(conversations)
        return [one if isinstance(one, Exception) else _caught(self._encoded, one) for one in written]

    def write(self, conversations: Sequence[Conversation], pieces: bool = True) -> list[Written | Failure]:
        """Format conversations; without `pieces`, the information for encoding is left out."""
        if not self.by_template:
            return [_caught(self._paragraphs, conversation) for conversation in conversations]
        written: list[Written | Failure] = []
        for template, same in groupby(conversations, lambda one: _caught(self.template, one)):
            values = [replace(one, values={**self.found.tokens, **one.values}) for one in same]
            if isinstance(template, str):
                control = replace(control_tokens(self.tokenizer), strict=self.sanitize)
                written += write(template, values, control if pieces else None)
            else:
                written += [template] * len(values)
        return written

    def template(self, conversation: Conversation) -> str:
        """The template for a conversation: one with tools may have its own."""
        template = self.found.choose(self.chat_template, conversation.values.get("tools"))
        if template is None:
            raise ValueError("this tokenizer came without a chat template: give one as chat_template")
        return template

    def _paragraphs(self, conversation: Conversation) -> Written:
        """Format a conversation without a template: one paragraph per message."""
        if conversation.values.get("tools"):
            raise ValueError("the conversation has tools, which only a chat template can write")
        text, answers, ends = "", [], []
        for i, message in enumerate(conversation.messages):
            if calls := [name for name in ("tool_calls", "function_call") if message.get(name)]:
                raise ValueError(f"message {i + 1} has {calls[0]}, which only a chat template can write")
            if not isinstance(message.get("content"), str):
                raise ValueError(f"message {i + 1} has no text, and only a chat template can write its other fields")
            start, text = len(text), f"{text}{message['content']}{PARAGRAPH}"
            ends.append(len(text))
            if message.get("role") == "assistant" and i not in conversation.unsaid:
                answers.append((start, len(text)))
        spelled = control_tokens(self.tokenizer).others.spans(text)
        return Written(text, answers, ends[:-1], [*spelled])

    def _encoded(self, written: Written) -> Encoded:
        plain = written.plain if self.sanitize else ()
        ids, spans = encode_spans(self.tokenizer, written.text, "all", written.prompts, plain)
        special = np.isin(ids, list(getattr(self.tokenizer, "special_tokens", {}).values()))
        for start, stop in written.plain:  # not the template's own
            special[(spans[:, 0] < stop) & (spans[:, 1] > start)] = False
        said, ends = np.zeros(len(ids), dtype=bool), []
        for start, stop in written.answers:
            inside = (spans[:, 0] < stop) & (spans[:, 1] > start)
            said |= inside
            last = np.flatnonzero(inside & special)[-1:]
            ended = len(last) and not written.text[spans[last[0], 1] : stop].strip()
            ends.append(int(ids[last[0]]) if ended else None)
        if not self.by_template:
            ids = np.concatenate([np.array(self.opening, dtype=np.int64), ids])
            said = np.concatenate([np.zeros(len(self.opening), dtype=bool), said])
        return Encoded(ids, said, tuple(ends), any(start < stop for start, stop in written.plain))


def _caught(function: Callable, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (NumllamaError, ValueError) as error:
        return error


# ------------------------------------------------------------------------------------------------ of a tokenizer


def chat_templates(tokenizer: Tokenizer | CharTokenizer) -> ChatTemplates:
    """The templates in the folder or file that a tokenizer was loaded from."""
    if (config := getattr(tokenizer, "config", None)) is not None:
        return templates_in(config)
    folder = None if isinstance(tokenizer, CharTokenizer) else getattr(tokenizer, "folder", None)
    return read_chat_templates(folder) if folder else ChatTemplates({}, {})


_control: WeakKeyDictionary[Tokenizer | CharTokenizer, Control] = WeakKeyDictionary()


def control_tokens(tokenizer: Tokenizer | CharTokenizer) -> Control:
    """A tokenizer's special tokens, which count only where a template writes them."""
    if tokenizer not in _control:
        special = Tokens(getattr(tokenizer, "special_tokens", ()))
        _control[tokenizer] = Control(special, special)
    return _control[tokenizer]


# ------------------------------------------------------------------------------------------------ as in transformers


def apply_chat_template(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool | None = None,
    tokenize: bool = True,
    chat_template: str | None = None,
    *,
    continue_final_message: bool | str = False,
    sanitize_control_tokens: bool = True,
    return_dict: bool = False,
    return_assistant_tokens_mask: bool = False,
    **values: Any,
) -> list[int] | str | dict[str, list[int]]:
    """See :meth:`Tokenizer.apply_chat_template`."""
    for name, neutral in _NOT_DONE.items():
        if values.pop(name, None) not in neutral:
            raise ValueError(f"apply_chat_template does not support {name}: leave it out, and pad or truncate the ids yourself")
    if add_generation_prompt and continue_final_message:
        raise ValueError("add_generation_prompt and continue_final_message exclude each other: one asks for a new message")
    if return_assistant_tokens_mask and (continue_final_message or not (return_dict and tokenize)):
        raise ValueError("return_assistant_tokens_mask needs return_dict and tokenize, and a last message that is complete")
    if not len(messages):
        raise ValueError("messages is empty, but a conversation has at least one message")
    encoder = ConversationEncoder(tokenizer, chat_template, sanitize_control_tokens=sanitize_control_tokens)
    prompt = not continue_final_message if add_generation_prompt is None else add_generation_prompt
    continued = ("content" if continue_final_message is True else continue_final_message) or None
    conversation = Conversation(messages, values, prompt, return_assistant_tokens_mask, continued=continued)
    template = encoder.template(conversation)
    if return_assistant_tokens_mask and not marks_answers(template):
        raise ValueError("return_assistant_tokens_mask needs a chat template that marks answers with {% generation %}")
    if not tokenize:
        return _result(encoder.write([conversation], pieces=False)[0]).text
    encoded = _result(encoder.encode([conversation])[0])
    ids = encoded.ids.tolist()
    if not return_dict:
        return ids
    mask = {"assistant_masks": encoded.said.astype(int).tolist()} if return_assistant_tokens_mask else {}
    return {"input_ids": ids, "attention_mask": [1] * len(ids), **mask}


_NOT_DONE = {
    "padding": (None, False, "do_not_pad"),
    "truncation": (None, False),
    "max_length": (None,),
    "return_tensors": (None,),
    "tokenizer_kwargs": (None, {}),
}


def _result(outcome: Any) -> Any:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
