"""The page: its tabs, their controls, and which event calls which method of `pages.py`."""

from html import escape
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

import gradio as gr
from gradio.components import Component
from gradio.themes import Default

from numllama.serve.controls import CONTROL_KINDS, changes, settings_of, slider
from numllama.serve.engine import Engine
from numllama.serve.guard import Kind
from numllama.serve.pages import Page, note
from numllama.serve.training import runs_in

STYLE = Path(__file__).with_name("style.css")
SESSIONS = 64  # pages whose control values Gradio remembers; those of a closed page are dropped


class EventOptions(TypedDict):
    """Options of every event."""

    api_visibility: Literal["private"]
    show_progress: Literal["hidden"]


HIDDEN: EventOptions = {"api_visibility": "private", "show_progress": "hidden"}


class GenerateTab(NamedTuple):
    """Controls of the Generate tab."""

    prompt: gr.Textbox
    go: gr.Button
    stop: gr.Button
    text: gr.Textbox
    status: gr.HTML


class ChatTab(NamedTuple):
    """Controls of the Chat tab."""

    talk: gr.Chatbot
    message: gr.Textbox
    send: gr.Button
    stop: gr.Button
    clear: gr.Button
    status: gr.HTML


class InsideTab(NamedTuple):
    """Controls of the Look inside tab."""

    prompt: gr.Textbox
    go: gr.Button
    stop: gr.Button
    status: gr.HTML
    tokens: gr.HTML
    layer: gr.Slider | gr.Number
    head: gr.Slider | gr.Number
    picture: gr.HTML
    ids: gr.State


class TrainingTab(NamedTuple):
    """Controls of the Training tab."""

    run: gr.Dropdown
    status: gr.HTML
    curve: gr.HTML
    samples: gr.HTML
    timer: gr.Timer
    shown: gr.State


def theme() -> Default:
    """The page's colours."""
    return Default(primary_hue="indigo", neutral_hue="slate")


def build(engine: Engine, name: str, runs: Path) -> gr.Blocks:
    """Build the whole page.

    Parameters
    ----------
    engine : Engine
    name : str
        Name of the model.
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
        # Outside the tabs: Gradio reads the contents of a tab only when it is opened.
        saved_text = gr.BrowserState(default_value=None, storage_key="numllama-text", secret="numllama")
        saved_chat = gr.BrowserState(default_value=[], storage_key="numllama-chat", secret="numllama")
        _connect_generate(page, generate, settings, saved_text)
        _connect_chat(page, chat, settings, saved_chat)
        _connect_inside(page, inside, settings)
        for tab in (generate, chat, inside):
            tab.stop.click(page.stop, queue=False, **HIDDEN)
        _connect_training(page, training, training_tab)
        restored = [generate.prompt, generate.text, generate.status, chat.talk]
        blocks.load(page.restore, [saved_text, saved_chat], restored, **HIDDEN)
        blocks.unload(page.stop)
    blocks.state_session_capacity = SESSIONS
    return blocks.queue(max_size=64, default_concurrency_limit=None, api_open=False)


def inputs(page: gr.Blocks) -> dict[int, list[Kind]]:
    """For each event of a page, the kinds of its values."""
    return {number: [CONTROL_KINDS[type(control)] for control in event.inputs] for number, event in page.fns.items()}


# ------------------------------------------------------------------------------------------------ controls


def _generate_tab() -> GenerateTab:
    with gr.Row():
        prompt = gr.Textbox(label="Prompt", lines=3, max_lines=12, placeholder="Once upon a time", elem_id="prompt")
    with gr.Row():
        go = gr.Button("Generate", min_width=110, variant="primary", elem_id="go")
        stop = gr.Button("Stop", min_width=110, elem_id="stop")
    text = gr.Textbox(label="Text", lines=12, max_lines=24, interactive=False, buttons=["copy"], elem_id="text")
    return GenerateTab(prompt, go, stop, text, status=gr.HTML(note(), elem_id="status"))


def _chat_tab(page: Page) -> ChatTab:
    talk = gr.Chatbot(label="Conversation", height=420, render_markdown=False, allow_tags=False, elem_id="talk", buttons=["copy"])
    with gr.Row(equal_height=True):
        message = gr.Textbox(show_label=False, placeholder=page.invitation(), lines=1, scale=4, min_width=160, elem_id="message")
        send = gr.Button("Send", variant="primary", scale=1, min_width=80, elem_id="send")
    with gr.Row():
        stop = gr.Button("Stop", min_width=110, elem_id="stop-chat")
        clear = gr.Button("Clear", min_width=110, elem_id="clear")
    return ChatTab(talk, message, send, stop, clear, status=gr.HTML(note(), elem_id="chat-status"))


def _inside_tab(engine: Engine) -> InsideTab:
    c = engine.model.config
    prompt = gr.Textbox(label="Prompt", lines=2, max_lines=8, elem_id="inside-prompt")
    with gr.Row():
        go = gr.Button("Look", min_width=110, variant="primary", elem_id="look")
        stop = gr.Button("Stop", min_width=110, elem_id="stop-look")
    status = gr.HTML(note("Hover or tap a token to see its alternatives."), elem_id="inside-status")
    tokens = gr.HTML(elem_id="tokens")
    gr.Markdown("### Attention\nEach row is a query token, each column a key token that it attends to.")
    with gr.Row():
        layer = slider(0, c.n_layers - 1, 0, step=1, label="Layer", elem_id="layer")
        head = slider(0, c.n_heads - 1, 0, step=1, label="Head", elem_id="head")
    return InsideTab(prompt, go, stop, status, tokens, layer, head, picture=gr.HTML(elem_id="attention"), ids=gr.State([]))


def _training_tab(runs: Path) -> TrainingTab:
    names = runs_in(runs)
    with gr.Row():
        run = gr.Dropdown(names, value=names[0] if names else None, label=f"Run in {runs}", elem_id="run")
    return TrainingTab(
        run,
        status=gr.HTML(note(), elem_id="train-status"),
        curve=gr.HTML(elem_id="curve"),
        samples=gr.HTML(elem_id="samples"),
        timer=gr.Timer(1, active=False),
        shown=gr.State(None),
    )


# ------------------------------------------------------------------------------------------------ events


def _connect_generate(page: Page, tab: GenerateTab, settings: list[Component], saved: gr.BrowserState) -> None:
    outputs = [tab.text, tab.status, saved]
    gr.on([tab.go.click, tab.prompt.submit], page.generate, [tab.prompt, *settings], outputs, **HIDDEN)


def _connect_chat(page: Page, tab: ChatTab, settings: list[Component], saved: gr.BrowserState) -> None:
    outputs = [tab.message, tab.talk, tab.status, saved]
    gr.on([tab.send.click, tab.message.submit], page.chat, [tab.message, saved, *settings], outputs, **HIDDEN)
    gr.on([tab.clear.click, tab.talk.clear], page.forget, None, outputs, **HIDDEN)


def _connect_inside(page: Page, tab: InsideTab, settings: list[Component]) -> None:
    outputs, place = [tab.tokens, tab.status, tab.ids], [tab.ids, tab.layer, tab.head]
    look = gr.on([tab.go.click, tab.prompt.submit], page.look, [tab.prompt, *settings], outputs, **HIDDEN)
    look.then(page.attention, place, [tab.picture], **HIDDEN)
    if moved := [*changes(tab.layer), *changes(tab.head)]:
        gr.on(moved, page.attention, place, [tab.picture], trigger_mode="always_last", **HIDDEN)


def _connect_training(page: Page, tab: TrainingTab, opened: gr.Tab) -> None:
    outputs = [tab.run, tab.status, tab.curve, tab.samples, tab.shown]
    gr.on([tab.timer.tick, tab.run.change], page.training, [tab.run, tab.shown], outputs, trigger_mode="once", **HIDDEN)
    opened.select(lambda: gr.Timer(active=True), None, tab.timer, **HIDDEN)
