"""Chat: a message, the streamed answer, the next message."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from numllama.generation.kv_cache import KVCache
from numllama.generation.sampling import SamplingConfig
from numllama.generation.text import TextStream, default_settings, opening, stream_text
from numllama.model import Transformer
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.tokenizer.chat_template import Conversation
from numllama.tokenizer.conversation import PARAGRAPH, ConversationEncoder, chat_templates


class Chat:
    """A conversation with a model; earlier messages are not computed again.

    Parameters
    ----------
    model : Transformer
    tokenizer : Tokenizer or CharTokenizer
        Its chat template is used, if it has one. Otherwise messages and answers are paragraphs of one text.
    system : str, optional
        The system message.
    max_new_tokens : int, optional
        Limit for an answer; see :func:`stream_text`.
    window : int, optional
        See :func:`generate`.
    skip_special_tokens : bool
        Leave special tokens out of the answers.
    settings
        See :class:`SamplingConfig`. Default those in the checkpoint's generation_config.json, and its end tokens.

    Attributes
    ----------
    messages : list of dict
        ``{"role": ..., "content": ...}``, oldest first.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | CharTokenizer,
        *,
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
        """The answer to a message, in pieces as they are generated. `last` counts its tokens and seconds."""
        messages = [*self.messages, {"role": "user", "content": content}]
        self.last = self._stream(messages)
        self.messages = messages
        return self._answer(self.last)

    def _stream(self, messages: list[dict[str, str]]) -> TextStream:
        prompt = chat_prompt(self.tokenizer, messages, opening(self.model, self.tokenizer))
        return stream_text(
            self.model, self.tokenizer, prompt.ids, self.max_new_tokens,
            stop=prompt.stop, kv_cache=self.kv_cache, sampling=self.sampling, skip_special_tokens=self.skip_special_tokens,
        )  # fmt: skip

    def _answer(self, pieces: TextStream) -> Iterator[str]:
        answer = {"role": "assistant", "content": ""}
        self.messages.append(answer)
        for piece in pieces:
            answer["content"] += piece
            yield piece


class ChatPrompt(NamedTuple):
    """The ids of a conversation up to the answer, and the texts that end the answer."""

    ids: list[int]
    stop: tuple[str, ...]


def chat_prompt(
    tokenizer: Tokenizer | CharTokenizer, messages: Sequence[Mapping[str, Any]], opening: Sequence[int] = ()
) -> ChatPrompt:
    """Encode a conversation for the model to answer.

    Parameters
    ----------
    tokenizer : Tokenizer or CharTokenizer
    messages : sequence of mappings
    opening : sequence of int
        Tokens at the beginning of a text, used if there is no chat template.
    """
    encoder = ConversationEncoder(tokenizer, opening=opening)
    (encoded,) = encoder.encode([Conversation(messages, prompt=True)])
    if isinstance(encoded, Exception):
        raise encoded
    return ChatPrompt(encoded.ids.tolist(), () if encoder.by_template else (PARAGRAPH,))


def has_chat_template(tokenizer: Tokenizer | CharTokenizer) -> bool:
    """Whether the folder that a tokenizer was loaded from has a chat template."""
    return bool(chat_templates(tokenizer).templates)
