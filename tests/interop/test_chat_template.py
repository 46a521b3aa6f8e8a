"""Chat templates: what they make, and that they can do nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import numllama as nl
from numllama.interop.chat_template import read_chat_template, render_answers, render_chat_template

# After Llama 3's: headers in special tokens, and a system message that may be missing.
LLAMA_3 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{%- if system %}
    {{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + system + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
HELLO = [{"role": "user", "content": " Hello! "}]


def test_a_conversation_becomes_one_text():
    messages = [
        {"role": "system", "content": "Be brief."},
        *HELLO,
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Ünïcode <b>&</b>"},
    ]
    assert render_chat_template(LLAMA_3, messages, bos_token="<|begin_of_text|>") == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello!<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHi.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nÜnïcode <b>&</b><|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_the_generation_prompt_can_be_left_out():
    text = render_chat_template(LLAMA_3, HELLO, add_generation_prompt=False)
    assert text == "<|start_header_id|>user<|end_header_id|>\n\nHello!<|eot_id|>"


@given(st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()}), max_size=4))
def test_contents_come_out_as_they_went_in(messages):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}"
    expected = "".join(f"{message['role']}: {message['content']}|" for message in messages)
    assert render_chat_template(template, messages) == expected


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a\n{% if true %}\n  b\n  {% endif %}\nc", "a\n  b\nc"),
        ("{{ tools is none }} {{ documents is none }} {{ unknown }}", "True True "),
        ("{{ {'b': 1, 'a': '<é>'} | tojson }}", '{"b": 1, "a": "<é>"}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}", "013"),
        ("{% generation %}Hi{{ messages | length }}{% endgeneration %}!", "Hi1!"),
        ("{% set ns = namespace(self=1, n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{{ dict(a=1).items() | list }}", "[('a', 1)]"),
        ("{{ strftime_now('%Y') | int > 2000 }}", "True"),
    ],
    ids=["whitespace", "nothing", "tojson", "indent", "loop", "generation", "namespace", "dict", "now"],
)
def test_everything_that_templates_count_on_is_there(template, text):
    assert render_chat_template(template, HELLO) == text


def test_other_values_are_handed_on():
    assert render_chat_template("{{ tools[0].name }} {{ date_string }}", HELLO, tools=[{"name": "f"}], date_string="x") == "f x"


# ------------------------------------------------------------------------------------------------ the sandbox


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ lipsum.__globals__['os'].system('true') }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['x'] }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set _ = messages.append(1) %}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages[0].clear() }}",
    ],
)
def test_a_template_reaches_nothing_of_pythons_and_changes_nothing(template):
    messages = [dict(HELLO[0])]
    with pytest.raises(nl.CheckpointError, match=r"^the chat template violates the sandbox: "):
        render_chat_template(template, messages)
    assert messages == HELLO


@pytest.mark.parametrize("template", ["{{ ''|attr('__class__') }}", "{{ '{0.__class__}'.format(1) }}", "{{ dict.__base__ }}"])
def test_what_is_hidden_is_nothing(template):
    assert render_chat_template(template, HELLO) == ""


def test_files_are_out_of_reach(tmp_path):
    (tmp_path / "secret").write_text("secret")
    path = (tmp_path / "secret").as_posix()
    for template in (f"{{% include '{path}' %}}", f"{{{{ open('{path}') }}}}"):
        with pytest.raises(ValueError, match=r"^the chat template cannot render these messages: "):
            render_chat_template(template, HELLO)


class Dangerous(str):
    def detonate(self):
        raise AssertionError("a method of the caller's object ran")


def test_a_template_sees_plain_data_alone():
    messages = [{"role": "user", "content": Dangerous("x")}]
    with pytest.raises(ValueError, match=r"no attribute 'detonate'"):
        render_chat_template("{{ messages[0].content.detonate() }}", messages)


# ------------------------------------------------------------------------------------------------ one sentence


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content + 1 }}", ".*str"),
        ("{{ messages[3].content }}", ".*has no element 3"),
        ("{{ range(10 ** 9) }}", "Range too big"),
    ],
)
def test_what_a_template_refuses_is_said(template, what):
    with pytest.raises(ValueError, match=f"^the chat template cannot render these messages: {what}"):
        render_chat_template(template, HELLO)


@pytest.mark.parametrize("template", ["{% for", "{{ 'a' }", "{% unknown %}"])
def test_a_template_that_cannot_be_read_is_named(template):
    with pytest.raises(nl.CheckpointError, match=r"^the chat template cannot be read: .* \(line 1\)$"):
        render_chat_template(template, HELLO)


@pytest.mark.parametrize("messages", ["Hello", {"role": "user"}, ["Hello"], [None]])
def test_messages_are_a_list_of_dictionaries(messages):
    with pytest.raises(ValueError, match=r"^messages must be a list of dictionaries such as "):
        render_chat_template(LLAMA_3, messages)


def test_messages_hold_plain_data():
    with pytest.raises(ValueError, match=r"^messages and tokens must be text, numbers, lists and dictionaries: "):
        render_chat_template(LLAMA_3, [{"role": "user", "content": b"bytes"}])


# ------------------------------------------------------------------------------------------------ where it is


@pytest.mark.parametrize(
    ("config", "file", "template"),
    [
        ({"chat_template": "one"}, None, "one"),
        ({"chat_template": [{"name": "tool_use", "template": "1"}, {"name": "default", "template": "2"}]}, None, "2"),
        ({"chat_template": "one"}, "two", "two"),
        ({}, None, None),
        (None, "two", "two"),
        (None, None, None),
    ],
    ids=["string", "list", "file_first", "none", "file", "nothing"],
)
def test_a_checkpoints_template_is_found(tmp_path, config, file, template):
    if config is not None:
        tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None, "add_bos_token": True}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | tokens))
    if file:
        (tmp_path / "chat_template.jinja").write_text(file)
    tokens = {} if config is None else {"bos_token": "<s>", "eos_token": "</s>"}
    assert read_chat_template(tmp_path) == (template, tokens)


# ------------------------------------------------------------------------------------------------ what the assistant says

TALK = [
    {"role": "system", "content": "Be brief."},
    *HELLO,
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Bye."},
]
MARKED = """\
{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation %}{{ m.content }}!{% endgeneration %}{% else %}\
U: {{ m.content }}{% endif %};{% endfor %}"""


def test_without_marks_an_answer_is_what_it_adds_with_its_end_of_turn():
    text, spans = render_answers(LLAMA_3, TALK, bos_token="<s>")
    assert text == render_chat_template(LLAMA_3, TALK, add_generation_prompt=False, bos_token="<s>")
    assert [text[start:stop] for start, stop in spans] == ["Hi.<|eot_id|>", "Bye.<|eot_id|>"]


def test_marks_say_what_an_answer_is():
    text, spans = render_answers(MARKED, TALK)
    assert text == "U: Be brief.;U:  Hello! ;A: Hi.!;U: And now?;A: Bye.!;"
    assert [text[start:stop] for start, stop in spans] == ["Hi.!", "Bye.!"]


def test_a_mark_in_a_loop_sees_the_loop_and_what_was_set():
    template = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set c = m.content %}{% set ns.n = ns.n + 1 %}"
        "{% generation %}{{ loop.index }}{{ ns.n }}{{ c }};{% endgeneration %}{% endfor %}"
    )
    text, spans = render_answers(template, [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert text == "11a;22b;"
    assert spans == [(0, 4), (4, 8)]


def test_marks_that_hold_nothing_leave_nothing():
    assert render_answers("{% if false %}{% generation %}x{% endgeneration %}{% endif %}y", HELLO) == ("y", [])


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.revindex }}{{ m.content }}{% endfor %}",  # counts from the end
        "{% for m in messages %}{{ m.content if loop.last else '...' }}{% endfor %}",  # forgets what was said before
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}",
    ],
    ids=["counts", "forgets", "asks otherwise"],
)
def test_a_template_that_writes_the_past_anew_needs_marks(template):
    with pytest.raises(ValueError, match=r"changes what stands before the end of message \d .*mark it in the template"):
        render_answers(template, TALK)


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        ("{% macro say(m) %}A: {% generation %}{{ m.content }}{% endgeneration %};{% endmacro %}"
         "{% for m in messages %}{% if m.role == 'assistant' %}{{ say(m) }}{% else %}U;{% endif %}{% endfor %}", ["Hi.", "Bye."]),
        ("{% for m in messages %}{% set said %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!{% endgeneration %}"
         "{% else %}U{% endif %}{% endset %}<{{ said }}>{% endfor %}", ["Hi.!", "Bye.!"]),
        ("{% for m in messages %}{% filter upper %}{% if m.role == 'assistant' %}"
         "{% generation %}{{ m.content }}{% endgeneration %}{% else %}u{% endif %}{% endfilter %};{% endfor %}", ["HI.", "BYE."]),
        ("{% for m in messages %}{% filter trim %}  {% if m.role == 'assistant' %}"
         "{% generation %}  {{ m.content }} {% endgeneration %}{% else %}u{% endif %} {% endfilter %};{% endfor %}",
         ["Hi.", "Bye."]),
        ("{% macro say(c) %}{% generation %}{{ c }}\n{% endgeneration %}{% endmacro %}{% set all = namespace(text='') %}"
         "{% for m in messages if m.role == 'assistant' %}{% set all.text = all.text ~ say(m.content).strip() %}{% endfor %}"
         "[{{ all.text }}]", ["Hi.", "Bye."]),
        ("{% macro wrap(m) %}{% if m.role == 'assistant' %}({{ caller(1) }}){% endif %}{% endmacro %}{% for m in messages %}"
         "{% call(x) wrap(m) %}{% generation %}{{ m.content }}{% endgeneration %}{% endcall %}{% endfor %}", ["Hi.", "Bye."]),
    ],
    ids=["macro", "set block", "filter", "trimmed", "namespace", "call block"],
)  # fmt: skip
def test_marks_are_followed_wherever_they_stand(template, answers):
    text, spans = render_answers(template, TALK)
    assert text == render_chat_template(template, TALK, add_generation_prompt=False)
    assert [text[start:stop] for start, stop in spans] == answers


def test_marks_that_a_template_measures_are_refused():
    template = "{% set said %}{% generation %}x{% endgeneration %}{% endset %}{{ said | length }}"
    with pytest.raises(ValueError, match=r"^the chat template cuts or measures what it marks with \{% generation %\}"):
        render_answers(template, TALK)


# ------------------------------------------------------------------------------------------------ the assistant begins

GREETING = [{"role": "assistant", "content": "Welcome!"}, *TALK[1:]]


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        ("{% if messages[0]['role'] == 'system' %}S{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}<e>{% endfor %}"
         "{% if add_generation_prompt %}[assistant]{% endif %}", ["Welcome!<e>", "Hi.<e>", "Bye.<e>"]),
        (LLAMA_3, ["Welcome!<|eot_id|>", "Hi.<|eot_id|>", "Bye.<|eot_id|>"]),
        ("{{ messages[0].role }}" + MARKED, ["Welcome!!", "Hi.!", "Bye.!"]),
        ("{% for m in messages %}{{ m.content }};{% endfor %}", ["Welcome!;", "Hi.;", "Bye.;"]),
    ],
    ids=["looks at the first", "llama 3", "marked", "no headers"],
)  # fmt: skip
def test_a_conversation_that_the_assistant_begins(template, answers):
    text, spans = render_answers(template, GREETING)
    assert [text[start:stop] for start, stop in spans] == answers


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% if messages[0].role != 'user' %}{{ raise_exception('the user must begin') }}{% endif %}", "messages: the user must"),
        ("{{ messages[0].role }}{% for m in messages %}{{ m.content }};{% endfor %}", "the assistant begins, and where"),
    ],
)
def test_where_it_must_not_the_reason_is_the_right_one(template, sentence):
    with pytest.raises(ValueError, match=sentence):
        render_answers(template, GREETING)
