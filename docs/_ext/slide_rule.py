"""What slides show of a page: its sections as groups of what belongs together (``groups``), dealt to slides (``deal``).

Shown are

- of the paragraphs before an equation, code, a table, a picture or a list: the first sentence, and the one that leads to it,
  with the one before if it begins with a pronoun;
- the equation, code, table, picture or list itself;
- the first sentence of a paragraph that begins in bold, and of each paragraph of a section that displays nothing.

The rest of the text becomes notes, and so do the questions about an interactive picture, which moves only in the book. Heights
are estimated. Where an estimate is too low, the script of the page makes the text of that slide smaller, and
tests/browser/test_slides.py sees that it never becomes small.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from docutils import nodes

LINES, SQUEEZED = 13.0, 17.5                                           # of a slide, below its heading; with smaller text
LINE, CODE, OUTPUT, PICTURE, GAP = 76, 0.68, 0.62, 10.0, 0.45          # characters of a line; heights in lines
CODE_LINES, OUTPUT_LINES, ROWS = 15, 14, 9                             # of one slide
PRONOUNS = re.compile(r"\s*(It|They|This|These)\b")               # stand for something in the sentence before
ENOUGH = 50                                                            # characters of an opening
FEW = 4.6                                                              # lines of a slide that its neighbour may join
SHORT = 170                                                            # characters of an item that is shown as a whole

# ------------------------------------------------------------------------------------------------ text

ABBREVIATIONS = ("e.g.", "i.e.", "al.", "eq.", "sect.", "alg.", "vs.")
END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"”)]))" + "".join(rf"(?<!\b{re.escape(word)})" for word in ABBREVIATIONS) + r"\s+(?=[^a-z]|$)"
)
Sentence = list[nodes.Node]


def sentences(paragraph: nodes.Element) -> list[Sentence]:
    """The sentences of a paragraph. Words in bold at its start belong to the sentence after them."""
    found: list[Sentence] = [[]]
    for child in paragraph.children:
        if not isinstance(child, nodes.Text):
            found[-1].append(child)
            continue
        first, *others = END.split(child.astext())
        found[-1].append(nodes.Text(first))
        found += [[nodes.Text(part)] for part in others]
    return [sentence for sentence in found if text_of(sentence).strip()]


def text_of(sentence: Iterable[nodes.Node]) -> str:
    return "".join(node.astext() for node in sentence)


def paragraph_of(*parts: Sentence) -> nodes.paragraph:
    """Sentences as a paragraph."""
    made = nodes.paragraph()
    for part in parts:
        made += [nodes.Text(" "), *(node.deepcopy() for node in part)]
    return made


def leads(sentence: Sentence) -> bool:
    """Does a sentence go on with what is displayed after it?"""
    return text_of(sentence).rstrip()[-1] not in ".!?"


def lead_of(said: list[Sentence]) -> int:
    """The first of the sentences that lead to what is displayed after a paragraph: one that no pronoun begins."""
    if not leads(said[-1]):
        return len(said)
    at = len(said) - 1
    while at and PRONOUNS.match(text_of(said[at])):
        at -= 1
    return at


def opening_of(said: list[Sentence]) -> int:
    """How many sentences open a paragraph: the first, and those after it until they say enough."""
    lengths = accumulate(len(text_of(sentence)) for sentence in said)
    return next((n for n, length in enumerate(lengths, 1) if length >= ENOUGH), len(said))


def in_bold(node: nodes.Node) -> bool:
    return isinstance(node, nodes.paragraph) and isinstance(node.children[0], nodes.strong)


def goes_on(node: nodes.Node) -> bool:
    """Does a paragraph finish the sentence before an equation?"""
    return isinstance(node, nodes.paragraph) and isinstance(node.children[0], nodes.Text) and node.astext()[0].islower()


# ------------------------------------------------------------------------------------------------ what is displayed

IMPORTS = re.compile(r"(?:\s*(?:(?:import|from|except|%pip)\b.*|try:|))*")   # a cell without anything else


def shown(node: nodes.Node) -> Iterator[nodes.Node]:
    """The parts of a block that are displayed: none of a paragraph, no folded code."""
    if isinstance(node, nodes.container) and "cell" in node["classes"]:
        for child in node.children:
            if "cell_input" in child["classes"]:
                yield from [] if IMPORTS.fullmatch(child.astext()) else split_code(child.children)
            elif "cell_output" in child["classes"]:
                yield from (part for output in child.children for part in shown(output))
    elif isinstance(node, nodes.container) and "excerpt" in node["classes"]:
        source, block = node.children
        for n, part in enumerate(split_code([block])):
            yield nodes.container("", source.deepcopy(), part, classes=["excerpt"]) if n == 0 else part
    elif isinstance(node, nodes.literal_block):
        yield from split_code([node]) if is_code(node) else [cut(node)]
    elif isinstance(node, nodes.bullet_list | nodes.enumerated_list):
        yield from split_list(node)
    elif isinstance(node, nodes.table):
        yield from split_table(node)
    elif isinstance(node, nodes.math_block | nodes.image | nodes.figure | nodes.raw):
        yield node
    elif isinstance(node, nodes.container | nodes.compound | nodes.block_quote):
        yield from (part for child in node.children for part in shown(child))


def is_code(block: nodes.literal_block) -> bool:
    return "output" not in block["classes"] and block.get("language") not in ("default", "none", "text")


def cut(block: nodes.literal_block) -> nodes.literal_block:
    """An output, of a long one the first and the last lines."""
    lines, half = block.astext().rstrip("\n").split("\n"), OUTPUT_LINES // 2
    return block if len(lines) <= OUTPUT_LINES else with_text(block, [*lines[: half - 1], "...", *lines[-half:]])


def with_text(block: nodes.literal_block, lines: list[str]) -> nodes.literal_block:
    text = "\n".join(lines)
    return nodes.literal_block(text, text, **{key: value for key, value in block.attributes.items() if key != "ids"})


def split_code(blocks: Iterable[nodes.Node]) -> Iterator[nodes.Node]:
    """Code in pieces that fit on a slide."""
    for block in blocks:
        if isinstance(block, nodes.literal_block):
            for lines in chunks(block.astext().rstrip("\n").split("\n"), CODE_LINES):
                yield with_text(block, lines)


def chunks(lines: list[str], limit: int) -> list[list[str]]:
    """Cut code into pieces of similar length: at a blank line if there is one, or else where it is least indented."""
    if len(lines) <= limit:
        return [lines]
    pieces = -(-len(lines) // limit)
    middle = len(lines) / pieces

    def cost(at: int) -> tuple[int, float]:
        return indent(lines[at]), abs(at - middle)

    at = min(range(max(2, int(middle) - limit // 3), min(limit, len(lines) - 2) + 1), key=cost)
    rest = lines[at:]
    while not rest[0].strip():
        rest = rest[1:]
    return [lines[:at], *chunks(rest, limit)]


def indent(line: str) -> int:
    """How far a line is indented: -1 if it is blank, and a little more than it is if it goes on with the lines before it."""
    return len(line) - len(line.lstrip()) + bool(re.match(r"\s*(el|except|finally|[)\]}])", line)) if line.strip() else -1


def split_list(node: nodes.Element) -> Iterator[nodes.Element]:
    """A list in parts that fit on a slide; of each item, the first sentence (or all: ``is_whole``), and what it displays."""
    parts, used = [[]], 0.0
    untold: list[nodes.Node] = []
    for item in node.children:
        made, its = nodes.list_item(), item_height(item)
        texts = [child for child in item.children if isinstance(child, nodes.paragraph)]
        if texts:
            opening, rest = sentences(texts[0]), texts[1:]
            if not is_whole(texts[0].astext()):
                opening, rest = opening[:1], [paragraph_of(*opening[1:]), *rest]
            made += paragraph_of(*opening)
            untold += [nodes.list_item("", *(text.deepcopy() for text in rest))] if rest else []
        made += [part.deepcopy() for child in item.children for part in shown(child)]
        if parts[-1] and used + its > LINES - 3:
            parts, used = [*parts, []], 0.0
        parts[-1].append(made)
        used += its
    start = node.get("start", 1)
    for items in parts:
        attributes = {"start": start} if isinstance(node, nodes.enumerated_list) else {}
        yield type(node)("", *items, rest=[nodes.bullet_list("", *untold)] if untold else [], **attributes)
        untold = []
        start += len(items)


def item_height(item: nodes.Element) -> float:
    texts = [child.astext() for child in item.children if isinstance(child, nodes.paragraph)][:1]
    displays = sum(height(part) for child in item.children for part in shown(child))
    return displays + sum((len(text) if is_whole(text) else SHORT) // LINE + 1.2 for text in texts)


def is_whole(text: str) -> bool:
    """Is an item shown as a whole? A question means nothing without what it is about."""
    return len(text) <= SHORT or "?" in text


def split_table(table: nodes.table) -> Iterator[nodes.table]:
    """A table in parts with the same head."""
    (body,) = table.findall(nodes.tbody)
    rows = list(body.children)
    n = -(-len(rows) // ROWS)
    for i in range(n):
        part = table.deepcopy()
        part["ids"] = []
        (its,) = part.findall(nodes.tbody)
        its.children = its.children[i * len(rows) // n : (i + 1) * len(rows) // n]
        yield part


def height(node: nodes.Node) -> float:
    """The estimated height of a part of a slide, in lines of text."""
    if isinstance(node, nodes.paragraph):
        return len(node.astext()) // LINE + 1 + GAP
    if isinstance(node, nodes.math_block):
        rows = re.split(r"\\\\|\n\n", node.astext())
        return sum(2.1 if re.search(r"\\(d?frac|sum|pd|begin)", row) else 1.3 for row in rows) + GAP
    if isinstance(node, nodes.literal_block):
        each = CODE if is_code(node) else OUTPUT
        return sum(len(line) // 118 + 1 for line in node.astext().rstrip("\n").split("\n")) * each + GAP
    if isinstance(node, nodes.bullet_list | nodes.enumerated_list):
        return sum(item_height(item) for item in node.children) + GAP
    if isinstance(node, nodes.table):
        rows = ([len(entry.astext()) for entry in row.children] for row in node.findall(nodes.row))
        return sum(max(lengths) * len(lengths) // 110 + 1.2 for lengths in rows)
    if isinstance(node, nodes.container):
        return sum(height(child) for child in node.children) - GAP
    return PICTURE


def is_big(node: nodes.Node) -> bool:
    """Does a part want a slide with nothing else that is displayed?"""
    return not isinstance(node, nodes.paragraph | nodes.math_block)


# ------------------------------------------------------------------------------------------------ the rule


class Group(NamedTuple):
    """What belongs together: what is shown of it, and the text that is not."""

    parts: list[nodes.Node]
    notes: list[nodes.Node]


def groups(blocks: Iterable[nodes.Node]) -> list[Group]:
    """The groups of a section: paragraphs, and what is displayed after them."""
    runs: list[tuple[list[nodes.Node], list[nodes.Node], list[nodes.Node]]] = []   # paragraphs, displays, notes on these
    for block in blocks:
        parts = list(shown(block))
        if isinstance(block, nodes.container) and "try-it" in block["classes"]:
            runs[-1][2].extend(block.children)
        elif goes_on(block) and runs and runs[-1][1]:
            runs[-1][1].append(block)
        elif isinstance(block, nodes.paragraph) and not is_download(block):
            if not runs or runs[-1][1] or in_bold(block):
                runs.append(([], [], []))
            runs[-1][0].append(block)
        elif parts:
            if not runs:
                runs.append(([], [], []))
            runs[-1][1].extend(parts)
    found: list[Group] = []
    for paragraphs, displays, aside in runs:
        group = one_group(paragraphs, displays, first=not found)
        group.notes.extend(aside)
        if group.parts or not found:
            found.append(group)
        else:
            found[-1].notes.extend(group.notes)
    return found


def one_group(paragraphs: list[nodes.Node], displays: list[nodes.Node], first: bool) -> Group:
    parts: list[nodes.Node] = []
    notes: list[nodes.Node] = []
    for n, paragraph in enumerate(paragraphs):
        said = sentences(paragraph)
        opens = first or displays or in_bold(paragraph) if n == 0 else first and not displays
        kept = opening_of(said) if opens else 0
        lead = said[max(kept, lead_of(said)) :] if displays and paragraph is paragraphs[-1] else []
        rest = said[kept : len(said) - len(lead)]
        parts += [paragraph_of(*part) for part in (said[:kept], lead) if part]
        notes += [paragraph_of(*rest)] if rest else []
    for display in displays:
        if isinstance(display, nodes.paragraph):
            opening, *rest = sentences(display)
            parts.append(paragraph_of(opening))
            notes += [paragraph_of(*rest)] if rest else []
        else:
            parts.append(display)
            notes += display.attributes.pop("rest", [])
    return Group(parts, notes)


def is_download(paragraph: nodes.Node) -> bool:
    return any(type(node).__name__ == "download_reference" for node in paragraph.findall())


def deal(found: Iterable[Group]) -> list[Group]:
    """Deal groups to slides: as many as fit, of those that want a slide for themselves only one.

    A group that is too high goes to several slides. Up to a limit it is squeezed instead, so that code stays with its output.
    """
    slides: list[Group] = []
    used, big = 0.0, False
    for group in found:
        need, wants = sum(map(height, group.parts)), any(map(is_big, group.parts))
        if not slides or used + need > LINES or (big and wants):
            slides.append(Group([], []))
            used, big = 0.0, False
        slides[-1].notes.extend(group.notes)
        room = LINES if used else SQUEEZED
        for part in group.parts:
            if slides[-1].parts and used + height(part) > room:
                slides.append(Group([], []))
                used, room = 0.0, LINES
            slides[-1].parts.append(part)
            used, big = used + height(part), big or is_big(part)
    return slides


def kind_of(parts: list[nodes.Node]) -> str:
    """Words alone, a picture with or without words, or anything else."""
    if all(isinstance(part, nodes.paragraph) for part in parts):
        return "few words" if sum(map(height, parts)) < FEW else "words"
    return "picture" if any(height(part) == PICTURE for part in parts) else ""
