"""Many texts at the same time, each as if it were the only one."""

import asyncio
from contextlib import contextmanager
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
from generation.models import random_model, saying
from serve.served import LETTERS, small_engine, until

import numllama as nl
from numllama.errors import GenerationError
from numllama.generation.sampling import log_softmax
from numllama.serve import job as module
from numllama.serve.engine import Busy, Engine, EngineStopped, Limits, Request


@pytest.fixture
def engine():
    made = small_engine()
    yield made
    made.close()


def write(engine, *requests, pause=0.0):
    """Submit the requests together, as one job each; their texts, tokens and reasons."""

    async def one(request):
        job = await engine.submit([request])
        chunks = [chunk async for chunk in job.chunks(pause)]
        joined = SimpleNamespace(text="".join(c.text for c in chunks), tokens=[t for c in chunks for t in c.tokens])
        joined.finish, joined.state, joined.chunks = chunks[-1].finish, job.texts[0], chunks
        return joined

    async def every():
        return await asyncio.gather(*map(one, requests))

    return asyncio.run(every())


@contextmanager
def held(engine):
    """Hold the engine until the end of the context."""
    held, go = Event(), Event()
    engine.call(lambda: (held.set(), go.wait(10)))
    try:
        assert held.wait(10)
        yield
    finally:
        go.set()


def a_request(prompt="abc", n=20, stop=(), top_logprobs=None, **settings) -> Request:
    return Request(prompt, n, nl.SamplingConfig(**settings), stop, top_logprobs)


def test_each_of_many_texts_is_what_complete_writes(engine):
    prompts = [
        "abc",
        "a",
        "no\nop",
        "abc",
        "dad d",
        "hhh",
        "f",
        "pm",
        "mid",
        "k k",
        "abc abc abc abc abc abc abc",
        "abc abc abc abc abc abc",
    ]
    requests = [a_request(prompt, 30, seed=i, temperature=0.9) for i, prompt in enumerate(prompts)]
    for request, written in zip(requests, write(engine, *requests), strict=True):
        expected = nl.complete(engine.model, engine.tokenizer, request.prompt, 30, sampling=request.sampling)
        assert written.text == expected
        assert written.finish == "length"


def test_eight_texts_grow_at_the_same_pace(engine, monkeypatch):
    order = []
    push = module.Text.push
    monkeypatch.setattr(module.Text, "push", lambda text, delta: (order.append(text.request.sampling.seed), push(text, delta)))

    async def every():
        with held(engine):
            jobs = [await engine.submit([a_request("ab", 40, seed=i)]) for i in range(8)]
        return [len("".join([c.text async for c in job.chunks()])) for job in jobs]

    assert asyncio.run(every()) == [40] * 8
    assert order[: 40 * 8] == [*range(8)] * 40


def test_a_text_beyond_the_context_goes_on_as_with_a_window(engine):
    (written,) = write(engine, a_request("abc", 100, seed=3))
    assert written.text == nl.complete(engine.model, engine.tokenizer, "abc", 100, seed=3, window=64)


def test_a_prompt_is_found_again_in_what_was_written_and_says_the_same(engine):
    first = write(engine, a_request("abcdefghijklmnop", 30, seed=1))[0].text
    prompt = "abcdefghijklmnop" + first
    kept = engine._caches[-1]
    (again,) = write(engine, a_request(prompt, 10, seed=2))
    assert engine._caches[-1] is not kept or kept.length >= len(prompt)
    assert again.text == nl.complete(engine.model, engine.tokenizer, prompt, 10, seed=2)
    (short,) = write(engine, a_request(prompt, 3, seed=2))
    (same,) = write(engine, a_request(prompt, 3, seed=2))
    assert short.text == same.text == again.text[:3]


def test_only_a_few_caches_are_kept(engine):
    for i in range(5):
        write(engine, a_request("abcdefghij"[i:] * 3, 5, seed=i))
    assert len(engine._caches) == 2


def test_a_stop_word_ends_a_text_and_is_not_part_of_it(engine):
    whole = nl.complete(engine.model, engine.tokenizer, "abc", 40, seed=5)
    word = whole[12:14]
    (written,) = write(engine, a_request("abc", 40, (word,), seed=5))
    assert written.text == whole[: whole.index(word)]
    assert written.finish == "stop"


def test_a_stop_id_ends_a_text(engine):
    ids = nl.generate(engine.model, engine.tokenizer.encode("abc"), 40, seed=5)
    (written,) = write(engine, a_request("abc", 40, seed=5, stop_ids=(ids[7],)))
    assert written.text == engine.tokenizer.decode(ids[: ids.index(ids[7])])
    assert written.finish == "stop"


def test_chances_are_the_models_own(engine):
    (written,) = write(engine, a_request("abc", 12, top_logprobs=3, seed=1, temperature=0.3, top_k=2))
    ids = [*engine.tokenizer.encode("abc"), *(token.id for token in written.tokens)]
    chances = log_softmax(engine.model.forward(np.array([ids]))[0])
    for place, token in enumerate(written.tokens, start=2):
        assert token.logprob == pytest.approx(chances[place, token.id], abs=1e-5)
        best = np.argsort(-chances[place])[:3]
        assert [i for i, _ in token.top_logprobs] == list(best)
        assert [c for _, c in token.top_logprobs] == pytest.approx(list(chances[place, best]), abs=1e-5)
    assert "".join(LETTERS_BY_ID[token.id] for token in written.tokens) == written.text


LETTERS_BY_ID = nl.CharTokenizer(LETTERS).characters


def test_what_it_took_is_counted(engine):
    (written,) = write(engine, a_request("abcd", 10, seed=0))
    state, c = written.state, engine.model.config
    assert (state.prompt_tokens, state.new_tokens) == (4, 10)
    assert 0 < state.first_token <= state.seconds
    assert state.cache_bytes == 2 * c.n_layers * c.n_kv_heads * c.head_dim * 4 * 14


def test_pieces_between_two_pauses_come_as_one(engine):
    (written,) = write(engine, a_request("abc", 60, seed=0), pause=0.5)
    assert len(written.chunks) <= 3
    assert len(written.text) == 60


@pytest.mark.parametrize("wrong, sentence", [
    (a_request("a" * 65), "the prompt has 65 tokens, but this server accepts at most 64"),
    (a_request(""), "the prompt is empty"),
    (a_request([3, 18]), "tokens"),
    (a_request("é"), "'é'"),
    (a_request("a", stop_ids=(19,)), "stop_ids holds 19"),
    (a_request("a", n=-1), "max_new_tokens is -1"),
])  # fmt: skip
def test_what_cannot_be_written_is_said_at_once(engine, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        write(engine, wrong)
    assert engine.n_texts == 0


def test_more_texts_than_there_is_place_for_are_refused_and_the_others_finish():
    engine = small_engine(max_concurrent=2, waiting=1)

    async def every():
        with held(engine):
            jobs = [await engine.submit([a_request("a", 150, seed=i)]) for i in range(3)]
            with pytest.raises(Busy, match="busy"):
                await engine.submit([a_request("a", 5)])
        return [len("".join([c.text async for c in job.chunks()])) for job in jobs]

    assert asyncio.run(every()) == [150] * 3
    assert len(write(engine, a_request("a", 5))[0].text) == 5
    engine.close()


def test_a_text_that_nobody_waits_for_ends_at_once():
    engine = small_engine(new_tokens=5000)

    async def leave():
        job = await engine.submit([a_request("a", 5000, seed=0), a_request("b", 5000, seed=0)])
        async for _ in job.chunks():
            break
        job.cancel()
        return job

    job = asyncio.run(leave())
    until(lambda: engine.n_texts == 0)
    assert all(text.new_tokens < 5000 for text in job.texts)
    engine.close()


def test_an_error_ends_its_own_text_only(engine, monkeypatch):
    real = module._token

    def failing(i, logits, top_logprobs):
        if top_logprobs == 5:
            raise FloatingPointError("broken")
        return real(i, logits, top_logprobs)

    monkeypatch.setattr(module, "_token", failing)

    async def every():
        good = await engine.submit([a_request("a", 30, seed=0)])
        bad = await engine.submit([a_request("a", 30, seed=0, top_logprobs=5)])
        with pytest.raises(FloatingPointError):
            [chunk async for chunk in bad.chunks()]
        return "".join([chunk.text async for chunk in good.chunks()])

    assert asyncio.run(every()) == nl.complete(engine.model, engine.tokenizer, "a", 30, seed=0)


def test_at_the_end_texts_end_too():
    engine = small_engine(new_tokens=10**6)

    async def cut():
        job = await engine.submit([a_request("a", 10**6)])
        chunks = job.chunks()
        await anext(chunks)
        await asyncio.to_thread(engine.close)
        with pytest.raises(nl.NumllamaError, match="shutting down"):
            [chunk async for chunk in chunks]
        with pytest.raises(Busy, match="shutting down"):
            await engine.submit([a_request("a", 5)])

    asyncio.run(cut())
    assert not engine._thread.is_alive()


def test_other_work_is_done_between_two_tokens(engine):
    assert engine.call(lambda: 6 * 7).result(10) == 42
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 // 0).result(10)
    assert write(engine, a_request("a", 3))[0].finish == "length"


def test_another_model_may_write_too(engine):
    other = small_engine(seed=7)

    async def both():
        job = await engine.submit([a_request("abc", 20, seed=1)], other.model, other.tokenizer)
        return "".join([chunk.text async for chunk in job.chunks()])

    assert asyncio.run(both()) == nl.complete(other.model, other.tokenizer, "abc", 20, seed=1)
    other.close()


def test_a_model_of_learned_positions_ends_where_its_table_does():
    tokenizer = nl.CharTokenizer(LETTERS)
    model = random_model("float32", vocab_size=len(LETTERS), positions="learned", max_seq_len=16)
    engine = Engine(model, tokenizer)
    assert engine.new_tokens == 16
    assert len(write(engine, a_request("abc", 14, seed=0))[0].text) == 14
    with pytest.raises(ValueError, match="do not fit"):
        write(engine, a_request("abc", 15, seed=0))
    engine.close()


# ------------------------------------------------------------------------------------------------ what ends the engine


class Fatal(BaseException):
    """An error that no text's handler catches."""


def broken_in(engine, where):
    """An engine whose thread meets a fatal error: in a text, between two texts, or in its main loop."""

    def fail(*arguments):
        raise Fatal("broken")

    setattr(*{"text": (engine, "_cache"), "round": (engine, "_advance"), "queue": (engine, "_step")}[where], fail)
    return engine


@pytest.mark.parametrize("where", ["text", "round", "queue"])
def test_an_error_that_ends_the_thread_is_told_to_all_who_wait_and_who_come(where):
    engine = small_engine(max_concurrent=1)

    async def every():
        with held(engine):
            jobs = [await engine.submit([a_request("a", 30)]) for _ in range(3)]
            other = engine.call(lambda: 1)
            broken_in(engine, where)
        for one in jobs:
            with pytest.raises(EngineStopped, match="the engine has stopped after an error"):
                [chunk async for chunk in one.chunks()]
        assert isinstance(other.exception(10), EngineStopped if where == "queue" else type(None))  # calls come before texts
        with pytest.raises(EngineStopped):
            await engine.submit([a_request("a", 5)])
        with pytest.raises(EngineStopped):
            engine.call(lambda: 1)

    asyncio.run(every())
    assert isinstance(engine.failure, Fatal)
    assert engine.n_texts == 0
    engine.close()
    assert not engine._thread.is_alive()


def test_a_call_that_nobody_waits_for_any_more_does_not_end_the_thread():
    engine = small_engine()
    with held(engine):
        future = engine.call(lambda: 1)
        assert future.cancel()
    assert write(engine, a_request("a", 3))[0].finish == "length"
    engine.close()
    assert engine.failure is None


def test_logits_that_are_no_numbers_end_their_text_and_no_other(engine):
    bad = random_model("float32", vocab_size=len(LETTERS), max_seq_len=64)
    bad.params["blocks.1.wo"][0, 0] = np.nan

    async def both():
        good = await engine.submit([a_request("a", 30, seed=0)])
        with pytest.raises(GenerationError, match=r"its parameter blocks.1.wo is not finite"):
            [chunk async for chunk in (await engine.submit([a_request("a", 30)], bad, engine.tokenizer)).chunks()]
        return "".join([chunk.text async for chunk in good.chunks()])

    assert asyncio.run(both()) == nl.complete(engine.model, engine.tokenizer, "a", 30, seed=0)
    assert engine.failure is None


# ------------------------------------------------------------------------------------------------ prompts


def bytes_engine(prompt_tokens=64):
    """A model of bytes, whose longest token has 8 bytes."""
    tokenizer = nl.Tokenizer(dict(enumerate([*(bytes([i]) for i in range(256)), b"abcdefgh"])), [], {"<s>": 257, "</s>": 258})
    return Engine(random_model("float32", vocab_size=259, max_seq_len=64), tokenizer, Limits(prompt_tokens=prompt_tokens))


@pytest.mark.parametrize("text", ["th" * 2**20, "a" * 521, "é" * 300])
def test_a_prompt_that_must_be_too_long_is_not_read_through(monkeypatch, text):
    engine = bytes_engine()
    monkeypatch.setattr(engine.tokenizer, "encode", lambda *a, **k: pytest.fail("it was encoded"))
    with pytest.raises(ValueError, match=r"the prompt has at least [\d,]+ tokens, but this server accepts at most 64"):
        write(engine, Request(text, 5))
    engine.close()


@pytest.mark.parametrize(("text", "tokens"), [("abcdefgh" * 64, 512), ("a" * 64, 64), ("é" * 32, 64), ("</s>" * 64, 64)])
def test_a_prompt_that_may_fit_is_counted(text, tokens):
    """The four bytes of </s> are one token; the byte count of abcdefgh alone does not exceed the limit."""
    engine = bytes_engine()
    if tokens > 64:
        with pytest.raises(ValueError, match=f"the prompt has {tokens} tokens, but this server accepts at most 64"):
            write(engine, Request(text, 5))
    else:
        assert write(engine, Request(text, 1))[0].state.prompt_tokens == tokens
    engine.close()


def test_a_prompt_is_encoded_once_for_all_its_texts(monkeypatch):
    engine, seen = bytes_engine(), []
    encode = engine.tokenizer.encode
    monkeypatch.setattr(engine.tokenizer, "encode", lambda text, *a, **k: (seen.append(text), encode(text, *a, **k))[1])

    async def every(prompts):
        requests = [Request(prompt, 3, special=special) for prompt, special in prompts]
        job = await engine.submit(requests)
        return [text.prompt_tokens for text in job.texts]

    assert asyncio.run(every([("ab", True)] * 4 + [("<s>c", True)] * 2 + [("<s>c", False), ([1, 2], True), ([1], True)])) == [
        2, 2, 2, 2, 2, 2, 4, 2, 1,
    ]  # fmt: skip
    assert seen == ["ab", "<s>c", "<s>c"]
    engine.close()


def test_the_prompts_own_tokens_have_probabilities_too(engine):
    ids = engine.tokenizer.encode("abc abd")
    for prompt, n in (("abc abd", 3), (ids, 3), (ids, 0)):
        (written,) = write(engine, Request(prompt, n, nl.SamplingConfig(seed=1), top_logprobs=2, echo=True))
        every = [*ids, *written.state.new_ids]
        chances = log_softmax(engine.model.forward(np.array([every]))[0])
        assert written.text == engine.tokenizer.decode(every)
        assert [token.id for token in written.tokens] == every
        assert [token.offset for token in written.tokens] == list(range(len(every)))
        first, *others = written.tokens
        assert (first.logprob, first.top_logprobs) == (None, [])
        assert [t.logprob for t in others] == pytest.approx([chances[i, t.id] for i, t in enumerate(others)], abs=1e-5)
        assert [t.top_logprobs[0][0] for t in others] == [int(chances[i].argmax()) for i in range(len(others))]
        assert written.finish == "length"


def test_a_long_prompt_is_echoed_in_parts_and_through_a_window(monkeypatch):
    monkeypatch.setattr(module, "ECHO_TOKENS", 5)
    engine = small_engine()
    (written,) = write(engine, Request("abc " * 15, 20, nl.SamplingConfig(seed=1), top_logprobs=0, echo=True))
    ids = engine.tokenizer.encode("abc " * 15)
    chances = log_softmax(engine.model.forward(np.array([ids]))[0])
    assert [t.logprob for t in written.tokens[1:60]] == pytest.approx([chances[i, j] for i, j in enumerate(ids[1:])], abs=1e-5)
    assert written.text == "abc " * 15 + nl.complete(engine.model, engine.tokenizer, "abc " * 15, 20, seed=1, window=64)
    engine.close()


def test_a_prompt_of_half_a_character_and_special_tokens_is_echoed_as_it_is_spelt():
    engine = bytes_engine()
    (text,) = write(engine, Request("<s>ü", 0, top_logprobs=0, echo=True))
    assert (text.text, [token.offset for token in text.tokens]) == ("<s>ü", [0, 3, 3])
    (ids,) = write(engine, Request([257, 0xC3, 0xBC, 65, 0xC3], 0, top_logprobs=0, echo=True))
    assert (ids.text, [token.offset for token in ids.tokens]) == ("üA\ufffd", [0, 0, 0, 1, 2])
    (shown,) = write(engine, Request([257, 65], 0, top_logprobs=0, echo=True, skip_special_tokens=False))
    assert (shown.text, [token.offset for token in shown.tokens]) == ("<s>A", [0, 3])
    engine.close()


def test_a_text_that_says_nothing_for_long_holds_up_no_other():
    """Ids without a token have no text, but each of them takes a turn."""
    engine = Engine(saying(310), nl.Tokenizer({i: bytes([i]) for i in range(256)}, []))
    order, advance = [], engine._advance
    engine._advance = lambda text: (order.append(text.index), advance(text))

    async def both():
        with held(engine):
            job = await engine.submit([Request("?", 30)] * 2)
        return [chunk async for chunk in job.chunks()]

    assert {chunk.text for chunk in asyncio.run(both())} == {""}
    assert order[:60] == [0, 1] * 30
    engine.close()


@pytest.mark.parametrize("limits", [dict(max_concurrent=0), dict(waiting=-1), dict(new_tokens=2.5), dict(prompt_tokens=True)])
def test_limits_that_cannot_be_are_named(limits):
    with pytest.raises(ValueError, match=next(iter(limits))):
        Limits(**limits)
