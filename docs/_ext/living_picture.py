"""The picture of the front page: a sentence on its way through a small Llama, forward to the loss and back, step by step.

Everything is computed when the book is built. A step of forward shows what an op returns, a step of backward the gradients that
its backward returns: those of its inputs. Values are stored as whole numbers from -127 to 127; `_static/living.js` draws them.
Without scripts the page shows one step, as pictures.
"""

import json
import struct
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple

import numpy as np
from llama_map import small

from numllama import ops
from numllama.learn.tracing import TEXT, Trace, trace
from numllama.model.transformer import Transformer

STATIC = (1, "softmax")                                                # the layer and the step that is shown without scripts
VALUE = ((14, 142, 166), (138, 83, 200))                               # plus and minus; living.js and way.css have them too


class Op(NamedTuple):
    """A step: its boxes on the map, its page, what forward returns, and the inputs whose gradients backward returns."""

    name: str
    title: str
    boxes: tuple[str, ...]
    page: str
    outputs: tuple[str, ...]
    forward: str
    inputs: tuple[str, ...]
    backward: str


FIRST = Op(
    "embedding", "embedding", ("embedding",), "ops/embedding", ("embedding",), "x = embed[token]",
    ("embed",), "dembed[token] += dx",
)  # fmt: skip
BLOCK = (
    Op("attn_norm", "RMSNorm", ("attn_norm",), "ops/rmsnorm", ("attn_norm",), "n = x / rms(x) · gain",
       ("stream",), "dx += (dn − n · mean(dn · n)) / rms(x)"),
    Op("qkv", "queries, keys, values", ("q", "k", "v"), "ops/linear", ("q", "k", "v"), "q = n wqᵀ,  k = n wkᵀ,  v = n wvᵀ",
       ("attn_norm",), "dn = dq wq + dk wk + dv wv"),
    Op("rope", "RoPE", ("rope_q", "rope_k"), "ops/rope", ("q_rotated", "k_rotated"), "q, k: turned by position · ω",
       ("q", "k"), "dq, dk: turned back by position · ω"),
    Op("scores", "scores", ("scores",), "ops/attention", ("scores",), "a = q · k / √D",
       ("q_rotated", "k_rotated"), "dq = da k / √D,  dk = daᵀ q / √D"),
    Op("softmax", "softmax", ("softmax",), "ops/softmax", ("attention",), "p = exp(a) / Σ exp(a)",
       ("scores",), "da = p · (dp − Σ p · dp)"),
    Op("values", "mean of the values", ("values",), "ops/attention", ("head_outputs",), "o = Σ p · v",
       ("attention", "v"), "dp = do · v,  dv = pᵀ do"),
    Op("wo", "all heads together", ("wo",), "ops/linear", ("attn_out",), "y = o woᵀ",
       ("head_outputs",), "do = dy wo"),
    Op("add_attention", "addition", ("add_attention",), "chapters/residual_stream", ("after_attention",), "x = x + y",
       ("attn_out",), "dy = dx, and dx goes on unchanged"),
    Op("ffn_norm", "RMSNorm", ("ffn_norm",), "ops/rmsnorm", ("ffn_norm",), "n = x / rms(x) · gain",
       ("after_attention",), "dx += (dn − n · mean(dn · n)) / rms(x)"),
    Op("gate_up", "gate and up", ("gate", "up"), "ops/linear", ("gate", "up"), "g = n w_gateᵀ,  u = n w_upᵀ",
       ("ffn_norm",), "dn = dg w_gate + du w_up"),
    Op("swiglu", "SwiGLU", ("swiglu",), "ops/swiglu", ("swiglu",), "h = silu(g) · u",
       ("gate", "up"), "dg = dh · u · silu′(g),  du = dh · silu(g)"),
    Op("down", "down projection", ("down",), "ops/linear", ("ffn_out",), "f = h w_downᵀ",
       ("swiglu",), "dh = df w_down"),
    Op("add_ffn", "addition", ("add_ffn",), "ops/add_rmsnorm", ("after_ffn",), "x = x + f",
       ("ffn_out",), "df = dx, and dx goes on unchanged"),
)  # fmt: skip
LAST = (
    Op("norm", "RMSNorm", ("norm",), "ops/rmsnorm", ("norm",), "n = x / rms(x) · gain",
       ("stream",), "dx = (dn − n · mean(dn · n)) / rms(x)"),
    Op("head", "logits", ("head",), "ops/linear", ("logits",), "z = n headᵀ",
       ("norm",), "dn = dz head"),
    Op("loss", "cross-entropy", ("loss",), "ops/cross_entropy", ("probabilities",), "loss = mean of −log p(next)",
       ("logits",), "dz = (p − [next]) / T"),
)  # fmt: skip


class Arrays(NamedTuple):
    """Values ("v") and gradients ("g") of a trace by the names that steps use, each as heads of rows, one row for each token."""

    v: dict[str, np.ndarray]
    g: dict[str, np.ndarray]


# ------------------------------------------------------------------------------------------------ the numbers


def picture_data(model: Transformer, tokenizer: Any, text: str = TEXT) -> dict[str, Any]:
    """Everything that the picture shows, ready for JSON; pages are by name."""
    traced = trace(model, tokenizer, text)
    arrays, layers = by_name(traced), model.config.n_layers
    places = [(None, FIRST), *[(i, op) for i in range(layers) for op in BLOCK], *[(None, op) for op in LAST]]
    steps, stored, stream = [], {}, "embedding"
    for layer, op in places:
        at = "" if layer is None else f"layer {layer}: "
        before = stream
        if op.outputs[0] in ("after_attention", "after_ffn"):
            stream = at + op.outputs[0]
        reads = tuple(before if name == "stream" else name if name == "embed" else at + name for name in op.inputs)
        for kind, names in (("v", tuple(at + name for name in op.outputs)), ("g", reads)):
            stored[f"{kind} {' '.join(names)}"] = packed(getattr(arrays, kind), names)
        for kind in "vg":
            stored[f"{kind} {stream}"] = packed(getattr(arrays, kind), (stream,))
        steps.append({
            "layer": layer, "op": op.name, "title": op.title, "boxes": op.boxes, "page": op.page,
            "forward": {"says": op.forward, "shows": "v " + " ".join(at + name for name in op.outputs), "stream": stream},
            "backward": {"says": op.backward, "shows": "g " + " ".join(reads), "stream": known_gradient(op, at, before)},
        })  # fmt: skip
    return {
        "tokens": traced.tokens,
        "loss": round(traced.loss, 2),
        "steps": steps,
        "arrays": stored,
        "next": {step["forward"]["stream"]: likely(model, tokenizer, traced, step["forward"]["stream"]) for step in steps},
    }


def known_gradient(op: Op, at: str, before: str) -> str | None:
    """The stream whose gradient is complete after a backward; None as long as none is."""
    if op.name in ("head", "loss"):
        return None
    if op.name in ("embedding", "attn_norm", "norm"):
        return before                                                  # the branch's share has just been added
    names = [one.name for one in BLOCK]
    in_attention = names.index("ffn_norm") >= names.index(op.name)
    return at + ("after_attention" if in_attention else "after_ffn")


def by_name(traced: Trace) -> Arrays:
    """The arrays of a trace as (heads, T, n); what has no heads has one."""
    known = [one for one in traced.values if one.name != "loss"]
    values = {one.name: by_head(one.value[0]) for one in known}
    gradients = {one.name: by_head(one.gradient[0]) for one in known}
    p = ops.softmax_forward(values["logits"])[0]
    ids = [traced.tokens.index(token) for token in traced.tokens[:-1]]  # equal tokens share a row of the embedding
    gradient = np.zeros_like(gradients["embedding"][0])
    np.add.at(gradient, ids, gradients["embedding"][0])
    return Arrays(values | {"probabilities": p}, gradients | {"embed": gradient[ids][None]})


def by_head(array: np.ndarray) -> np.ndarray:
    return array if array.ndim == 3 else array[None]


def packed(arrays: dict[str, np.ndarray], names: tuple[str, ...]) -> dict[str, Any]:
    """The arrays of a step side by side, with an empty column between heads, as bytes in base64.

    Each array is divided by its `scale`. ``parts`` says what stands where: name, heads, columns of a head, and what 127 means.
    """
    columns, parts = [], []
    for name in names:
        array = arrays[name]
        size = scale(array)
        whole = np.clip(np.rint(127 * array / size), -127, 127).astype(np.int8)
        columns += [part for head in whole for part in (head, np.zeros((len(head), 1), np.int8))]
        parts.append([name.rpartition(": ")[2], len(array), array.shape[-1], float(f"{size:.3g}")])
    together = np.concatenate(columns[:-1], axis=1)
    return {"columns": together.shape[1], "parts": parts, "data": b64encode(together.tobytes()).decode()}


def scale(array: np.ndarray) -> float:
    """The size that gets the full colour: that of all but the largest 1 %."""
    sizes = np.abs(array[array != 0])
    return float(np.quantile(sizes, 0.99)) if sizes.size else 1.0


def likely(model: Transformer, tokenizer: Any, traced: Trace, stream: str) -> list[list[tuple[str, int]]]:
    """If the stream ended here: for each token, the right next token in per cent, then the three likeliest others."""
    (x,) = [one.value[0] for one in traced.values if one.name == stream]
    n = ops.rmsnorm_forward(x, model.params["norm"], model.config.norm_eps)[0]
    p = ops.softmax_forward(ops.linear_forward(n, model.params["head"])[0])[0]
    found = []
    for row, right in zip(p, traced.tokens[1:], strict=True):
        named = [(tokenizer.decode([int(i)]), round(100 * float(row[i]))) for i in np.argsort(-row)]
        first = next(pair for pair in named if pair[0] == right)
        found.append([first, *[pair for pair in named[:4] if pair[0] != right and pair[1] > 0][:3]])
    return found


# ------------------------------------------------------------------------------------------------ HTML


def html(data: dict[str, Any], address: Callable[[str], str], title: Callable[[str], str]) -> str:
    """The picture: controls, a first state that needs no scripts, and the numbers."""
    for step in data["steps"]:
        step["href"], step["see"] = address(step["page"]), title(step["page"])
    start = next(i for i, step in enumerate(data["steps"]) if (step["layer"], step["op"]) == STATIC)
    step, count, arrays = data["steps"][start], len(data["steps"]), data["arrays"]
    state, where = step["forward"], small(step["boxes"], across=True)
    letters = "".join(f"<span>{shown(token)}</span>" for token in data["tokens"][:-1])
    numbers = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return f"""<div class="living">
<div class="controls" hidden>
<button type="button" class="play"></button>
<input type="range" min="0" max="{2 * count - 1}" value="{start}" aria-label="Step, from the embedding to the loss and back">
</div>
<div class="now">
<p class="step"><b>Forward, layer {step["layer"] + 1}: {escape(step["title"])}</b>
<code>{escape(state["says"])}</code> <a href="{escape(step["href"])}">{escape(step["see"])}</a></p>
<a class="where" href="{escape(address("map"))}" aria-label="The whole Llama in one picture">{where}</a>
</div>
<div class="rows" style="--rows: {len(data["tokens"]) - 1}">
<div class="letters" aria-hidden="true">{letters}</div>
<figure class="stream"><figcaption>stream x</figcaption>{heat_map(arrays[f"v {state['stream']}"], "The residual stream")}</figure>
<figure class="shows"><figcaption>this step</figcaption>{heat_map(arrays[state["shows"]], step["title"])}</figure>
<div class="next"><p>next character<span class="wide">, if the stream ended here</span></p>
{"".join(bar(row) for row in data["next"][state["stream"]])}</div>
</div>
<p class="legend"><i class="v plus"></i><i class="v minus"></i> values above and below 0
<i class="g plus"></i><i class="g minus"></i> their gradients
<span>bars: how likely each next character is; in colour, the right one</span> <span>loss {data["loss"]}</span></p>
<script type="application/json">{numbers}</script>
</div>"""


def shown(token: str) -> str:
    return "␣" if token == " " else escape(token)


def bar(row: list[tuple[str, int]]) -> str:
    """A row of the prediction: the right next character in colour, then others, each as wide as it is likely."""
    others = "".join(f'<i style="width: {p}%">{shown(token)}</i>' for token, p in row[1:])
    return f'<div><b>{shown(row[0][0])}</b><span><i class="right" style="width: {row[0][1]}%"></i>{others}</span></div>'


def heat_map(array: dict[str, Any], name: str) -> str:
    """A picture of an array of values, one pixel for each, which the page enlarges."""
    alt = escape(f"{name}: a heat map, one row for each token")
    return f'<img class="heat" alt="{alt}" src="data:image/png;base64,{png(array)}">'


def png(array: dict[str, Any]) -> str:
    """The picture's file, in base64: the colour says the sign, its opacity the size."""
    numbers = np.frombuffer(b64decode(array["data"]), dtype=np.int8).reshape(-1, array["columns"])
    colours = np.array(VALUE, dtype=np.uint8)[(numbers < 0).astype(int)]
    alpha = np.rint(255 * np.abs(numbers.astype(float)) / 127).astype(np.uint8)
    pixels = np.concatenate([colours, alpha[..., None]], axis=-1)
    height, width = numbers.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)     # 8 bits each of red, green, blue and alpha
    picture = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return b64encode(picture).decode()
