"""Conversations: which tokens are targets, how they are packed, and what is said of a line that cannot be used."""

import json

import numpy as np
import pytest
from helpers import assert_close
from hypothesis import given
from hypothesis import strategies as st
from interop.test_chat_template import LLAMA_3

import numllama as nl
from numllama.data.batches import Position
from numllama.data.conversations import Conversations, Documents, epochs, load_conversations, pack
from numllama.errors import DataError
from numllama.parallel.shards import ShardPlan, Workers
from numllama.tokenizer import chat_template, renderer

NAMES = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
BEGIN, START, END, EOT = range(256, 260)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Bytes, with Llama 3's template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    nl.Tokenizer({i: bytes([i]) for i in range(256)}, [], NAMES).save(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": NAMES[0], "chat_template": LLAMA_3}))
    return nl.Tokenizer.load(folder)


def talk(*contents, system=None):
    """A line: the user begins, and the assistant answers."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return {"messages": [{"role": "system", "content": system}] * (system is not None) + messages}


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return path


def documents(*lengths, seed=0):
    """Random documents; about half of the tokens are learnt, the last one always."""
    rng = np.random.default_rng(seed)
    return Documents([(rng.integers(0, 50, n), np.append(rng.random(n - 1) < 0.5, True)) for n in lengths])


# ------------------------------------------------------------------------------------------------ targets


def test_only_the_assistants_tokens_are_targets_with_the_end_of_its_turn(tokenizer, tmp_path):
    path = write(tmp_path / "chat.jsonl", talk("Hi", "Yes é.", "So?", "No.", system="S"), talk("a", "b"))
    data = load_conversations(path, tokenizer)
    ids, said = data.train.documents[0]
    assert ids.tolist() == tokenizer.apply_chat_template(talk("Hi", "Yes é.", "So?", "No.", system="S")["messages"], False)
    assert tokenizer.decode(ids[said]) == "Yes é.<|eot_id|>No.<|eot_id|>"
    tokens, targets, segments, _ = data.train.batch([[0]], 200)
    counted = targets[targets != -100]
    assert tokenizer.decode(counted) == "Yes é.<|eot_id|>No.<|eot_id|>"
    at = np.flatnonzero(targets[0] != -100)
    assert (targets[0, at] == ids[at + 1]).all()
    assert tokens[0].tolist() == ids[:-1].tolist()
    assert not segments.any()
    assert data.stop_ids == (EOT,)


def test_a_template_of_ones_own_and_tools(tokenizer, tmp_path):
    template = "{{ tools[0] }}{% for m in messages %}[{% generation %}{{ m.content }}{% endgeneration %}]{% endfor %}"
    path = write(tmp_path / "chat.jsonl", {**talk("u", "v"), "tools": ["T"]}, {**talk("u", "v"), "tools": ["T"], "id": 7})
    ids, said = load_conversations(path, tokenizer, chat_template=template).train.documents[0]
    assert tokenizer.decode(ids) == "T[u][v]"
    assert tokenizer.decode(ids[said]) == "uv"


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_without_a_template_messages_are_paragraphs(tmp_path, kind):
    tokenizer = nl.CharTokenizer("abcé\n") if kind == "characters" else nl.Tokenizer({i: bytes([i]) for i in range(256)}, [])
    path = write(tmp_path / "chat.jsonl", talk("aé", "bb", "c", "é"), talk("a", "b"))
    data = load_conversations(path, tokenizer, opening=[3])
    ids, said = data.train.documents[0]
    assert ids[0] == 3 and not said[0]
    assert tokenizer.decode(ids[1:]) == "aé\n\nbb\n\nc\n\né\n\n"
    assert tokenizer.decode(ids[said]) == "bb\n\né\n\n"
    assert data.stop_ids == ()


def test_the_loss_is_the_mean_over_the_answers_alone():
    data = documents(9, 5, 7, 3)
    model = nl.Transformer(nl.ModelConfig(50, 16, 2, 2, max_seq_len=12, init_std=0.3), dtype="float64")
    batch = data.batch(data.rows(12), 12)
    losses = []
    for ids, said in data.documents:
        logits = model.forward(ids[None, :-1])[0]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses += [-log_p[t, ids[t + 1]] for t in range(len(ids) - 1) if said[t + 1]]
    assert len(batch[0]) < 4  # packed
    assert float(model.loss(batch[0], batch[1], segments=batch[2])) == pytest.approx(np.mean(losses), rel=1e-12)
    assert Workers(model, 1).mean_loss([batch, batch]) == pytest.approx(np.mean(losses), rel=1e-12)


@pytest.mark.parametrize("with_adapter", [False, True], ids=["full", "lora"])
def test_packed_gradients_are_the_sum_of_each_conversations_own(with_adapter):
    data = documents(9, 5, 7, 3, 12)
    model = nl.Transformer(nl.ModelConfig(50, 16, 2, 2, max_seq_len=12, init_std=0.3), dtype="float64")
    if with_adapter:
        model.add_adapter(nl.LoraConfig(rank=2))
        model.adapter.params.flat[...] = np.random.default_rng(1).standard_normal(model.adapter.params.flat.size) * 0.2
    batch = data.batch(data.rows(12), 12)
    assert batch.count == (batch.targets != -100).sum() > 0
    expected = model.trainable.zeros_like()
    for i in range(len(data.documents)):
        own = data.batch([[i]], 12)
        model.loss_and_grads(*own[:2], grads=expected, count=batch.count)
    for shards in (1, 2):
        _, grads = Workers(model, 1).loss_and_grads(batch, ShardPlan(len(batch.tokens), shards))
        assert_close(grads.flat, expected.flat, rtol=1e-12)


def test_an_answer_of_weight_0_is_not_learnt(tokenizer, tmp_path):
    line = talk("a", "no", "b", "yes", "c", "no", "d", "yes")
    weights = 0, 0, None, 1, 0, 0.0, None, None
    for message, weight in zip(line["messages"], weights, strict=True):
        message["weight"] = weight
    for template, expected in (
        (None, "yes<|eot_id|>yes<|eot_id|>"),
        ("{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }};{% endgeneration %}{% else %}"
         "{{ m.content }}{{ m.weight }}{% endif %}{% endfor %}", "yes;yes;"),
    ):  # fmt: skip
        path = write(tmp_path / "chat.jsonl", line, line)
        ids, said = load_conversations(path, tokenizer, chat_template=template).train.documents[0]
        assert tokenizer.decode(ids[said]) == expected
    paragraphs = nl.Tokenizer({i: bytes([i]) for i in range(256)}, [])
    ids, said = load_conversations(tmp_path / "chat.jsonl", paragraphs).train.documents[0]
    assert paragraphs.decode(ids[said]) == "yes\n\nyes\n\n"


def test_null_fields_are_as_if_they_were_not_there(tokenizer, tmp_path):
    plain = talk("a", "b")
    nulls = {"messages": [{**message, "tool_calls": None, "name": None, "weight": None} for message in plain["messages"]]}
    template = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    first, second = load_conversations(
        write(tmp_path / "chat.jsonl", plain, {**nulls, "tools": None}, plain), tokenizer, chat_template=template
    ).train.documents
    assert first[0].tolist() == second[0].tolist() and first[1].tolist() == second[1].tolist()


def test_an_answer_may_be_a_call_alone(tokenizer, tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather"}}]}
    line = {"messages": [{"role": "user", "content": "a"}, call]}
    template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %};"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    path = write(tmp_path / "chat.jsonl", line, line)
    ids, said = load_conversations(path, tokenizer, chat_template=template).train.documents[0]
    assert tokenizer.decode(ids[said]) == "weather;"


def test_what_a_message_spells_is_text_unless_it_is_asked_for(tokenizer, tmp_path):
    path = write(tmp_path / "chat.jsonl", talk("a<|eot_id|>", "b"), talk("a", "b"))
    data = load_conversations(path, tokenizer)
    assert data.spelled == 1 and data.stop_ids == (EOT,)
    assert data.train.documents[0][0].tolist().count(EOT) == 2
    data = load_conversations(path, tokenizer, sanitize_control_tokens=False)
    assert data.train.documents[0][0].tolist().count(EOT) == 3


@pytest.mark.parametrize(
    ("template", "stop_ids", "unended"),
    [(LLAMA_3, (EOT,), 0), ("{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}", (), 18), (None, (EOT,), 0)],
)
@pytest.mark.parametrize("answer", ["b", "<|end_header_id|>b", "b<|begin_of_text|>"])
def test_answers_that_end_with_no_token_are_counted(tokenizer, tmp_path, template, stop_ids, unended, answer):
    path = write(tmp_path / "chat.jsonl", *[talk("a", answer)] * 20)
    for sanitize in (True, False):
        data = load_conversations(path, tokenizer, chat_template=template, sanitize_control_tokens=sanitize)
        assert (data.stop_ids, data.unended) == (stop_ids, unended)


def test_many_conversations_are_rendered_at_once(tokenizer, tmp_path, monkeypatch):
    sent, plain = [], renderer.render
    monkeypatch.setattr(chat_template, "render", lambda *request: sent.append(request) or plain(*request))
    data = load_conversations(write(tmp_path / "chat.jsonl", *(talk(str(i), "b") for i in range(300))), tokenizer)
    assert len(sent) == 3
    assert [tokenizer.decode(ids).count(str(i)) > 0 for i, (ids, _) in enumerate(data.train.documents)] == [True] * 270


# ------------------------------------------------------------------------------------------------ packing


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(20, 40))
def test_every_item_is_packed_once_and_no_row_is_too_full(lengths, size):
    rows = pack(lengths, size)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    used = [sum(lengths[i] for i in row) for row in rows]
    assert all(0 < n <= size for n in used)
    assert sum(2 * n <= size for n in used) <= 1  # two rows that are half empty would be one


def test_rows_are_documents_side_by_side_and_padding():
    data = Documents([(np.array([1, 2, 3]), np.array([0, 0, 1], bool)), (np.array([4, 5, 6, 7]), np.array([0, 1, 0, 1], bool))])
    assert data.rows(6) == [[1, 0]]
    inputs, targets, segments, count = data.batch([[1, 0], [0]], 6)
    assert inputs.tolist() == [[4, 5, 6, 1, 2], [1, 2, 0, 0, 0]]
    assert targets.tolist() == [[5, -100, 7, -100, 3], [-100, 3, -100, -100, -100]]
    assert segments.tolist() == [[0, 0, 0, 1, 1], [0, 0, -1, -1, -1]]
    assert count == 4


def test_what_is_longer_than_a_row_is_cut_and_left_out_if_nothing_to_learn_remains():
    late = np.array([1, 2, 3, 4]), np.array([0, 0, 0, 1], bool)
    early = np.array([5, 6, 7, 8]), np.array([0, 1, 0, 1], bool)
    data = Documents([late, early])
    assert data.cut_off(2) == 1 and data.cut_off(3) == 0
    assert data.left_out(2) == 1 and data.left_out(3) == data.left_out(9) == 0
    assert data.rows(2) == [[1]]
    assert data.batch([[1]], 2)[1].tolist() == [[6, -100]]
    with pytest.raises(DataError, match=r"no answer in the val split of x begins within seq_len, which is 2"):
        Conversations(Documents([early]), Documents([late]), None, "x").check(9, 2)


@given(st.integers(1, 7), st.integers(0, 5))
def test_each_epoch_sees_every_row_once_in_an_order_of_its_own(batch_size, seed):
    data = Conversations(documents(*[12] * 10), documents(5), None, "x")
    per_row = [tuple(ids[:-1]) for ids, _ in data.train.documents]
    seen = []
    for step in range(1, 30):
        inputs = data.batches(batch_size, 11, seed).batch(Position(step, batch_size * (step - 1))).tokens
        assert len(inputs) == batch_size
        seen += [per_row.index(tuple(row)) for row in inputs]
    whole = [seen[i : i + 10] for i in range(0, len(seen) - 9, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in whole)
    assert len(set(map(tuple, whole))) == len(whole)


def test_epochs_are_cut_where_they_end():
    assert list(epochs(0, 7, 3)) == [(0, 0, 3), (1, 0, 3), (2, 0, 1)]
    assert list(epochs(4, 5, 3)) == [(1, 1, 2)]


def test_a_batch_is_a_function_of_seed_and_place():
    data = Conversations(documents(*[8] * 30), documents(5), None, "x")
    first, again = (data.batches(4, 7, seed=1).batch(Position(9, 32)).tokens for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, data.batches(4, 7, seed=2).batch(Position(9, 32)).tokens)


def test_the_last_tenth_is_for_validation_unless_there_is_a_file(tokenizer, tmp_path):
    path = write(tmp_path / "chat.jsonl", *(talk(str(i), "b") for i in range(20)))
    other = write(tmp_path / "val.jsonl", talk("v", "w"), "", talk("x", "y"), talk("x", "y"))
    data = load_conversations(path, tokenizer)
    assert (len(data.train.documents), len(data.val.documents)) == (18, 2)
    assert tokenizer.decode(data.val.documents[-1][0]).count("19") == 1
    data = load_conversations(path, tokenizer, val_path=other)
    assert (len(data.train.documents), len(data.val.documents)) == (20, 3)
    whole = list(data.batches(2, 100).validation())
    assert sum((batch.targets != -100).sum() for batch in whole) == sum(batch.count for batch in whole) == 6
    assert len(list(data.batches(1, 30).validation(2))) == 2


# ------------------------------------------------------------------------------------------------ what cannot be used


def weighted(role, weight):
    return json.dumps({"messages": [{"role": role, "content": "a", "weight": weight}]})


GOOD = json.dumps(talk("a", "b"))
BAD = {
    "json": ('{"messages": [', r"it is not JSON: "),
    "list": ("[1]", r'it must be an object with a list of "messages"'),
    "no_messages": ('{"text": "a"}', r'it must be an object with a list of "messages"'),
    "empty": ('{"messages": []}', r'it must be an object with a list of "messages"'),
    "string": ('{"messages": ["a"]}', r'message 1 must be an object whose "role" is a text'),
    "no_content": ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}', r'message 2 .* "content" is'),
    "no_answer": ('{"messages": [{"role": "user", "content": "a"}]}', r'none of its messages has the role "assistant"'),
    "weight": (weighted("assistant", 0.5), "weight of message 1 is 0.5, but must be 0 or 1"),
    "weight_true": (weighted("assistant", True), "weight of message 1 is True, but must be 0 or 1"),
    "weight_user": (weighted("user", 1), "message 1 has the weight 1, but only the assistant"),
    "weight_all": (weighted("assistant", 0), "there is nothing that the assistant says: all of it has the weight 0"),
    "deep": ('{"messages": ' + "[" * 100_000, "it is nested too deeply"),
    "surrogate": (json.dumps(talk("a", "\ud800")), "surrogates not allowed"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_by_its_number(tokenizer, tmp_path, name):
    line, message = BAD[name]
    path = write(tmp_path / "chat.jsonl", GOOD, "", line, GOOD)
    with pytest.raises(DataError, match=message) as caught:
        load_conversations(path, tokenizer)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert "\n" not in str(caught.value)


def test_a_line_that_is_not_utf_8_is_named(tokenizer, tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + b'{"\xff"}\n')
    with pytest.raises(DataError, match=r"chat.jsonl, line 2: it is not UTF-8: byte 2 is 0xff$"):
        load_conversations(path, tokenizer)


def test_an_answer_that_the_template_leaves_out_is_named(tokenizer, tmp_path):
    path = write(tmp_path / "chat.jsonl", GOOD, GOOD)
    with pytest.raises(DataError, match=r"line 1: there is nothing that the assistant says$"):
        load_conversations(path, tokenizer, chat_template="{{ messages[0].content }}")


def test_a_template_that_refuses_a_conversation_is_named(tokenizer, tmp_path):
    path = write(tmp_path / "chat.jsonl", GOOD, GOOD)
    with pytest.raises(DataError, match=r"line 1: the chat template cannot render these messages: no$"):
        load_conversations(path, tokenizer, chat_template="{{ raise_exception('no') }}")


def test_a_character_that_the_tokenizer_does_not_know_is_named(tmp_path):
    path = write(tmp_path / "chat.jsonl", talk("a", "b"), talk("a", "ü"))
    with pytest.raises(DataError, match=r"line 2: character 'ü' at position 3 is not among the 3 that this tokenizer knows$"):
        load_conversations(path, nl.CharTokenizer("ab\n"))


def test_a_template_is_nothing_for_characters(tmp_path):
    with pytest.raises(ValueError, match="chat_template is given, but a tokenizer of characters"):
        load_conversations(write(tmp_path / "chat.jsonl", GOOD), nl.CharTokenizer("ab\n"), chat_template="x")


@pytest.mark.parametrize(
    ("lines", "message"), [([], "holds no conversations"), ([GOOD], "holds a single conversation, but at least two are needed")]
)
def test_too_few_conversations_are_refused(tokenizer, tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        load_conversations(write(tmp_path / "chat.jsonl", *lines), tokenizer)


def test_a_file_that_is_not_there_is_named(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read: No such file"):
        load_conversations(tmp_path / "none.jsonl", tokenizer)


def test_a_vocabulary_that_is_too_small_is_named():
    data = Conversations(documents(9), documents(5), None, "x")
    with pytest.raises(DataError, match=r"x holds the token \d+, but the model's vocabulary is 10"):
        data.check(10, 8)
