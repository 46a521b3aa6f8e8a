"""A trace as text, as JSON, and as one self-contained HTML page with heat maps."""

import base64
import json
import struct
import zlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from numllama.errors import DataError, NumllamaError
from numllama.interop.load import load, load_tokenizer
from numllama.learn.tracing import TEXT, Trace, Traced, trace, traced_model
from numllama.model.transformer import Transformer
from numllama.storage.files import write_text
from numllama.tokenizer import CharTokenizer, Tokenizer

BLUE, WHITE, RED = np.array([33, 102, 172]), np.array([255, 255, 255]), np.array([178, 24, 43])
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
) -> int:
    """`numllama trace`: print the trace and write it to files; returns the exit code.

    Parameters
    ----------
    model : path, optional
        Anything that :func:`numllama.load` reads. Default: a small model, to which `seed` and `steps` apply.
    tokenizer : path, optional
        Default: the model's own.
    text, ids : str, sequence of int, optional
        The text to trace, or its tokens; default: a short text.
    json_path, html_path : path, optional
    """
    if text is not None and ids is not None:
        raise ValueError("give either --text or --ids, not both")
    if model is None:
        if tokenizer is not None:
            raise ValueError("the small model has its own tokenizer: --tokenizer needs a MODEL")
        small = {"steps": steps or 0, "seed": seed or 0}
        for name, value in small.items():
            if value < 0:
                raise ValueError(f"{name} is {value}, but must be a whole number that is not negative")
        pair = traced_model(**small)
    else:
        if steps is not None or seed is not None:
            raise ValueError("--steps and --seed are for the small model, not for a given MODEL")
        pair = opened(model, tokenizer, needed=ids is None)
    traced = trace(*pair, ids if ids is not None else TEXT if text is None else text)
    size = sum(t.value.size + t.gradient.size for t in traced.values)
    if size > MOST and (json_path or html_path):
        raise ValueError(f"the trace has {size:,} numbers, but a file may hold at most {MOST:,}: use a shorter text")
    for path, content in ((json_path, as_json), (html_path, as_html)):
        if path is not None:
            write_text(path, content(traced), NumllamaError)
    print(as_text(traced))
    return 0


def opened(path: Path, tokenizer: Path | None, needed: bool) -> tuple[Transformer, Tokenizer | CharTokenizer | None]:
    """A model in float64 with its adapter merged, and its tokenizer; without `needed`, the tokenizer may be missing."""
    model = load(path, dtype="float64")
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


def as_html(trace: Trace) -> str:
    """One HTML page."""
    rows = "\n".join(row(t) for t in trace.values)
    attention = "\n".join(attention_maps(t, trace.tokens) for t in trace.values if t.name.endswith(": attention"))
    return PAGE.format(
        text=escape(repr(trace.text)), places=len(trace.tokens) - 1, loss=f"{trace.loss:.4f}", rows=rows,
        attention=attention, norms=gradient_norms(trace),
    )  # fmt: skip


def row(t: Traced) -> str:
    """A row of the table: name, numbers, and heat maps of value and gradient."""
    cells = [
        f"<th>{escape(t.name)}<small>{shape_of(t.value)} {escape(t.axes)}</small></th>",
        f"<td>{norm(t.value):.3g}<small>{escape(numbers(t.value))}</small></td><td>{picture(t.value)}</td>",
        f"<td>{norm(t.gradient):.3g}<small>{escape(numbers(t.gradient))}</small></td><td>{picture(t.gradient)}</td>",
    ]
    return f"<tr>{''.join(cells)}</tr>"


def picture(value: np.ndarray) -> str:
    """Heat maps of an array's last two axes: red is positive, blue negative, white zero."""
    if value.ndim < 2:
        return ""
    planes = value.reshape(-1, *value.shape[-2:])
    most = float(np.abs(value).max())
    return "".join(image(plane, most) for plane in planes)


def attention_maps(t: Traced, tokens: list[str]) -> str:
    """The attention maps of a layer's heads, with the tokens along the sides."""
    seen = "".join(f"<span>{escape(shown(token))}</span>" for token in tokens[:-1])
    maps = "".join(
        f'<figure><figcaption>head {h}</figcaption><div class="keys">{seen}</div><div class="queries">{seen}</div>'
        f"{image(plane, 1.0, title=f'head {h}')}</figure>"
        for h, plane in enumerate(t.value[0])
    )
    long = " long" if max(map(len, tokens)) > 1 else ""  # long tokens need room
    return f'<h3>{escape(t.name.partition(":")[0])}</h3><div class="heads{long}" style="--n: {len(tokens) - 1}">{maps}</div>'


def gradient_norms(trace: Trace) -> str:
    """A bar for each parameter; a column for each layer."""
    names = [name.split(".", 2)[2] for name in trace.parameters if name.startswith("blocks.0.")]
    layers = sum(name.endswith(".attn_norm") for name in trace.parameters)
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


def image(plane: np.ndarray, most: float, title: str = "") -> str:
    """A matrix as a picture with one pixel per number."""
    share = np.clip(plane / (most or 1.0), -1, 1)[..., None]           # (rows, columns, 1)
    colours = np.where(share > 0, WHITE + share * (RED - WHITE), WHITE - share * (BLUE - WHITE)).round().astype(np.uint8)
    height, width = plane.shape
    data = base64.b64encode(png(colours)).decode()
    return f'<img alt="{escape(title)}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'


def png(colours: np.ndarray) -> bytes:
    """A PNG file from colours, bytes of shape (rows, columns, 3)."""
    height, width, _ = colours.shape
    lines = b"".join(b"\0" + line.tobytes() for line in colours)  # 0: unfiltered

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)     # 8 bits, red green blue
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def shown(token: str) -> str:
    return {" ": "␣", "\n": "⏎"}.get(token, token)


def shape_of(value: np.ndarray) -> str:
    return "×".join(map(str, value.shape)) or "scalar"


def norm(value: np.ndarray) -> float:
    return float(np.linalg.norm(value))


def numbers(value: np.ndarray) -> str:
    """The first few numbers of the last row."""
    last = np.atleast_1d(value).reshape(-1, value.shape[-1] if value.ndim else 1)[-1]
    return " ".join(f"{x:.3g}" for x in last[:FEW]) + (" …" if len(last) > FEW else "")


PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>numllama trace</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; background: #fff }}
h2 {{ margin-top: 2.5rem; border-bottom: 1px solid #ddd }}
table {{ border-collapse: collapse }}
th, td {{ text-align: left; vertical-align: top; padding: .35rem .7rem .35rem 0 }}
th, td {{ border-bottom: 1px solid #eee; font-weight: normal }}
th {{ font-weight: 600 }}
small {{ display: block; color: #666; font-size: .75rem; font-weight: normal; white-space: nowrap }}
img {{ image-rendering: pixelated; width: 132px; height: 66px; margin: 0 4px 4px 0; border: 1px solid #ddd }}
.wide {{ overflow-x: auto }}
.heads {{ display: flex; flex-wrap: wrap; gap: 1.2rem }}
figure {{ margin: 0; display: grid; grid-template: auto minmax(1.4rem, auto) 200px / minmax(1.2rem, auto) 200px }}
figure img {{ grid-area: 3 / 2; width: 200px; height: 200px; margin: 0; box-sizing: border-box }}
figcaption {{ grid-column: 2; font-size: .8rem; color: #555 }}
.keys {{ grid-area: 2 / 2; display: grid; grid-template-columns: repeat(var(--n), 1fr) }}
.queries {{ grid-area: 3 / 1; display: grid; grid-template-rows: repeat(var(--n), 1fr) }}
.keys span, .queries span {{ font: 10px/1 ui-monospace, monospace; text-align: center; align-self: center }}
.long .keys span {{ writing-mode: vertical-rl; place-self: end center; padding-bottom: 2px }}
.long .queries span {{ text-align: right; padding-right: 4px }}
.bars td {{ min-width: 9rem; font-size: .8rem }}
.bars i {{ display: block; height: .5rem; background: #2166ac; border-radius: 2px }}
@media (max-width: 640px) {{
  .bars td {{ min-width: 6rem }}
  .all tr {{ display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); border-bottom: 1px solid #eee }}
  .all tr:first-child {{ display: none }}
  .all th, .all td {{ border: 0; overflow-wrap: anywhere }}
  .all th {{ grid-column: 1 / -1 }}
  .all small {{ white-space: normal }}
}}
</style>
<h1>One text through a model and back</h1>
<p>{text}: {places} tokens, each of which predicts the next. Loss {loss} nats. In the pictures, red is positive, blue negative and
white zero; rows are tokens, from top to bottom.</p>
<h2>Attention of each head</h2>
<p>Each row is a query, each column a key. Red: all of the query's attention is on this key; white: none.</p>
{attention}
<h2>Norms of the parameters' gradients</h2>
<div class="wide" tabindex="0">{norms}</div>
<h2>Every intermediate value and its gradient</h2>
<p>In the order of the forward pass; the backward pass computes the gradients in the opposite order. Each row shows the norm, the
first numbers of the last token and a picture of the value, and the same of the gradient of the loss with respect to it.</p>
<div class="wide" tabindex="0"><table class="all"><tr><th>name</th><th colspan="2">value</th><th colspan="2">gradient</th></tr>
{rows}
</table></div>
</html>
"""
