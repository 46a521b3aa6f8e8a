"""`numllama trace` with a view: the logit lens, the heads, or patching, as text, JSON and HTML."""

import json
from collections.abc import Callable, Sequence
from html import escape
from shutil import get_terminal_size
from typing import Any, NamedTuple

import numpy as np

from numllama.learn.heads import HeadScores, attention_of_heads, first_token_scores, head_scores, previous_token_scores
from numllama.learn.lens import Lens, logit_lens
from numllama.learn.patching import Attribution, attribution_patching
from numllama.learn.trace_page import attention_maps, grid, numbers_of, page, shown
from numllama.learn.tracing import token_name, tokens_of
from numllama.model.transformer import Transformer
from numllama.tokenizer import CharTokenizer, Tokenizer

MOST_MAPS = 4  # attention maps below the table of a score
LABEL, WIDTH = 10, 118  # characters of a row's label, and of the lines of what is not a terminal
STREAM, BLOCKS = "after_ffn", ("attn_out", "ffn_out")
Name = Callable[[int], str]


class Views(NamedTuple):
    """Which views to show, and the text that `patch` compares with."""

    lens: bool = False
    heads: bool = False
    patch: str | None = None


class Reports(NamedTuple):
    """The same as text, as JSON, and as one HTML page."""

    text: Callable[[], str]
    json: Callable[[], str]
    html: Callable[[], str]


class View(NamedTuple):
    """One view: lines, data for JSON, and a section of the page: its title, a paragraph, and HTML."""

    lines: list[str]
    name: str
    data: dict[str, Any]
    section: tuple[str, str, str]


def view_reports(
    model: Transformer, tokenizer: Tokenizer | CharTokenizer | None, text: str | Sequence[int], views: Views,
    note: str = "", say: Callable[[str], object] = lambda what: None,
) -> Reports:  # fmt: skip
    """The views of a text.

    Parameters
    ----------
    model, tokenizer, text
        As in :func:`numllama.learn.tracing.trace`.
    views : Views
    note : str
        What a reader should know of the model.
    say : callable
        Is told what begins.
    """
    ids, tokens, text = tokens_of(model, tokenizer, text, most=model.config.max_seq_len)

    def name(i: int) -> str:
        return token_name(tokenizer, i)

    made = []
    if views.lens:
        say("reading the stream after each layer")
        made.append(lens_view(logit_lens(model, ids, min(5, model.config.vocab_size)), tokens, name))
    if views.heads:
        say("attention of all heads, in the text and in random tokens that repeat")
        made.append(heads_view(attention_of_heads(model, ids), head_scores(model), tokens))
    if views.patch is not None:
        say("patching: both texts forward, one backward")
        corrupt, others, _ = tokens_of(model, tokenizer, views.patch, most=model.config.max_seq_len)
        made.append(patch_view(attribution_patching(model, ids, corrupt, name=lambda i: repr(name(i))), tokens, others, name))
    lead = [f"{text!r}: {len(tokens)} tokens.", *filter(None, [note])]
    data = {"text": text, "tokens": tokens} | {view.name: view.data for view in made}
    return Reports(
        lambda: "\n".join([*lead, *(line for view in made for line in ("", *view.lines))]),
        lambda: json.dumps(data, ensure_ascii=False),
        lambda: page("Reading a model", escape(" ".join(lead)), tokens, [view.section for view in made]),
    )


# ------------------------------------------------------------------------------------------------ logit lens


def lens_view(lens: Lens, tokens: list[str], name: Name) -> View:
    """What the model would say after each layer: of the last token in the text, of all tokens in the page."""
    answer = name(int(lens.answer[-1]))
    lines = [f"logit lens after the last token, {tokens[-1]!r}: how likely its answer {answer!r} is, and the likeliest tokens"]
    for i, level in enumerate(lens.levels):
        top = "  ".join(f"{name(v)!r} {p:.0%}" for v, p in zip(lens.top[i, -1].tolist(), lens.probs[i, -1].tolist(), strict=True))
        lines.append(f"{level:10} {lens.answer_probs[i, -1]:7.2%}  rank {lens.answer_ranks[i, -1] + 1:>6,}   {top}")

    def cell(r: int, c: int) -> tuple[str, str]:
        top = ", ".join(f"{name(v)!r} {p:.1%}" for v, p in zip(lens.top[r, c].tolist(), lens.probs[r, c].tolist(), strict=True))
        rank = f"its answer {name(int(lens.answer[c]))!r} is number {lens.answer_ranks[r, c] + 1:,}"
        return shown(name(int(lens.top[r, c, 0])))[:10], f"{lens.levels[r]}, after token {c} {tokens[c]!r}: {top}; {rank}"

    columns = [shown(token)[:10] for token in tokens]
    table = grid("The likeliest next token after each layer; red: how likely", lens.levels, columns, lens.probs[..., 0], cell)
    data = {key: value if isinstance(value, list) else value.tolist() for key, value in lens._asdict().items()}
    data |= {"top_tokens": [[[name(v) for v in top] for top in row] for row in lens.top.tolist()]}
    text = "The residual stream after each layer, read by the last norm and the head. Columns are the tokens of the text."
    return View(lines, "lens", data, ("Logit lens", text, table))


# ------------------------------------------------------------------------------------------------ heads


def heads_view(attention: np.ndarray, scores: HeadScores, tokens: list[str]) -> View:
    """Scores of all heads, and the attention maps of this text."""
    kinds = {
        "previous token, in this text": previous_token_scores(attention),
        "first token, in this text": first_token_scores(attention),
        "induction, in random tokens that repeat": scores.induction,
    }
    (L, H), lines, parts = scores.induction.shape, [], []
    for k, (title, score) in enumerate(kinds.items()):
        best = "  ".join(f"{i}.{h} {score[i, h]:.0%}" for i, h in largest(score, 8))
        lines.append(f"{title}: the strongest heads are {best}")
        first = largest(score, MOST_MAPS)
        names = [f"layer {i}, head {h}: {score[i, h]:.0%}" for i, h in first]
        maps = np.stack([attention[place] for place in first])

        def cell(r: int, c: int, title=title, score=score) -> tuple[str, str]:
            return f"{round(100 * score[r, c])}", f"layer {r}, head {c}: {title} {score[r, c]:.1%}"

        parts.append(grid(f"{title}, in percent", numbered("layer", L), numbered("head", H), score, cell))
        drawn = attention_maps("The strongest", maps, names, tokens, f"a{k}")
        parts.append(f"<div {numbers_of(f'a{k}', title, 'map, query, key', value=maps)}>{drawn}</div>")
    lines += ["(layer.head; the scores of all heads: --html; their attention: --json)"]
    data = {"scores": {key: value.tolist() for key, value in scores._asdict().items()}, "attention": attention.tolist()}
    data["scores_in_text"] = {"previous": kinds["previous token, in this text"].tolist()}
    text = (
        "How much a head attends to the token before, to the first token, and in repeated random tokens to the token after the "
        "earlier occurrence. Below each table are its strongest heads' maps of this text: a row is a query, a column a key."
    )
    return View(lines, "heads", data, ("Heads", text, "\n".join(parts)))


def numbered(word: str, n: int) -> list[str]:
    return [f"{word} {i}" for i in range(n)]


def largest(scores: np.ndarray, n: int) -> list[tuple[int, ...]]:
    """The places of the largest numbers, by size."""
    order = np.argsort(-np.abs(scores), axis=None, kind="stable")[:n]
    return [tuple(map(int, place)) for place in zip(*np.unravel_index(order, scores.shape), strict=True)]


# ------------------------------------------------------------------------------------------------ patching


def patch_view(found: Attribution, tokens: list[str], others: list[str], name: Name) -> View:
    """Estimated effects, as parts of the whole difference of the metric."""
    whole = (found.clean - found.corrupt) or 1.0
    layers = sum(each.endswith(f": {STREAM}") for each in found.effects)
    columns = [shown(a if a == b else f"{a}|{b}") for a, b in zip(tokens, others, strict=True)]
    by_token = {
        "the stream after each layer": np.stack([found.effects[f"layer {i}: {STREAM}"] for i in range(layers)]) / whole,
        "what attention adds": np.stack([found.effects[f"layer {i}: attn_out"] for i in range(layers)]) / whole,
        "what the feed-forward adds": np.stack([found.effects[f"layer {i}: ffn_out"] for i in range(layers)]) / whole,
    }
    heads = np.stack([found.effects[f"layer {i}: head_outputs"].sum(-1) for i in range(layers)]) / whole
    first, second = (name(i) for i in found.answers)
    lines = [
        f"patching: the logit of {first!r} less that of {second!r} is {found.clean:.3f} after this text,",
        f"{found.corrupt:.3f} after the corrupt one.",
        "Percent of that difference that a value of this text restores in the corrupt text, estimated by its gradient:",
    ]
    stream = by_token["the stream after each layer"]
    widths, strongest = [max(6, len(name) + 2) for name in columns], np.argsort(-np.abs(stream).max(0), kind="stable")
    ends = LABEL + np.cumsum([widths[c] for c in strongest])
    chosen = np.sort(strongest[ends <= get_terminal_size((WIDTH, 0)).columns])
    lines.append(f"{'':{LABEL}}" + "".join(f"{columns[c]:>{widths[c]}}" for c in chosen))
    for i, row in enumerate(stream):
        lines.append(f"layer {i:<{LABEL - 6}}" + "".join(f"{round(100 * row[c]):{widths[c]}}" for c in chosen))
    if len(chosen) < len(columns):
        lines.append(f"({len(chosen)} of {len(columns)} tokens; all of them: --html or --json)")
    lines.append("heads that restore most: " + "  ".join(f"{i}.{h} {heads[i, h]:.0%}" for i, h in largest(heads, 8)))

    def table(title: str, part: np.ndarray, names: list[str]) -> str:
        def cell(r: int, c: int) -> tuple[str, str]:
            effect = f"{part[r, c]:.1%}, {part[r, c] * whole:.4f} of the metric"
            return f"{round(100 * part[r, c])}", f"layer {r}, {names[c]}, {title}: {effect}"

        return grid(f"{title}, in percent", numbered("layer", layers), names, part, cell)

    tables = [table(title, part, columns) for title, part in by_token.items()]
    tables.append(table("each head, over all tokens", heads, numbered("head", heads.shape[1])))
    data = {
        "answers": [first, second], "clean": found.clean, "corrupt": found.corrupt, "corrupt_tokens": others,
        "effects": {key: value.tolist() for key, value in found.effects.items()},
    }  # fmt: skip
    text = escape(
        f"The metric is the logit of {first!r} less that of {second!r}: {found.clean:.3f} after the text, {found.corrupt:.3f} "
        "after the corrupt one. Each cell estimates how much of that difference the text's value restores in the corrupt text."
    )
    return View(lines, "patch", data, ("Patching", text, "\n".join(tables)))
