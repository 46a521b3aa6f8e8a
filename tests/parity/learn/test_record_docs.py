"""docs/record.md does what it says; its recipe for JAX gives a whole Llama's golden vectors."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_close

from numllama.gradcheck import GradientError, gradcheck
from numllama.learn.vectors import standard_vectors

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
jax = pytest.importorskip("jax")
pytestmark = pytest.mark.parity

PAGE = (Path(__file__).parents[3] / "docs" / "record.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.S | re.M)
PYTHON = [text for language, text in BLOCKS if language == "python"]


@pytest.fixture(autouse=True)
def jax_as_it_was():
    before = jax.config.read("jax_enable_x64")
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not installed (Debian: apt-get install gcc)")
def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    (huggingface, mine, recipe, example, checks, c) = PYTHON
    exec(huggingface, names)
    assert (tmp_path / "mine.safetensors").exists()
    assert_close(names["dump"]["d_values/layer.0.scores"], names["vectors"].tensors["d_values/layer.0.scores"], rtol=1e-5)
    exec(mine, names)
    shapes = {name: array.shape for name, array in names["dump"].items() if ".1." in name and not name.startswith("d_")}
    assert shapes == {
        **dict.fromkeys((f"weights/blocks.1.w{name}" for name in "qkvo"), (16, 16)),
        **dict.fromkeys((f"values/layer.1.{name}" for name in ("q", "k", "v", "attn_out")), (2, 5, 16)),
        **dict.fromkeys(("values/layer.1.scores", "values/layer.1.attention"), (2, 4, 5, 5)),
        "values/layer.1.head_outputs": (2, 4, 5, 4),
    }
    assert len(names["dump"]) == 2 * (2 * len(shapes) + 1)
    exec(recipe, names)
    exec(example, names)
    assert sorted(names["dump"]) == sorted(f"{d}{name}" for d in ("", "d_") for name in (
        "values/layer.0.q", "values/loss", "weights/blocks.0.wq"
    ))
    exec(checks, names)
    (program,) = [text for language, text in BLOCKS if language == "c"]
    (command,) = [text for language, text in BLOCKS if language == "sh"]
    (tmp_path / "rmsnorm.c").write_text(program)
    subprocess.run(command, shell=True, check=True)
    exec(c, names)


@pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not installed (Debian: apt-get install gcc)")
def test_a_mistake_in_c_is_found_by_the_arguments_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (program,) = [text for language, text in BLOCKS if language == "c"]
    (command,) = [text for language, text in BLOCKS if language == "sh"]
    assert program.count("dweight[i] += dout[i] * x[i] * rstd;") == 1
    (tmp_path / "rmsnorm.c").write_text(program.replace("dweight[i] += dout", "dweight[i] = dout"))
    subprocess.run(command, shell=True, check=True)
    args = [np.random.default_rng(0).normal(size=(5, 3)), np.array([1.0, -2.0, 0.5])]
    with pytest.raises(GradientError, match=r"gradient of weight \(argument 1\) is wrong: .*; right: x \(argument 0\)$"):
        exec(PYTHON[-1].replace("./rmsnorm.so", f"{tmp_path}/rmsnorm.so"), {"np": np, "gradcheck": gradcheck, "args": args})


def test_the_error_about_a_forgotten_factor_is_as_described():
    forgotten = PYTHON[4].replace("(dout * x).sum(0)", "dout.sum(0)", 1)
    with pytest.raises(GradientError, match=r"^the gradient of weight \(argument 1\) is wrong.*right: x \(argument 0\)$"):
        exec(forgotten, {"torch": torch, "jax": jax})


# ------------------------------------------------------------------------------------------------ a Llama in JAX


def llama(c, weights, tokens, targets, keep):
    """The loss of a Llama; every value goes through `keep`."""
    jnp = jax.numpy
    w, (_, T), D = weights, tokens.shape, c.head_dim

    def norm(x, weight):
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + c.norm_eps) * weight

    def heads(x):
        return x.reshape(*x.shape[:2], -1, D).swapaxes(1, 2)

    def rotated(x):
        angles = jnp.arange(T)[:, None] * c.rope_theta ** (-jnp.arange(0, D, 2) / D)
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * jnp.cos(angles) - b * jnp.sin(angles), b * jnp.cos(angles) + a * jnp.sin(angles)], -1)

    x = keep("embedding", w["embed"][tokens])
    for i in range(c.n_layers):
        def kept(name, value, i=i):
            return keep(f"layer.{i}.{name}", value)

        def linear(name, x, i=i):
            return x @ w[f"blocks.{i}.{name}"].T

        n = kept("attn_norm", norm(x, w[f"blocks.{i}.attn_norm"]))
        q, k, v = (heads(kept(name, linear(f"w{name}", n))) for name in "qkv")
        if c.qk_norm:
            q, k = (kept(name, norm(x, w[f"blocks.{i}.{name}"])) for name, x in (("q_norm", q), ("k_norm", k)))
        q, k = kept("q_rotated", rotated(q)), kept("k_rotated", rotated(k))
        k, v = (jnp.repeat(x, c.n_heads // c.n_kv_heads, axis=1) for x in (k, v))
        visible = jnp.tri(T, dtype=bool)
        attention = kept("attention", jax.nn.softmax(kept("scores", jnp.where(visible, q @ k.mT / D**0.5, -jnp.inf)), -1))
        mixed = kept("head_outputs", attention @ v).swapaxes(1, 2).reshape(*x.shape[:2], -1)
        x = kept("after_attention", x + kept("attn_out", linear("wo", mixed)))
        n = kept("ffn_norm", norm(x, w[f"blocks.{i}.ffn_norm"]))
        gated = kept("swiglu", jax.nn.silu(kept("gate", linear("w_gate", n))) * kept("up", linear("w_up", n)))
        x = kept("after_ffn", x + kept("ffn_out", linear("w_down", gated)))
    logits = keep("logits", keep("norm", norm(x, w["norm"])) @ w["embed" if c.tie_embeddings else "head"].T)
    counted = targets != -100
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.where(counted, targets, 0)[..., None], -1)[..., 0]
    return keep("loss", -jnp.where(counted, picked, 0).sum() / counted.sum())


@pytest.mark.parametrize("name", ["gqa", "tied", "qk-norm", "odd-sizes", "large-eps", "ignored"])
def test_the_recipe_for_jax_gives_the_vectors(name):
    jax.config.update("jax_enable_x64", True)
    exec("from numllama.learn.record import record, recording\n" + PYTHON[2], names := {})
    vectors = standard_vectors(name)
    expected = {key: array for key, array in vectors.tensors.items() if key.partition("/")[0] in KINDS}
    weights = {key.removeprefix("weights/"): jax.numpy.asarray(v) for key, v in expected.items() if key.startswith("weights/")}
    batch = vectors.tensors["tokens"], vectors.tensors["targets"]
    dump = names["recorded"](lambda *args: llama(vectors.config, *args), weights, *batch)
    assert sorted(dump) == sorted(expected)
    for key, array in expected.items():
        assert_close(dump[key], array, rtol=1e-9)


KINDS = ("values", "d_values", "weights", "d_weights")
