"""The views of `numllama trace`: the numbers of the analyses, in text, JSON and a page that needs no other file."""

import base64
import json
import re

import numpy as np
import pytest
from helpers import assert_close

from numllama.cli import main
from numllama.learn.heads import attention_of_heads, head_scores
from numllama.learn.lens import logit_lens
from numllama.learn.patching import attribution_patching
from numllama.learn.trace_page import colours, grid, numbers_of
from numllama.learn.trace_views import MOST_MAPS
from numllama.learn.tracing import traced_model

TEXT, CORRUPT = "the king shall s", "the lord shall w"
MODEL = traced_model()


def run(*arguments):
    with pytest.raises(SystemExit) as exit:
        main(["trace", *map(str, arguments)])
    return exit.value.code


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """The printed text, the JSON and the page of all views at once, and the model and its ids."""
    folder, model = tmp_path_factory.mktemp("views"), MODEL
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *lines, file=None, **_: file or printed.extend(lines))
        patch.setattr("numllama.learn.trace_report.traced_model", lambda **_: model)
        patch.setenv("COLUMNS", "80")
        paths = ["--json", folder / "v.json", "--html", folder / "v.html"]
        assert run("--text", TEXT, "--lens", "--heads", "--patch", CORRUPT, *paths) == 0
    contents = [path.read_text(encoding="utf-8") for path in (folder / "v.json", folder / "v.html")]
    return printed[0], json.loads(contents[0]), contents[1], model


def test_the_text_names_the_answer_the_heads_and_the_tokens(views):
    text, _, _, (model, tokenizer) = views
    lens = logit_lens(model, tokenizer.encode(TEXT))
    answer = tokenizer.decode([int(lens.answer[-1])])
    assert text.startswith(f"{TEXT!r}: 16 tokens.\nThis is the built-in small model, after 300 training steps.")
    assert f"its answer {answer!r}" in text
    last = re.search(r"^layer 1 +([\d.]+)% +rank +1   '", text, re.M)
    assert float(last[1]) == pytest.approx(100 * lens.answer_probs[-1, -1], abs=0.006)
    scores = head_scores(model).induction
    layer, head = np.unravel_index(scores.argmax(), scores.shape)
    assert f"repeat: the strongest heads are {layer}.{head} {scores.max():.0%}" in text
    found = attribution_patching(model, *(np.array(tokenizer.encode(each)) for each in (TEXT, CORRUPT)))
    assert f"{found.clean:.3f} after this text" in text and "(11 of 16 tokens; all of them: --html or --json)" in text
    table = text[text.index("estimated by its gradient:\n") :].splitlines()[1:4]
    assert len({len(line) for line in table}) == 1 and 74 < len(table[0]) <= 80
    pairs = zip(TEXT.replace(" ", "␣"), CORRUPT.replace(" ", "␣"), strict=True)
    assert set(table[0].split()) <= {a if a == b else f"{a}|{b}" for a, b in pairs}
    share = 100 * found.effects["layer 1: after_ffn"][-1] / (found.clean - found.corrupt)
    assert re.search(rf"^layer 1 .* {round(share)}$", text, re.M)


def test_the_json_has_all_numbers(views):
    _, content, _, (model, tokenizer) = views
    ids = np.array(tokenizer.encode(TEXT))
    lens = logit_lens(model, ids)
    assert "".join(content["tokens"]) == TEXT
    assert content["lens"]["top"] == lens.top.tolist() and content["lens"]["answer_ranks"] == lens.answer_ranks.tolist()
    assert_close(np.array(content["heads"]["attention"]), attention_of_heads(model, ids))
    assert_close(np.array(content["heads"]["scores"]["induction"]), head_scores(model).induction)
    found = attribution_patching(model, ids, np.array(tokenizer.encode(CORRUPT)))
    assert set(content["patch"]["effects"]) == set(found.effects)
    assert_close(np.array(content["patch"]["effects"]["layer 0: head_outputs"]), found.effects["layer 0: head_outputs"])
    assert content["patch"]["answers"] == [tokenizer.decode([i]) for i in found.answers]


def test_the_page_has_a_cell_for_each_token_and_level_and_needs_no_other_file(views):
    _, _, html, (model, _) = views
    c = model.config
    assert "://" not in html and html.count("<h2>") == 3
    levels, heads, tokens = c.n_layers + 1, c.n_layers * c.n_heads, len(TEXT)
    assert html.count("data-tip=") == levels * tokens + 3 * heads + 3 * c.n_layers * tokens + heads
    assert html.count("<figure>") == html.count("<img") == 3 * MOST_MAPS


def test_each_score_is_followed_by_the_maps_of_its_strongest_heads(views):
    _, content, html, (model, _) = views
    scores = head_scores(model).induction
    part = html[html.index("induction, in random tokens that repeat, in percent") :]
    seen = [tuple(map(int, each)) for each in re.findall(r"<figcaption>layer (\d), head (\d): ", part)]
    assert len(seen) == MOST_MAPS and [scores[place] for place in seen] == sorted(scores.flat)[: -MOST_MAPS - 1 : -1]
    numbers = np.frombuffer(base64.b64decode(re.search('id="a2".*?data-value="([^"]*)"', html)[1]), "<f4")
    maps = np.array(content["heads"]["attention"])
    assert np.array_equal(numbers.reshape(MOST_MAPS, 16, 16), np.stack([maps[place] for place in seen]).astype("<f4"))


@pytest.mark.parametrize("steps, trained, says", [
    ((), 300, "after 300 training steps"), ((0,), 0, "not trained"), ((7,), 7, "after 7 training steps"),
])  # fmt: skip
def test_the_built_in_model_is_trained_before_it_is_read_and_says_so(steps, trained, says, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("numllama.learn.trace_report.traced_model", lambda seed, steps: (asked.append(steps), MODEL)[1])
    assert run("--lens", *(["--steps", *steps] if steps else [])) == 0
    out, error = capsys.readouterr()
    assert asked == [0] * bool(trained) + [trained] and f"This is the built-in small model, {says}" in out
    assert ("training the built-in model" in error) == bool(trained) and "reading the stream after each layer ...\n" in error


AFTER_TRAINING = (
    "the clean text has 19 tokens and the corrupt one 3, but both must have as many",
    "the model says the same after both texts, 'B': the corrupt text must",
)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--lens", "--text", "§"], "§"),
        (["--patch", "§he queen shall sing"], "§"),
        (["--patch", "the"], "the clean text has 19 tokens and the corrupt one 3, but both must have as many"),
        (["--patch", "the king shall sing"], "the model says the same after both texts, 'B': the corrupt text must"),
        (["--patch", "abc", "--ids", 1, 2], "--patch compares with a --text: it does not take --ids"),
        (["--lens", "--ids", 1, 2, 99], "holds 99, but must lie in"),
        (["--lens", "--text", "t"], "the text has 1 token, but there must be 2 to 64"),
    ],
)
def test_what_cannot_be_viewed_is_one_sentence(arguments, sentence, capsys, monkeypatch):
    monkeypatch.setattr("numllama.learn.trace_report.traced_model", lambda **_: MODEL)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error and ("training" in error) == (sentence in AFTER_TRAINING)


def test_cells_and_names_are_escaped_and_coloured():
    html = grid("a <b>", ["<r>"], ["&"], np.array([[1.0]]), lambda r, c: ("<x>", '"quoted"'))
    assert "<b>" not in html and "<x>" not in html and "&lt;x&gt;" in html and 'data-tip="&quot;quoted&quot;"' in html
    red, blue = [178, 24, 43], [33, 102, 172]
    assert colours(np.array([1.0, 0.0, -1.0, 5.0])).tolist() == [[*red, 255], [*blue, 0], [*blue, 255], [*red, 255]]
    assert 'data-name="&lt;" data-axes="a, b" data-value="AACAPw=="' in numbers_of("x", "<", "a, b", value=np.ones(1))
