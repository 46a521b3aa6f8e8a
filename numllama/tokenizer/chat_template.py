"""Chat templates: format a list of messages as the text that a tuned model was trained on.

A checkpoint's template is a Jinja program from an untrusted source. It runs in Jinja's immutable sandbox, where it sees text,
numbers, lists and dictionaries but can neither change them nor reach Python objects, and in a separate process with limits on
time and memory (`tokenizer/renderer.py`).

A message is ordinary text even if it spells a special token; only the template itself can write one. A conversation
whose messages spell special tokens is rendered a second time, with marks around them (`tokenizer/spelled.py`).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from numllama.errors import NumllamaError, shown
from numllama.tokenizer.chat_files import read_chat_templates
from numllama.tokenizer.renderer import Failure, Render, render
from numllama.tokenizer.spelled import Control, Marks, Spans, unused

_MARKED = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_MARK_IT = "mark it in the template, {% generation %} ... {% endgeneration %}"
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of a message's reasoning; templates read the first
MOST_RENDERED_AGAIN = 64  # prompts within a conversation


def render_chat_template(
    template: str, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **tokens: Any
) -> str:
    """The text of a conversation, as returned by `transformers`' ``apply_chat_template(..., tokenize=False)``.

    Parameters
    ----------
    template : str
        A Jinja template, as in a checkpoint's ``tokenizer_config.json`` or ``chat_template.jinja``.
    messages : sequence of mappings
        ``{"role": "user", "content": "..."}``, oldest first.
    add_generation_prompt : bool
        End with the opening of the assistant's answer.
    tokens
        Other variables of the template: ``bos_token="<s>"``, ``tools=[...]``, ``date_string="26 Jul 2024"``.

    Raises
    ------
    CheckpointError
        If the template cannot be parsed, or violates the sandbox.
    ValueError
        If it refuses these messages, fails to render them, or exceeds its time or memory limit.
    """
    return _one(template, Conversation(messages, tokens, prompt=add_generation_prompt)).text


def render_answers(
    template: str, messages: Sequence[Mapping[str, Any]], **tokens: Any
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and the spans in which the assistant speaks, which are the targets of fine-tuning.

    A template may mark them with ``{% generation %}``. Without marks, an answer is the text that follows its prompt: the
    template is rendered up to each answer, including its opening, and up to its end, and each rendering must be a prefix of
    the next.

    Parameters
    ----------
    template, messages, tokens
        See :func:`render_chat_template`.

    Returns
    -------
    text : str
    spans : list of (int, int)
        Start and end (exclusive) of each answer, in characters. The end-of-turn token is part of the answer.

    Raises
    ------
    ValueError
        If the template formats earlier messages differently once later ones follow.
    """
    written = _one(template, Conversation(messages, tokens, answers=True))
    return written.text, written.answers


def read_chat_template(folder: str | Path) -> tuple[str | None, dict[str, str]]:
    """A checkpoint's template, None if it has none, and its special tokens by name (``bos_token`` and the like)."""
    found = read_chat_templates(folder)
    return found.choose(), found.tokens


def marks_answers(template: str) -> bool:
    """Whether a template marks answers with ``{% generation %}``."""
    return bool(_MARKED.search(template))


@dataclass(frozen=True)
class Conversation:
    """A conversation to format.

    Attributes
    ----------
    messages : sequence of mappings
    values : mapping
        Other variables of the template.
    prompt : bool
        End with the opening of the assistant's answer.
    answers : bool
        Locate the assistant's answers.
    unsaid : frozenset of int
        Assistant messages that do not count as answers.
    continued : str, optional
        A field of the last message: the text ends with it.
    """

    messages: Sequence[Mapping[str, Any]]
    values: Mapping[str, Any] = field(default_factory=dict)
    prompt: bool = False
    answers: bool = False
    unsaid: frozenset[int] = frozenset()
    continued: str | None = None


class Written(NamedTuple):
    """A conversation's text.

    Attributes
    ----------
    text : str
    answers : list of (int, int)
        Where the assistant speaks, if requested.
    prompts : list of int
        Ends of the prompts within this conversation, up to which a model encoded the text before each answer.
    plain : list of (int, int)
        Where messages spell special tokens, to be encoded as ordinary text.
    """

    text: str
    answers: Spans
    prompts: list[int]
    plain: Spans


def _one(template: str, conversation: Conversation) -> Written:
    (written,) = write(template, [conversation])
    if isinstance(written, Exception):
        raise written
    return written


def write(
    template: str, conversations: Sequence[Conversation], control: Control | None = None
) -> list[Written | Failure]:
    """Format conversations; returns an exception in place of one that cannot be formatted.

    Parameters
    ----------
    template : str
    conversations : sequence of Conversation
    control : Control, optional
        The special tokens that count only where the template writes them. Without it, only the text is computed, and the
        answers if requested.
    """
    jobs: list[_Job | Failure] = []
    for conversation in conversations:
        try:
            jobs.append(_Job(template, conversation, control))
        except ValueError as error:
            jobs.append(error)
    _ask(template, [job for job in jobs if isinstance(job, _Job)])
    return [_outcome(job) for job in jobs]


def _ask(template: str, jobs: Sequence["_Job"]) -> None:
    """Render everything that the jobs need in one batch."""
    values, renders = [], []
    for job in jobs:
        for number, own in enumerate(job.values):
            values.append(own)
            renders += [replace(r, conversation=len(values) - 1) for r in job.renders.values() if r.conversation == number]
    texts = iter(render(template, values, renders) if renders else ())
    for job in jobs:
        for number in range(len(job.values)):
            job.found |= {name: next(texts) for name, r in job.renders.items() if r.conversation == number}


def _outcome(job: "_Job | Failure") -> Written | Failure:
    if isinstance(job, Exception):
        return job
    try:
        return job.written()
    except (ValueError, NumllamaError) as error:
        return error


class _Job:
    """One conversation: the renderings that it needs, and their evaluation."""

    def __init__(self, template: str, conversation: Conversation, control: Control | None) -> None:
        self.template, self.conversation, self.control = template, conversation, control
        plain, written = _plain(conversation)
        before_answer, after_answer, begin, end, edge, self.tag = unused(f"{template}{written}", 6)
        self.answer_marks, self.marks = (before_answer, after_answer), Marks(begin, end, edge)
        self.plain = plain
        self.values = [self._continued(plain)]  # the template's variables, for each way of rendering
        self.renders: dict[Any, Render] = {"text": Render(prompt=conversation.prompt)}
        self.found: dict[Any, Any] = {}
        messages = plain["messages"]
        self.assistant = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
        self.marked = conversation.answers and marks_answers(template)
        if self.marked:
            self.renders["answers"] = Render(
                prompt=conversation.prompt, answer_marks=self.answer_marks, marks="".join(self.answer_marks)
            )
            for i in conversation.unsaid:
                self.renders["begin", i] = Render(messages=i, begins=True)
                self.renders["end", i] = Render(messages=i + 1, begins=True)
        elif conversation.answers:
            for i in self.assistant:
                self.renders["prompt", i] = Render(messages=i, prompt=True, begins=True)
                self.renders["end", i] = Render(messages=i + 1, begins=True)
            if self.assistant[:1] == [0]:
                self.renders |= {"first": Render(messages=1), "first asks": Render(messages=1, prompt=True)}
        if control and self.assistant and (self.marked or not conversation.answers):
            asking = len(messages) if conversation.prompt else self.assistant[-1]
            self.renders["before asking"] = Render(messages=asking, begins=True)
            self.renders["asking"] = Render(messages=asking, prompt=True, begins=True)
        if control and self.marks_differ():
            self.values.append(self._continued(control.marked(plain, self.marks)))
            self.renders["spelled"] = Render(1, prompt=conversation.prompt, marks=str(self.marks))

    def marks_differ(self) -> bool:
        return self.control is not None and self.control.marked(self.plain, self.marks) != self.plain

    def written(self) -> Written:
        """The result, after everything has been rendered."""
        text = self._cut(_text(self.found["text"]))
        self._check_continued(text)
        answers = self._marked_answers(text) if self.marked else self._answers(text) if self.conversation.answers else []
        return Written(text, answers, self._prompts(text), self._spelled(text))

    # -------------------------------------------------------------------------------------------- a message to continue

    def _continued(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values with a tag after the message to continue."""
        name = self.conversation.continued
        if name is None:
            return values
        last = dict(values["messages"][-1]) if values["messages"] else {}
        names = [other for other in _REASONING if last.get(other) == last.get(name)] if name in _REASONING else [name]
        if last.get(name) is None:
            raise ValueError(f"continue_final_message asks for {shown(name)} of the last message, which has none")
        if not any(other in self.template for other in names):
            raise ValueError(f"continue_final_message asks for {shown(name)}, which the chat template does not write")
        for other in names:
            last[other] = self._tagged(last[other])
        return {**values, "messages": [*values["messages"][:-1], last]}

    def _tagged(self, content: Any) -> Any:
        if isinstance(content, str):
            return f"{content}{self.tag} "  # if the space is gone, the template trims
        for i in reversed(range(len(content) if isinstance(content, list) else 0)):
            if isinstance(content[i], dict) and isinstance(content[i].get("text"), str):
                return [*content[:i], {**content[i], "text": self._tagged(content[i]["text"])}, *content[i + 1 :]]
        raise ValueError("continue_final_message is given, but the last message has no text to continue")

    def _cut(self, text: str) -> str:
        """The text up to the tag, if there is one."""
        if self.conversation.continued is None:
            return text
        at = text.rfind(self.tag)
        if at < 0:
            raise ValueError("continue_final_message is given, but the chat template leaves out the end of the last message")
        return text[:at] if text[at + 1 : at + 2] == " " else text[:at].rstrip()

    def _check_continued(self, text: str) -> None:
        """Raise ValueError if the template omits a part of the message to continue."""
        content = self.plain["messages"][-1].get(self.conversation.continued) if self.conversation.continued else ""
        if isinstance(content, list):
            content = next(part["text"] for part in reversed(content) if isinstance(part, dict) and "text" in part)
        if content.strip() not in text:
            raise ValueError("continue_final_message is given, but the chat template leaves out a part of the last message")

    # -------------------------------------------------------------------------------------------- the assistant's answers

    def _marked_answers(self, text: str) -> Spans:
        """The answers that the template marks."""
        begin, end = self.answer_marks
        pieces = re.split(f"([{begin}{end}])", _text(self.found["answers"]))
        if "".join(pieces[::2]) != text:
            raise ValueError("the chat template cuts or measures what it marks with {% generation %}: its place is not known")
        spans, open_at, length = [], [], 0
        for piece, mark in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
            length += len(piece)
            if mark == begin:
                open_at.append(length)
            elif mark == end and open_at:
                spans.append((open_at.pop(), length))
        for i in self.conversation.unsaid:
            first, last = self.found["begin", i], self.found["end", i]
            if not isinstance(first, int) or not isinstance(last, int):
                raise ValueError(f"message {i + 1} is not to be trained on, but where the chat template writes it is not known")
            spans = [(start, stop) for start, stop in spans if stop <= first or start >= last]
        return sorted(spans)

    def _answers(self, text: str) -> Spans:
        """The answers of a template without marks: the text that each adds to its prompt."""
        spans = []
        for i in self.assistant:
            start, stop = self.found["prompt", i], self.found["end", i]
            if i == 0 and not isinstance(start, int):
                start = self._first_answer()
            if error := next((found for found in (start, stop) if isinstance(found, Exception)), None):
                raise ValueError(f"the conversation can be rendered, but not only up to message {i + 1}: {_MARK_IT} ({error})")
            if start is None or stop is None:
                raise ValueError(
                    f"the chat template changes what stands before the end of message {i + 1} when more follows, so that the "
                    f"assistant's part is not known: {_MARK_IT}"
                )
            if i not in self.conversation.unsaid:
                spans.append((start, stop))
        return spans

    def _first_answer(self) -> int:
        """Where an unprompted first answer begins: after the text that would prompt the next one."""
        first, asking = self.found["first"], self.found["first asks"]
        opening = asking.removeprefix(first) if isinstance(first, str) and isinstance(asking, str) and asking != first else ""
        if not opening or asking == opening or opening not in first:
            raise ValueError(f"the assistant begins, and where the chat template writes its words is not known: {_MARK_IT}")
        return first.index(opening) + len(opening)

    # -------------------------------------------------------------------------------------------- for the tokenizer

    def _prompts(self, text: str) -> list[int]:
        """The ends of the prompts within a text."""
        if not self.control or not self.assistant:
            return []
        if self.conversation.answers and not self.marked:
            ends = [self.found["prompt", i] for i in self.assistant]
        else:
            first, last = self.found["before asking"], self.found["asking"]
            opening = text[first:last] if isinstance(first, int) and isinstance(last, int) else ""
            ends = [found.end() for found in re.finditer(re.escape(opening), text)] if opening else []
            if len(ends) != len(self.assistant) + self.conversation.prompt:  # the prompts end differently: render each
                ends = self._again([Render(messages=i, prompt=True, begins=True) for i in self.assistant[:MOST_RENDERED_AGAIN]])
        return [end for end in ends if isinstance(end, int) and 0 < end < len(text)]

    def _spelled(self, text: str) -> Spans:
        """Where messages spell special tokens, or parts that must not be joined to one."""
        if "spelled" not in self.found:
            return []
        assert self.control is not None  # without it nothing is rendered as "spelled"
        kinds = (self.control.assistant, self.control.others)
        marked, free = self.found["spelled"], not set(str(self.marks)) & set(text)
        if free and isinstance(marked, str) and self.tag in (marked if self.conversation.continued else self.tag):
            plain, spans = self.marks.read(self._cut(marked), kinds)
            if plain == text:
                return spans
        tokens = self.control.spelled(self.plain)
        if not tokens:  # only parts of tokens, which this template cannot keep apart
            return []
        covered = self._again([Render(prompt=self.conversation.prompt, marks=str(self.marks))], self.control.covered)[0]
        spans = self.marks.compare(self._cut(covered), text) if free and isinstance(covered, str) else None
        if spans is None and self.control.strict:
            raise ValueError(
                f"a message spells the special token {shown(tokens[0])}, and the chat template processes the message so "
                "that it cannot be distinguished from the template's own tokens"
            )
        return spans or []

    def _again(self, renders: Sequence[Render], change: Callable[..., dict[str, Any]] | None = None) -> list[Any]:
        """Render the conversation again, unchanged or changed."""
        values = self._continued(change(self.plain, self.marks) if change else self.plain)
        return render(self.template, [values], [self.renders["text"], *renders] if not change else renders)[-len(renders) :]


def _text(result: str | Failure) -> str:
    if isinstance(result, Exception):
        raise result
    return result


def _plain(conversation: Conversation) -> tuple[dict[str, Any], str]:
    """The template's variables as plain data, without objects whose methods could do anything, and the same as JSON."""
    messages = conversation.messages
    if isinstance(messages, str | bytes | Mapping) or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError('messages must be a list of dictionaries such as {"role": "user", "content": "Hello"}')
    documents = conversation.values.get("documents")
    if documents is not None and not all(isinstance(document, Mapping) for document in documents):
        raise ValueError(f"documents is {shown(documents)}, but must be a list of dictionaries with a title and a text")
    given = [_aliased({name: value for name, value in message.items() if value is not None}) for message in messages]
    try:
        written = json.dumps({"tools": None, "documents": None, **conversation.values, "messages": given})
    except (TypeError, ValueError, RecursionError) as error:
        why = "they are nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"messages and tokens must be text, numbers, lists and dictionaries: {why}") from error
    values = json.loads(written)
    return values, json.dumps(values, ensure_ascii=False)


def _aliased(message: dict[str, Any]) -> dict[str, Any]:
    """Provide the assistant's reasoning under several names."""
    thought = next((message[name] for name in _REASONING if name in message), None)
    return message if thought is None else {"thinking": thought, **message, "reasoning_content": thought}
