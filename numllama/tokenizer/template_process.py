"""The process that renders chat templates, started by `renderer.py` and never imported.

A template is an untrusted program. Jinja's immutable sandbox keeps it away from Python objects; a separate process bounds its
time, memory and output. This file imports Jinja but nothing from the package, so that it starts quickly.

    argv      sys.path as JSON, then the limits: seconds, bytes of memory, characters of a text
    stdin     a request on each line: a template, conversations, and what to render of them
    stdout    a line when it is ready, then a line for each text
"""

import faulthandler
import json
import os
import random
import re
import sys
from contextlib import suppress
from datetime import datetime
from functools import lru_cache

sys.path[:] = json.loads(sys.argv[1])
SECONDS, MEMORY, CHARACTERS = float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
ANSWERS = os.fdopen(os.dup(1), "w", encoding="ascii")
os.dup2(2, 1)  # nothing else may write among the answers


def say(answer):
    ANSWERS.write(json.dumps(answer) + "\n")
    ANSWERS.flush()


try:
    import jinja2
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if tuple(map(int, re.findall(r"\d+", jinja2.__version__)[:3])) < (3, 1, 6):
        raise ImportError
except ImportError:
    say({"needs": "Jinja2 3.1.6 or newer"})
    sys.exit()


class TooLong(Exception):
    """The text has more characters than allowed."""


class Generation(Extension):
    """``{% generation %}`` ... ``{% endgeneration %}`` marks the assistant's answers, for training; the text is unchanged."""

    tags = frozenset({"generation"})  # pyright: ignore[reportAssignmentType]  Jinja only reads it

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_answer"), [], [], body).set_lineno(line)

    def _answer(self, caller):
        begin, end = self.environment.answer_marks  # pyright: ignore[reportAttributeAccessIssue]  set in text_of
        return begin + caller() + end


class Environment(ImmutableSandboxedEnvironment):
    """The settings, filters and functions of transformers, which checkpoints' templates rely on.

    A text may contain marks, which methods that strip or test the ends of a text do not see.
    """

    answer_marks, marks = ("", ""), ""

    def __init__(self):
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
        self.filters |= {"tojson": self.to_json, "trim": lambda value, chars=None: self.strip(str(value), "strip", chars)}
        self.globals |= {"raise_exception": refuse, "strftime_now": now, "dict": new_dict, "namespace": Namespace}

    def call(__self, __context, __function, *args, **kwargs):  # as Jinja's: an argument may be named self
        text, name = getattr(__function, "__self__", None), getattr(__function, "__name__", "")
        if __self.marks and isinstance(text, str):
            if name in ("strip", "lstrip", "rstrip"):
                return __self.strip(text, name, *args)
            if name in ("startswith", "endswith"):
                return getattr(__self.unmarked(text), name)(*map(__self.unmarked, args))
        return super().call(__context, __function, *args, **kwargs)

    def unmarked(self, value):
        return value.translate(dict.fromkeys(map(ord, self.marks))) if isinstance(value, str) else value

    def strip(self, text, name, chars=None):
        plain = self.unmarked(text)
        if plain == text:
            return getattr(text, name)(chars)
        first = 0 if name == "rstrip" else len(plain) - len(plain.lstrip(chars))
        last = len(plain) if name == "lstrip" else len(plain.rstrip(chars))
        kept, at = [], -1
        for character in text:
            at += character not in self.marks
            if character in self.marks or first <= at < last:
                kept.append(character)
        return "".join(kept)


    def to_json(self, value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        """JSON without the HTML escapes of Jinja's own filter."""
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        for mark in self.marks:
            text = text.replace(json.dumps(mark)[1:-1], mark)
        return text


class Namespace(jinja2.utils.Namespace):
    """``namespace()``, without names that begin with an underscore."""

    def __init__(*args, **kwargs):  # as Jinja's: a field may be named self
        self, *args = args
        jinja2.utils.Namespace.__init__(self)
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name, value):
        if name.startswith("_"):
            raise SecurityError(f"namespace has no field {name!r}")
        super().__setitem__(name, value)


def new_dict(*args, **kwargs):
    return dict(*args, **kwargs)


def refuse(message):
    raise TemplateError(message)


def now(format):
    return CLOCK.strftime(format)


@lru_cache(maxsize=8)
def compiled(template):
    return Environment().from_string(template)


def text_of(template, values, render):
    """The text, or the kind of error and its message."""
    try:
        program = compiled(template)
    except TemplateSyntaxError as error:
        return {"error": "syntax", "sentence": f"{error.message} (line {error.lineno})"}
    except Exception as error:
        return failure("syntax", error)
    environment = program.environment
    vars(environment).update(answer_marks=render["answer_marks"] or ("", ""), marks=render["marks"])
    values = {**values, "add_generation_prompt": render["prompt"]}
    if render["messages"] is not None:
        values["messages"] = values["messages"][: render["messages"]]
    random.seed(SEED)
    pieces, length = [], 0
    try:
        for piece in program.generate(**values):
            length += len(piece)
            if length > CHARACTERS:
                raise TooLong
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except SecurityError as error:
        return failure("security", error)
    except TooLong:
        return {"error": "length"}
    except Exception as error:
        return failure("render", error)


def failure(kind, error):
    if isinstance(error, MemoryError):
        return {"error": "memory"}
    if isinstance(error, RecursionError):
        return {"error": kind, "sentence": "it is nested too deeply"}
    try:
        sentence = str(error)
    except Exception:
        sentence = ""
    return {"error": kind, "sentence": sentence[:1000] or type(error).__name__}


def limit():
    """Lower this process's priority, limit its memory to that in use now plus a template's, and forbid writing files."""
    with suppress(AttributeError, OSError):
        os.nice(5)
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def serve():
    global SEED, CLOCK  # the same for all texts of a request
    for line in sys.stdin.buffer:
        request = json.loads(line)
        SEED, CLOCK, armed = random.SystemRandom().random(), datetime.now(), None
        for render in request["renders"]:
            if armed != render["conversation"]:
                armed, first = render["conversation"], None
                faulthandler.dump_traceback_later(SECONDS, exit=True)  # from a C thread: works even if Python hangs
            answer = text_of(request["template"], request["conversations"][armed], render)
            if render["begins"] and "text" in answer:
                answer = {"begins": len(answer["text"]) if (first or "").startswith(answer["text"]) else None}
            elif first is None:
                first = answer.get("text")
            say(answer)
        faulthandler.cancel_dump_traceback_later()


try:
    limit()
    say({})
    serve()
except BaseException:
    os._exit(3)  # 1 is the exit code of the time limit
