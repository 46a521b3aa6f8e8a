"""The page without a browser: models of every shape, stopped texts, and the initial values of the controls."""

import asyncio
import json
from contextlib import ExitStack
from types import SimpleNamespace

import gradio as gr
import pytest
from browser.test_routes import GENERATE, JOIN, PREDICT, SETTINGS, elsewhere, ending
from generation.models import random_model
from serve.served import LETTERS, client, served, small_engine, until

import numllama as nl
from numllama.serve import layout
from numllama.serve.controls import CONTROL_KINDS, Settings
from numllama.serve.engine import Engine, Limits
from numllama.serve.guard import PageGuard
from numllama.serve.pages import MAP_TOKENS, Page

LOOK, ATTENTION, STOP = 3, 4, 6
LONG = [0.8, 0, 1, 0, 1, 10**6, "", ""]
VISITOR = SimpleNamespace(session_hash="s1")


def opened(engine, stack, runs):
    """A server with a page, until the end of the stack. Without a running loop, Gradio creates loops and leaves them open."""

    async def enter():
        return stack.enter_context(served(engine, "small", runs))

    return elsewhere(enter())


def done(http, event, data, session):
    """The final outputs of an event."""
    assert http.post(JOIN, json=dict(fn_index=event, data=data, session_hash=session)).status_code == 200
    last = ending(http, session)
    assert last["msg"] == "process_completed" and last["success"], last
    return last["output"]["data"]


# ------------------------------------------------------------------------------------------------ shapes


SHAPES = [
    (dict(n_layers=1), {}), (dict(n_heads=1, n_kv_heads=1), {}), (dict(n_layers=1, n_heads=1, n_kv_heads=1), {}),
    (dict(max_seq_len=1, positions="learned"), {}), (dict(n_layers=3), dict(new_tokens=1)),
    (dict(max_seq_len=2, n_layers=1), dict(prompt_tokens=1, new_tokens=1, max_concurrent=1)),
    (dict(n_heads=6, n_kv_heads=3, positions="none", n_layers=1), {}),
]  # fmt: skip


@pytest.mark.parametrize("shape, limits", SHAPES)
def test_a_model_of_any_shape_can_be_looked_into(shape, limits, tmp_path):
    model = random_model("float32", vocab_size=len(LETTERS), **shape)
    engine = Engine(model, nl.CharTokenizer(LETTERS), Limits(**limits))
    with ExitStack() as stack, client(opened(engine, stack, tmp_path)) as http:
        assert http.get("/").status_code == 200
        session = "looks"
        tokens, _, _ = done(http, LOOK, ["a", 0.8, 0, 1, 0, 1, 1, "", ""], session)
        picture = done(http, ATTENTION, [None, model.config.n_layers - 1, model.config.n_heads - 1], session)[0]
        beyond = http.post(JOIN, json=dict(fn_index=ATTENTION, data=[None, model.config.n_layers, 0], session_hash=session))
        assert beyond.status_code == 200
        assert not ending(http, session)["success"]
    assert tokens.count(' given"') == 1
    assert picture.count('<span class="head') == model.config.n_heads
    assert "<svg" in picture


# ------------------------------------------------------------------------------------------------ texts that are stopped


@pytest.fixture
def page():
    page = Page(small_engine(new_tokens=10**7), None)
    yield page
    page.engine.close()


@pytest.mark.parametrize("updates", [1, 2, 5])
def test_stop_while_looking_inside_keeps_the_tokens_and_their_map(page, updates):
    async def stopped():
        steps = []
        async for step in page.look(VISITOR, "abc", *LONG):
            steps.append(step)
            if len(steps) == updates:
                page.stop(VISITOR)
        return steps, await page.attention(steps[-1][2], 0, 0)

    steps, picture = elsewhere(stopped())
    tokens, status, ids = steps[-1]
    assert ", stopped<" in status
    assert ids[:3] == page.engine.tokenizer.encode("abc")
    assert tokens.count('<span class="token ') == len(ids)
    assert "<svg" in picture
    assert page._jobs == {}


@pytest.mark.parametrize("extra", [0, 1, 25])
def test_a_map_of_a_part_of_the_text_says_so(page, extra):
    ids = (page.engine.tokenizer.encode("abcd") * 20)[: MAP_TOKENS + extra]
    picture = elsewhere(page.attention(ids, 0, 0))
    sentence = f"The map shows the last {MAP_TOKENS} of {MAP_TOKENS + extra} tokens; attention to earlier tokens is not drawn."
    assert picture.count("<text") == 2 * MAP_TOKENS
    assert (sentence in picture) == (extra > 0) and picture.count("The map shows") == (extra > 0)


def test_stop_before_the_first_token_shows_the_prompt(page):
    async def stopped():
        submit = page.engine.submit

        async def late(requests):
            job = await submit(requests)
            job.cancel()  # as a stop at this moment would
            return job

        page.engine.submit = late
        return [step async for step in page.look(VISITOR, "abc", *LONG)]

    tokens, status, ids = elsewhere(stopped())[-1]
    assert ", stopped<" in status
    assert ids[:3] == page.engine.tokenizer.encode("abc")
    assert tokens.count(' given"') == 3


def test_stop_ends_every_text_of_its_page_and_also_the_one_after(page):
    async def twice():
        other = SimpleNamespace(session_hash="s2")
        steps = {name: [] for name in ("look", "text", "other", "after")}

        async def follow(name, generator):
            async for step in generator:
                steps[name].append(step)

        first = [asyncio.ensure_future(follow("look", page.look(VISITOR, "abc", *LONG)))]
        first += [asyncio.ensure_future(follow("text", page.generate(VISITOR, "abc", *LONG)))]
        another = asyncio.ensure_future(follow("other", page.generate(other, "abc", *LONG)))
        while not (steps["look"] and len(steps["text"]) > 2):
            await asyncio.sleep(0.01)
        page.stop(VISITOR)
        after = asyncio.ensure_future(follow("after", page.generate(VISITOR, "abc", *LONG)))
        await asyncio.gather(*first)
        while len(steps["after"]) < 3:
            await asyncio.sleep(0.01)
        page.stop(VISITOR)
        await asyncio.wait_for(after, 10)
        assert not another.done()
        page.stop(other)
        await asyncio.wait_for(another, 10)
        return steps

    steps = elsewhere(twice())
    assert all(", stopped<" in steps[name][-1][1] for name in steps)
    assert page._jobs == {}


@pytest.mark.parametrize("event, how", [(LOOK, "stop"), (LOOK, "close"), (GENERATE, "close"), (GENERATE, "stop")])
def test_a_page_that_stops_or_is_closed_while_something_is_written_leaves_no_error(event, how, tmp_path, capfd):
    engine = small_engine(new_tokens=10**7)
    with ExitStack() as stack, client(opened(engine, stack, tmp_path)) as http:
        with http.stream("GET", "/gradio_api/heartbeat/closing") as beats:
            next(beats.iter_lines())
            assert http.post(JOIN, json=dict(fn_index=event, data=["abc", *LONG], session_hash="closing")).status_code == 200
            with http.stream("GET", "/gradio_api/queue/data?session_hash=closing") as messages:
                lines = (line for line in messages.iter_lines() if "process_generating" in line)
                next(lines)
                until(lambda: engine.n_texts == 1)
                if how == "stop":
                    assert http.post(PREDICT, json=dict(fn_index=STOP, data=[], session_hash="closing")).status_code == 200
                    assert any(", stopped<" in line for line in lines)
        until(lambda: engine.n_texts == 0, seconds=20)
        done(http, event, ["abc", *LONG[:5], 3, "", ""], "next")
    assert "Error" not in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------ controls


def values_of(engine, tmp_path):
    """The sliders' initial values, by their ids."""

    async def built():
        return layout.build(engine, "small", tmp_path)

    controls = elsewhere(built()).blocks.values()
    return {c.elem_id: c.value for c in controls if isinstance(c, gr.Slider)}


@pytest.mark.parametrize("said, shown", [
    ({}, {"temperature": 0.8, "top-k": 0, "top-p": 1, "min-p": 0, "repetition-penalty": 1}),
    ({"temperature": 0.6, "top_p": 0.92, "top_k": 7}, {"temperature": 0.6, "top-k": 7, "top-p": 0.92}),
    ({"do_sample": False, "repetition_penalty": 1.17}, {"temperature": 0, "repetition-penalty": 1.17}),
    ({"temperature": 2.5, "top_k": 50, "min_p": 0.03}, {"temperature": 2.5, "top-k": 0, "min-p": 0.03}),
    ({"top_k": -1, "top_p": 0.0, "repetition_penalty": 3.0}, {"top-k": 0, "top-p": 0, "repetition-penalty": 3}),
])  # fmt: skip
def test_the_controls_begin_with_what_the_checkpoint_says(said, shown, tmp_path):
    model = random_model("float32", vocab_size=len(LETTERS))
    model.generation_config = {"eos_token_id": 3, **said}
    engine = Engine(model, nl.CharTokenizer(LETTERS), Limits())
    values = values_of(engine, tmp_path)
    assert {name: values[name] for name in shown} == shown
    request = Settings(*(values[name] for name in list(values)[2:8]), "", "").request(engine, "abc")
    assert request.sampling.temperature == values["temperature"]
    assert request.sampling.stop_ids == (3,)
    engine.close()


@pytest.mark.parametrize("change, sentence", [
    (dict(seed="9" * 20), "must be a whole number from 0"), (dict(seed="0" * 5000 + "7"), "must be a whole number from 0"),
    (dict(seed="٣" * 30), "must be a whole number from 0"), (dict(max_new_tokens=201), "at most 200"),
    (dict(top_p=None), "top p is empty"),
])  # fmt: skip
def test_a_setting_that_cannot_be_is_one_short_sentence(page, change, sentence):
    engine = small_engine()
    with pytest.raises(ValueError, match=sentence) as caught:
        Settings(*SETTINGS)._replace(**change).request(engine, "abc")
    assert len(str(caught.value)) < 200
    engine.close()


def test_a_text_that_is_null_is_an_empty_one():
    engine = small_engine()
    request = Settings(*SETTINGS)._replace(seed=None, stop=None).request(engine, "abc")
    assert (request.sampling.seed, request.stop) == (None, ())
    engine.close()


def test_a_log_that_is_none_is_said_beside_what_can_be_shown(tmp_path):
    (tmp_path / "a run").mkdir()
    log = tmp_path / "a run" / "metrics.jsonl"
    log.write_text('{"step": 1, "loss": 2.0}\n["<b>"]\n{"step": 2, "loss": "x"}\n' + json.dumps({"step": 3, "loss": 1.5}) + "\n")
    page = Page(small_engine(), tmp_path)
    _, status, curve, *_, now = elsewhere(page.training(None, None))
    assert "step 3" in status
    assert status.count("refused") == 1
    assert "line 2" in status
    assert "<svg" in curve
    assert elsewhere(page.training("a run", now))[1] == gr.skip()
    page.engine.close()


# ------------------------------------------------------------------------------------------------ Gradio's own check


def test_every_control_of_an_event_has_a_kind(tmp_path):
    engine = small_engine()

    async def built():
        return layout.build(engine, "small", tmp_path)

    page = elsewhere(built())
    inputs = layout.inputs(page)
    engine.close()
    assert set(inputs) == set(page.fns)
    assert {type(control) for event in page.fns.values() for control in event.inputs} <= set(CONTROL_KINDS)
    assert sum(map(len, inputs.values())) > 30


@pytest.mark.parametrize("name", ["/etc/passwd", "/proc/self/environ", "pyproject.toml"])
def test_without_the_guard_gradio_itself_refuses_a_file(name, tmp_path, monkeypatch, capfd):
    async def unguarded(self, scope, receive, send):
        await self.app(scope, receive, send)

    monkeypatch.setattr(PageGuard, "__call__", unguarded)
    engine = small_engine()
    with ExitStack() as stack, client(opened(engine, stack, tmp_path)) as http:
        file = {"path": name, "meta": {"_type": "gradio.FileData"}}
        assert http.post(JOIN, json=dict(fn_index=0, data=[file, *SETTINGS], session_hash="s")).status_code == 200
        assert not ending(http, "s")["success"]
        assert http.get(f"/gradio_api/file={name}").status_code in (403, 404)
    assert "InvalidPathError" in capfd.readouterr().err
