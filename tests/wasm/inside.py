"""What must run in WebAssembly, as one program that prints its results as JSON. The tests run it there and natively.

    python inside.py FOLDER        where it may write
"""

import ctypes
import json
import sys
import threading
from pathlib import Path

import numpy as np

ALREADY = set(sys.modules)

import numllama as nl  # noqa: E402
from numllama import ops  # noqa: E402
from numllama.errors import NumllamaError  # noqa: E402
from numllama.learn.exercises import EXERCISES, FUNCTIONS, check_file, example, exercise_text, solved_text  # noqa: E402

FOLDER = Path(sys.argv[1])
LACKING = (  # there, or in a browser: what needs system calls that they lack, and packages that are compiled for none of the two
    "socket", "ssl", "asyncio", "multiprocessing", "mmap", "resource", "fcntl", "msvcrt", "termios", "safetensors",
    "ml_dtypes", "cyclopts", "rich", "cupy", "mpi4py", "torch",
)  # fmt: skip
ON_REQUEST = ("regex", "tqdm", "threadpoolctl", "matplotlib", "jinja2")  # a page loads them when they are used
TEXT = "How much wood would a woodchuck chuck if a woodchuck could chuck wood? As much as a woodchuck would. " * 40
WRONG = """

right = {op}_backward


def {op}_backward(dout, cache):
    results = right(dout, cache)
    return tuple(-part for part in results) if isinstance(results, tuple) else -results
"""

WRONG_FUNCTION = """

right_{function} = {function}


def {function}(*args):
    results = right_{function}(*args)
    return tuple(-np.asarray(part) for part in results) if isinstance(results, tuple) else -np.asarray(results)
"""


def verdicts(op, text):
    path = FOLDER / f"{op}.py"
    path.write_text(text, encoding="utf-8")
    return {each["name"]: f"{each['verdict']} {each['message']}".strip() for each in check_file(path, op)["results"]}


def exercises():
    """The verdicts on each exercise: blank, right, and with every sign wrong."""
    texts = {name: {"blank": exercise_text(name), "right": solved_text(name)} for name in (*EXERCISES, *FUNCTIONS)}
    for name, text in texts.items():
        wrong = [WRONG.format(op=name)] if name in EXERCISES else [
            "\nimport numpy as np\n", *(WRONG_FUNCTION.format(function=each) for each in FUNCTIONS[name].functions),
        ]  # fmt: skip
        text["wrong"] = text["right"] + "".join(wrong)
    return {kind: {name: verdicts(name, texts[name][kind]) for name in texts} for kind in ("blank", "right", "wrong")}


def gradient_checks():
    """The ops whose gradients agree with finite differences; `gradcheck` raises if they do not."""
    rng = np.random.default_rng(0)
    cos, sin = ops.rope_table(np.arange(4), 6, 100.0, dtype="float64")
    x, weights, logits = rng.standard_normal((3, 4)), rng.standard_normal((2, 5, 4)), rng.standard_normal((6, 5))
    (_, probs), cache = ops.router_forward(logits, 2)
    q_and_k = list(rng.standard_normal((2, 2, 3, 4, 6)))

    def linears_backward(douts, cache):
        dx, dweights = ops.linears_backward(douts, cache)
        return dx, *dweights

    cases = {op: (*(getattr(ops, f"{op}_{way}") for way in ("forward", "backward")), example(op), list(exercise.wrt))
             for op, exercise in EXERCISES.items()}  # fmt: skip
    cases |= {
        "linears": (lambda x, *weights: ops.linears_forward(x, weights), linears_backward, [x, *weights], [0, 1, 2]),
        "ropes": (lambda *xs: ops.ropes_forward(xs, cos, sin), ops.ropes_backward, q_and_k, [0, 1]),
        "router": (ops.router_forward, ops.router_backward, [logits, 2], [0]),
        "load_balancing": (lambda p: ops.load_balancing_forward(p, cache.chosen), ops.load_balancing_backward, [probs], [0]),
    }
    for forward, backward, arguments, wrt in cases.values():
        nl.gradcheck(forward, backward, arguments, wrt=wrt)
    return sorted(cases)


def own_loop():
    """The loss after 20 steps of a loop of one's own, which takes nothing but NumPy."""
    model = nl.Transformer(nl.ModelConfig(vocab_size=8, dim=16, n_layers=1, n_heads=2, max_seq_len=8), seed=0)
    optimizer, tokens = nl.AdamW(model.params), np.arange(9)[None] % 8
    for _ in range(20):
        loss, grads = model.loss_and_grads(tokens[:, :-1], tokens[:, 1:])
        nl.clip_grad_norm(grads, 1.0)
        optimizer.step(grads, 1e-2)
    return float(loss)


def training():
    """Losses of 200 steps of a small Llama, and what it then writes: in memory, from its checkpoint, and from its files."""
    from numllama.data.dataset import text_dataset

    data = text_dataset(TEXT, "a text")
    config = nl.ModelConfig(vocab_size=data.vocab_size, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=64)
    model, prompt = nl.Transformer(config, seed=0, dtype="float64"), data.tokenizer.encode("How much")
    settings = nl.TrainConfig(steps=200, batch_size=4, lr=1e-2, warmup_steps=10, eval_every=100, sampling="epochs", workers=2)
    with nl.Trainer(model, data, settings, out=FOLDER / "run") as trainer:
        reports = list(trainer)
    model.save(FOLDER / "model")
    written = {name: nl.generate(each, prompt, 50, temperature=0) for name, each in {
        "memory": model, "checkpoint": nl.load_run(FOLDER / "run", which="latest"), "files": nl.load(FOLDER / "model"),
    }.items()}  # fmt: skip
    return {
        "losses": [float(report.loss) for report in reports],
        "validation": [report.val_loss for report in reports if report.val_loss is not None],
        "written": {name: data.tokenizer.decode(ids) for name, ids in written.items()},
    }


def tokenizers():
    """Ids of a byte-pair encoding, trained here, and again after it was saved and loaded."""
    from numllama.tokenizer.train_bpe import train_on_text

    tokenizer, text = train_on_text(TEXT, 280), "Woodchucks, 3 of them: über die Brücke"
    tokenizer.save(FOLDER / "tokenizer")
    ids = tokenizer.encode(text)
    return {"ids": ids, "saved": nl.Tokenizer.load(FOLDER / "tokenizer").encode(text), "text": tokenizer.decode(ids)}


def sentences():
    """What is said where a package is missing."""
    calls = {
        "ml_dtypes": lambda: nl.Transformer(nl.ModelConfig(vocab_size=8, dim=8, n_layers=1, n_heads=2), compute_dtype="bfloat16"),
        "safetensors": lambda: nl.compare(FOLDER / "model", FOLDER / "model" / "model.safetensors"),
    }
    said = {}
    for package, call in calls.items():
        try:
            call()
        except NumllamaError as error:
            said[package] = str(error)
    return said


def taken(names):
    """Modules of some packages that have been imported since."""
    return sorted(name for name in set(sys.modules) - ALREADY if name.partition(".")[0] in names)


def refused(*_, **__):
    raise RuntimeError("WebAssembly opens no shared libraries")


if sys.platform == "wasi":
    ctypes.CDLL.__init__ = refused
results = {part.__name__: part() for part in (exercises, gradient_checks, own_loop)}
results["taken_early"] = taken(LACKING + ON_REQUEST)
results |= {part.__name__: part() for part in (training, tokenizers, sentences)}
results |= {"taken": taken(LACKING), "threads": threading.active_count(), "platform": sys.platform}
print(json.dumps(results))
