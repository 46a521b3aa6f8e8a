"""What the page's controls do: generate, chat, look inside, training. `layout.py` builds the page, `drawing.py` its pictures."""

import asyncio
import time
from collections.abc import AsyncIterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from numllama.errors import NumllamaError
from numllama.generation.attention_maps import attention_weights
from numllama.generation.chat import chat_prompt, has_chat_template
from numllama.generation.text import opening
from numllama.model.parameters import count_parameters
from numllama.serve import drawing
from numllama.serve.api import token_text
from numllama.serve.chat_threads import in_chat_thread
from numllama.serve.controls import Settings
from numllama.serve.engine import Chunk, Engine, Job, Request
from numllama.serve.job import Text
from numllama.serve.training import Watch, runs_in

PAUSE = 0.05  # seconds between two updates of the page
TOP_LOGPROBS = 6
TOKENS_DRAWN = 1000  # per second: each update draws all tokens, and the browser needs time for Stop
MAP_TOKENS = 40  # of an attention map; more would not be readable
REFUSED = (NumllamaError, ValueError)
UNCHANGED = gr.skip()


class TextView(NamedTuple):
    """New contents of the Generate tab."""

    text: Any = UNCHANGED
    status: Any = UNCHANGED
    saved: Any = UNCHANGED


class ChatView(NamedTuple):
    """New contents of the Chat tab."""

    message: Any = UNCHANGED
    talk: Any = UNCHANGED
    status: Any = UNCHANGED
    saved: Any = UNCHANGED


class InsideView(NamedTuple):
    """New contents of the Look inside tab."""

    tokens: Any = UNCHANGED
    status: Any = UNCHANGED
    ids: Any = UNCHANGED


class TrainingView(NamedTuple):
    """New contents of the Training tab."""

    run: Any = UNCHANGED
    status: Any = UNCHANGED
    curve: Any = UNCHANGED
    samples: Any = UNCHANGED
    shown: Any = UNCHANGED


class RestoredView(NamedTuple):
    """What a reloaded page shows again."""

    prompt: Any = UNCHANGED
    text: Any = UNCHANGED
    status: Any = UNCHANGED
    talk: Any = UNCHANGED


class Update(NamedTuple):
    """A chunk of a text, the text itself, and its status line."""

    chunk: Chunk
    text: Text
    status: str


class Page:
    """What the controls do: each method takes their values and returns or yields the new contents of its tab."""

    def __init__(self, engine: Engine, runs: Path) -> None:
        self.engine, self.runs = engine, runs
        self._jobs: dict[str | None, list[Job]] = {}  # of each open page, by its session
        self._watches: dict[str, Watch] = {}
        self._tasks: set[asyncio.Task] = set()

    def about(self) -> str:
        """One line about the model."""
        c, model = self.engine.model.config, self.engine.model
        shape = f"{c.n_layers} layers, {c.n_heads} heads, {c.dim} wide, vocabulary {c.vocab_size:,}, context {c.max_seq_len:,}"
        return f"{count_parameters(c):,} parameters, {shape}, {model.params.flat.dtype} on {model.device}"

    def invitation(self) -> str:
        """The hint in the message field."""
        if has_chat_template(self.engine.tokenizer):
            return "Type a message"
        return "This model was not trained for chat: it continues your text to the end of the paragraph"

    async def generate(self, request: gr.Request, prompt: str | None, *settings: Any) -> AsyncIterator[TextView]:
        """Show the prompt and its continuation as it is generated; the browser saves the finished text."""
        prompt = text = prompt or ""
        yield TextView(status=note("…"))
        try:
            async for update in self._generate(Settings(*settings).request(self.engine, prompt), request):
                text += update.chunk.text
                saved = {"prompt": prompt, "text": text, "status": update.status} if update.chunk.finish else UNCHANGED
                yield TextView(text, note(update.status), saved)
        except REFUSED as error:
            yield TextView(status=note(str(error), refused=True))

    async def chat(self, request: gr.Request, message: str | None, saved: Any, *settings: Any) -> AsyncIterator[ChatView]:
        """Show the conversation with one more answer as it is generated."""
        earlier = _messages(saved)
        if not (message or "").strip():
            yield ChatView(status=note("Type a message first."))
            return
        messages = [*earlier, {"role": "user", "content": message}]
        answer = ""
        try:
            self.engine.check_length(*(message["content"] for message in messages))
            begin = opening(self.engine.model, self.engine.tokenizer)
            prompt, stop = await in_chat_thread(chat_prompt, self.engine.tokenizer, messages, begin)
            yield ChatView(message="", talk=_as_text(messages))
            async for update in self._generate(Settings(*settings).request(self.engine, prompt, stop), request):
                answer += update.chunk.text
                talk = [*messages, {"role": "assistant", "content": answer}]
                yield ChatView(UNCHANGED, _as_text(talk), note(update.status), talk if update.chunk.finish else UNCHANGED)
        except REFUSED as error:
            yield ChatView(message, _as_text(earlier), note(str(error), refused=True))

    def forget(self) -> ChatView:
        """Start a new conversation."""
        return ChatView(talk=[], status=note(), saved=[])

    async def look(self, request: gr.Request, prompt: str | None, *settings: Any) -> AsyncIterator[InsideView]:
        """Show the text as coloured tokens, each with its alternatives."""

        def name(i: int) -> str:
            return token_text(self.engine.tokenizer, i)

        try:
            spans: list[str] = []
            due = 0.0
            wanted = Settings(*settings).request(self.engine, prompt or "", top_logprobs=TOP_LOGPROBS)
            async for chunk, text, status in self._generate(wanted, request):
                if not spans:
                    spans = [drawing.token_span(name(i), place) for place, i in enumerate(text.ids)]
                for token in chunk.tokens:
                    top = [(name(i), logprob) for i, logprob in token.top_logprobs]
                    spans.append(drawing.token_span(name(token.id), len(spans), token.logprob, top))
                if not chunk.finish and time.monotonic() < due:
                    continue
                due = time.monotonic() + len(spans) / TOKENS_DRAWN
                ids = [*text.ids, *text.new_ids] if chunk.finish else UNCHANGED
                yield InsideView(f'<div class="tokens">{"".join(spans)}</div>', note(status), ids)
        except REFUSED as error:
            yield InsideView(status=note(str(error), refused=True))

    async def attention(self, ids: list[int] | None, layer: int | None, head: int | None) -> str:
        """One head's attention map of the end of the text, and thumbnails of all heads of the layer."""
        if not ids:
            return note("Generate a text first.")
        if layer is None or head is None:
            return note("Layer and head must be numbers.", refused=True)
        model, n_tokens = self.engine.model, len(ids)
        ids = ids[-model.config.max_seq_len :]
        try:
            work = self.engine.call(lambda: attention_weights(model, ids, int(layer)))
            weights = (await asyncio.wrap_future(work))[:, -MAP_TOKENS:, -MAP_TOKENS:]
        except REFUSED as error:
            return note(str(error), refused=True)
        labels = [token_text(self.engine.tokenizer, i) for i in ids[-MAP_TOKENS:]]
        large = drawing.attention_map(weights[int(head)], labels)
        return f'{drawing.head_strip(weights, int(head))}{_part_shown(n_tokens, len(labels))}<div class="scroll">{large}</div>'

    async def training(self, run: str | None, shown: Any) -> TrainingView:
        """Show the run's curve and its checkpoints' samples, if anything is new."""
        names = runs_in(self.runs)
        if not names:
            return TrainingView(gr.Dropdown([], value=None), note(f"There is no training run in {self.runs} yet."), "", "", None)
        run = run if run is not None and run in names else names[0]
        if run not in self._watches:
            self._watches[run] = Watch(self.runs / run)
        watch = self._watches[run]
        await asyncio.to_thread(watch.log.read)
        if watch.is_due:
            task = asyncio.ensure_future(watch.sample(self.engine))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        lines = watch.log.lines
        now = [run, names, lines[-1] if lines else None, watch.log.problem, [sample.step for sample in watch.samples]]
        if now == shown:
            return TrainingView()
        samples = "".join(f'<b>after step {step:,}</b><div class="sample">{escape(text)}</div>' for step, text in watch.samples)
        status = note(_progress(lines)) + (note(watch.log.problem, refused=True) if watch.log.problem else "")
        return TrainingView(gr.Dropdown(names, value=run), status, drawing.loss_curve(lines), samples, now)

    def restore(self, saved_text: Any, saved_chat: Any) -> RestoredView:
        """Show what the browser saved before the page was reloaded."""
        talk = _as_text(_messages(saved_chat))
        if not isinstance(saved_text, dict):
            return RestoredView(talk=talk)
        prompt, text, status = (str(saved_text.get(name, "")) for name in ("prompt", "text", "status"))
        return RestoredView(prompt, text, note(status), talk)

    def stop(self, request: gr.Request) -> None:
        """Cancel the visitor's jobs; what was generated stays."""
        for job in self._jobs.get(request.session_hash, ()):
            job.cancel()

    async def _generate(self, request: Request, page: gr.Request) -> AsyncIterator[Update]:
        """Submit a request and yield its chunks; cancelled when the visitor stops or leaves."""
        job = await self.engine.submit([request])
        own = self._jobs.setdefault(page.session_hash, [])
        own.append(job)
        (text,) = job.texts
        try:
            async for chunk in job.chunks(PAUSE):
                yield Update(chunk, text, _status(text, chunk.finish, job.cancelled))
        finally:
            job.cancel()
            own.remove(job)
            if not own:
                del self._jobs[page.session_hash]


def _part_shown(n_tokens: int, n_shown: int) -> str:
    """Say which part of a text its attention map shows, unless it shows all."""
    if n_shown == n_tokens:
        return ""
    return note(f"The map shows the last {n_shown} of {n_tokens} tokens; attention to earlier tokens is not drawn.")


def _messages(saved: Any) -> list[dict]:
    """A conversation that the browser saved; none if it is invalid."""
    try:
        messages = [{"role": message["role"], "content": message["content"]} for message in saved or []]
    except (TypeError, KeyError):
        return []
    return messages if all(m["role"] in ("user", "assistant") and isinstance(m["content"], str) for m in messages) else []


def _as_text(messages: list[dict]) -> list[dict]:
    """Messages with their contents escaped, because the chatbot renders HTML."""
    return [{**message, "content": escape(message["content"], quote=False)} for message in messages]


def note(text: str = "", refused: bool = False) -> str:
    """A status line as HTML."""
    return f'<p class="note{" refused" if refused else ""}">{escape(text)}</p>'


def _status(text: Text, finish: str | None, cancelled: bool) -> str:
    """The status line of a text: its size and speed, and why it ended."""
    rate = f", {text.tokens_per_second:,.0f} tokens/s" if text.new_tokens > 1 else ""
    first = f", first token after {1e3 * text.first_token:.0f} ms"
    size = f"{text.prompt_tokens} prompt + {text.new_tokens} new tokens{rate}{first}, cache {text.cache_bytes / 1e6:.2f} MB"
    if finish is None:
        return f"{size}…"
    return f"{size}, {'stopped: length limit' if finish == 'length' else 'stopped' if cancelled else 'finished'}"


def _progress(lines: list[dict]) -> str:
    if not lines:
        return "No step has been logged yet."
    last = lines[-1]
    val = next((line["val_loss"] for line in reversed(lines) if "val_loss" in line), None)
    best = f", validation estimate {val:.3f}" if isinstance(val, float) else ""
    rate = f", {last['tokens_per_second']:,.0f} tokens/s" if isinstance(last.get("tokens_per_second"), float) else ""
    return f"step {last['step']:,}: loss {np.mean([line['loss'] for line in lines[-20:]]):.3f}{best}{rate}"
