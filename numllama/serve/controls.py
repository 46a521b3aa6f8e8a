"""The page's controls: what each kind can send, sliders for any range, and the settings with their meaning."""

from typing import Any, NamedTuple

import gradio as gr

from numllama.errors import shown
from numllama.generation import SamplingConfig
from numllama.serve.engine import Engine, Request
from numllama.serve.guard import KEPT, NOTHING, NUMBER, TEXT

TOP_K = 200
# Of every kind of control that an event takes a value of. Gradio would take a file's path for any of them.
SENDS = {
    gr.Textbox: TEXT,
    gr.Dropdown: TEXT,
    gr.Slider: NUMBER,
    gr.Number: NUMBER,
    gr.BrowserState: KEPT,
    gr.State: NOTHING,
}


def slider(low: int, high: int, value: int, **options: Any) -> gr.Slider | gr.Number:
    """A slider, or a number that stands still where there is one value: Gradio has no slider without a way to go."""
    if low < high:
        return gr.Slider(low, high, value, **options)
    return gr.Number(value, minimum=low, maximum=high, precision=0, interactive=False, **options)


def changes(control: gr.Slider | gr.Number) -> list[Any]:
    """The events of a slider that was moved."""
    return [control.release, control.change] if isinstance(control, gr.Slider) else []


class Settings(NamedTuple):
    """The controls' values, in the order in which they stand."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    max_new_tokens: int
    seed: str
    stop: str

    def request(self, engine: Engine, prompt: Any, stop: tuple[str, ...] = (), runners_up: int | None = None) -> Request:
        """What the engine is asked for; a control at its neutral end is no filter."""
        if empty := [name for name, value in self._asdict().items() if value is None and name not in ("seed", "stop")]:
            raise ValueError(f"{empty[0].replace('_', ' ')} is empty, but must be a number")
        if self.max_new_tokens > engine.new_tokens:
            raise ValueError(
                f"max new tokens is {self.max_new_tokens:,}, but {engine.new_tokens:,} are the most that are written here"
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
        return Request(prompt, int(self.max_new_tokens), sampling, (*own, *stop), runners_up)


def settings_of(engine: Engine) -> list[Any]:
    """In the order of the fields of :class:`Settings`; each begins with what the checkpoint says, if it says anything."""
    most, vocab_size = engine.new_tokens, engine.model.config.vocab_size
    said = {name: value for name, value in engine.defaults.items() if value is not None}
    temperature, penalty, top_p = said.get("temperature", 0.8), said.get("repetition_penalty", 1), said.get("top_p", 1)
    top_k = said.get("top_k", 0) if 0 < said.get("top_k", 0) < vocab_size else 0
    return [
        gr.Slider(0, max(2, temperature), temperature, step=0.01, label="Temperature (0: greedy)", elem_id="temperature"),
        gr.Slider(0, max(min(TOP_K, vocab_size), top_k), top_k, step=1, label="Top-k (0: all)", elem_id="top-k"),
        gr.Slider(min(0.05, top_p), 1, top_p, step=0.01, label="Top-p (1: all)", elem_id="top-p"),
        gr.Slider(0, 1, said.get("min_p", 0), step=0.01, label="Min-p (0: all)", elem_id="min-p"),
        gr.Slider(
            min(0.5, penalty),
            max(2, penalty),
            penalty,
            step=0.01,
            label="Repetition penalty (1: none)",
            elem_id="repetition-penalty",
        ),
        slider(1, most, min(256, most), step=1, label="Max new tokens", elem_id="max-new-tokens"),
        gr.Textbox("", label="Seed", info="empty: another text each time", elem_id="seed", max_lines=1),
        gr.Textbox("", label="Stop at", info="a text that ends it; \\n is a new line", elem_id="stop-at", max_lines=1),
    ]
