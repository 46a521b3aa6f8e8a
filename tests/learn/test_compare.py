"""Comparing with another Llama: what is the same, which op is the first that is wrong, and what cannot be compared."""

import json
import math
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

import numllama as nl
from numllama.cli import main
from numllama.errors import CheckpointError, DataError
from numllama.learn.compare import FOLLOWS, SAME, WRONG
from numllama.learn.compare_report import as_html
from numllama.learn.evaluation import evaluate
from numllama.learn.layouts import MERGED, OTHERS, PLAIN, SPLIT, SQUARE
from numllama.learn.mistakes.mistake import Mistake, mistaken, places
from numllama.learn.reference import opened_reference
from numllama.learn.vectors import STANDARD, standard_vectors, write_vectors
from numllama.model.parameters import copied_parameters


def converted(tensors, dtype):
    return {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in tensors.items()}


def dumped_with(reference, mistake, dtype="float64"):
    """The values and gradients of a Llama with a mistake in all its places."""
    equations = reference.equations
    replaced = {node: mistaken(equations, node, mistake) for node in places(equations, mistake)}
    wanted = [name for name in equations.order if name not in reference.known and "/" in name]
    values = evaluate(equations, wanted, reference.known, replaced)
    return {name: np.array(value, dtype, order="C") for name, value in values.items() if "/" in name}


def model_of(vectors):
    weights = {name.removeprefix("weights/"): array for name, array in vectors.tensors.items() if name.startswith("weights/")}
    params = copied_parameters(vectors.config, weights, np.dtype(np.float64))
    return nl.Transformer(vectors.config, params=params, dtype="float64")


def run(*arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    return stopped.value.code


@pytest.fixture(scope="module")
def gqa():
    return standard_vectors("gqa")


# ------------------------------------------------------------------------------------------------ the same


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", STANDARD)
def test_vectors_are_the_same_as_themselves(name, dtype):
    vectors = standard_vectors(name)
    comparison = nl.compare(vectors, converted(vectors.tensors, dtype))
    assert comparison.same and comparison.dtype == dtype and not comparison.notes
    assert {each.name for each in comparison.judged} == set(vectors.tensors) - {"tokens", "targets", "segments"}


def test_a_model_is_a_reference_too(gqa, tmp_path):
    model = model_of(gqa)
    tokens = np.array([[3, 1, 4, 1, 5]])
    logits = model.forward(tokens)
    assert nl.compare(model, {"tokens": tokens, "logits": logits}).same
    assert nl.compare(model, {"logits": logits}, tokens=tokens).same
    model.save(tmp_path / "model")
    assert nl.compare(tmp_path / "model", {"lm_head": logits[0].astype("float32")}, tokens=tokens[0]).same


def test_its_targets_are_the_next_tokens(gqa):
    model = model_of(gqa)
    tokens = np.array([[3, 1, 4, 1, 5]])
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    assert nl.compare(model, {"loss": np.array(loss), "tokens": tokens}).same


# ------------------------------------------------------------------------------------------------ what is wrong


def swapped(gate, up):
    return up / (1 + np.exp(-up)) * gate


def unscaled(q, k, visible):
    return np.where(visible, q @ k.swapaxes(-1, -2), -math.inf)


def one_term(dout, x, weight, eps):
    return {"x": dout * weight / np.sqrt((x * x).mean(-1, keepdims=True) + eps)}


MISTAKES = {
    "values/layer.0.swiglu": Mistake("Gate and up are exchanged.", ("swiglu",), swapped),
    "values/layer.0.scores": Mistake("No scale.", ("scores",), unscaled),
    "d_values/layer.1.after_ffn": Mistake("One term.", ("rmsnorm",), one_term, in_backward=True),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("first", MISTAKES)
def test_the_first_wrong_value_is_named(gqa, first, dtype):
    reference = opened_reference(gqa, {})
    comparison = nl.compare(gqa, dumped_with(reference, MISTAKES[first], dtype))
    wrong = [each for each in comparison.judged if each.verdict == WRONG]
    assert wrong[0].name == first
    sentence = comparison.backward if first.startswith("d_") else comparison.forward
    assert sentence.split(" is the first")[0].endswith(first.partition("/")[2])
    if not first.startswith("d_"):
        assert {each.name.rpartition(".")[2] for each in wrong} == {first.rpartition(".")[2]}  # in both layers, and nothing else
        assert comparison.judged[-1].verdict == FOLLOWS and "gradient" not in comparison.forward


def test_what_lies_before_is_the_same(gqa):
    comparison = nl.compare(gqa, dumped_with(opened_reference(gqa, {}), MISTAKES["values/layer.0.scores"]))
    before = [each for each in comparison.judged if each.name.startswith("values/layer.0.")]
    verdicts = {each.name.rpartition(".")[2]: each.verdict for each in before}
    assert verdicts["q_rotated"] == SAME and verdicts["scores"] == WRONG and verdicts["attention"] == FOLLOWS


def test_a_sparse_dump_says_what_lies_between(gqa):
    full = dumped_with(opened_reference(gqa, {}), MISTAKES["values/layer.0.scores"])
    comparison = nl.compare(gqa, {name: full[name] for name in ("values/layer.0.attn_norm", "values/layer.0.attn_out")})
    assert "layer.0.attn_out is the first" in comparison.forward and "layer.0.attn_norm" in comparison.forward
    assert "lacks what lies between: layer.0.q, layer.0.k, layer.0.v and" in comparison.forward


def test_not_a_number_is_wrong_where_it_begins(gqa):
    dump = converted(gqa.tensors, "float32")
    dump["values/layer.0.k"] = dump["values/layer.0.k"].copy()
    dump["values/layer.0.k"][1, 2, 3] = np.nan
    dump["values/layer.0.v"] = np.full_like(dump["values/layer.0.v"], np.inf)
    comparison = nl.compare(gqa, dump)
    assert not comparison.same
    assert "layer.0.k is the first that is wrong: nan at (1, 2, 3) instead of" in comparison.forward


def test_other_weights_come_first(gqa):
    dump = converted(gqa.tensors, "float32")
    dump["weights/blocks.0.wk"] = dump["weights/blocks.0.wk"] * 2
    comparison = nl.compare(gqa, dump)
    assert comparison.judged[0].name.startswith("weights/")
    assert "blocks.0.wk is the first that is wrong" in comparison.forward


def test_the_optimizer_follows_from_the_model(gqa):
    dump = converted(gqa.tensors, "float64")
    dump["after/embed"] = dump["after/embed"] + 1
    assert "after/embed is the first" in nl.compare(gqa, dump).others
    dump["d_weights/embed"] = dump["d_weights/embed"] * 2
    comparison = nl.compare(gqa, dump)
    assert "the gradient of embed is the first" in comparison.backward and not comparison.others


def test_scores_of_hidden_keys_may_be_anything(gqa):
    hidden = ~np.tri(5, dtype=bool)
    for value in (0.0, -1e9, -math.inf, 3.0):
        dump = converted(gqa.tensors, "float32")
        dump["values/layer.0.scores"] = np.where(hidden, value, dump["values/layer.0.scores"]).astype("float32")
        assert nl.compare(gqa, dump).same


# ------------------------------------------------------------------------------------------------ layouts and names


def as_spec(array, ours, theirs, head_dim):
    """An array of arrangement `ours` in the arrangement `theirs`."""
    groups = [group.strip("()") for group in ours.split()]
    letters, shape = "".join(groups), []
    for group, size in zip(groups, array.shape, strict=True):
        shape += [size // head_dim, head_dim] if len(group) == 2 else [size]
    sizes = dict(zip(letters, shape, strict=True))
    wanted = [group.strip("()") for group in theirs.split()]
    missing = [letter for letter in letters if letter not in "".join(wanted)]
    order = [*missing, *"".join(wanted)]
    moved = array.reshape(shape).transpose([letters.index(letter) for letter in order])
    return moved.reshape([math.prod(sizes[letter] for letter in group) for group in wanted])


@pytest.mark.parametrize(("name", "ours"), [("q_rotated", SPLIT), ("v", MERGED), ("attention", SQUARE), ("gate", PLAIN)])
def test_every_arrangement_is_recognised(gqa, name, ours):
    model = model_of(gqa)
    for theirs in OTHERS[ours]:
        tokens = np.array([[3, 1, 4]] if theirs[0] in "hT" else [[3, 1, 4], [1, 5, 9]])
        values = opened_reference(model, {}, tokens).values
        array = as_spec(values[f"values/layer.1.{name}"], ours, theirs, gqa.config.head_dim)
        comparison = nl.compare(model, {f"layer.1.{name}": array}, tokens=tokens)
        assert comparison.same, theirs
        assert comparison.notes == [f"layer.1.{name}: axes {theirs} instead of {ours} (a layout, not a fault)"]


def test_transposed_weights_are_a_layout_and_one_transposed_gradient_is_a_fault():
    vectors = standard_vectors("mha")                                  # wq and wo are square
    weights = {name for name in vectors.tensors if name.startswith(("weights/", "d_weights/"))}
    matrices = {name for name in weights if vectors.tensors[name].ndim == 2}
    dump = {name: array.T if name in matrices else array for name, array in vectors.tensors.items()}
    comparison = nl.compare(vectors, dump)
    assert comparison.same and "transposed (a layout, not a fault)" in comparison.notes[0]
    dump = vectors.tensors | {"d_weights/blocks.1.wo": vectors.tensors["d_weights/blocks.1.wo"].T}
    comparison = nl.compare(vectors, dump)
    assert [each.name for each in comparison.wrong()] == ["d_weights/blocks.1.wo"]


def test_a_square_weight_alone_and_its_gradient_may_be_transposed():
    vectors = standard_vectors("mha")
    turned = {f"{kind}/blocks.0.wq": vectors.tensors[f"{kind}/blocks.0.wq"].T for kind in ("weights", "d_weights")}
    comparison = nl.compare(vectors, vectors.tensors | turned)
    assert comparison.same
    assert comparison.notes == ["blocks.0.wq, the gradient of blocks.0.wq: transposed (a layout, not a fault)"]


def test_the_other_layout_of_rope_is_recognised(gqa):
    c, D = gqa.config, gqa.config.head_dim
    to_neighbours = np.arange(D).reshape(2, D // 2).T.ravel()

    def permuted(array, axis):
        split = array.reshape(*array.shape[:axis], -1, D, *array.shape[axis + 1 :])
        return split.take(to_neighbours, axis + 1).reshape(array.shape)

    dump = dict(gqa.tensors)
    for name in dump:
        short = name.rpartition(".")[2]
        if name.startswith(("weights/", "d_weights/", "after/")) and short in ("wq", "wk"):
            dump[name] = permuted(dump[name], 0)
        if name.startswith(("values/", "d_values/")) and short in ("q", "k", "q_rotated", "k_rotated"):
            dump[name] = permuted(dump[name], dump[name].ndim - 1)
    comparison = nl.compare(gqa, dump)
    assert comparison.same and any("RoPE's other layout" in note for note in comparison.notes)
    assert c.rope_layout == "half"


@pytest.mark.parametrize(("theirs", "ours"), [
    ("model.layers.1.self_attn.q_proj.weight", "weights/blocks.1.wq"),
    ("layers.1.self_attn.q_proj", "values/layer.1.q"),
    ("model.layers.0.mlp.down_proj.weight.grad", "d_weights/blocks.0.w_down"),
    ("grad/model.embed_tokens.weight", "d_weights/embed"),
    ("model.layers.0.input_layernorm", "values/layer.0.attn_norm"),
    ("model.layers.0", "values/layer.0.after_ffn"),
    ("lm_head", "values/logits"),
    ("layers.0.attention.wo.weight", "weights/blocks.0.wo"),
    ("layers.1.feed_forward.w3", "values/layer.1.up"),
    ("tok_embeddings.weight", "weights/embed"),
    ("output.weight", "weights/head"),
    ("transformer.h.0.attn.proj.weight", "weights/blocks.0.wo"),
    ("transformer.h.1.mlp.fc_1", "values/layer.1.gate"),
    ("transformer.ln_f.weight", "weights/norm"),
    ("layer.0.scores", "values/layer.0.scores"),
    ("d_layer.0.scores", "d_values/layer.0.scores"),
    ("blocks.0.wq.grad", "d_weights/blocks.0.wq"),
    ("token_embedding_table", "weights/embed"),
    ("loss", "values/loss"),
])  # fmt: skip
def test_names_of_others(gqa, theirs, ours):
    comparison = nl.compare(gqa, {theirs: gqa.tensors[ours]})
    assert [each.name for each in comparison.judged] == [ours] and comparison.same


def test_llama2c_has_one_array_for_all_layers(gqa):
    stacked = np.stack([gqa.tensors[f"weights/blocks.{i}.w_gate"] for i in range(2)])
    comparison = nl.compare(gqa, {"w1": stacked})
    assert [each.name for each in comparison.judged] == ["weights/blocks.0.w_gate", "weights/blocks.1.w_gate"] and comparison.same


def test_a_map_of_names(gqa):
    comparison = nl.compare(gqa, {"mine": gqa.tensors["values/layer.0.q"]}, names={"mine": "values/layer.0.q"})
    assert comparison.same and comparison.judged[0].name == "values/layer.0.q"
    with pytest.raises(DataError, match=r"calls 'mine' 'values/layer\.9\.q', which golden vectors do not have"):
        nl.compare(gqa, {"mine": gqa.tensors["values/layer.0.q"]}, names={"mine": "values/layer.9.q"})
    with pytest.raises(DataError, match="has 'yours', but the dump does not"):
        nl.compare(gqa, {"mine": gqa.tensors["values/layer.0.q"]}, names={"yours": "values/layer.0.q"})


def test_keys_may_be_repeated_for_every_query_head(gqa):
    repeated = np.repeat(gqa.tensors["values/layer.0.k_rotated"], 2, axis=1)
    assert nl.compare(gqa, {"layer.0.k_repeated": repeated}).same
    tiled = np.tile(gqa.tensors["values/layer.0.k_rotated"], (1, 2, 1, 1))
    assert not nl.compare(gqa, {"layer.0.k_repeated": tiled}).same


# ------------------------------------------------------------------------------------------------ what cannot be compared


@pytest.mark.parametrize(("change", "message"), [
    ({"values/layer.0.q": np.zeros((2, 5, 17))}, r"values/layer.0.q has shape \(2, 5, 17\), but must have \(2, 5, 16\)"),
    ({"weights/embed": np.zeros((32, 16))}, "weights/embed has 32 rows, but the reference's vocabulary has 11 tokens"),
    ({"values/logits": np.zeros((2, 5, 12))}, "values/logits has 12 columns, but the reference's vocabulary has 11 tokens"),
    ({"tokens": np.zeros((2, 5), int)}, "the dump's tokens are not those of the reference"),
    ({"lm_head": np.zeros((2, 5, 11))}, "the dump has values/logits twice: once as 'lm_head'"),
])  # fmt: skip
def test_another_model_is_refused(gqa, change, message):
    with pytest.raises(DataError, match=message):
        nl.compare(gqa, gqa.tensors | change)


def test_unknown_names_are_told(gqa):
    with pytest.raises(DataError, match="no tensor of the dump has a name that is known, such as 'mine'"):
        nl.compare(gqa, {"mine": np.zeros(3)})
    comparison = nl.compare(gqa, {"mine": np.zeros(3), "loss": gqa.tensors["values/loss"]})
    assert comparison.same and comparison.notes == ["not compared, as the names are not known: mine"]


def test_a_misspelt_name_is_told_with_the_right_one(gqa):
    comparison = nl.compare(gqa, {"layer.0.scoers": np.zeros(3), "loss": gqa.tensors["values/loss"]})
    assert comparison.notes == [
        "not compared, as the names are not known: layer.0.scoers (did you mean layer.0.scores?)"
    ]


def write_pickle(path):
    path.write_bytes(pickle.dumps([1]))


BAD_FILES = {
    "missing.safetensors": (None, "does not exist"),
    "empty.safetensors": (lambda path: path.write_bytes(b""), "is empty"),
    "text.safetensors": (lambda path: path.write_text("hello, world"), "is damaged"),
    "mine.pt": (write_pickle, "is a Python pickle"),
    "mine.npz": (lambda path: np.savez(path, a=np.array([{}], object)), "is not a .npz file of numbers"),
    "mine.npy": (lambda path: np.save(path, np.array([{}], object)), "is not a .npy file of numbers"),
    "words.npz": (lambda path: np.savez(path, a=np.array(["a"])), "must have real numbers"),
    "none.npz": (lambda path: np.savez(path), "has no tensors"),
    "folder": (lambda path: path.mkdir(), "is a folder without .npy files"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, capsys, name):
    write, message = BAD_FILES[name]
    if write:
        write(tmp_path / name)
    assert run("compare", "gqa", str(tmp_path / name)) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.parametrize("how", ["safetensors", "npz", "npy", "vectors"])
def test_every_kind_of_file_is_read(gqa, tmp_path, capsys, how):
    tensors = {name: np.ascontiguousarray(array) for name, array in converted(gqa.tensors, "float32").items()}
    if how == "safetensors":
        save_file(tensors, tmp_path / "mine.safetensors")
    elif how == "npz":
        np.savez(tmp_path / "mine.npz", **tensors)
    elif how == "npy":
        write_vectors(gqa, tmp_path / "vectors", npy=True)
        (tmp_path / "vectors" / "npy" / "float32").rename(tmp_path / "mine.npy")
    else:
        write_vectors(gqa, tmp_path / "mine.vectors")
    assert run("compare", "gqa", str(tmp_path / f"mine.{how}")) == 0
    assert "The same: " in capsys.readouterr().out


def test_the_command(gqa, tmp_path, capsys):
    save_file(dumped_with(opened_reference(gqa, {}), MISTAKES["values/layer.0.scores"], "float32"), tmp_path / "mine.safetensors")
    arguments = ["compare", "gqa", str(tmp_path / "mine.safetensors")]
    assert run(*arguments, "--html", str(tmp_path / "page.html")) == 1
    table = capsys.readouterr().out
    assert "that are the same" in table and "  values/layer.0.q " not in table
    assert "values/layer.0.scores" in table and "WRONG" in table and "layer.0.scores is the first that is wrong" in table
    assert run(*arguments, "--all") == 1
    assert "  values/layer.0.q " in capsys.readouterr().out
    assert run(*arguments, "--json") == 1
    result = json.loads(capsys.readouterr().out)
    assert result["same"] is False and result["forward"].startswith("layer.0.scores")
    assert {each["verdict"] for each in result["tensors"]} == {"same", "wrong", "follows"}
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "layer.0.scores is the first that is wrong" in page and page.count("<img") > 20


def test_a_page_with_infinities(gqa):
    dump = converted(gqa.tensors, "float32")
    dump["values/layer.0.v"] = np.full_like(dump["values/layer.0.v"], np.inf)
    assert "<img" in as_html(nl.compare(gqa, dump))


def test_names_from_a_file(gqa, tmp_path, capsys):
    np.savez(tmp_path / "mine.npz", mine=gqa.tensors["values/layer.0.q"])
    (tmp_path / "names.json").write_text('{"mine": "values/layer.0.q"}')
    assert run("compare", "gqa", str(tmp_path / "mine.npz"), "--names", str(tmp_path / "names.json")) == 0
    (tmp_path / "names.json").write_text('{"mine": 3}')
    assert run("compare", "gqa", str(tmp_path / "mine.npz"), "--names", str(tmp_path / "names.json")) == 2
    assert "must map each name" in capsys.readouterr().err


def test_bad_settings(gqa):
    with pytest.raises(ValueError, match="dtype is 'int8', but must be one of float64, float32, float16, bfloat16"):
        nl.compare(gqa, gqa.tensors, dtype="int8")
    with pytest.raises(CheckpointError, match="neither a file or folder nor one of mha, gqa"):
        nl.compare("nothing", gqa.tensors)
    model = nl.Transformer(gqa.config)
    with pytest.raises(DataError, match="a model as the reference needs tokens"):
        nl.compare(model, {"logits": np.zeros((1, 2, 11))})
    with pytest.raises(ValueError, match="only a plain Llama"):
        nl.compare(nl.Transformer(nl.ModelConfig(11, 16, 1, 4, ffn="gelu")), {"logits": np.zeros((1, 2, 11))}, tokens=[[1, 2]])
