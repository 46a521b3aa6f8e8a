"""Write parsed regular expressions for the engines that run them: Python's `regex` here, Oniguruma elsewhere."""

from functools import lru_cache

import regex

from numllama.errors import shown
from numllama.tokenizer.expressions import (
    ANYTHING,
    ONIGURUMA,
    REGEX,
    Alternatives,
    Atomic,
    Edge,
    Look,
    Property,
    Range,
    Refused,
    Repeat,
    Sequence,
    Set,
    may_be_empty,
)
from numllama.tokenizer.parsing import parse

HOW = {"greedy": "", "lazy": "?", "possessive": "+"}
TIMES = {(0, None): "*", (1, None): "+", (0, 1): "?"}
EDGES = {(REGEX, False): r"\A", (REGEX, True): r"\Z", (ONIGURUMA, False): r"\A", (ONIGURUMA, True): r"\z"}
SIGNS = r"\^$.|?*+()[]{}-&~#"
ANY = {REGEX: "(?s:.)", ONIGURUMA: "(?m:.)"}
# Classes that \p{...} does not write alike in both: for `regex`, and within Oniguruma's brackets. U+0295 has been a letter
# without case since Unicode 16; one of the two may use an older version.
CLASSES = {
    ("Space", False): r"\s", ("Space", True): r"\S", ("Word", False): r"\w", ("Word", True): r"\W",
    ("Word of Oniguruma", False): "\\w²³¹¼½¾", ("Ll", False): "\\p{Ll}\u0295", ("Lo", True): "\\P{Lo}\u0295",
    ("Lowercase", False): "\\p{Lowercase}\u0295",
}  # fmt: skip
IN_BRACKETS = {
    ("Space", False): r"\s", ("Space", True): r"\S", ("Word", False): "[:word:]", ("Word", True): "[:^word:]",
    ("Word of Oniguruma", False): "[:word:]²³¹¼½¾", ("Word of Oniguruma", True): "[^[:word:]²³¹¼½¾]",
}  # fmt: skip


def compile_oniguruma(pattern: str) -> regex.Pattern:
    """Compile a pattern of Oniguruma's for `regex`; its groups are not captured.

    Raises
    ------
    Refused
        If it is invalid or not supported.
    """
    return _compiled(written(parse(pattern, ONIGURUMA), REGEX))


def every_piece(pattern: str) -> regex.Pattern:
    """Compile a never-empty pattern of Oniguruma's, extended to match also the text before its next match."""
    tree = parse(pattern, ONIGURUMA)
    if may_be_empty(tree):
        raise Refused("it may match an empty text")
    text = written(tree, REGEX)
    return _compiled(f"(?:{text})|(?:(?!{text})(?s:.))+")


def to_oniguruma(pattern: str) -> str:
    """Translate a pattern of `regex` to Oniguruma's syntax; unchanged if it means the same in both."""
    return _translated(pattern, REGEX, ONIGURUMA)


def from_oniguruma(pattern: str) -> str:
    """Translate a pattern of Oniguruma's to the syntax of `regex`; unchanged if it means the same in both."""
    return _translated(pattern, ONIGURUMA, REGEX)


def canonical(pattern: str) -> str:
    """A pattern of Oniguruma's in the one form of all that read alike, such as a line feed itself and ``\\n``."""
    return written(parse(pattern, ONIGURUMA), ONIGURUMA)


def _translated(pattern: str, source: str, target: str) -> str:
    tree = parse(pattern, source)
    if _reads_as(pattern, target, tree):
        return pattern
    text = written(tree, target)
    if not _reads_as(text, target, tree):
        raise Refused(f"{target} cannot express it")
    return text


def _reads_as(pattern: str, language: str, tree: object) -> bool:
    """Whether a pattern is equivalent to a tree."""
    try:
        return written(parse(pattern, language), REGEX) == written(tree, REGEX)
    except Refused:
        return False


@lru_cache(maxsize=64)
def _compiled(text: str) -> regex.Pattern:
    try:
        return regex.compile(text)
    except (regex.error, RecursionError, OverflowError) as error:
        raise Refused(shown(str(error), quote=False)) from error


def written(node: object, language: str) -> str:
    """A tree as text."""
    if isinstance(node, Set):
        return _set(node, language)
    if isinstance(node, Sequence):
        texts = [(written(part, language), isinstance(part, Alternatives)) for part in node.parts]
        return "".join(f"(?:{text})" if several else text for text, several in texts)
    if isinstance(node, Alternatives):
        return "|".join(written(part, language) for part in node.parts)
    if isinstance(node, Repeat):
        return _repeated(node, language)
    if isinstance(node, Edge):
        return EDGES[language, node.end]
    assert isinstance(node, Atomic | Look)
    opening = "?>" if isinstance(node, Atomic) else f"?{'<' * node.behind}{'!' if node.negated else '='}"
    return f"({opening}{written(node.part, language)})"


def _repeated(node: Repeat, language: str) -> str:
    text = written(node.part, language)
    text = text if isinstance(node.part, Set | Atomic) else f"(?:{text})"
    if sign := TIMES.get((node.least, node.most)):
        return text + sign + HOW[node.how]
    text += f"{{{node.least}}}" if node.least == node.most else f"{{{node.least},{'' if node.most is None else node.most}}}"
    if node.how == "possessive":
        return f"(?>{text})"
    return text if node.least == node.most else text + HOW[node.how]


def _set(node: Set, language: str) -> str:
    if node == ANYTHING:
        return ANY[language]
    if not node.both and not node.negated and len(node.items) == 1 and (alone := _alone(node.items[0], language)):
        return alone
    return _looks(node) if language == REGEX else _brackets(node)


def _alone(item: object, language: str) -> str | None:
    """An item that needs no brackets; None if it does."""
    if isinstance(item, Range):
        return _character(item.first) if item.first == item.last else None
    if not isinstance(item, Property):
        return None
    known = CLASSES if language == REGEX else IN_BRACKETS
    if item in known:
        return known[item] if known[item] in (r"\s", r"\S", r"\w", r"\W") else None
    return None if item._replace(negated=not item.negated) in known else _named(item)


def _looks(node: Set) -> str:
    """A set for `regex`, whose own nested sets have bugs: here each nested set is matched separately."""
    flat, units = "", []
    for item in node.items:
        if isinstance(item, Set):
            units.append(_looks(item))
        elif isinstance(item, Range):
            flat += _range(item)
        elif item in CLASSES or item._replace(negated=not item.negated) not in CLASSES:
            flat += CLASSES.get(item) or _named(item)
        else:
            units.append(_not(f"[{CLASSES[item._replace(negated=not item.negated)]}]"))
    simple = not units and not node.both
    if simple and node.negated and not any(isinstance(item, Property) and item.negated for item in node.items):
        return f"[^{flat}]"
    units = ([f"[{flat}]"] if flat else []) + units
    unit = units[0] if len(units) == 1 else f"(?:{'|'.join(units)})" if units else "(?!)"
    if node.both:
        unit = f"(?:{''.join(f'(?={_looks(other)})' for other in node.both)}{unit})"
    return _not(unit) if node.negated else unit


def _not(unit: str) -> str:
    return f"(?:(?!{unit})(?s:.))"


def _brackets(node: Set) -> str:
    """A set for Oniguruma."""
    parts = [*map(_brackets, node.both), "".join(map(_in_brackets, node.items)) or "[^\\x00-\U0010ffff]"]
    return f"[{'^' * node.negated}{'&&'.join(parts)}]"


def _in_brackets(item: object) -> str:
    if isinstance(item, Set):
        return _brackets(item)
    if isinstance(item, Range):
        return _range(item)
    assert isinstance(item, Property)
    return IN_BRACKETS.get(item) or _named(item)


def _named(item: Property) -> str:
    return f"\\{'P' if item.negated else 'p'}{{{item.name}}}"


def _range(item: Range) -> str:
    return _character(item.first) if item.first == item.last else f"{_character(item.first)}-{_character(item.last)}"


def _character(character: str) -> str:
    """A character, escaped if it may have a special meaning."""
    if character.isascii() and not character.isprintable():
        return {"\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(character, f"\\x{ord(character):02x}")
    return f"\\{character}" if character in SIGNS else character
