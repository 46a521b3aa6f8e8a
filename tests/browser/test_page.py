"""What a visitor of the page does and sees. At the end of every test: no console errors, no requests to other servers."""

import json
import re
import time

import numpy as np
import pytest
from browser.visitor import Tab
from generation.models import random_model
from serve.served import LETTERS, served, small_engine, until

import numllama as nl
from numllama.generation.attention_maps import attention_weights
from numllama.serve.access import Access
from numllama.serve.engine import Engine, Limits
from numllama.serve.pages import Page
from numllama.training import TrainConfig, Trainer, load_dataset

MANY = 20_000


def completed(engine, prompt, n, **settings):
    return nl.complete(engine.model, engine.tokenizer, prompt, n, window=128, **settings)


def test_generate_streams_text(tab, engine):
    tab.set("max-new-tokens", 3000)
    tab.set("seed", 5)
    tab.page.fill("#prompt textarea", "abc")
    tab.page.click("#go")
    lengths = set()
    while not re.search("length limit", tab.page.locator("#status").inner_text()):
        lengths.add(len(tab.text()))
        tab.page.wait_for_timeout(20)
    assert len(lengths - {0}) > 3
    assert tab.text() == "abc" + completed(engine, "abc", 3000, seed=5, temperature=0.8)
    status = tab.page.locator("#status").inner_text()
    assert re.search(r"3 prompt \+ 3000 new tokens, [\d,]+ tokens/s, first token after \d+ ms, cache \d+\.\d\d MB", status)


SETTINGS = {
    "temperature": 0.35, "top-k": 7, "top-p": 0.65, "min-p": 0.07, "repetition-penalty": 1.25,
    "max-new-tokens": 12, "seed": 42, "stop-at": "\\nb",
}  # fmt: skip


def test_each_control_changes_the_request(tab, engine):
    tab.generate("ab", max_new_tokens=5)
    before = engine.recorded[-1]
    for name, value in SETTINGS.items():
        tab.set(name, value)
    tab.generate("ab")
    request = engine.recorded[-1]
    sampling = request.sampling
    found = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.repetition_penalty, sampling.seed)
    assert found == (0.35, 7, 0.65, 0.07, 1.25, 42)
    assert (request.prompt, request.max_new_tokens, request.stop) == ("ab", 12, ("\nb",))
    neutral = before.sampling
    assert (neutral.top_k, neutral.top_p, neutral.min_p, neutral.repetition_penalty, neutral.seed) == (None, None, None, 1, None)


def test_stop_stops_and_keeps_what_was_written(tab, engine):
    tab.set("max-new-tokens", MANY)
    tab.page.fill("#prompt textarea", "abc")
    tab.page.click("#go")
    tab.page.wait_for_function("document.querySelector('#text textarea').value.length > 50")
    tab.page.click("#stop")
    status = tab.wait("#status", ENDED)
    assert status.endswith(", stopped")
    until(lambda: engine.n_texts == 0)
    written = tab.text()
    assert 50 < len(written) < MANY
    tab.page.wait_for_timeout(200)
    assert tab.text() == written
    assert "length limit" in tab.generate("abc", max_new_tokens=5)


ENDED = "stopped|finished"


@pytest.mark.parametrize("prompt, sentence", [
    ("a" * 129, "the prompt has 129 tokens, but this server accepts at most 128"),
    ("", "the prompt is empty"),
    ("é", "'é' at position 0 is not among the 18"),
])  # fmt: skip
def test_what_cannot_be_done_is_said_kindly(tab, engine, prompt, sentence):
    assert sentence in tab.generate(prompt)
    assert tab.page.locator("#status .refused").count() == 1
    assert "length limit" in tab.generate("abc", max_new_tokens=5)


def test_two_users_at_once_get_their_own_texts(tab, another, engine):
    for visitor, prompt, seed in ((tab, "aaa", 1), (another, "ppp", 2)):
        visitor.set("max-new-tokens", 1500)
        visitor.set("seed", seed)
        visitor.page.fill("#prompt textarea", prompt)
    tab.page.click("#go")
    another.page.click("#go")
    for visitor, prompt, seed in ((tab, "aaa", 1), (another, "ppp", 2)):
        visitor.wait("#status", "length limit")
        assert visitor.text() == prompt + completed(engine, prompt, 1500, seed=seed, temperature=0.8)


def test_a_reload_loses_nothing_that_was_finished(tab):
    tab.generate("abc", max_new_tokens=30)
    text = tab.text()
    tab.tab("Chat")
    tab.page.fill("#message textarea", "dad")
    tab.page.click("#send")
    tab.wait("#chat-status", ENDED)
    talk = tab.page.locator("#talk .message").all_inner_texts()
    tab.open()
    tab.page.wait_for_function("document.querySelector('#text textarea').value.length > 0")
    assert tab.text() == text
    assert tab.page.locator("#prompt textarea").input_value() == "abc"
    tab.tab("Chat")
    tab.page.wait_for_selector("#talk .message")
    assert tab.page.locator("#talk .message").all_inner_texts() == talk


def test_a_page_that_is_closed_ends_its_text(tab, engine):
    tab.set("max-new-tokens", MANY)
    tab.page.fill("#prompt textarea", "abc")
    tab.page.click("#go")
    until(lambda: engine.n_texts == 1)
    tab.page.close()
    until(lambda: engine.n_texts == 0, seconds=20)


def test_a_conversation_goes_on_and_begins_anew(tab, engine):
    tab.set("seed", 3)
    tab.set("max-new-tokens", 8)
    tab.tab("Chat")
    for message in ("abc", "def"):
        tab.page.fill("#message textarea", message)
        tab.page.click("#send")
        tab.wait("#chat-status", ENDED)
        until(lambda: engine.n_texts == 0)
        tab.page.wait_for_timeout(200)
    first = completed(engine, "abc\n\n", 8, seed=3, temperature=0.8, stop="\n\n")
    assert engine.recorded[-1].prompt == engine.tokenizer.encode(f"abc\n\n{first}\n\ndef\n\n")
    assert tab.page.locator("#message textarea").input_value() == ""
    tab.page.click("#clear")
    tab.page.wait_for_function("document.querySelectorAll('#talk .message').length === 0")
    tab.page.fill("#message textarea", "mom")
    tab.page.click("#send")
    tab.wait("#chat-status", ENDED)
    assert engine.recorded[-1].prompt == engine.tokenizer.encode("mom\n\n")


def test_look_inside_shows_each_tokens_chance_and_what_else_might_have_come(tab, engine):
    tab.look("abc", 20)
    tokens = tab.page.locator("#tokens .token[tabindex]")
    assert tab.page.locator("#tokens .token.given").count() == 3
    assert tokens.count() == 20
    ids = nl.generate(engine.model, engine.tokenizer.encode("abc"), 20, temperature=0.8, seed=1)
    logits = engine.model.forward(np.array([[*engine.tokenizer.encode("abc"), *ids[:4]]]))[0, -1]
    p = np.exp(logits - logits.max())
    p /= p.sum()
    tokens.nth(4).hover()
    tip = tokens.nth(4).locator(".tip")
    assert tip.is_visible()
    assert not tokens.nth(3).locator(".tip").is_visible()
    chosen = tip.locator(".row.chosen")
    assert float(chosen.locator(".p").inner_text().split()[0]) == pytest.approx(100 * p[ids[4]], abs=0.51)
    rows = tip.locator(".row .p").all_inner_texts()
    assert len(rows) >= 6
    assert float(rows[0].split()[0]) == pytest.approx(100 * p.max(), abs=0.51)
    assert re.search(r"3 prompt \+ 20 new tokens.*tokens/s.*cache", tab.page.locator("#inside-status").inner_text())


def test_an_attention_map_is_the_models_and_changes_with_layer_and_head(tab, engine):
    tab.look("abc", 6)
    assert tab.page.locator("#attention .head img").count() == 4
    first = tab.page.locator("#attention svg.map").inner_html()
    tab.set("layer", 1)
    tab.set("head", 2)
    tab.page.wait_for_function("document.querySelector('#attention .head.chosen')?.innerText.trim() === '2'")
    tab.page.wait_for_timeout(300)
    assert tab.page.locator("#attention svg.map").inner_html() != first
    ids = [
        *engine.tokenizer.encode("abc"),
        *nl.generate(engine.model, engine.tokenizer.encode("abc"), 6, temperature=0.8, seed=1),
    ]
    weights = attention_weights(engine.model, ids, 1)[2]
    shown = [
        float(value)
        for value in tab.page.eval_on_selector_all("#attention rect", "all => all.map(r => r.getAttribute('fill-opacity'))")
    ]
    rows, columns = np.tril_indices(len(ids))
    assert shown == pytest.approx(list(0.04 + 0.96 * weights[rows, columns]), abs=1e-3)


class SlowEngine(Engine):
    """About 50 tokens per second, like a large model."""

    def _advance(self, text):
        time.sleep(0.02)
        super()._advance(text)


def test_stop_while_looking_inside_keeps_the_tokens_and_draws_their_map(browser, tmp_path_factory):
    model = random_model("float32", vocab_size=len(LETTERS))
    engine = SlowEngine(model, nl.CharTokenizer(LETTERS), Limits(new_tokens=MANY))
    with served(engine, "slow", tmp_path_factory.mktemp("runs")) as url:
        tab = Tab(browser, url)
        tab.set("max-new-tokens", MANY)
        tab.tab("Look inside")
        tab.page.fill("#inside-prompt textarea", "abc")
        tab.page.click("#look")
        tab.page.wait_for_function("document.querySelectorAll('#tokens .token[tabindex]').length > 3")
        tab.page.click("#stop-look")
        assert tab.wait("#inside-status", ENDED).endswith(", stopped")
        tab.page.wait_for_selector("#attention svg.map")
        until(lambda: engine.n_texts == 0)
        assert 3 < tab.page.locator("#tokens .token[tabindex]").count() < MANY
        tab.close()


def test_a_model_of_one_layer_and_one_head_is_shown(browser, tmp_path_factory):
    model = random_model("float32", vocab_size=len(LETTERS), n_layers=1, n_heads=1, n_kv_heads=1)
    with served(Engine(model, nl.CharTokenizer(LETTERS), Limits()), "one", tmp_path_factory.mktemp("runs")) as url:
        tab = Tab(browser, url)
        tab.look("abc", 5)
        assert tab.page.locator("#attention .head img").count() == 1
        assert tab.page.locator("#layer input").is_disabled()
        assert "length limit" in tab.page.locator("#inside-status").inner_text()
        tab.close()


def test_a_page_with_a_token_opens_by_its_link_and_by_its_form(browser, tmp_path_factory):
    access = Access(token="open-sesame")
    with served(small_engine(), "small", tmp_path_factory.mktemp("runs"), access) as url:
        by_form = browser.new_page()
        by_form.goto(url)
        assert by_form.locator("#prompt").count() == 0
        by_form.fill("#token", "open-sesame")
        by_form.click("button")
        by_form.wait_for_selector("#prompt textarea")
        assert by_form.url == f"{url}/"  # the token is not in the address
        by_form.context.close()
        tab = Tab(browser, f"{url}/?token=open-sesame")
        tab.url = url
        assert tab.page.url == f"{url}/"
        assert "length limit" in tab.generate("abc", max_new_tokens=7)
        tab.open()
        assert len(tab.text()) == 10  # it was saved
        tab.elsewhere.clear()  # its own address, without the token
        tab.close()


def test_text_is_text_and_no_markup(tab):
    tab.tab("Chat")
    tab.page.fill("#message textarea", "<img src=x onerror=alert(1)> ![a](http://example.com/a.png) ${1+1}")
    tab.page.click("#send")
    assert "is not among" in tab.wait("#chat-status", "not among")
    assert tab.page.locator("#talk img, #chat-status img").count() == 0


def test_a_conversation_that_was_kept_is_no_markup():
    *_, talk = Page(None, None).restore(None, [{"role": "user", "content": "<img src=x> & 1"}])
    assert talk == [{"role": "user", "content": "&lt;img src=x&gt; &amp; 1"}]


def test_a_training_in_progress_is_shown_live(tab, runs, engine):
    (runs / "book.txt").write_text("abc abd abe\n" * 200, encoding="utf-8")
    data = load_dataset(runs / "book.txt")
    config = nl.ModelConfig(data.vocab_size, dim=16, n_layers=1, n_heads=2, max_seq_len=16)
    trainer = Trainer(nl.Transformer(config), data, TrainConfig(steps=40, batch_size=4, eval_every=20, workers=1), runs / "a run")
    (runs / "a run").mkdir()
    data.tokenizer.save(runs / "a run")
    with open(runs / "a run" / "metrics.jsonl", "w", encoding="utf-8", buffering=1) as log:
        steps = iter(trainer)
        for _ in range(20):
            log.write(json.dumps(next(steps).to_dict()) + "\n")
        tab.tab("Training")
        tab.wait("#train-status", "step 20: loss")
        tab.wait("#samples", "after step 20")
        assert tab.page.locator("#curve svg circle").count() == 1
        for report in steps:
            log.write(json.dumps(report.to_dict()) + "\n")
        tab.wait("#train-status", "step 40: loss")
        tab.wait("#samples", "after step 40")
    trainer.close()
    assert tab.page.locator("#curve svg circle").count() == 2
    assert tab.page.locator("#samples .sample").count() == 2


def test_it_works_at_phone_width(phone, engine):
    assert "length limit" in phone.generate("abc", max_new_tokens=20, seed=1)
    assert len(phone.text()) == 23
    for name in ("Chat", "Look inside", "Training", "Generate"):
        phone.tab(name)
        phone.page.wait_for_timeout(150)
        width = phone.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, f"{name} is {width} wide"
    phone.tab("Look inside")
    phone.page.fill("#inside-prompt textarea", "abc")
    phone.page.click("#look")
    phone.page.wait_for_selector("#attention svg.map")
    token = phone.page.locator("#tokens .token[tabindex]").nth(2)
    token.tap()
    assert token.locator(".tip").is_visible()
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390


MARKUP = "<img src=x onerror=document.title=1> & \"quoted\" 'a' </textarea></div>"


@pytest.fixture(scope="module")
def markup(browser, tmp_path_factory):
    """A visitor of a model whose vocabulary is markup."""
    tokenizer = nl.CharTokenizer("".join(sorted({*MARKUP, *"\n$`*"})))
    model = random_model("float32", vocab_size=tokenizer.vocab_size, max_seq_len=128)
    with served(Engine(model, tokenizer, Limits()), "<b>& small", tmp_path_factory.mktemp("runs")) as url:
        made = Tab(browser, url)
        made.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
        yield made
        made.close()


def test_prompts_and_tokens_of_markup_are_shown_as_they_are(markup):
    page = markup.page
    assert page.locator("#title h1").inner_text() == "<b>& small"
    markup.generate(MARKUP, max_new_tokens=30, seed=1)
    written = markup.text()
    assert written.startswith(MARKUP) and len(written) > len(MARKUP)
    markup.tab("Look inside")
    page.fill("#inside-prompt textarea", MARKUP)
    page.click("#look")
    page.wait_for_selector("#attention svg.map")
    names = "all => all.map(token => token.firstChild.data).join('')"
    assert page.eval_on_selector_all("#tokens .token.given", names) == MARKUP
    markup.tab("Chat")
    page.fill("#message textarea", MARKUP)
    page.click("#send")
    markup.wait("#chat-status", ENDED)
    assert page.locator("#talk .message").first.inner_text() == MARKUP
    assert page.locator("#tokens img, #attention svg img, #talk .message img").count() == 0
    assert page.title() == "<b>& small · numllama"


def test_the_copy_button_gives_the_text_itself(markup):
    markup.tab("Generate")
    markup.generate(MARKUP, max_new_tokens=31, seed=2)
    markup.page.locator("#text button").first.click()
    markup.page.wait_for_timeout(200)
    assert markup.page.evaluate("navigator.clipboard.readText()") == markup.text()


def test_an_empty_seed_is_another_text_each_time_and_a_seed_the_same(tab):
    texts = {}
    for seed in ("", "", "7", "7"):
        tab.generate("abc", seed=seed, max_new_tokens=40 + len(texts.get("7", ())) + 2 * len(texts.get("", ())))
        texts.setdefault(seed, []).append(tab.text()[:43])
    assert texts[""][0] != texts[""][1]
    assert texts["7"][0] == texts["7"][1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_read_stands_out_from_what_is_behind_it(browser, url, scheme):
    visitor = Tab(browser, url, scheme=scheme)
    visitor.generate("a" * 129)
    visitor.set("max-new-tokens", 20)
    visitor.tab("Look inside")
    visitor.page.fill("#inside-prompt textarea", "abc")
    visitor.page.click("#look")
    visitor.page.wait_for_selector("#attention svg.map")
    visitor.page.locator("#tokens .token[tabindex]").nth(2).hover()
    for selector in ("#inside-status .note", "#tokens .token[tabindex]", "#tokens .tip:visible", "#attention svg text"):
        assert visitor.page.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector
    visitor.tab("Generate")
    assert visitor.page.locator("#status .refused").evaluate(CONTRAST) >= 4.5
    visitor.close()


# The W3C's contrast ratio. Background colours are blended; the opacity of an element includes that of all elements around it.
CONTRAST = """element => {
  const numbers = colour => { const n = colour.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n };
  const over = (top, below) => below.map((b, i) => i < 3 ? top[i] * top[3] + b * (1 - top[3]) : 1);
  const style = getComputedStyle(element), around = [];
  for (let e = element; e; e = e.parentElement) around.push(e);
  const layers = around.map(e => numbers(getComputedStyle(e).backgroundColor)).reverse();
  const back = layers.reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  const [r, g, b, a] = numbers(element instanceof SVGElement ? style.fill : style.color);
  const front = over([r, g, b, around.reduce((o, e) => o * getComputedStyle(e).opacity, a)], back);
  const light = c => { const [r, g, b] = c.map(x => (x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const [low, high] = [light(front), light(back)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}"""
