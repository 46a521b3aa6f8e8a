"""The page: generate, chat, look inside, training. What it shows is written and drawn elsewhere."""

import asyncio
import time
from collections.abc import AsyncIterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from numllama.errors import NumllamaError
from numllama.generation.attention_maps import attention_weights
from numllama.generation.chat import chat_prompt, has_chat_template
from numllama.generation.text import opening
from numllama.model import count_parameters
from numllama.serve import drawing
from numllama.serve.api import token_text
from numllama.serve.chat_threads import in_chat_thread
from numllama.serve.controls import SENDS, Settings, changes, settings_of, slider
from numllama.serve.engine import Engine, Piece, Request, Texts
from numllama.serve.guard import Kind
from numllama.serve.training import Watch, runs_in

PAUSE = 0.05  # between two changes of the page
RUNNERS_UP = 6
TOKENS_DRAWN = 1000  # in a second: all are drawn anew each time, and the browser has to have time for Stop
MAP_TOKENS = 40  # of an attention map: more cannot be read
SESSIONS = 64  # pages of which Gradio remembers what stands in their controls; of a closed one it forgets it
REFUSED = (NumllamaError, ValueError)
MOUNTED = dict(
    theme=gr.themes.Default(primary_hue="indigo", neutral_hue="slate"),
    css_paths=Path(__file__).with_name("style.css"),
    footer_links=[],
    show_error=False,
    max_file_size=1,
)
HIDDEN = {"api_visibility": "private", "show_progress": "hidden"}


def build(engine: Engine, name: str, runs: Path) -> gr.Blocks:
    """The whole page.

    Parameters
    ----------
    engine : Engine
    name : str
        What the model is called.
    runs : path
        Folder of training runs.
    """
    page = Page(engine, runs)
    with gr.Blocks(title=f"{name} · numllama", analytics_enabled=False) as blocks:
        gr.Markdown(f"# {escape(name)}\n{page.about()}", elem_id="title")
        with gr.Row():
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab("Generate"):
                    generate = _generate_tab()
                with gr.Tab("Chat"):
                    chat = _chat_tab(page)
                with gr.Tab("Look inside"):
                    inside = _inside_tab(engine)
                with gr.Tab("Training") as training_tab:
                    training = _training_tab(runs)
            with gr.Column(scale=1, min_width=330), gr.Accordion("Settings", open=True):
                settings = settings_of(engine)
        generate["kept"] = gr.BrowserState(None, "numllama-text", "numllama")  # here: what is in a tab is read when it is opened
        chat["kept"] = gr.BrowserState([], "numllama-chat", "numllama")
        _connect(page, blocks, settings, generate, chat, inside, training, training_tab)
    blocks.state_session_capacity = SESSIONS
    return blocks.queue(max_size=64, default_concurrency_limit=None, api_open=False)


def inputs(page: gr.Blocks) -> dict[int, list[Kind]]:
    """Of each event of a page, what each of its values may be."""
    return {number: [SENDS[type(control)] for control in event.inputs] for number, event in page.fns.items()}


# ------------------------------------------------------------------------------------------------ what stands where


def _generate_tab() -> dict[str, Any]:
    with gr.Row():
        prompt = gr.Textbox(label="Prompt", lines=3, max_lines=12, placeholder="Once upon a time", elem_id="prompt")
    with gr.Row():
        go, stop = (
            gr.Button("Generate", min_width=110, variant="primary", elem_id="go"),
            gr.Button("Stop", min_width=110, elem_id="stop"),
        )
    text = gr.Textbox(label="Text", lines=12, max_lines=24, interactive=False, buttons=["copy"], elem_id="text")
    return dict(
        prompt=prompt,
        go=go,
        stop=stop,
        text=text,
        status=gr.HTML(_note(), elem_id="status"),
    )


def _chat_tab(page: "Page") -> dict[str, Any]:
    talk = gr.Chatbot(label="Conversation", height=420, render_markdown=False, allow_tags=False, elem_id="talk", buttons=["copy"])
    with gr.Row(equal_height=True):
        message = gr.Textbox(show_label=False, placeholder=page.invitation(), lines=1, scale=4, min_width=160, elem_id="message")
        send = gr.Button("Send", variant="primary", scale=1, min_width=80, elem_id="send")
    with gr.Row():
        stop, clear = (
            gr.Button("Stop", min_width=110, elem_id="stop-chat"),
            gr.Button("Clear", min_width=110, elem_id="clear"),
        )
    return dict(
        talk=talk,
        message=message,
        send=send,
        stop=stop,
        clear=clear,
        status=gr.HTML(_note(), elem_id="chat-status"),
    )


def _inside_tab(engine: Engine) -> dict[str, Any]:
    c = engine.model.config
    prompt = gr.Textbox(label="Prompt", lines=2, max_lines=8, elem_id="inside-prompt")
    with gr.Row():
        go, stop = (
            gr.Button("Look", min_width=110, variant="primary", elem_id="look"),
            gr.Button("Stop", min_width=110, elem_id="stop-look"),
        )
    status = gr.HTML(_note("Point at a token, or tap it: what it was chosen from."), elem_id="inside-status")
    tokens = gr.HTML(elem_id="tokens")
    gr.Markdown("### Attention\nEach row is a token that looks, each column one that it looks at.")
    with gr.Row():
        layer = slider(0, c.n_layers - 1, 0, step=1, label="Layer", elem_id="layer")
        head = slider(0, c.n_heads - 1, 0, step=1, label="Head", elem_id="head")
    return dict(
        prompt=prompt,
        go=go,
        stop=stop,
        status=status,
        tokens=tokens,
        layer=layer,
        head=head,
        picture=gr.HTML(elem_id="attention"),
        ids=gr.State([]),
    )


def _training_tab(runs: Path) -> dict[str, Any]:
    names = runs_in(runs)
    with gr.Row():
        run = gr.Dropdown(names, value=names[0] if names else None, label=f"Run in {runs}", elem_id="run")
    return dict(
        run=run,
        status=gr.HTML(_note(), elem_id="train-status"),
        curve=gr.HTML(elem_id="curve"),
        samples=gr.HTML(elem_id="samples"),
        timer=gr.Timer(1, active=False),
        shown=gr.State(None),
    )


def _connect(page, blocks, settings, generate, chat, inside, training, training_tab) -> None:
    """Which control does what."""
    g, c, i, t = generate, chat, inside, training
    gr.on(
        [g["go"].click, g["prompt"].submit],
        page.generate,
        [g["prompt"], *settings],
        [g["text"], g["status"], g["kept"]],
        **HIDDEN,
    )
    said = [c["message"], c["talk"], c["status"], c["kept"]]
    gr.on([c["send"].click, c["message"].submit], page.chat, [c["message"], c["kept"], *settings], said, **HIDDEN)
    gr.on([c["clear"].click, c["talk"].clear], page.forget, None, [c["talk"], c["status"], c["kept"]], **HIDDEN)
    look = gr.on(
        [i["go"].click, i["prompt"].submit], page.look, [i["prompt"], *settings], [i["tokens"], i["status"], i["ids"]], **HIDDEN
    )
    draw = dict(fn=page.attention, inputs=[i["ids"], i["layer"], i["head"]], outputs=[i["picture"]], **HIDDEN)
    look.then(**draw)
    if moved := [*changes(i["layer"]), *changes(i["head"])]:
        gr.on(moved, trigger_mode="always_last", **draw)
    for tab in (g, c, i):
        tab["stop"].click(page.stop, queue=False, **HIDDEN)
    shown = [t["run"], t["status"], t["curve"], t["samples"], t["shown"]]
    gr.on([t["timer"].tick, t["run"].change], page.training, [t["run"], t["shown"]], shown, trigger_mode="once", **HIDDEN)
    training_tab.select(lambda: gr.Timer(active=True), None, t["timer"], **HIDDEN)
    blocks.load(page.restore, [g["kept"], c["kept"]], [g["prompt"], g["text"], g["status"], c["talk"]], **HIDDEN)
    blocks.unload(page.stop)


# ------------------------------------------------------------------------------------------------ what they do


class Page:
    """What the controls do. Each takes what stands in them, and yields what is to be shown."""

    def __init__(self, engine: Engine, runs: Path) -> None:
        self.engine, self.runs = engine, runs
        self._texts: dict[str, list[Texts]] = {}  # of each open page
        self._watches: dict[str, Watch] = {}
        self._tasks: set[asyncio.Task] = set()

    def about(self) -> str:
        """The model in one line."""
        c, model = self.engine.model.config, self.engine.model
        shape = f"{c.n_layers} layers, {c.n_heads} heads, {c.dim} wide, vocabulary {c.vocab_size:,}, context {c.max_seq_len:,}"
        return f"{count_parameters(c):,} parameters, {shape}, {model.params.flat.dtype} on {model.device}"

    def invitation(self) -> str:
        """What to say to this model."""
        if has_chat_template(self.engine.tokenizer):
            return "Say something"
        return "This model was not trained to talk: it goes on with your words to the end of a paragraph"

    async def generate(self, request: gr.Request, prompt: str, *settings: Any) -> AsyncIterator[tuple]:
        """Prompt and text, as it is written; at the end it is kept in the browser."""
        prompt = text = prompt or ""
        yield gr.skip(), _note("…"), gr.skip()
        try:
            async for piece, status, _ in self._write(Settings(*settings).request(self.engine, prompt), request):
                text += piece.text
                kept = {"prompt": prompt, "text": text, "status": status} if piece.finish else gr.skip()
                yield text, _note(status), kept
        except REFUSED as error:
            yield gr.skip(), _note(str(error), refused=True), gr.skip()

    async def chat(self, request: gr.Request, message: str, kept: Any, *settings: Any) -> AsyncIterator[tuple]:
        """The conversation with one more answer, as it is written."""
        said = _messages(kept)
        if not (message or "").strip():
            yield gr.skip(), gr.skip(), _note("Write something first."), gr.skip()
            return
        messages = [*said, {"role": "user", "content": message}]
        answer = ""
        try:
            self.engine.check_length(*(message["content"] for message in messages))
            begin = opening(self.engine.model, self.engine.tokenizer)
            prompt, stop = await in_chat_thread(chat_prompt, self.engine.tokenizer, messages, begin)
            yield "", _as_text(messages), gr.skip(), gr.skip()
            async for piece, status, _ in self._write(Settings(*settings).request(self.engine, prompt, stop), request):
                answer += piece.text
                talk = [*messages, {"role": "assistant", "content": answer}]
                yield gr.skip(), _as_text(talk), _note(status), talk if piece.finish else gr.skip()
        except REFUSED as error:
            yield message, _as_text(said), _note(str(error), refused=True), gr.skip()

    def forget(self) -> tuple:
        """A new conversation."""
        return [], _note(), []

    async def look(self, request: gr.Request, prompt: str, *settings: Any) -> AsyncIterator[tuple]:
        """The text as coloured tokens, each with what it was chosen from."""
        name = lambda i: token_text(self.engine.tokenizer, i)  # noqa: E731
        try:
            asked = Settings(*settings).request(self.engine, prompt or "", runners_up=RUNNERS_UP)
            spans: list[str] = []
            due = 0.0
            async for piece, status, part in self._write(asked, request):
                if not spans:
                    spans = [drawing.token_span(name(i), place) for place, i in enumerate(part.ids)]
                for token in piece.tokens:
                    others = [(name(i), chance) for i, chance in token.runners_up]
                    spans.append(drawing.token_span(name(token.id), len(spans), token.logprob, others))
                if not piece.finish and time.monotonic() < due:
                    continue
                due = time.monotonic() + len(spans) / TOKENS_DRAWN
                ids = [*part.ids, *part.new_ids] if piece.finish else gr.skip()
                yield f'<div class="tokens">{"".join(spans)}</div>', _note(status), ids
        except REFUSED as error:
            yield gr.skip(), _note(str(error), refused=True), gr.skip()

    async def attention(self, ids: list[int], layer: int, head: int) -> str:
        """One head's map of the end of the text, and all heads of the layer beside it."""
        if not ids:
            return _note("Generate a text first.")
        if layer is None or head is None:
            return _note("Layer and head must be numbers.", refused=True)
        model = self.engine.model
        ids = ids[-model.config.max_seq_len :]
        try:
            work = self.engine.call(lambda: attention_weights(model, ids, int(layer)))
            weights = (await asyncio.wrap_future(work))[:, -MAP_TOKENS:, -MAP_TOKENS:]
        except REFUSED as error:
            return _note(str(error), refused=True)
        labels = [token_text(self.engine.tokenizer, i) for i in ids[-MAP_TOKENS:]]
        large = drawing.attention_map(weights[int(head)], labels)
        return f'{drawing.head_strip(weights, int(head))}<div class="scroll">{large}</div>'

    async def training(self, run: str | None, shown: Any) -> tuple:
        """The run's curve and what its checkpoints wrote, if anything is new."""
        names = runs_in(self.runs)
        if not names:
            return gr.Dropdown([], value=None), _note(f"There is no training run in {self.runs} yet."), "", "", None
        run = run if run in names else names[0]
        if run not in self._watches:
            self._watches[run] = Watch(self.runs / run)
        watch = self._watches[run]
        await asyncio.to_thread(watch.log.read)
        if watch.is_due:
            task = asyncio.ensure_future(watch.sample(self.engine))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        lines = watch.log.lines
        now = [run, names, lines[-1] if lines else None, watch.log.problem, [step for step, _ in watch.samples]]
        if now == shown:
            return (gr.skip(),) * 5
        samples = "".join(f'<b>after step {step:,}</b><div class="sample">{escape(text)}</div>' for step, text in watch.samples)
        status = _note(_progress(lines)) + (_note(watch.log.problem, refused=True) if watch.log.problem else "")
        return gr.Dropdown(names, value=run), status, drawing.loss_curve(lines), samples, now

    def restore(self, text: Any, talk: Any) -> tuple:
        """What was finished before the page was loaded again."""
        said = _as_text(_messages(talk))
        if not isinstance(text, dict):
            return gr.skip(), gr.skip(), gr.skip(), said
        prompt, written, status = (str(text.get(name, "")) for name in ("prompt", "text", "status"))
        return prompt, written, _note(status), said

    def stop(self, request: gr.Request) -> None:
        """End what this page waits for; what was written stays."""
        for texts in self._texts.get(request.session_hash, ()):
            texts.cancel()

    async def _write(self, request: Request, page: gr.Request) -> AsyncIterator[tuple[Piece, str, Any]]:
        """Each piece, what to say about it, and the text that it is of."""
        texts = await self.engine.submit([request])
        mine = self._texts.setdefault(page.session_hash, [])
        mine.append(texts)
        try:
            async for piece in texts.pieces(PAUSE):
                yield piece, _speed(texts.parts[0], piece.finish, texts.cancelled), texts.parts[0]
        finally:
            texts.cancel()
            mine.remove(texts)
            if not mine:
                del self._texts[page.session_hash]


def _messages(kept: Any) -> list[dict]:
    """A conversation that a browser kept; what was none is forgotten."""
    try:
        said = [{"role": message["role"], "content": message["content"]} for message in kept or []]
    except (TypeError, KeyError):
        return []
    return said if all(m["role"] in ("user", "assistant") and isinstance(m["content"], str) for m in said) else []


def _as_text(messages: list[dict]) -> list[dict]:
    """Messages as the conversation shows them, which takes them for HTML."""
    return [{**message, "content": escape(message["content"], quote=False)} for message in messages]


def _note(text: str = "", refused: bool = False) -> str:
    return f'<p class="note{" refused" if refused else ""}">{escape(text)}</p>'


def _speed(part: Any, finish: str | None, cancelled: bool) -> str:
    rate = f", {part.tokens_per_second:,.0f} tokens/s" if part.new_tokens > 1 else ""
    first = f", the first after {1e3 * part.first_token:.0f} ms"
    end = {None: "…", "length": ", as many as were asked for", "stop": ", stopped" if cancelled else ", ended by itself"}[finish]
    return f"{part.prompt_tokens} + {part.new_tokens} tokens{rate}{first}, cache {part.cache_bytes / 1e6:.2f} MB{end}"


def _progress(lines: list[dict]) -> str:
    if not lines:
        return "No step has been logged yet."
    last = lines[-1]
    val = next((line["val_loss"] for line in reversed(lines) if "val_loss" in line), None)
    best = f", validation estimate {val:.3f}" if isinstance(val, float) else ""
    rate = f", {last['tokens_per_second']:,.0f} tokens/s" if isinstance(last.get("tokens_per_second"), float) else ""
    return f"step {last['step']:,}: loss {np.mean([line['loss'] for line in lines[-20:]]):.3f}{best}{rate}"
