"""A trace as text, as JSON, and as one self-contained HTML page with heat maps."""

import json
import sys
from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path

import numpy as np

from numllama.errors import DataError, NumllamaError
from numllama.interop.load import load, load_tokenizer
from numllama.learn.trace_page import attention_maps, numbers_of, page, pictures
from numllama.learn.trace_views import Reports, Views, numbered, view_reports
from numllama.learn.tracing import TEXT, Trace, Traced, tokens_of, trace, traced_model
from numllama.model.transformer import Transformer
from numllama.storage.files import write_text
from numllama.tokenizer import CharTokenizer, Tokenizer

ATTENTION = "Each row is a query, each column a key. Red: all of the query's attention is on this key."
VALUES = (
    "In the order of the forward pass; the backward pass computes the gradients in the opposite order. Each row shows the norm, "
    "the first numbers of the last token and a picture of the value, and the same of the gradient of the loss with respect to it."
)
SMALL = "This is the built-in small model, {}. --steps trains it; a MODEL takes its place."
VIEWED = 300  # training steps of the small model for a view
FEW = 4  # numbers shown of an array
MOST = 5_000_000  # numbers of a trace that is written to a file: 100 MB of JSON


def trace_run(
    model: Path | None,
    tokenizer: Path | None,
    text: str | None,
    ids: Sequence[int] | None,
    steps: int | None,
    seed: int | None,
    json_path: Path | None,
    html_path: Path | None,
    views: Views = Views(),  # noqa: B008 (a NamedTuple cannot change)
) -> int:
    """`numllama trace`: print the trace, or views of it, and write them to files; returns the exit code.

    Parameters
    ----------
    model : path, optional
        Anything that :func:`numllama.load` reads. Default: a small model, to which `seed` and `steps` apply.
    tokenizer : path, optional
        Default: the model's own.
    text, ids : str, sequence of int, optional
        The text to trace, or its tokens; default: a short text.
    json_path, html_path : path, optional
    views : Views
        What to show instead of all values.
    """
    if text is not None and ids is not None:
        raise ValueError("give either --text or --ids, not both")
    if views.patch is not None and ids is not None:
        raise ValueError("--patch compares with a --text: it does not take --ids")
    what = ids if ids is not None else TEXT if text is None else text
    if model is None:
        if tokenizer is not None:
            raise ValueError("the small model has its own tokenizer: --tokenizer needs a MODEL")
        steps = (VIEWED if any(views) else 0) if steps is None else steps
        small = {"steps": steps, "seed": seed or 0}
        for name, value in small.items():
            if value < 0:
                raise ValueError(f"{name} is {value}, but must be a whole number that is not negative")
        if steps:
            untrained = traced_model(seed=0, steps=0)  # refuses what cannot be traced before time is spent on the training
            for each in (what,) if views.patch is None else (what, views.patch):
                tokens_of(*untrained, each, most=untrained[0].config.max_seq_len + (not any(views)))
            say(f"training the built-in model for {steps} steps")
        note = SMALL.format(f"after {steps} training steps" if steps else "not trained, so what it says is chance")
        pair = traced_model(**small)
    else:
        if steps is not None or seed is not None:
            raise ValueError("--steps and --seed are for the small model, not for a given MODEL")
        say(f"opening {model}")
        note = f"The model is {model.resolve().name}."
        pair = opened(model, tokenizer, needed=ids is None, dtype="float32" if any(views) else "float64")
    if any(views):
        reports = view_reports(*pair, what, views, note, say)
    else:
        say("running the text forward and backward")
        traced = trace(*pair, what)
        size = sum(t.value.size + t.gradient.size for t in traced.values)
        if size > MOST and (json_path or html_path):
            raise ValueError(f"the trace has {size:,} numbers, but a file may hold at most {MOST:,}: use a shorter text")
        reports = Reports(partial(as_text, traced), partial(as_json, traced), partial(as_html, traced, note))
    for path, content in ((json_path, reports.json), (html_path, reports.html)):
        if path is not None:
            say(f"writing {path}")
            write_text(path, content(), NumllamaError)
    print(reports.text())
    return 0


def say(what: str) -> None:
    """A line of progress on standard error."""
    print(f"{what} ...", file=sys.stderr, flush=True)


def opened(
    path: Path, tokenizer: Path | None, needed: bool, dtype: str
) -> tuple[Transformer, Tokenizer | CharTokenizer | None]:
    """A model with its adapter merged, and its tokenizer; without `needed`, the tokenizer may be missing."""
    model = load(path, dtype=dtype)
    if model.adapter is not None:
        model.merge_adapter()
    try:
        return model, load_tokenizer(path, tokenizer)
    except DataError:
        if needed or tokenizer is not None:
            raise
        return model, None


def as_text(trace: Trace) -> str:
    """A table: one line for each intermediate value, and one for each parameter."""
    lines = [f"{trace.text!r}: {len(trace.tokens) - 1} predictions, loss {trace.loss:.4f} nats", ""]
    lines.append(f"{'value':32} {'shape':>15} {'norm':>9} {'grad norm':>10}   first numbers  |  of the gradient")
    for t in trace.values:
        lines.append(
            f"{t.name:32} {shape_of(t.value):>15} {norm(t.value):9.3g} {norm(t.gradient):10.3g}   "
            f"{numbers(t.value)}  |  {numbers(t.gradient)}"
        )
    lines += ["", f"{'parameter':32} {'shape':>15} {'norm':>9} {'grad norm':>10}"]
    for name, (value, gradient) in trace.parameters.items():
        lines.append(f"{name:32} {shape_of(value):>15} {norm(value):9.3g} {norm(gradient):10.3g}")
    return "\n".join(lines)


def as_json(trace: Trace) -> str:
    """The same with all numbers."""

    def described(value):
        return {"shape": list(value.shape), "norm": norm(value), "values": value.tolist()}

    values = [
        {"name": t.name, "axes": t.axes, **described(t.value), "gradient": described(t.gradient)} for t in trace.values
    ]
    parameters = [
        {"name": name, "shape": list(value.shape), "norm": norm(value), "gradient_norm": norm(gradient)}
        for name, (value, gradient) in trace.parameters.items()
    ]
    content = {"text": trace.text, "tokens": trace.tokens, "loss": trace.loss, "values": values, "parameters": parameters}
    return json.dumps(content, ensure_ascii=False)


def as_html(trace: Trace, note: str = "") -> str:
    """One HTML page. Scripts show the number at which the reader points; without them the page has its pictures and tables."""
    places = {t.name: f"v{i}" for i, t in enumerate(trace.values)}
    rows = "\n".join(row(t, places[t.name]) for t in trace.values)
    head = '<tr><th>name</th><th colspan="2">value</th><th colspan="2">gradient</th></tr>'
    table = f'<table class="all">{head}\n{rows}\n</table>'
    attention = "\n".join(
        attention_maps(t.name.partition(":")[0], t.value[0], numbered("head", len(t.value[0])), trace.tokens[:-1], places[t.name])
        for t in trace.values
        if t.name.endswith(": attention")
    )
    lead = (
        f"{escape(repr(trace.text))}: {len(trace.tokens) - 1} tokens, each of which predicts the next. Loss {trace.loss:.4f} "
        "nats. In the pictures, red is positive, blue negative and zero without colour; rows are tokens, from top to bottom. "
        f"{escape(note)}"
    )
    return page("One text through a model and back", lead, trace.tokens, [
        ("Attention of each head", ATTENTION, attention),
        ("Norms of the parameters' gradients", "A bar for each, and a column for each layer.",
         f'<div class="wide">{gradient_norms(trace)}</div>'),
        ("Every intermediate value and its gradient", VALUES, f'<div class="wide">{table}</div>'),
    ])  # fmt: skip


def row(t: Traced, identity: str) -> str:
    """A row of the table: name, numbers, and heat maps of value and gradient."""
    cells = [
        f"<th>{escape(t.name)}<small>{shape_of(t.value)} {escape(t.axes)}</small></th>",
        f"<td>{norm(t.value):.3g}<small>{escape(numbers(t.value))}</small></td><td>{pictures(t.value, identity, 'value')}</td>",
        f"<td>{norm(t.gradient):.3g}<small>{escape(numbers(t.gradient))}</small></td>"
        f"<td>{pictures(t.gradient, identity, 'gradient')}</td>",
    ]
    return f"<tr {numbers_of(identity, t.name, t.axes, value=t.value, gradient=t.gradient)}>{''.join(cells)}</tr>"


def gradient_norms(trace: Trace) -> str:
    """A bar for each parameter; a column for each layer."""
    names = [name.split(".", 2)[2] for name in trace.parameters if name.startswith("blocks.0.")]
    layers = len({name.split(".")[1] for name in trace.parameters if name.startswith("blocks.")})
    norms = {name: norm(gradient) for name, (_, gradient) in trace.parameters.items()}
    most = max(norms.values()) or 1.0

    def bar(name):
        return f'<td><i style="width: {100 * norms[name] / most:.1f}%"></i>{norms[name]:.3g}</td>'

    head = "".join(f"<th>layer {i}</th>" for i in range(layers))
    body = "".join(
        f"<tr><th>{name}</th>{''.join(bar(f'blocks.{i}.{name}') for i in range(layers))}</tr>" for name in names
    )
    rest = "".join(f"<tr><th>{name}</th>{bar(name)}</tr>" for name in trace.parameters if not name.startswith("blocks."))
    return f'<table class="bars"><tr><th></th>{head}</tr>{body}{rest}</table>'


def shape_of(value: np.ndarray) -> str:
    return "×".join(map(str, value.shape)) or "scalar"


def norm(value: np.ndarray) -> float:
    return float(np.linalg.norm(value))


def numbers(value: np.ndarray) -> str:
    """The first few numbers of the last row."""
    last = np.atleast_1d(value).reshape(-1, value.shape[-1] if value.ndim else 1)[-1]
    return " ".join(f"{x:.3g}" for x in last[:FEW]) + (" …" if len(last) > FEW else "")
