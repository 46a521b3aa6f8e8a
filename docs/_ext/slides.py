"""Slides: a deck for each week of the syllabus, made from the pages of the book whenever it is built.

A page gets a slide with its title, and each of its sections slides of their own. What is shown of a section (``groups``):

- of the paragraphs before an equation, code, a table, a picture or a list: the first sentence, and the one that leads to it;
- the equation, code, table, picture or list itself;
- the first sentence of a paragraph that begins in bold, and of each paragraph of a section that displays nothing.

The rest of the text becomes notes. Groups are dealt to slides by an estimate of their heights (``deal``); the script of the page makes
the text of a slide smaller if the estimate was too low, and tests/browser/test_slides.py sees that it never becomes small.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from html import escape, unescape
from itertools import accumulate, groupby
from posixpath import dirname, join, normpath
from typing import Any, NamedTuple

import llama_map
import reading_path
import syllabus
from docutils import nodes
from reading_path import Links, duration
from way import way_node

from numllama.learn.exercises import COURSE, exercise_text

LINES, SQUEEZED = 13.0, 17.5                                           # of a slide, below its heading; with smaller text
LINE, CODE, OUTPUT, PICTURE, GAP = 76, 0.68, 0.62, 10.0, 0.45          # characters of a line; heights in lines
CODE_LINES, OUTPUT_LINES, ROWS = 15, 14, 9                             # of one slide
ENOUGH = 50                                                            # characters of an opening
FEW = 4.6                                                              # lines of a slide that its neighbour may join
SHORT = 170                                                            # characters of an item that is shown as a whole

# ------------------------------------------------------------------------------------------------ text

END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"”)]))(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bal\.)(?<!\beq\.)(?<!\bsect\.)(?<!\balg\.)(?<!\bvs\.)\s+(?=[^a-z]|$)"
)
Sentence = list[nodes.Node]


def sentences(paragraph: nodes.Element) -> list[Sentence]:
    """The sentences of a paragraph. Words in bold that end it in a full stop belong to the sentence after them."""
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
    """The first lines of an output."""
    lines = block.astext().rstrip("\n").split("\n")
    return block if len(lines) <= OUTPUT_LINES else with_text(block, [*lines[: OUTPUT_LINES - 1], "..."])


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
    """Cut lines of code into pieces of similar length: before a blank line if there is one, or else where they are least indented."""
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
    return len(line) - len(line.lstrip()) if line.strip() else -1


def split_list(node: nodes.Element) -> Iterator[nodes.Element]:
    """A list in parts that fit on a slide; of each item, the first sentence (all of a short one), and what it displays."""
    parts, used = [[]], 0.0
    untold: list[nodes.Node] = []
    for item in node.children:
        made, its = nodes.list_item(), item_height(item)
        texts = [child for child in item.children if isinstance(child, nodes.paragraph)]
        if texts:
            opening, rest = sentences(texts[0]), texts[1:]
            if len(texts[0].astext()) > SHORT:
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
    return sum(min(len(text), SHORT) // LINE + 1.2 for text in texts) + sum(height(part) for child in item.children for part in shown(child))


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
        return sum(max(len(entry.astext()) * len(row.children) // 90 + 1.2 for entry in row.children) for row in node.findall(nodes.row))
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
    runs: list[tuple[list[nodes.Node], list[nodes.Node]]] = []
    for block in unfolded(blocks):
        parts = list(shown(block))
        if goes_on(block) and runs and runs[-1][1]:
            runs[-1][1].append(block)
        elif isinstance(block, nodes.paragraph) and not is_download(block):
            if not runs or runs[-1][1] or in_bold(block):
                runs.append(([], []))
            runs[-1][0].append(block)
        elif parts:
            if not runs:
                runs.append(([], []))
            runs[-1][1].extend(parts)
    found: list[Group] = []
    for paragraphs, displays in runs:
        group = one_group(paragraphs, displays, first=not found)
        if group.parts or not found:
            found.append(group)
        else:
            found[-1].notes.extend(group.notes)
    return found


def unfolded(blocks: Iterable[nodes.Node]) -> Iterator[nodes.Node]:
    """The blocks, with those inside of a box of questions."""
    for block in blocks:
        if isinstance(block, nodes.container) and "try-it" in block["classes"]:
            yield from block.children
        else:
            yield block


def one_group(paragraphs: list[nodes.Node], displays: list[nodes.Node], first: bool) -> Group:
    parts: list[nodes.Node] = []
    notes: list[nodes.Node] = []
    for n, paragraph in enumerate(paragraphs):
        said = sentences(paragraph)
        opening = opening_of(said)
        if n == 0:
            kept = opening if first or displays or in_bold(paragraph) else 0
        else:
            kept = opening if first and not displays else 0
        lead = [said[-1]] if displays and paragraph is paragraphs[-1] and leads(said[-1]) and kept < len(said) else []
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


# ------------------------------------------------------------------------------------------------ HTML


class Slide(NamedTuple):
    """A slide: small words above the heading, the heading, what is shown, the notes, where it is in the book, and its kind."""

    above: str
    heading: str
    body: str
    notes: str = ""
    href: str = ""
    kind: str = ""


class Deck:
    """The slides of a week. ``builder`` renders nodes, ``tree`` gives the doctree of a page."""

    def __init__(self, week: syllabus.Week, builder: Any, tree: Callable[[str], nodes.document]) -> None:
        self.week, self.builder, self.tree = week, builder, tree
        self.questions: dict[str, str] = {}
        self.links = Links(lambda page: builder.get_relative_uri(week.deck, page), lambda page: builder.env.titles[page].astext())

    def slides(self) -> Iterator[Slide]:
        """All slides, in order."""
        week = self.week
        yield self.opening()
        later = [name for name in week.exercises if COURSE[name].kind != "bug"]     # these are listed at the end
        for page in week.pages:
            yield from self.page(page)
            for name in [name for name in later if page_of(name) == page]:
                later.remove(name)
                yield self.exercise(name)
        yield from map(self.exercise, later)
        yield self.homework()

    def opening(self) -> Slide:
        """The title of the week, what one can do after it, and its pages."""
        week = self.week
        pages = "".join(f"<li>{self.links.to(page)}</li>" for page in week.pages)
        body = f"<p>After this week you can {escape(week.can)}</p><ol>{pages}</ol>"
        href = f"{self.links.address('syllabus')}#week-{week.number}"
        return Slide(f"Week {week.number} of {len(syllabus.weeks())}", escape(week.title), body, "", href, "opening")

    def page(self, page: str) -> Iterator[Slide]:
        """A slide with the title, and those of each section."""
        tree = self.tree(page)
        self.builder.post_process_images(tree)
        prepare(tree, page, self.links.address)
        (top,) = [node for node in tree.children if isinstance(node, nodes.section)]
        title = escape(self.links.title(page))
        can = escape(reading_path.entries()[page].can)
        here = llama_map.here(page, self.links.address, across=True)
        yield Slide(f"Week {self.week.number}", title, f"<p>After this page you can {can}</p>{here}", "", self.links.address(page), "title")
        own = page in map(page_of, self.week.exercises)
        found: list[Slide] = []
        for section in [top, *top.findall(lambda node: isinstance(node, nodes.section) and node is not top)]:
            if own and section["names"] == ["exercises"]:              # its questions become the notes of the exercise's slide
                self.questions[page] = self.render(nodes.container("", *section.children[1:]))
            elif section["names"] != ["where to go from here"]:
                found += self.section(page, title, section)
        yield from joined(found, title)

    def section(self, page: str, title: str, section: nodes.Element) -> Iterator[Slide]:
        heading, *blocks = section.children
        blocks = [block for block in blocks if not isinstance(block, nodes.section)]
        href = f"{self.links.address(page)}#{section['ids'][0]}"
        made = [group for group in deal(groups(blocks)) if group.parts]
        for n, group in enumerate(made):
            head = self.render(nodes.inline("", "", *heading.deepcopy().children))
            head += f"{OF}{n + 1} of {len(made)}</span>" if len(made) > 1 else ""
            body = self.render(nodes.container("", *group.parts))
            if any(part.get("widget") for part in group.parts if isinstance(part, nodes.Element)):
                body += f'<p class="interactive"><a href="{escape(href)}">Move it yourself, in the book</a></p>'
            notes = self.render(nodes.container("", *group.notes)) if group.notes else ""
            yield Slide(title, head, body, notes, href, kind_of(group.parts))

    def exercise(self, name: str) -> Slide:
        """What to write, how long it takes and what it is worth; its hints are in the notes."""
        each = COURSE[name]
        needs = f" · after {', '.join(each.needs)}" if each.needs else ""
        blocks = [f"numllama exercises {name}\nnumllama exercises --check {name}"]
        if each.kind == "backward":
            text = exercise_text(name)
            blank = text[text.index(f"def {each.base}_backward") :].split("\n\n\n")[0]
            blocks.append(re.sub(r"\n\n    \w.*(?=\n    \"\"\")", "", blank, flags=re.S))   # a long docstring's first line
        hints = "".join(
            f"<p><b>{escape(what)}</b></p><ol>{''.join(f'<li>{escape(hint)}</li>' for hint in steps)}</ol>"
            for what, steps in each.hints.items()
        )
        body = (
            f"<p>{escape(each.title[0].upper() + each.title[1:])}: {duration(each.minutes)}, {syllabus.points(each.points)}{escape(needs)}.</p>"
            + "".join(CODE_BOX.sub(with_columns, f'<div class="highlight"><pre>{escape(block)}</pre></div>') for block in blocks)
        )
        notes = self.questions.get(page_of(name), "") + hints
        return Slide("Your turn", f"Exercise: <code>{name}</code>", body, notes, self.links.address("exercises"), "exercise")

    def homework(self) -> Slide:
        week = self.week
        rows = [[f"<code>{name}</code>", escape(COURSE[name].title), duration(COURSE[name].minutes), str(COURSE[name].points)]
                for name in dict.fromkeys([*week.exercises, *week.homework])]  # fmt: skip
        body = syllabus.table(["exercise", "task", "time", "points"], rows, numbers=2) + f"<p>{escape(week.task)}</p>"
        if week.capstone:
            body += f'<p><a href="{escape(self.links.address("grade"))}">Capstone</a>: {escape(week.capstone)}</p>'
        return Slide(f"Week {week.number}", "Until next week", body, "", self.links.address("exercises"), "homework")

    def render(self, node: nodes.Node) -> str:
        return CODE_BOX.sub(with_columns, self.builder.render_partial(node)["fragment"])


CODE_BOX = re.compile(r'<div class="highlight">(<pre>.*?</pre>)', re.S)


def with_columns(box: re.Match) -> str:
    """Code with the length of its longest line: the style sheet makes that line fit."""
    lines = unescape(re.sub("<[^>]*>", "", box[1])).split("\n")
    return f'<div class="highlight" style="--columns: {max(map(len, lines))}">{box[1]}'


OF = ' <span class="of">'


def joined(slides: list[Slide], title: str) -> Iterator[Slide]:
    """Slides of a page, with neighbours that are a few words each put together."""
    for _, neighbours in groupby(slides, key=lambda slide: slide.kind == "few words"):
        some = list(neighbours)
        if some[0].kind != "few words" or len(some) == 1:
            yield from some
            continue
        for i in range(0, len(some), 3):
            group = some[i : i + 3]
            heads = [each.heading.partition(OF)[0] for each in group]
            body = "".join(f'<h3><a href="{escape(each.href)}">{head}</a></h3>{each.body}' if head != title else each.body
                           for each, head in zip(group, heads, strict=True))  # fmt: skip
            notes = "".join(f"<p><b>{head}</b></p>{each.notes}" for each, head in zip(group, heads, strict=True) if each.notes)
            yield Slide(group[0].above, title, body, notes, group[0].href, "few words")


def kind_of(parts: list[nodes.Node]) -> str:
    """Words alone, a picture with or without words, or anything else."""
    if all(isinstance(part, nodes.paragraph) for part in parts):
        return "few words" if sum(map(height, parts)) < FEW else "words"
    return "picture" if any(height(part) == PICTURE for part in parts) else ""


def prepare(tree: nodes.document, page: str, address: Callable[[str], str]) -> None:
    """Point links from the page to where they lead from a deck, and take out what has no place there."""
    for node in list(tree.findall(nodes.reference)):
        target = node.get("refuri", "")
        if "refid" in node:
            node["refuri"] = f"../{page}.html#{node.attributes.pop('refid')}"
        elif target.startswith("#"):
            node["refuri"] = f"../{page}.html{target}"
        elif target and ":" not in target:
            node["refuri"] = "../" + normpath(join(dirname(page), target))
    for node in list(tree.findall(nodes.raw)):
        for cell in ancestors(node):
            if 'data-widget="' in node.astext() and "cell" in cell["classes"]:
                for picture in cell.findall(nodes.image):
                    picture["widget"] = True
        node.parent.remove(node)
    for node in list(tree.findall(way_node)):
        node.replace_self(nodes.raw("", llama_in_two(address), format="html"))
    for node in list(tree.findall(lambda node: isinstance(node, nodes.comment | nodes.target) or node == "")):
        node.parent.remove(node)
    for node in tree.findall(lambda node: isinstance(node, nodes.Element) and not isinstance(node, nodes.section)):
        node["ids"] = []


def page_of(exercise: str) -> str:
    """The page about the op of an exercise."""
    return f"ops/{COURSE[exercise].base}"


def llama_in_two(address: Callable[[str], str]) -> str:
    """The picture of the whole Llama in two columns, as high as a slide allows."""
    width, height = llama_map.WIDTH, llama_map.height()
    half = llama_map.PITCH * round(height / 2 / llama_map.PITCH) - (llama_map.PITCH - llama_map.BOX) / 4
    whole, box = llama_map.large(address), f'viewBox="0 0 {width} {height:g}"'
    upper = whole.replace(box, f'viewBox="0 0 {width} {half:g}"')
    lower = re.sub(r' (id|aria-labelledby)="[^"]*"', "", whole.replace(box, f'viewBox="0 {half:g} {width} {height - half:g}"'))
    return f'<div class="llama-in-two">{upper}{lower}</div>'


def ancestors(node: nodes.Node) -> Iterator[nodes.Element]:
    while node.parent is not None:
        node = node.parent
        yield node


def decks(app: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The pages with the decks, for Sphinx."""
    builder = app.builder
    if builder.name != "html":
        return
    for week in syllabus.weeks():
        builder.current_docname, builder.imgpath, builder.dlpath = week.deck, "../_images", "../_downloads"
        deck = Deck(week, builder, lambda page: app.env.get_and_resolve_doctree(page, builder))
        context = {"title": f"Week {week.number}: {week.title}", "slides": list(deck.slides()), "mathjax": app.config.mathjax3_config,
                   "mathjax_path": app.config.mathjax_path, "sourcename": "", "parents": []}  # fmt: skip
        yield week.deck, context, "slides.html"


def setup(app: Any) -> dict[str, bool]:
    app.connect("html-collect-pages", decks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
