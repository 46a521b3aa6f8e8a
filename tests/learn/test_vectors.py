"""Golden vectors hold the model's own numbers, are small, reproducible, and read by other languages."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from safetensors.numpy import load_file

import numllama as nl
from numllama.cli import main
from numllama.errors import CheckpointError
from numllama.learn import vectors
from numllama.learn.vectors import STANDARD, read_vectors, standard_vectors, write_vectors
from numllama.model.parameters import Parameters, copied_parameters
from numllama.tokenizer import Tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "vectors.md"
MOST_BYTES = 300_000
ALL = pytest.mark.parametrize("name", STANDARD)


def run(*arguments):
    with pytest.raises(SystemExit) as exit:
        main(["vectors", *map(str, arguments)])
    return exit.value.code


def model_of(made):
    weights = {name.removeprefix("weights/"): value for name, value in made.tensors.items() if name.startswith("weights/")}
    return nl.Transformer(made.config, params=copied_parameters(made.config, weights, np.dtype(np.float64)))


def batch_of(made):
    t = made.tensors
    return (t["tokens"], t["targets"]), {"segments": t.get("segments")}


@ALL
def test_loss_logits_and_gradients_are_those_of_the_model(name):
    made = standard_vectors(name)
    model, (arrays, options) = model_of(made), batch_of(made)
    loss, grads = model.loss_and_grads(*arrays, **options)
    assert_close(made.manifest["loss"], float(loss), rtol=1e-12)
    for parameter, gradient in grads.items():
        assert_close(made.tensors[f"d_weights/{parameter}"], gradient, rtol=1e-10)
    assert {n.partition("/")[2] for n in made.tensors if n.startswith("after/")} == set(grads)
    assert name in ("padded", "packed") or (
        assert_close(made.tensors["values/logits"], model.forward(arrays[0]), rtol=1e-12) is None
    )


@ALL
def test_the_optimizers_steps_are_those_of_the_formulas(name):
    made, settings = standard_vectors(name), standard_vectors(name).manifest["optimizer"]
    model, (arrays, options) = model_of(made), batch_of(made)
    (b1, b2), m, v = settings["betas"], {}, {}
    for step, (loss, norm) in enumerate(zip(settings["losses"], settings["norms"], strict=True), start=1):
        found, grads = model.loss_and_grads(*arrays, **options)
        size = np.sqrt(sum((g**2).sum() for g in grads.values()))
        assert (float(found), size) == (pytest.approx(loss, rel=1e-10), pytest.approx(norm, rel=1e-10))
        for key, g in grads.items():
            w, g = model.params[key], g * min(1, settings["clip"] / (size + 1e-6))  # as in PyTorch
            m[key], v[key] = b1 * m.get(key, 0) + (1 - b1) * g, b2 * v.get(key, 0) + (1 - b2) * g**2
            decay = settings["weight_decay"] if w.ndim == 2 else 0
            change = m[key] / (1 - b1**step) / (np.sqrt(v[key] / (1 - b2**step)) + settings["eps"]) + decay * w
            w -= settings["lr"] * change
    assert step == 10
    for key, w in model.params.items():
        assert_close(made.tensors[f"after/{key}"], w, rtol=1e-7)


@ALL
def test_decoding_is_greedy_and_its_logits_are_those_of_each_step(name):
    made = standard_vectors(name)
    model, decoding = model_of(made), made.manifest["decoding"]
    assert len(decoding["ids"]) == 6
    ids, cache = decoding["prompt"], nl.KVCache(model)
    tokens = ids
    for expected, logits in zip(decoding["ids"], made.tensors["decoding/logits"], strict=True):
        found = model.forward(np.array([tokens]), kv_cache=cache)[0, -1]
        assert_close(logits, found, rtol=1e-10)
        assert found.argmax() == expected
        tokens = [expected]


@ALL
def test_filters_keep_what_they_say(name):
    made = standard_vectors(name)
    logits, filters = made.tensors["filters/logits"], made.manifest["filters"]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    for row, kept_k, kept_p, kept_m in zip(p, *(made.tensors[f"filters/{f}"] for f in ("top_k", "top_p", "min_p")), strict=True):
        order = np.argsort(-row)
        assert set(np.flatnonzero(kept_k)) == set(order[: filters["top_k"]])
        n = int(np.searchsorted(np.cumsum(row[order]), filters["top_p"])) + 1
        assert set(np.flatnonzero(kept_p)) == set(order[:n])
        assert (kept_m == (row >= filters["min_p"] * row.max())).all()


@ALL
def test_the_rotation_is_that_of_its_table_and_every_value_has_a_gradient(name):
    made = standard_vectors(name)
    t, c = made.tensors, made.config
    normed = "q_norm" if c.qk_norm else "q"
    q = t[f"values/layer.0.{normed}"]
    if q.ndim == 3:
        q = q.reshape(*q.shape[:2], c.n_heads, c.head_dim).swapaxes(1, 2)
    a, b = (q[..., ::2], q[..., 1::2]) if c.rope_layout == "interleaved" else np.split(q, 2, axis=-1)
    turned = a * t["rope/cos"] - b * t["rope/sin"], a * t["rope/sin"] + b * t["rope/cos"]
    both = np.stack(turned, -1).reshape(q.shape) if c.rope_layout == "interleaved" else np.concatenate(turned, -1)
    assert_close(t["values/layer.0.q_rotated"], both, rtol=1e-12)
    values = {n.partition("/")[2]: v.shape for n, v in t.items() if n.startswith("values/")}
    assert all(t[f"d_values/{n}"].shape == shape for n, shape in values.items())
    assert len(values) >= 2 * 16 + 4


@ALL
def test_they_are_small_the_same_bits_again_and_read_as_written(name, tmp_path):
    made = standard_vectors(name)
    for folder in ("once", "again"):
        write_vectors(standard_vectors(name), tmp_path / folder)
    files = sorted(path.name for path in (tmp_path / "once").iterdir() if not path.name.startswith("."))
    assert files == ["float32.safetensors", "float64.safetensors", "manifest.json"]
    assert sum((tmp_path / "once" / file).stat().st_size for file in files) <= MOST_BYTES
    for file in files:
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    read, small = read_vectors(tmp_path / "once"), load_file(tmp_path / "once" / "float32.safetensors")
    assert read.config == made.config and list(read.tensors) == list(made.tensors)
    for key, array in made.tensors.items():
        assert_same_bits(read.tensors[key], np.asarray(array))
        assert small[key].dtype == (np.int32 if array.dtype.kind == "i" else np.float32)
        assert np.allclose(small[key], array, rtol=1e-6)
    for key in (key for key in made.tensors if key.startswith("weights/")):
        assert (small[key] == made.tensors[key]).all()


def test_configurations_and_seeds_differ():
    losses = {name: standard_vectors(name).manifest["loss"] for name in STANDARD}
    assert len(set(losses.values())) == len(STANDARD) == 12
    assert standard_vectors("mha", seed=1).manifest["loss"] != losses["mha"]


def test_the_tokenizers_cases_follow_from_its_merges():
    described = standard_vectors("mha").manifest["tokenizer"]
    merges = [(bytes.fromhex(left), bytes.fromhex(right)) for left, right in described["merges"]]
    vocab = dict(enumerate([*(bytes([byte]) for byte in range(256)), *(left + right for left, right in merges)]))
    tokenizer = Tokenizer(vocab, merges, pattern=described["pattern"])
    assert [tokenizer.encode(case["text"]) for case in described["cases"]] == [case["ids"] for case in described["cases"]]
    assert [256 + i for i in range(12)] == [vocab_id for vocab_id in vocab if vocab_id >= 256]


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_writes_one_or_all(tmp_path, capsys):
    assert run("gqa", "--out", tmp_path / "one", "--npy") == 0
    assert "loss 3." in capsys.readouterr().out
    made = standard_vectors("gqa")
    for key, array in made.tensors.items():
        assert_same_bits(np.load(tmp_path / "one" / "npy" / "float64" / f"{key}.npy"), np.asarray(array))
    assert run("all", "--out", tmp_path / "all") == 0
    assert sorted(path.name for path in (tmp_path / "all").iterdir() if path.is_dir()) == sorted(STANDARD)
    assert len(capsys.readouterr().out.splitlines()) == 12


def test_a_model_of_ones_own(tmp_path, capsys):
    config = nl.ModelConfig(31, 16, 2, 4, n_kv_heads=2, max_seq_len=12)
    nl.Transformer(config, seed=4).save(tmp_path / "model")
    assert run(tmp_path / "model", "--out", tmp_path / "own", "--ids", 3, 1, 4, 1, 5) == 0
    read = read_vectors(tmp_path / "own")
    assert read.tensors["tokens"].tolist() == [[3, 1, 4, 1]] and read.tensors["targets"].tolist() == [[1, 4, 1, 5]]
    assert_close(read.tensors["values/logits"], nl.load(tmp_path / "model", dtype="float64").forward(np.array([[3, 1, 4, 1]])))
    assert run(tmp_path / "model", "--out", tmp_path / "random") == 0
    assert read_vectors(tmp_path / "random").tensors["tokens"].shape == (1, 5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], r"nothing is neither a file or folder nor one of mha, gqa"),
        (["gqa", "--ids", "1", "2", "3"], "ids are for a model of your own"),
        (["MODEL", "--ids", "1", "2"], "there are 2 ids, but there must be 3 to 13"),
        (["MODEL", "--ids", "1", "2", "31"], "31"),
        (["GPT2"], "norm is 'layernorm', but only a plain Llama has golden vectors"),
    ],
)
def test_what_it_refuses_is_one_sentence(tmp_path, capsys, arguments, sentence):
    nl.Transformer(nl.ModelConfig(31, 16, 1, 4, max_seq_len=12)).save(tmp_path / "MODEL")
    nl.Transformer(nl.ModelConfig(31, 16, 1, 4, norm="layernorm", max_seq_len=12)).save(tmp_path / "GPT2")
    name = arguments[0] if arguments[0].islower() else tmp_path / arguments[0]
    assert run(name, *arguments[1:], "--out", tmp_path / "out") == 2
    assert re.search(sentence, (error := capsys.readouterr().err)) and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_damaged_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"none has no manifest\.json"):
        read_vectors(tmp_path / "none")
    write_vectors(standard_vectors("mqa"), tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for change, sentence in (
        ({"format": "other"}, "is no manifest of vectors"),
        ({"version": 2}, "version 2, but this is version 1"),
        ({"tensors": [{"name": "values/none"}]}, "lacks values/none"),
        ({"config": {"vocab_size": 3}}, "dim"),
        ({"tensors": 3}, "is damaged"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises((CheckpointError, ValueError), match=sentence):
            read_vectors(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    content = (tmp_path / "float64.safetensors").read_bytes()
    for damaged in (content[:-9], b"", b"PK\x03\x04" * 40):
        (tmp_path / "float64.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"float64\.safetensors"):
            read_vectors(tmp_path)


# ------------------------------------------------------------------------------------------------ other languages


READERS = {  # the code that follows the page's, the command, and what it needs
    "c": (
        '\nint main(void) { float *x = read_npy("npy/float32/values/logits.npy", 110); double sum = 0;\n'
        'for (int i = 0; i < 110; i++) { sum += x[i]; } printf("%.6f\\n", sum); return 0; }\n',
        ["gcc", "-Wall", "-Werror", "-o", "reader", "reader.c"],
    ),
    "rust": (
        'fn main() { let x = read_npy("npy/float32/values/logits.npy");\n'
        'println!("{:.6}", x.iter().map(|&v| v as f64).sum::<f64>()); }\n',
        ["rustc", "--edition", "2021", "-o", "reader", "reader.rust"],
    ),
    "javascript": (
        'const x = readTensors("float32.safetensors")["values/logits"];\n'
        "console.log(x.reduce((sum, v) => sum + v, 0).toFixed(6));\n",
        ["node", "reader.javascript"],
    ),
}


@pytest.mark.skipif(not PAGE.exists(), reason="tests without the book")
@pytest.mark.parametrize("language", READERS)
def test_other_languages_read_them(language, tmp_path):
    main_part, command = READERS[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    write_vectors(standard_vectors("gqa"), tmp_path, npy=True)
    (code,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(code.splitlines()) <= 13
    (tmp_path / f"reader.{language}").write_text(code + main_part)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if "-o" in command:
        done = subprocess.run(["./reader"], cwd=tmp_path, capture_output=True, text=True, check=True)
    logits = load_file(tmp_path / "float32.safetensors")["values/logits"]
    assert logits.size == 110
    assert float(done.stdout) == pytest.approx(logits.sum(dtype=np.float64), abs=1e-5)


def test_the_page_lists_every_configuration_and_every_value():
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else pytest.skip("tests without the book")
    made = [standard_vectors(name) for name in STANDARD]
    for word in {*STANDARD, *(n.rpartition(".")[2] for m in made for n in m.tensors if "/layer." in n), *made[0].manifest}:
        assert f"`{word}`" in page or f"`{word}," in page or f'"{word}"' in page, word
    assert isinstance(model_of(made[0]).params, Parameters) and vectors.VERSION == 1
