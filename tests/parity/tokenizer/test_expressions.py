"""Regular expressions are Oniguruma's: what is read splits as `tokenizers` does, and so does what is written."""

import itertools
import random
import unicodedata
from collections import Counter

import pytest
import regex

from numllama.tokenizer.expressions import ONIGURUMA, PROPERTIES, Refused, may_be_empty
from numllama.tokenizer.parsing import parse
from numllama.tokenizer.patterns import BEHAVIORS, PATTERNS, Splitter
from numllama.tokenizer.rewriting import compile_oniguruma, from_oniguruma, to_oniguruma

tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.parity

CL100K = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"  # tiktoken's  # noqa: E501
PICKED = {
    *PATTERNS.values(), CL100K, r"\p{N}{1,3}+|\D+", r"[\p{L}&&[^\p{Han}]]+|\p{Han}+", "^.+", r"\s+$|\S+|\s", "(?m:.+)", "(?m:.)", "[[a-c]d]+|.",  # noqa: E501
    r"\h+|.", r"\H", r"a{2}?", r"a{2}+", r"a{1,2}?", r"a{,2}+", r"(?>a+)b", "a++b?", r"\R", r"\N+", r"\O{2}", r"\bk", r"\B.", r"\A.", r".\z", r".\Z",  # noqa: E501
    r"(?i)s|k", r"a(?i)b|K", r"(?i:[sk])+", r"[^\w]", r"[\w]", r"\w", r"\W+", "[]a]", "[a-b-c]", r"[\n-\r]", r"(?<=a)b", r"(?<!b)a", "(?<x>a)b",  # noqa: E501
    "a|", "", r"\x41|\u4e2d|\x{1F600}", r"[[:alpha:]&&[^a]]", r"[^[:digit:]]", r"\p{^L}", r"\P{^L}", r"\p{ l_u }", r"\pL", r"\i", "a{", "a{x}",  # noqa: E501
}  # fmt: skip
ALPHABET = "aabbcsskKS1 2\n\r\t.é中'-]&^${}Aſßﬀ²٣\u212a_!"

ATOMS = [
    *"abs1 .^$é中'kS-]{}&", r"\n", r"\s", r"\S", r"\w", r"\W", r"\d", r"\D", r"\h", r"\H", r"\p{L}", r"\P{N}", r"\p{^Lu}", r"\p{Han}", r"\R", r"\b",  # noqa: E501
    r"\B", r"\A", r"\z", r"\Z", r"\N", r"\O", r"\.", r"\x41", r"\u4e2d", r"\p{Punct}", r"\p{Alpha}", r"\p{S}", r"\pL", r"\t", r"\r", r"\p{Lo}",  # noqa: E501
]  # fmt: skip
ITEMS = [
    *"abcsk1 -]^&é中.$[", "a-c", "0-9", "A-Z", r"\n", r"\s", r"\S", r"\w", r"\W", r"\d", r"\h", r"\p{L}", r"\P{N}", r"\p{Han}", "&&", r"\]", r"\-",  # noqa: E501
    "[:alpha:]", "[:^digit:]", "[a-c]", "[^b]", r"\x41", "一-龥", r"\r\n", r"\p{Ll}", "&&[^b]", r"[\s&&[^\n]]",
]  # fmt: skip
TIMES = [
    "*",
    "+",
    "?",
    "*?",
    "+?",
    "??",
    "*+",
    "++",
    "?+",
    "{1,3}",
    "{2}",
    "{1,}",
    "{,2}",
    "{1,3}+",
    "{2}?",
    "{1,2}?",
    "{2}+",
    "{0,1}",
    "{1",
]
GROUPS = ["(?:", "(", "(?>", "(?=", "(?!", "(?<=", "(?<!", "(?i:", "(?m:", "(?s:", "(?-i:", "(?<n>", "(?i)", "(?mi-m:"]


def any_pattern(rng, depth=0):
    def atom():
        kind = rng.random()
        if kind < 0.55 or depth > 3:
            return rng.choice(ATOMS)
        if kind < 0.75:
            return f"[{'^' * (rng.random() < 0.3)}{''.join(rng.choice(ITEMS) for _ in range(rng.randint(1, 4)))}]"
        return f"{rng.choice(GROUPS)}{any_pattern(rng, depth + 1)})"

    def sequence():
        return "".join(atom() + (rng.choice(TIMES) if rng.random() < 0.35 else "") for _ in range(rng.randint(1, 3)))

    return "|".join(sequence() for _ in range(rng.choice([1, 1, 2, 3])))


def theirs(pattern, behavior="Isolated", invert=False):
    name = {"MergedWithPrevious": "merged_with_previous", "MergedWithNext": "merged_with_next"}.get(behavior, behavior.lower())
    return tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), name, invert)


def pieces(split, text):
    return [piece for piece, _ in split.pre_tokenize_str(text)]


def texts(rng, n, most=12):
    return ["".join(rng.choice(ALPHABET) for _ in range(rng.randint(0, most))) for _ in range(n)]


@pytest.mark.parametrize("pattern", sorted(PICKED))
@pytest.mark.parametrize("behavior", BEHAVIORS)
@pytest.mark.parametrize("invert", [False, True])
def test_a_pattern_of_a_file_splits_as_it_does_elsewhere(pattern, behavior, invert):
    mine, other = Splitter(pattern, behavior=behavior, invert=invert), theirs(pattern, behavior, invert)
    for text in ["", *texts(random.Random(0), 60)]:
        assert mine.split(text) == pieces(other, text), text


def test_any_pattern_splits_as_it_does_elsewhere_or_is_refused():
    rng, found = random.Random(1), Counter()
    for _ in range(3000):
        pattern = any_pattern(rng)
        try:
            mine = Splitter(pattern)
        except ValueError as error:
            assert "\n" not in str(error)
            found["refused"] += 1
            continue
        try:
            other = theirs(pattern)
        except Exception:  # a few that are read here are none there
            found["none"] += 1
            continue
        for text in texts(rng, 6):
            assert mine.split(text) == pieces(other, text), (pattern, text)
        found["same"] += 1
    assert found["same"] > 1000
    assert found["none"] < 10


def test_any_pattern_of_the_regex_package_is_written_so_that_it_splits_alike():
    rng, found = random.Random(2), Counter()
    for _ in range(4000):
        pattern = any_pattern(rng)
        try:
            written = to_oniguruma(pattern)
        except Refused:
            continue
        try:
            mine = regex.compile(pattern)
        except regex.error:  # flags that are turned on and off at once
            continue
        try:
            again = regex.compile(from_oniguruma(written))
        except Refused:  # what is written may be more than what is read
            found["unread"] += 1
            continue
        other = theirs(written)
        tree = parse(written, ONIGURUMA)
        if may_be_empty(tree) or (r"\w" in pattern and r"\W" in pattern):  # `regex` takes [^\w\W] for all characters
            continue
        for text in texts(rng, 6):
            spans = [found.span() for found in mine.finditer(text)]
            assert spans == [found.span() for found in again.finditer(text)]
            ends = [0, *(end for span in spans for end in span), len(text)]
            assert pieces(other, text) == [text[a:b] for a, b in itertools.pairwise(ends) if a < b], (
                pattern,
                written,
                text,
            )
        found["same" if written == pattern else "rewritten"] += 1
    assert found.pop("unread") < 40
    assert min(found.values()) > 150, found


@pytest.mark.parametrize("name", sorted({*PROPERTIES.values()} - {"Space"}))
def test_classes_hold_the_same_characters(name):
    assigned = (
        "".join(c for c in map(chr, range(0x3000)) if unicodedata.category(c) != "Cn" and c != "\u0295") + "中가ꙮ\U00010400😀"
    )
    assert Splitter(rf"\p{{{name}}}", behavior="Removed").split(assigned) == pieces(theirs(rf"\p{{{name}}}", "Removed"), assigned)


@pytest.mark.parametrize("pattern", [
    "(?R)", r"(a)\1", r"\k<n>", r"\g<0>", "(?~a)", r"\K", r"\G", r"\X", "(?(1)a|b)", "(*FAIL)", r"\p{Foo}", r"\p{Script=Han}", "[[:foo:]]", "(?x) a",  # noqa: E501
    r"(?<=a+)b", r"(?<!(a))b", "(?i:ss)", "(?i:é)", r"(?i:\p{Lu})", "a{3,1}", "(", "a)", "[a", "*a", "a**?", "(?s:.)", "(?P<n>a)", r"\xe9", "[]",  # noqa: E501
])  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(pattern):
    with pytest.raises(
        ValueError, match=r"^pattern is .*, but must be gpt2, cl100k, llama3, qwen2 or a regular expression: .+"
    ) as caught:
        Splitter(pattern)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_one_pattern_has_two_meanings():
    pattern = r"\p{N}{1,3}+|\D+"
    assert Splitter(pattern).split("12345 a") == ["12345", " a"]
    written = to_oniguruma(pattern)
    assert Splitter(written).split("12345 a") == ["123", "45", " a"] == regex.findall(pattern, "12345 a")
    assert compile_oniguruma(written).findall("12345") == ["123", "45"]
