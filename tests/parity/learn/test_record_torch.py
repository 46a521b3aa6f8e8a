"""What is recorded of models in PyTorch is what golden vectors hold: every value, weight and gradient, by its name."""

import subprocess
import sys

import numpy as np
import pytest
from helpers import assert_close

import numllama as nl
from numllama.learn import record
from numllama.learn.record import by_token, recording
from numllama.learn.vectors import STANDARD, standard_vectors, write_vectors
from numllama.model.parameters import copied_parameters

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

RECORDED = ("values", "d_values", "weights", "d_weights", "tokens", "targets")
TURNED = ("q", "k", "q_rotated", "k_rotated", "wq", "wk")  # of interleaved heads: transformers has them in another order


def recorded(vectors):
    """The vectors of a model's forward and backward."""
    return {name: array for name, array in vectors.tensors.items() if name.partition("/")[0] in RECORDED}


def check(dump, expected, rtol):
    assert sorted(set(expected) ^ set(dump)) == []
    for name, array in expected.items():
        assert dump[name].shape == array.shape, name
        assert_close(dump[name], array, rtol=rtol)


def of_transformers(vectors, folder, dtype="float64", attention="eager"):
    weights = {name.removeprefix("weights/"): value for name, value in vectors.tensors.items() if name.startswith("weights/")}
    params = copied_parameters(vectors.config, weights, np.dtype(np.float64))
    nl.Transformer(vectors.config, params=params).save(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attention
    )


def run(model, vectors):
    """Forward and backward; a mask and positions where documents are packed."""
    tokens, targets, positions = (torch.tensor(vectors.tensors[name]) for name in ("tokens", "targets", "positions"))
    packed = {}
    if positions.ndim == 2:
        B, T = tokens.shape
        starts = torch.arange(T) - positions
        seen = (torch.arange(T) <= torch.arange(T)[:, None]) & (torch.arange(T) >= starts[..., None])
        mask = torch.zeros(B, 1, T, T, dtype=model.dtype).masked_fill(~seen[:, None], torch.finfo(model.dtype).min)
        packed = dict(attention_mask=mask, position_ids=positions)
    model(tokens, labels=targets, shift_labels=targets, **packed).loss.backward()


@pytest.fixture
def all_in_float64(monkeypatch):
    """transformers rounds to float32 in norms, RoPE, softmax and loss, whatever the dtype; here float32 is float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def in_order(names):
    return {name for name in names if name.rpartition(".")[2] not in TURNED}


@pytest.mark.parametrize("name", STANDARD)
def test_transformers_gives_the_vectors_in_float64(name, tmp_path, request):
    vectors = standard_vectors(name)
    model = of_transformers(vectors, tmp_path)
    request.getfixturevalue("all_in_float64")
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    with recording(model) as dump:
        run(model, vectors)
    expected = recorded(vectors)
    if vectors.config.rope_layout == "interleaved":
        expected = {key: expected[key] for key in in_order(expected)}
        dump = {key: dump[key] for key in in_order(dump)}
    check(dump, expected, rtol=1e-9)


@pytest.mark.parametrize("name", [name for name in STANDARD if name != "interleaved"])
def test_transformers_gives_the_vectors_in_float32(name, tmp_path):
    vectors = standard_vectors(name)
    model = of_transformers(vectors, tmp_path, "float32")
    with recording(model) as dump:
        run(model, vectors)
    assert {array.dtype.name for array in dump.values()} == {"float32", "int64"}
    check(dump, recorded(vectors), rtol=1e-5)


def test_a_fused_attention_has_no_scores_to_record(tmp_path):
    vectors = standard_vectors("gqa")
    model = of_transformers(vectors, tmp_path, "float32", "sdpa")
    with recording(model) as dump:
        run(model, vectors)
    inside = (".scores", ".attention")
    check(dump, {name: array for name, array in recorded(vectors).items() if not name.endswith(inside)}, rtol=1e-5)


def test_bfloat16_becomes_float32(tmp_path):
    vectors = standard_vectors("gqa")
    model = of_transformers(vectors, tmp_path, "bfloat16")
    with recording(model) as dump:
        run(model, vectors)
    assert {array.dtype.name for array in dump.values()} == {"float32", "int64"}
    assert np.array_equal(dump["d_weights/head"], model.lm_head.weight.grad.float())


def test_a_mistral_and_a_model_inside_another():
    config = dict(vocab_size=11, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4)
    config |= dict(num_key_value_heads=2, attn_implementation="eager")
    inner = transformers.MistralForCausalLM(transformers.MistralConfig(**config))
    model = torch.nn.ModuleDict({"wrapped": inner})
    with recording(model) as dump:
        tokens = torch.arange(10).reshape(2, 5)
        record.record("loss", inner(tokens, labels=tokens).loss).backward()
    assert set(dump) == set(recorded(standard_vectors("gqa"))) - {"targets"}  # a loss that is not the outer model's own


def test_labels_are_targets_one_token_later(tmp_path):
    vectors = standard_vectors("mha")
    model, tokens = of_transformers(vectors, tmp_path), torch.arange(10).reshape(2, 5)
    with recording(model, gradients=False) as dump:
        model(tokens, labels=tokens)
    assert dump["tokens"].tolist() == tokens.tolist()
    assert dump["targets"].tolist() == [[1, 2, 3, 4, -100], [6, 7, 8, 9, -100]]
    assert not any(name.startswith("d_") for name in dump)


def test_compare_and_diagnose_take_a_recording(tmp_path, monkeypatch):
    vectors = standard_vectors("gqa")
    write_vectors(vectors, tmp_path / "vectors")
    model = of_transformers(vectors, tmp_path / "model", "float32")
    with recording(model) as dump:
        run(model, vectors)
    assert nl.compare(tmp_path / "vectors", dump).same
    dump.save(tmp_path / "mine.safetensors")
    assert nl.compare(tmp_path / "vectors", tmp_path / "mine.safetensors").same

    def tiled(x, n):
        return x.repeat(1, n, 1, 1)

    monkeypatch.setattr(sys.modules[type(model).__module__], "repeat_kv", tiled)
    with recording(model) as dump:
        run(model, vectors)
    assert not nl.compare(tmp_path / "vectors", dump).same
    assert nl.diagnose(tmp_path / "vectors", dump).explanations


def test_blocks_that_are_computed_again_in_backward(tmp_path):
    vectors = standard_vectors("gqa")
    model = of_transformers(vectors, tmp_path, "float32")
    model.train().activation_checkpointing_enable()
    with recording(model) as dump:
        run(model, vectors)
    check(dump, recorded(vectors), rtol=1e-5)


def test_a_recording_leaves_no_trace(tmp_path):
    vectors = standard_vectors("gqa")
    model = of_transformers(vectors, tmp_path)
    interface = sys.modules[type(model).__module__].ALL_ATTENTION_FUNCTIONS
    before, attributes = {name: value.clone() for name, value in model.state_dict().items()}, dict(vars(interface))
    for _ in range(2):
        with recording(model) as outer, recording(model.model) as inner:
            run(model, vectors)
        assert vars(interface) == attributes
        hooks = [vars(module)[kind] for module in model.modules() for kind in ("_forward_hooks", "_forward_pre_hooks")]
        assert not any(hooks) and not any(parameter._backward_hooks for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert set(outer) - set(inner) == {f"{kind}{name}" for kind in ("", "d_") for name in (
        "values/logits", "values/loss", "weights/head"
    )} | {"targets"}
    assert all(np.array_equal(outer[name], array) for name, array in inner.items())  # one backward, though p.grad holds two


# ------------------------------------------------------------------------------------------------ other models


class Norm(torch.nn.Module):
    def __init__(self, gain, eps):
        super().__init__()
        self.gain, self.eps = torch.nn.Parameter(gain), eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.gain


class Attention(torch.nn.Module):
    """Meta's: RoPE turns neighbours, as complex numbers."""

    def __init__(self, c, **weights):
        super().__init__()
        self.head_dim, self.theta, self.shared = c.head_dim, c.rope_theta, c.n_heads // c.n_kv_heads
        self.wq, self.wk, self.wv, self.wo = (linear(weights[name]) for name in ("wq", "wk", "wv", "wo"))

    def rotated(self, x):
        T, D = x.shape[-2:]
        angles = torch.arange(T)[:, None] * self.theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(turned).flatten(-2)

    def forward(self, x):
        q, k, v = (w(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        q, k = record.record("q_rotated", self.rotated(q)), record.record("k_rotated", self.rotated(k))
        k, v = (x.repeat_interleave(self.shared, 1) for x in (k, v))
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = record.record("scores", (q @ k.mT / self.head_dim**0.5).masked_fill(hidden, -torch.inf))
        attention = record.record("attention", scores.softmax(-1))
        return self.wo((attention @ v).transpose(1, 2).flatten(-2))


class FeedForward(torch.nn.Module):
    def __init__(self, w1, w2, w3):
        super().__init__()
        self.w1, self.w2, self.w3 = linear(w1), linear(w2), linear(w3)

    def forward(self, x):
        return self.w2(torch.nn.functional.silu(self.w1(x)) * self.w3(x))


class Block(torch.nn.Module):
    def __init__(self, c, w):
        super().__init__()
        self.attention = Attention(c, **{name: w[name] for name in ("wq", "wk", "wv", "wo")})
        self.feed_forward = FeedForward(w["w_gate"], w["w_down"], w["w_up"])
        self.attention_norm, self.ffn_norm = Norm(w["attn_norm"], c.norm_eps), Norm(w["ffn_norm"], c.norm_eps)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(x=self.ffn_norm(x))


class Llama(torch.nn.Module):
    """Modules are named as Meta's; the gain of a norm is `gain`."""

    def __init__(self, vectors):
        super().__init__()
        w = {name: torch.tensor(value) for name, value in vectors.tensors.items()}
        self.tok_embeddings = torch.nn.Embedding.from_pretrained(w["weights/embed"], freeze=False)
        blocks = [
            {name.removeprefix(f"weights/blocks.{i}."): value for name, value in w.items()}
            for i in range(vectors.config.n_layers)
        ]
        self.layers = torch.nn.ModuleList(Block(vectors.config, block) for block in blocks)
        self.norm, self.output = Norm(w["weights/norm"], vectors.config.norm_eps), linear(w["weights/head"])

    def forward(self, tokens, targets):
        x = self.tok_embeddings(tokens)
        for i, block in enumerate(self.layers):
            with record.layer(i):
                x = block(x)
        logits = self.output(self.norm(x))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), record.record("targets", targets).flatten())
        return record.record("loss", loss)


def linear(weight):
    made = torch.nn.Linear(*weight.T.shape, bias=False, dtype=weight.dtype)
    made.weight = torch.nn.Parameter(weight)
    return made


MAP = {
    "layers.*.attention_norm.gain": "blocks.*.attn_norm",
    "layers.*.ffn_norm.gain": "blocks.*.ffn_norm",
    "norm.gain": "norm",
    "tok_embeddings": ("tokens", "embedding"),
    "layers.*": "layer.*.after_ffn",
    "layers.*.attention_norm": "layer.*.attn_norm",
    "layers.*.attention.wq": "q",  # in a block of `with layer(i)`
    "layers.*.attention.wk": "k",
    "layers.*.attention.wv": "v",
    "layers.*.attention.wq.weight": "blocks.*.wq",
    "layers.*.attention.wk.weight": "blocks.*.wk",
    "layers.*.attention.wv.weight": "blocks.*.wv",
    "layers.*.attention.wo": (by_token("layer.*.head_outputs"), "layer.*.attn_out"),
    "layers.*.ffn_norm": ("layer.*.after_attention", "layer.*.ffn_norm"),
    "layers.*.feed_forward.w1": "layer.*.gate",
    "layers.*.feed_forward.w2": (None, "layer.*.ffn_out"),
    "layers.*.feed_forward.w2.weight": "blocks.*.w_down",
    "layers.*.feed_forward.w3": "layer.*.up",
    "norm": "norm",
    "output": "logits",
}


def of_mine(vectors):
    model = Llama(vectors)
    return model, torch.tensor(vectors.tensors["tokens"]), torch.tensor(vectors.tensors["targets"])


def test_a_model_of_ones_own_by_a_map_and_by_calls_in_its_forward():
    vectors = standard_vectors("interleaved")
    model, *batch = of_mine(vectors)
    expected = {name: array for name, array in recorded(vectors).items() if not name.endswith("swiglu")}  # not in the map
    with recording(model, MAP) as dump:
        model(*batch).backward()
    check(dump, expected, rtol=1e-9)


def test_metas_names_are_known():
    vectors = standard_vectors("interleaved")
    model, *batch = of_mine(vectors)
    for norm in (model.norm, *(block.attention_norm for block in model.layers), *(block.ffn_norm for block in model.layers)):
        norm.weight = norm.gain
        del norm.gain
        norm.__class__ = type("RMSNorm", (Norm,), {"gain": property(lambda self: self.weight)})
    with recording(model) as dump:
        model(*batch).backward()
    check(dump, recorded(vectors), rtol=1e-9)


def test_the_first_call_counts():
    vectors = standard_vectors("interleaved")
    model, *batch = of_mine(vectors)
    with recording(model, MAP) as once:
        model(*batch).backward()
    with recording(model, MAP) as twice:
        model(*batch).backward()
        model(batch[0].flip(1), batch[1]).backward()
    check(twice, once, rtol=1e-15)


def test_functions_without_modules_are_recorded_by_calls():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with recording() as dump:
        with record.layer(1):
            y = record.record("q", record.record("weights/wq", x) ** 2)
        y *= 3  # in place: what was recorded stays
        y.sum().backward()
    assert {name: array.tolist() for name, array in dump.items()} == {
        "weights/blocks.1.wq": [1.0, 2.0], "values/layer.1.q": [1.0, 4.0],
        "d_values/layer.1.q": [3.0, 3.0], "d_weights/blocks.1.wq": [6.0, 12.0],
    }  # fmt: skip


def test_only_the_first_of_several_outputs_is_recorded():
    class Pair(torch.nn.Module):
        def forward(self, *, x):
            return 2 * x, "a cache"

    model = torch.nn.ModuleDict({"pair": Pair()})
    with recording(model, {"pair": ("tokens", "logits")}) as dump:
        model["pair"](x=torch.tensor([1]))
    assert (dump["tokens"], dump["values/logits"]) == ([1], [2])


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        ({"layers.2.attention": "layer.2.q", "norm": "norm"}, "Llama has no module or parameter layers.2.attention$"),
        (None, "Llama has parameters of unknown meaning, layers.0.attention_norm.gain, .*, norm.gain: pass names=$"),
    ],
)
def test_names_that_are_no_modules(names, wrong):
    model, *_ = of_mine(standard_vectors("interleaved"))
    with pytest.raises(ValueError, match=wrong), recording(model, names):
        raise AssertionError("the block must not begin")
    assert not any(module._forward_hooks for module in model.modules())


def test_a_module_that_is_not_called():
    model, *_ = of_mine(standard_vectors("interleaved"))
    names = {"layers.0.attention_norm": "layer.0.attn_norm", "norm": "norm"}
    wrong = r"these modules were not called during the recording: layers.0.attention_norm, norm$"
    with pytest.raises(ValueError, match=wrong), recording(model, names):
        pass


def test_a_backward_that_is_not_called():
    model, *batch = of_mine(standard_vectors("interleaved"))
    with pytest.raises(ValueError, match=r"backward was not called .* pass gradients=False"), recording(model, MAP):
        model(*batch)
    with recording(model, MAP, gradients=False):
        model(*batch)


def test_the_error_of_the_block_is_the_one_that_is_seen():
    model, *_ = of_mine(standard_vectors("interleaved"))
    with pytest.raises(ZeroDivisionError), recording(model, MAP):
        1 / 0  # noqa: B018
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        (by_token("layer.0.head_outputs"), "no attribute head_dim: pass head_dim"),
        ("q", r"q is a value of a layer: record it in a block of `with layer\(0\)`, or as layer.0.q"),
        (("targets", "logits"), " has a list for targets, but only a tensor can be recorded"),
    ],
)
def test_what_cannot_be_recorded(name, wrong):
    class Same(torch.nn.Module):
        def forward(self, x):
            return torch.zeros(1, 3, 4)

    model = Same()
    with pytest.raises(ValueError, match=wrong), recording(model, {"": name}):
        model([1])


def test_the_size_of_a_head_may_be_given():
    model = torch.nn.Linear(4, 4)
    with recording(model, {"": by_token("layer.0.head_outputs")}, gradients=False, head_dim=2) as dump:
        out = model(torch.ones(1, 3, 4))
    assert np.array_equal(dump["values/layer.0.head_outputs"][0, 1], out[0, :, 2:].detach())


def test_pytorch_is_imported_only_for_its_modules():
    code = (
        "import sys, numpy as np; from numllama.learn.record import record, recording\n"
        "with recording() as dump: record('logits', np.ones(1))\n"
        "assert dump['values/logits'] == 1 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
