"""The page's controls: the values that each kind can send, sliders for any range, and the sampling settings."""

from typing import Any, NamedTuple

import gradio as gr
from gradio.components import Component

from numllama.errors import shown
from numllama.generation.config import SamplingConfig
from numllama.serve.engine import Engine, Request
from numllama.serve.guard import NOTHING, NUMBER, SAVED, TEXT

TOP_K = 200
# The kind of value of each control that is an event's input. Gradio itself would accept a file's path for any of them.
CONTROL_KINDS = {
    gr.Textbox: TEXT,
    gr.Dropdown: TEXT,
    gr.Slider: NUMBER,
    gr.Number: NUMBER,
    gr.BrowserState: SAVED,
    gr.State: NOTHING,
}


def slider(low: int, high: int, value: int, **options: Any) -> gr.Slider | gr.Number:
    """A slider, or a fixed number if only one value is possible: Gradio's sliders need a range."""
    if low < high:
        return gr.Slider(low, high, value, **options)
    return gr.Number(value, minimum=low, maximum=high, precision=0, interactive=False, **options)


def changes(control: gr.Slider | gr.Number) -> list[Any]:
    """The events of a slider that the visitor moves."""
    return [control.release, control.change] if isinstance(control, gr.Slider) else []


class Settings(NamedTuple):
    """The values of the controls, in their order on the page; Gradio sends None for an empty one."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    max_new_tokens: int
    seed: str | None
    stop: str | None

    def request(self, engine: Engine, prompt: Any, stop: tuple[str, ...] = (), top_logprobs: int | None = None) -> Request:
        """The request to the engine. A control at its neutral end filters nothing."""
        if empty := [name for name, value in self._asdict().items() if value is None and name not in ("seed", "stop")]:
            raise ValueError(f"{empty[0].replace('_', ' ')} is empty, but must be a number")
        if self.max_new_tokens > engine.new_tokens:
            raise ValueError(
                f"max new tokens is {self.max_new_tokens:,}, but this server generates at most {engine.new_tokens:,}"
            )
        seed = (self.seed or "").strip()
        if seed and not (seed.isdecimal() and len(seed) < 20 and int(seed) < 2**63):
            raise ValueError(f"seed is {shown(seed)}, but must be a whole number from 0 to 2**63 - 1")
        sampling = SamplingConfig(
            temperature=self.temperature,
            top_k=int(self.top_k) or None,
            top_p=None if self.top_p == 1 else self.top_p,
            min_p=self.min_p or None,
            repetition_penalty=self.repetition_penalty,
            seed=int(seed) if seed else None,
            stop_ids=engine.defaults["stop_ids"],
        )
        own = (self.stop.replace("\\n", "\n"),) if self.stop else ()
        return Request(prompt, int(self.max_new_tokens), sampling, (*own, *stop), top_logprobs)


def settings_of(engine: Engine) -> list[Component]:
    """The controls of :class:`Settings`, in that order; their initial values are the checkpoint's, where it has any."""
    most, vocab_size = engine.new_tokens, engine.model.config.vocab_size
    own = {name: value for name, value in engine.defaults.items() if value is not None}
    temperature, penalty, top_p = own.get("temperature", 0.8), own.get("repetition_penalty", 1), own.get("top_p", 1)
    top_k = own.get("top_k", 0) if 0 < own.get("top_k", 0) < vocab_size else 0
    return [
        gr.Slider(0, max(2, temperature), temperature, step=0.01, label="Temperature (0: greedy)", elem_id="temperature"),
        gr.Slider(0, max(min(TOP_K, vocab_size), top_k), top_k, step=1, label="Top-k (0: all)", elem_id="top-k"),
        gr.Slider(min(0.05, top_p), 1, top_p, step=0.01, label="Top-p (1: all)", elem_id="top-p"),
        gr.Slider(0, 1, own.get("min_p", 0), step=0.01, label="Min-p (0: all)", elem_id="min-p"),
        gr.Slider(
            min(0.5, penalty),
            max(2, penalty),
            penalty,
            step=0.01,
            label="Repetition penalty (1: none)",
            elem_id="repetition-penalty",
        ),
        slider(1, most, min(256, most), step=1, label="Max new tokens", elem_id="max-new-tokens"),
        gr.Textbox("", label="Seed", info="empty = random", elem_id="seed", max_lines=1),
        gr.Textbox("", label="Stop sequence", info="\\n = newline", elem_id="stop-at", max_lines=1),
    ]
