"""The models of examples/llamafy.py against PyTorch: its recurrent network, its attention and its autograd, in float64."""

import numpy as np
import pytest
from helpers import assert_close, example, normal

import numllama as nl

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity
V, C, T, HEADS = 11, 12, 7, 3


def tensor(array):
    return torch.tensor(np.asarray(array), dtype=torch.float64, requires_grad=True)


def test_the_recurrent_network_is_that_of_pytorch():
    ladder, rng = example("llamafy"), np.random.default_rng(0)
    x, w_x, w_h, bias, dout = (normal(np, rng, *shape) for shape in ((2, T, 5), (C, 5), (C, C), (C,), (2, T, C)))
    out, cache = ladder.rnn_forward(x, w_x, w_h, bias)
    rnn = torch.nn.RNN(5, C, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for parameter, value in zip(rnn.parameters(), (w_x, w_h, bias, np.zeros(C)), strict=True):
            parameter.copy_(torch.tensor(value))
    inputs = tensor(x)
    expected, _ = rnn(inputs)
    expected.backward(torch.tensor(dout))
    assert_close(out, expected.detach().numpy())
    theirs = [inputs.grad, *(parameter.grad for parameter in list(rnn.parameters())[:3])]
    for gradient, right in zip(ladder.rnn_backward(dout, cache), theirs, strict=True):
        assert_close(gradient, right.numpy())


def bigram(w, x):
    return x


def rnn(w, x):
    h, out = torch.zeros(len(x), C, dtype=torch.float64), []
    for t in range(x.shape[1]):
        h = torch.tanh(x[:, t] @ w["w_x"].T + h @ w["w_h"].T + w["bias"])
        out.append(h)
    return torch.stack(out, 1)


def heads(w, x):
    x = x + w["pos_embed"][: x.shape[1]]
    q, k, v = ((x @ w[name].T).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in ("wq", "wk", "wv"))
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return mixed.transpose(1, 2).flatten(2) @ w["wo"].T


@pytest.mark.parametrize("name, between", [("Bigram", bigram), ("Rnn", rnn), ("Heads", heads)])
def test_loss_and_gradients_are_those_of_pytorch(name, between):
    shape = dict(vocab_size=V, dim=C, n_layers=1, n_heads=HEADS, positions="learned", max_seq_len=T + 1, init_std=0.5)
    model = getattr(example("llamafy"), name)(nl.ModelConfig(**shape), seed=1, dtype="float64")
    rng = np.random.default_rng(1)
    model.params.flat += 0.1 * normal(np, rng, model.params.flat.size)
    tokens, targets = rng.integers(0, V, (2, 3, T))
    w = {name: tensor(value) for name, value in model.params.items()}
    logits = between(w, w["embed"][torch.tensor(tokens)]) @ w["head"].T
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    loss.backward()
    ours, grads = model.loss_and_grads(tokens, targets)
    assert_close(ours, loss.item())
    for name, value in w.items():
        assert_close(grads[name], value.grad.numpy())
