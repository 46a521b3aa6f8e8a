"""A conversation: a message, an answer as it comes, the next message."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numllama.generation.kv_cache import KVCache
from numllama.generation.sampling import SamplingConfig
from numllama.generation.text import TextStream, default_settings, opening, stream_text
from numllama.model import Transformer
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.tokenizer.chat_template import Conversation
from numllama.tokenizer.conversation import PARAGRAPH, ConversationEncoder, chat_templates


class Chat:
    """A conversation with a model; what was said is not computed again.

    Parameters
    ----------
    model : Transformer
    tokenizer : Tokenizer or CharTokenizer
        With the checkpoint's chat template, if it has one. Without one, message and answer are paragraphs of one text.
    system : str, optional
        What the model is told beforehand.
    max_new_tokens : int, optional
        Of an answer; see :func:`stream_text`.
    window : int, optional
        See :func:`generate`.
    skip_special_tokens : bool
        Leave special tokens out of the answers.
    settings
        See :class:`SamplingConfig`. Default what the checkpoint's generation_config.json says, and its end tokens.

    Attributes
    ----------
    messages : list of dict
        ``{"role": ..., "content": ...}``, oldest first.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | CharTokenizer,
        system: str | None = None,
        max_new_tokens: int | None = None,
        window: int | None = None,
        skip_special_tokens: bool = True,
        **settings: Any,
    ) -> None:
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.skip_special_tokens = skip_special_tokens
        self.sampling = SamplingConfig(**{**default_settings(model, tokenizer), **settings})
        self.sampling.check(model.config.vocab_size)
        self.messages = [{"role": "system", "content": system}] if system else []
        self.kv_cache = KVCache(model, window=window)

    def say(self, content: str) -> Iterator[str]:
        """The answer to a message, in pieces as they come. `last` then counts its tokens and seconds."""
        messages = [*self.messages, {"role": "user", "content": content}]
        self.last = self._stream(messages)
        self.messages = messages
        return self._answer(self.last)

    def _stream(self, messages: list[dict[str, str]]) -> TextStream:
        prompt, stop = chat_prompt(self.tokenizer, messages, opening(self.model, self.tokenizer))
        settings = dict(kv_cache=self.kv_cache, sampling=self.sampling, skip_special_tokens=self.skip_special_tokens)
        return stream_text(self.model, self.tokenizer, prompt, self.max_new_tokens, stop, **settings)

    def _answer(self, pieces: TextStream) -> Iterator[str]:
        answer = {"role": "assistant", "content": ""}
        self.messages.append(answer)
        for piece in pieces:
            answer["content"] += piece
            yield piece


def chat_prompt(
    tokenizer: Tokenizer | CharTokenizer, messages: Sequence[Mapping[str, Any]], opening: Sequence[int] = ()
) -> tuple[list[int], tuple[str, ...]]:
    """What a model is given to answer, and the texts that end its answer.

    Parameters
    ----------
    tokenizer : Tokenizer or CharTokenizer
    messages : sequence of mappings
    opening : sequence of int
        What a text begins with, where no chat template writes it.
    """
    encoder = ConversationEncoder(tokenizer, opening=opening)
    (encoded,) = encoder.encode([Conversation(messages, prompt=True)])
    if isinstance(encoded, Exception):
        raise encoded
    return encoded.ids.tolist(), () if encoder.by_template else (PARAGRAPH,)


def has_chat_template(tokenizer: Tokenizer | CharTokenizer) -> bool:
    """Whether the folder that a tokenizer came from says how to write a conversation."""
    return bool(chat_templates(tokenizer).templates)
