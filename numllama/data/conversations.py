"""Conversations to fine-tune on: JSON lines, packed into rows in which only the assistant's tokens are targets.

    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]}

Each line is a document. Documents are packed into rows, several per row where they fit, and each token is labelled with its
document: attention stays within a document, and positions start at 0 in each. All targets but the assistant's are -100.
Rows are packed once and reshuffled every epoch: a batch is a function of the seed and the number of rows taken before.
"""

import json
import re
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from numllama.data.batches import Batch, BatchSource, Position, Rows, counted
from numllama.data.dataset import VAL_FRACTION
from numllama.data.token_files import checksum
from numllama.errors import DataError, shown
from numllama.ops import IGNORE
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.tokenizer.chat_template import Conversation
from numllama.tokenizer.conversation import ConversationEncoder, Encoded

Document = tuple[np.ndarray, np.ndarray]  # ids, and the mask of the assistant's
CALLS = ("tool_calls", "function_call")
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
AT_ONCE = 128  # conversations rendered together


class Documents:
    """Documents as tokens, and the rows they are packed into.

    Parameters
    ----------
    documents : sequence of (ids, said)
        Integer and boolean arrays of equal length: tokens, and which of them are targets.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents
        self.rows = cache(self._rows)

    def __len__(self) -> int:
        """Number of tokens."""
        return sum(len(ids) for ids, _ in self.documents)

    def longest(self) -> int:
        """The shortest row length that truncates nothing."""
        return max(len(ids) for ids, _ in self.documents) - 1

    def cut_off(self, seq_len: int) -> int:
        """Number of documents truncated to fit a row of this length."""
        return sum(len(self.documents[i][0]) - 1 > seq_len for i in self._learnable(seq_len))

    def left_out(self, seq_len: int) -> int:
        """Number of documents without a target within a row of this length."""
        return len(self.documents) - len(self._learnable(seq_len))

    def _learnable(self, seq_len: int) -> list[int]:
        return [i for i, (_, said) in enumerate(self.documents) if said[1 : seq_len + 1].any()]

    def _rows(self, seq_len: int) -> list[list[int]]:
        """The documents in each row. Longer ones are truncated, and left out if no target remains."""
        learnable = self._learnable(seq_len)
        lengths = [min(len(self.documents[i][0]) - 1, seq_len) for i in learnable]
        return [[learnable[i] for i in row] for row in pack(lengths, seq_len)]

    def batch(self, rows: Sequence[list[int]], seq_len: int) -> Batch:
        """Rows as a batch, shape (rows, T), where T is the longest row's length. Padding is a segment of its own."""
        inputs, segments = np.zeros((len(rows), seq_len), dtype=np.int64), np.full((len(rows), seq_len), -1)
        targets, longest = np.full((len(rows), seq_len), IGNORE, dtype=np.int64), 0
        for r, row in enumerate(rows):
            start = 0
            for segment, document in enumerate(row):
                ids, said = (part[: seq_len + 1] for part in self.documents[document])
                stop = start + len(ids) - 1
                inputs[r, start:stop], segments[r, start:stop] = ids[:-1], segment
                targets[r, start:stop] = np.where(said[1:], ids[1:], IGNORE)
                start = stop
            longest = max(longest, start)
        return counted(inputs[:, :longest], targets[:, :longest], segments[:, :longest])


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Pack items into few rows of `size`, best fit decreasing: longest first, each into the fullest row with room for it."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (room left, row), sorted
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(room, (lengths[i], 0))
        left, row = room.pop(at) if at < len(room) else (size, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        insort(room, (left - lengths[i], row))
    return rows


class Conversations:
    """Fine-tuning data for a :class:`Trainer`, in place of a :class:`Dataset`.

    Parameters
    ----------
    train, val : Documents
    tokenizer : Tokenizer or CharTokenizer
    name : str
    stop_ids : tuple of int
        Special tokens that end answers.

    Attributes
    ----------
    vocab_size : int
        The smallest vocabulary a model needs: the largest id plus one.
    unended : int
        Answers to train on that the chat template ends without a special token.
    spelled : int
        Conversations whose messages spell special tokens.
    """

    unended = spelled = 0

    def __init__(
        self, train: Documents, val: Documents, tokenizer: Tokenizer | CharTokenizer, name: str, stop_ids: tuple[int, ...] = ()
    ) -> None:
        self.train, self.val, self.tokenizer, self.name, self.stop_ids = train, val, tokenizer, name, stop_ids
        self.vocab_size = 1 + max(int(ids.max()) for split in (train, val) for ids, _ in split.documents)

    def check(self, vocab_size: int, seq_len: int) -> None:
        """Raise DataError unless a model of this vocabulary can train on rows of this length."""
        if self.vocab_size > vocab_size:
            raise DataError(f"{self.name} holds the token {self.vocab_size - 1}, but the model's vocabulary is {vocab_size}")
        for split in ("train", "val"):
            if not getattr(self, split).rows(seq_len):
                raise DataError(f"no answer in the {split} split of {self.name} begins within seq_len, which is {seq_len}")

    @property
    def default_sampling(self) -> str:
        """Has no effect: rows always come in epochs."""
        return "random"

    def batches(self, batch_size: int, seq_len: int, seed: int = 0, sampling: str = "random") -> BatchSource:
        """The conversations as batches of this shape: see :class:`ConversationBatches`."""
        return ConversationBatches(self, batch_size, seq_len, seed)

    def fingerprint(self) -> dict[str, str]:
        """Checksums of both splits: tokens and target masks."""
        splits = {"train": self.train, "val": self.val}
        return {name: checksum(np.concatenate([part for d in split.documents for part in d])) for name, split in splits.items()}

    def val_rows(self, seq_len: int) -> int:
        """The number of rows in the whole validation split."""
        return len(self.val.rows(seq_len))


class ConversationBatches:
    """Rows of packed conversations, each once per epoch, reshuffled every epoch."""

    def __init__(self, data: Conversations, batch_size: int, seq_len: int, seed: int = 0) -> None:
        self.data, self.batch_size, self.seq_len, self.seed = data, batch_size, seq_len, seed

    def batch(self, position: Position, rows: Rows = None) -> Batch:
        """The batch of a step, or some of its rows, padded to the width of the whole batch."""
        start, packed, some = position.windows, self.data.train.rows(self.seq_len), []
        for epoch, first, stop in epochs(start, start + self.batch_size, len(packed)):
            order = np.random.default_rng([self.seed, epoch]).permutation(len(packed))
            some += [packed[i] for i in order[first:stop]]
        return self.data.train.batch(some, self.seq_len).rows(rows)

    def validation(self, n: int | None = None) -> Iterator[Batch]:
        """The first `n` batches of the validation split; default all of it."""
        rows, size = self.data.val.rows(self.seq_len), self.batch_size
        return islice((self.data.val.batch(rows[i : i + size], self.seq_len) for i in range(0, len(rows), size)), n)

    def fingerprint(self) -> dict[str, str]:
        """Checksums of both splits."""
        return self.data.fingerprint()


def epochs(start: int, stop: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Split the range start..stop into epochs of `size`; yields (epoch, first, stop), counted within the epoch."""
    while start < stop:
        epoch, first = divmod(start, size)
        end = min(stop, (epoch + 1) * size)
        yield epoch, first, first + end - start
        start = end


# ------------------------------------------------------------------------------------------------ reading


def load_conversations(
    path: str | Path,
    tokenizer: Tokenizer | CharTokenizer,
    *,
    val_path: str | Path | None = None,
    chat_template: str | None = None,
    opening: Sequence[int] = (),
    sanitize_control_tokens: bool = True,
) -> Conversations:
    """Read conversations, one per line.

    Parameters
    ----------
    path : path
        JSON lines with ``messages``, and ``tools`` if the template supports them; other keys are ignored. A message
        whose ``weight`` is 0 is not trained on.
    tokenizer : Tokenizer or CharTokenizer
    val_path : path, optional
        Conversations to validate on; default the last tenth of `path`.
    chat_template : str, optional
        Default the tokenizer's own. Without one, messages are paragraphs of one text, as in ``numllama chat``.
    opening : sequence of int
        Tokens at the beginning of such a text; a template writes its own.
    sanitize_control_tokens : bool
        Treat special tokens spelled in a message as ordinary text; with False they are special tokens.

    Raises
    ------
    DataError
        If a file cannot be read or a line is invalid; the error names its number.
    """
    encoder = ConversationEncoder(tokenizer, chat_template, opening, sanitize_control_tokens)
    train = _read(Path(path), encoder)
    if val_path is None and len(train) < 2:
        raise DataError(f"{path} holds a single conversation, but at least two are needed, one to train on and one to validate")
    kept = len(train) if val_path else min(len(train) - 1, int(len(train) * (1 - VAL_FRACTION)))
    train, val = train[:kept], _read(Path(val_path), encoder) if val_path else train[kept:]
    ends = [end for one in train for end in one.ends]
    stops = tuple(sorted({end for end in ends if end is not None}))
    data = Conversations(_documents(train), _documents(val), tokenizer, str(path), stops)
    data.unended = ends.count(None) if encoder.by_template else 0
    data.spelled = sum(one.spelled for one in [*train, *val])
    return data


def _documents(conversations: Sequence[Encoded]) -> Documents:
    return Documents([(one.ids, one.said) for one in conversations])


def _read(path: Path, encoder: ConversationEncoder) -> list[Encoded]:
    """The conversations of a file; an error names the line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    documents = []
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    for first in range(0, len(numbered), AT_ONCE):
        numbers, some = zip(*numbered[first : first + AT_ONCE], strict=True)
        conversations = [_conversation(line, f"{path}, line {number}") for number, line in zip(numbers, some, strict=True)]
        for number, conversation, encoded in zip(numbers, conversations, encoder.encode(conversations), strict=True):
            if isinstance(encoded, Exception):
                raise DataError(f"{path}, line {number}: {encoded}") from encoded
            if not encoded.said[1:].any():
                why = "all of it has the weight 0" if conversation.unsaid else ""
                raise DataError(f"{path}, line {number}: there is nothing that the assistant says{why and f': {why}'}")
            documents.append(encoded)
    if not documents:
        raise DataError(f"{path} holds no conversations")
    return documents


def _conversation(line: bytes, name: str) -> Conversation:
    try:
        return _checked(line)
    except RecursionError as error:
        raise DataError(f"{name}: it is nested too deeply") from error
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error


def _checked(line: bytes) -> Conversation:
    """The conversation in a line; ValueError if it is invalid."""
    try:
        values = json.loads(line.decode("utf-8-sig"))
        if SURROGATE.search(line):  # only an escape can be half of a pair
            json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it is not Unicode: {error.reason}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: byte {error.start} is 0x{line[error.start]:02x}") from error
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    messages = values.get("messages") if isinstance(values, dict) else None
    if not isinstance(messages, list) or not messages:
        raise ValueError('it must be an object with a list of "messages", each with a "role" and a "content"')
    unsaid = frozenset(i for i, message in enumerate(messages) if _weight(message, i + 1) == 0)
    messages = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError('none of its messages has the role "assistant"')
    tools = {"tools": values["tools"]} if values.get("tools") is not None else {}
    return Conversation(messages, tools, answers=True, unsaid=unsaid)


def _weight(message: Any, number: int) -> int:
    """The weight of a message, 0 or 1; ValueError if the message is invalid."""
    calls = isinstance(message, dict) and message.get("content") is None and any(message.get(name) for name in CALLS)
    for key in ("role",) if calls else ("role", "content"):
        if not isinstance(message, dict) or not isinstance(message.get(key), str):
            raise ValueError(f'message {number} must be an object whose "{key}" is a text')
    weight = message.get("weight")
    if weight is None:
        return 1
    if isinstance(weight, bool) or weight not in (0, 1):
        raise ValueError(f"the weight of message {number} is {shown(weight)}, but must be 0 or 1")
    if weight and message["role"] != "assistant":
        raise ValueError(f"message {number} has the weight 1, but only the assistant's messages can be trained on")
    return int(weight)
