"""The process that renders chat templates: its limits, its end, and that it is used again."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from numllama.errors import CheckpointError, NumllamaError
from numllama.tokenizer import renderer
from numllama.tokenizer.renderer import PROCESSES, Render, render

HELLO = [{"messages": [{"role": "user", "content": "x"}]}]
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
BOMBS = {
    "a long text": ("{{ 'a' * 10**9 }}", "needs more than 512 MB of memory"),
    "a deep indentation": ("{{ messages | tojson(indent=10**9) }}", "needs more than 512 MB of memory"),
    "a padded number": ("{{ 'a'.zfill(10**13) }}", "needs more than 512 MB of memory"),
    "many copies": ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "makes more than 16,777,216 characters"),
    "parentheses": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be read: it is nested too deeply"),
    "not not": ("{{ " + "not " * 5000 + "1 }}", "cannot be read: it is nested too deeply"),
    "a long sum": ("{{ " + "1+" * 5000 + "1 }}", "cannot be read: it is nested too deeply"),
    "ifs": ("{% if 1 %}" * 500 + "{% endif %}" * 500, "cannot be read: "),
    "loops in loops": ("{% for i in range(3) %}" * 60 + "{% endfor %}" * 60, "cannot be read: too many statically nested blocks"),
    "a macro that calls itself": ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "it is nested too deeply"),
    "an assertion": ("{{ 'x' | truncate(-5) }}", "cannot render these messages: expected length"),
    "a number of many digits": ("{{ 10 ** 5000 }}", "Exceeds the limit"),
    "a long refusal": ("{{ raise_exception('no ' * 10**6) }}", "cannot render these messages: no no"),
    "a filter that is none": ("{{ messages | nothing }}", "cannot be read: No filter named 'nothing'"),
}


def outcome(template, **settings):
    (result,) = render(template, HELLO, [Render(**settings)])
    return result


def process_ids():
    return [process._process.pid for process in renderer._idle]


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_sentence_and_the_next_template_is_rendered(name):
    template, sentence = BOMBS[name]
    error = outcome(template)
    assert isinstance(error, ValueError | CheckpointError)
    assert str(error).startswith("the chat template ") and sentence in str(error)
    assert len(str(error)) < 400 and "\n" not in str(error)
    assert outcome("{{ messages[0].content }}") == "x"


@pytest.fixture
def short(monkeypatch):
    """A time limit that tests need not wait for."""
    renderer._close_all()
    monkeypatch.setattr(renderer, "SECONDS", 0.5)
    yield
    renderer._close_all()


@pytest.mark.parametrize(
    "template", [ENDLESS, "{{ 10 ** (10 ** 8) }}", "{% macro f() %}" + ENDLESS + "{% endmacro %}{{ f() | trim }}"]
)
def test_an_endless_template_is_ended(short, template):
    assert str(outcome(template)) == "the chat template takes longer than 0.5 s for these messages"
    assert outcome("{{ messages[0].content }}") == "x"


def test_the_conversations_before_an_endless_one_have_their_texts(short):
    template = "{{ messages[0].content }}{% if messages[0].content == 'y' %}" + ENDLESS + "{% endif %}"
    conversations = [{"messages": [{"role": "user", "content": content}]} for content in "xyz"]
    first, *others = render(template, conversations, [Render(0), Render(1), Render(1, prompt=True), Render(2)])
    assert first == "x"
    assert {str(error) for error in others} == {"the chat template takes longer than 0.5 s for these messages"}


def test_an_endless_template_holds_up_nobody_else():
    outcomes = []
    threads = [Thread(target=lambda: outcomes.append(outcome(ENDLESS))) for _ in range(PROCESSES - 1)]
    for thread in threads:
        thread.start()
    assert outcome("{{ messages[0].content }}") == "x"
    assert not outcomes  # they go on
    for thread in threads:
        thread.join()
    assert len(outcomes) == PROCESSES - 1


def test_more_conversations_than_processes_take_turns():
    results = []
    threads = [Thread(target=lambda: results.append(outcome("{{ messages[0].content }}"))) for _ in range(5 * PROCESSES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["x"] * (5 * PROCESSES)
    assert len(process_ids()) <= PROCESSES


def test_a_process_is_used_again():
    outcome("a")
    before = process_ids()
    for _ in range(5):
        assert outcome("{{ messages[0].content }}") == "x"
    assert process_ids() == before


def test_one_that_has_ended_meanwhile_is_replaced():
    outcome("a")
    for process in renderer._idle:
        process._process.kill()
        process._process.wait()
    assert outcome("{{ messages[0].content }}") == "x"


def test_one_that_ends_by_itself_says_so():
    outcome("a")
    process = renderer._idle[-1]
    answers = process.ask(b"no JSON\n", 2)
    assert list(answers) == [{"error": "ended", "sentence": "code 3"}] * 2
    assert outcome("{{ messages[0].content }}") == "x"


def test_one_that_was_interrupted_is_not_used_again(monkeypatch):
    outcome("a")
    busy = renderer._idle[-1]
    with monkeypatch.context() as patch:
        patch.setattr(busy, "_answer", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            outcome("{{ messages[0].content }}")
    assert busy not in renderer._idle and not busy.alive
    assert outcome("other") == "other"


@pytest.mark.parametrize("version", [None, "3.1.5"])
def test_without_jinja_it_is_named(monkeypatch, tmp_path, version):
    renderer._close_all()
    if version:
        (tmp_path / "jinja2").mkdir()
        files = {
            "__init__": f"__version__ = {version!r}\nnodes = 0",
            "exceptions": "SecurityError = TemplateError = TemplateSyntaxError = ImportError",
            "ext": "Extension = object",
            "sandbox": "ImmutableSandboxedEnvironment = object",
        }
        for name, content in files.items():
            (tmp_path / "jinja2" / f"{name}.py").write_text(content)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(path for path in sys.path if "site-packages" not in path)])
    with pytest.raises(NumllamaError, match=r"^chat templates need Jinja2 3\.1\.6 or newer: pip install"):
        outcome("a")
    monkeypatch.undo()
    assert outcome("a") == "a"


def test_a_process_that_cannot_be_started_is_one_sentence(monkeypatch):
    renderer._close_all()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(NumllamaError, match="the process that renders chat templates cannot be started: No such file"):
        outcome("a")


def test_a_program_without_python_in_it_is_one_sentence(monkeypatch):
    renderer._close_all()
    monkeypatch.setattr(renderer, "_PROGRAM", renderer._PROGRAM.with_name("none.py"))
    with pytest.raises(NumllamaError, match="the process that renders chat templates ended at once, with code 2"):
        outcome("a")


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


START = "import os; from numllama.tokenizer import renderer as r; r.render('a', [{'messages': []}], [r.Render()]);"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_it_ends_with_its_parent_and_is_in_a_group_of_its_own():
    (pid,) = run(START + "p = r._idle[0]._process.pid; assert os.getpgid(p) != os.getpgid(0); print(p, flush=True); os._exit(0)")
    running = Path(f"/proc/{pid}/cmdline")  # empty once it has ended and nobody has asked why
    for _ in range(500):
        if not running.exists() or not running.read_bytes():
            return
        time.sleep(0.01)
    raise AssertionError(f"{running} is still there")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system knows no forks")
def test_a_forked_child_has_its_own():
    program = START + (
        "\nif os.fork() == 0:\n    print(r.render('b', [{'messages': []}], [r.Render()]), len(r._idle), flush=True)\nelse:\n"
        "    os.wait(); print(r.render('c', [{'messages': []}], [r.Render()]), len(r._idle))"
    )
    assert run(program) == ["['b']", "1", "['c']", "1"]


def test_time_and_chance_are_the_same_for_all_texts_of_a_request():
    template = "{{ range(10 ** 5) | random }} {{ strftime_now('%f') }}"
    one, other = render(template, HELLO, [Render(), Render(marks="x")])
    assert one == other
    assert render(template, HELLO, [Render()]) != [one]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_it_may_write_no_file_and_take_no_more_memory():
    outcome("a")
    limits = Path(f"/proc/{process_ids()[-1]}/limits").read_text()
    lines = {line[:26].strip(): line[26:].split() for line in limits.splitlines()}
    assert lines["Max file size"][:2] == lines["Max core file size"][:2] == ["0", "0"]
    assert 512 * 2**20 < int(lines["Max address space"][1]) < 1024 * 2**20


def drawn_bomb(rng):
    """A template that takes for ever, much memory, or more than Jinja reads: a large core in some loops and filters."""
    n, small = rng.choice([10**7, 10**8, 10**9, 10**12]), rng.choice([300, 3000, 30_000])
    core = rng.choice([
        f"{{{{ 'ab' * {n} }}}}", f"{{{{ 'x'.center({n}) }}}}", f"{{{{ '%{n}d' % 1 }}}}", f"{{{{ '{{:>{n}}}'.format('x') }}}}",
        f"{{{{ [1] * {n} }}}}", f"{{{{ (range(99999) | list) * {small} }}}}", f"{{{{ messages | tojson(indent={n}) }}}}",
        f"{{{{ ('a' * 99999).replace('a', 'b' * {small}) }}}}", f"{{{{ ('a,' * 99999).split(',') * {small} }}}}",
        f"{{{{ 9 ** 9 ** 9 % {n} }}}}", f"{{{{ (9 ** {small * 100}) | string }}}}", "{{ " + "[" * small + "]" * small + " }}",
        "{{ " + "-" * small + "1 }}", "{{ 1" + " | abs" * small + " }}", "{% if 1 %}" * small + "{% endif %}" * small,
        f"{{% set n = namespace(s='a') %}}{{% for i in range({small}) %}}{{% set n.s = n.s + n.s %}}{{% endfor %}}{{{{ n.s }}}}",
        "{% macro f(n) %}{% for i in range(9) %}{{ f(n + 1) }}{% endfor %}{% endmacro %}{{ f(0) }}", ENDLESS,
        f"{{{{ 'a' | indent({n}) }}}}", f"{{{{ ('a ' * {small * 30}) | wordwrap(1) | wordcount }}}}{ENDLESS}",
        "{% for a in range(9999) %}{{ (range(99999) | list | sort | join(',')) | length }}{% endfor %}",
    ])  # fmt: skip
    for _ in range(rng.randint(0, 3)):
        core = rng.choice([
            f"{{% for i in range({rng.choice([2, 99999])}) %}}{core}{{% endfor %}}",
            f"{{% set x %}}{core}{{% endset %}}{{{{ x }}}}", f"{{% filter upper %}}{core}{{% endfilter %}}",
        ])  # fmt: skip
    return core


@pytest.mark.soak
def test_a_hundred_bombs_are_each_ended_within_three_seconds():
    rng, longest, refused = random.Random(7), 0.0, 0
    outcome("{{ 1 }}")
    for _ in range(100):
        template = drawn_bomb(rng)
        begin = time.monotonic()
        result = outcome(template)
        seconds = time.monotonic() - begin
        assert seconds < 3, template[:200]
        assert isinstance(result, str | ValueError | CheckpointError), template[:200]
        longest, refused = max(longest, seconds), refused + isinstance(result, Exception)
    print(f"\n100 templates, {refused} of them refused, the longest after {longest:.2f} s")
    assert refused > 80
    assert outcome("{{ messages[0].content }}") == "x"
