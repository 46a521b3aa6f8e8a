"""Slides: a deck for each week of the syllabus, made from the pages of the book whenever it is built.

A page gets a slide with its title, slides of its sections by the rule in slide_rule.py, and one of its exercise. The template of
a deck is docs/_templates/slides.html, with slides.css and slides.js of docs/_static.
"""

import re
from collections.abc import Callable, Iterator
from html import escape, unescape
from itertools import groupby
from posixpath import dirname, join, normpath
from typing import Any, NamedTuple

import llama_map
import reading_path
import syllabus
from docutils import nodes
from reading_path import Links, duration
from slide_rule import deal, groups, kind_of
from way import way_node

from numllama.learn.exercises import COURSE, exercise_text

OF = ' <span class="of">'                                              # begins "1 of 3" in a heading
LEFT_OUT = {"where to go from here", "for teachers"}                   # sections that are not for a lecture, and what is in them


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
        later = [name for name in week.exercises if COURSE[name].kind not in ("bug", "capstone")]    # these come at the end
        for page in week.pages:
            yield from self.page(page)
            for name in [name for name in later if COURSE[name].page == page]:
                later.remove(name)
                yield self.exercise(name)
        yield from map(self.exercise, later)
        if week.capstone:
            yield self.capstone()
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
        body = f"<p>After this page you can {can}</p>{here}"
        yield Slide(f"Week {self.week.number}", title, body, "", self.links.address(page), "title")
        own = page in [COURSE[name].page for name in self.week.exercises]
        found: list[Slide] = []
        for section in sections(top):
            if own and section["names"] == ["exercises"]:              # its questions become the notes of the exercise's slide
                self.questions[page] = self.render(nodes.container("", *section.children[1:]))
            else:
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
        for function in each.functions or [f"{each.base}_backward"] * (each.kind == "backward"):
            text = exercise_text(name)
            blank = text[text.index(f"def {function}(") :].split("\n\n\n")[0]
            blocks.append(re.sub(r"\n\n    \w.*\n    (?=\"\"\")", "", blank, flags=re.S))   # a long docstring's first line
        hints = "".join(
            f"<p><b>{escape(what)}</b></p><ol>{''.join(f'<li>{escape(hint)}</li>' for hint in steps)}</ol>"
            for what, steps in each.hints.items()
        )
        about = f"{each.title[0].upper()}{each.title[1:]}: {duration(each.minutes)}, {syllabus.points(each.points)}{needs}."
        body = f"<p>{escape(about)}</p>" + "".join(map(code_box, blocks))
        notes = self.questions.get(each.page, "") + hints
        return Slide("Your turn", f"Exercise: <code>{name}</code>", body, notes, self.links.address("exercises"), "exercise")

    def capstone(self) -> Slide:
        """What to do on the capstone this week."""
        week, each = self.week, COURSE[syllabus.CAPSTONE]
        title, time = f"{each.title[0].upper()}{each.title[1:]}", duration(week.on_capstone)
        begun = any(earlier.capstone for earlier in syllabus.weeks()[: week.number - 1])
        commands = "numllama grade llama.py" if begun else "numllama grade llama.py --template\nnumllama grade llama.py"
        body = f"<p>{title}: {time} this week, {syllabus.points(each.points)} in all.</p>"
        body += f"<p>{syllabus.inline(week.capstone, self.links)}</p>{code_box(commands)}"
        return Slide("Your turn", f"Capstone: <code>{each.name}</code>", body, "", self.links.address("grade"), "exercise")

    def homework(self) -> Slide:
        week = self.week
        rows = [[f"<code>{name}</code>", escape(COURSE[name].title), duration(COURSE[name].minutes), str(COURSE[name].points)]
                for name in [*week.exercises, *week.homework] if name != syllabus.CAPSTONE]  # fmt: skip
        if week.capstone:
            points = str(COURSE[syllabus.CAPSTONE].points) if syllabus.CAPSTONE in week.exercises else ""
            task, time = syllabus.on_capstone(week, self.links), duration(week.on_capstone)
            rows.append([f"<code>{syllabus.CAPSTONE}</code>", task, time, points])
        body = syllabus.table(["exercise", "task", "time", "points"], rows, numbers=2)
        body += f"<p>{syllabus.inline(week.task, self.links)}</p>"
        heading = "To hand in" if week is syllabus.weeks()[-1] else "Until next week"
        return Slide(f"Week {week.number}", heading, body, "", self.links.address("exercises"), "homework")

    def render(self, node: nodes.Node) -> str:
        return CODE_BOX.sub(with_columns, self.builder.render_partial(node)["fragment"])


CODE_BOX = re.compile(r'<div class="highlight">(<pre>.*?</pre>)', re.S)


def code_box(text: str) -> str:
    return CODE_BOX.sub(with_columns, f'<div class="highlight"><pre>{escape(text)}</pre></div>')


def with_columns(box: re.Match) -> str:
    """Code with the length of its longest line: the style sheet makes that line fit."""
    lines = unescape(re.sub("<[^>]*>", "", box[1])).split("\n")
    return f'<div class="highlight" style="--columns: {max(map(len, lines))}">{box[1]}'


def sections(section: nodes.Element) -> Iterator[nodes.Element]:
    """A section and those inside of it, in order, without those that are left out."""
    if not LEFT_OUT & set(section["names"]):
        yield section
        for child in section.children:
            if isinstance(child, nodes.section):
                yield from sections(child)


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
        if 'data-widget="' in node.astext():
            for picture in cell_of(node).findall(nodes.image):
                picture["widget"] = True
        node.parent.remove(node)
    for node in list(tree.findall(way_node)):
        node.replace_self(nodes.raw("", llama_in_two(address), format="html"))
    for node in list(tree.findall(has_no_place)):
        node.parent.remove(node)
    for node in tree.findall(lambda node: isinstance(node, nodes.Element) and not isinstance(node, nodes.section)):
        node["ids"] = []


def llama_in_two(address: Callable[[str], str]) -> str:
    """The picture of the whole Llama in two columns, as high as a slide allows."""
    width, height = llama_map.WIDTH, llama_map.height()
    half = llama_map.PITCH * round(height / 2 / llama_map.PITCH) - (llama_map.PITCH - llama_map.BOX) / 4
    whole, box = llama_map.large(address), f'viewBox="0 0 {width} {height:g}"'
    upper = whole.replace(box, f'viewBox="0 0 {width} {half:g}"')
    lower = whole.replace(box, f'viewBox="0 {half:g} {width} {height - half:g}"')
    lower = re.sub(r' (id|aria-labelledby)="[^"]*"', "", lower)        # each name once in a page
    return f'<div class="llama-in-two">{upper}{lower}</div>'


def has_no_place(node: nodes.Node) -> bool:
    """Comments, empty texts, and the hints and solutions that are folded in a page."""
    folded = isinstance(node, nodes.container) and "exercise-hints" in node["classes"]
    return folded or isinstance(node, nodes.comment | nodes.target) or node == ""


def cell_of(node: nodes.Node) -> nodes.Element:
    """The cell that an output belongs to."""
    return node if "cell" in node["classes"] else cell_of(node.parent)


def decks(app: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The pages with the decks, for Sphinx."""
    builder = app.builder
    if builder.name != "html":
        return
    for week in syllabus.weeks():
        builder.current_docname, builder.imgpath, builder.dlpath = week.deck, "../_images", "../_downloads"
        deck = Deck(week, builder, lambda page: app.env.get_and_resolve_doctree(page, builder))
        context = {
            "title": f"Week {week.number}: {week.title}", "slides": list(deck.slides()),
            "mathjax": app.config.mathjax3_config, "mathjax_path": app.config.mathjax_path, "sourcename": "", "parents": [],
        }  # fmt: skip
        yield week.deck, context, "slides.html"


def setup(app: Any) -> dict[str, bool]:
    app.connect("html-collect-pages", decks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
