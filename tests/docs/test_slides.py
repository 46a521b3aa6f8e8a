"""Slides are made from pages by a rule: what it shows of a section, what becomes notes, and where it begins a new slide."""

import re
import sys
from pathlib import Path

import pytest
from docutils import nodes

from numllama.learn.exercises import COURSE

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")


@pytest.fixture
def slides(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    for name in ("slides", "slide_rule", "syllabus", "reading_path", "llama_map", "way", "living_picture"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import slides

    return slides


@pytest.fixture
def rule(slides):
    import slide_rule

    return slide_rule


def text(*children):
    """A paragraph of texts and nodes."""
    return nodes.paragraph("", "", *(nodes.Text(child) if isinstance(child, str) else child for child in children))


def equation(tex=r"a = \frac{b}{c}"):
    return nodes.math_block(tex, tex)


def code(lines, language="python", classes=()):
    source = "\n".join(lines)
    return nodes.literal_block(source, source, language=language, classes=list(classes))


def cell(source, *outputs):
    made = [nodes.container("", code(source), classes=["cell_input"]), nodes.container("", *outputs, classes=["cell_output"])]
    return nodes.container("", *made, classes=["cell"])


def said(rule, paragraph):
    return [rule.text_of(sentence).strip() for sentence in rule.sentences(paragraph)]


def test_sentences_end_where_a_reader_ends_them(rule):
    paragraph = text("One (He et al. 2016, eq. 5). Two, e.g. this: it is 3.5\nlong. ", nodes.math("", "n"), " is three")
    assert said(rule, paragraph) == ["One (He et al. 2016, eq. 5).", "Two, e.g. this: it is 3.5\nlong.", "n is three"]
    assert said(rule, text("Is it? ", nodes.literal("", "dx"), ". Then “so.” Yes!")) == ["Is it?", "dx.", "Then “so.”", "Yes!"]


def test_a_section_shows_its_first_sentence_and_keeps_the_rest_as_notes(rule):
    first = "A linear map is a matrix product, and every output a weighted sum."
    (group,) = rule.groups([text(f"{first} Queries and keys are linear maps. So is the head.")])
    assert [part.astext().strip() for part in group.parts] == [first]
    assert [note.astext().strip() for note in group.notes] == ["Queries and keys are linear maps. So is the head."]


def test_a_short_opening_takes_another_sentence(rule):
    block = text("A model reads integers. Characters make sequences too long, and words a table too large. So what?")
    (group,) = rule.groups([block])
    assert group.parts[0].astext().strip().endswith("too large.")


def test_an_equation_keeps_the_sentence_that_leads_to_it(rule):
    block = text("Only one term of the sum contains the component that we want to change. It is squared. By the chain rule")
    (group,) = rule.groups([block, equation(), text("where nothing is left. Remarkable.")])
    assert [part.astext().strip() for part in group.parts] == [
        "Only one term of the sum contains the component that we want to change.", "By the chain rule", r"a = \frac{b}{c}",
        "where nothing is left.",
    ]  # fmt: skip
    assert [note.astext().strip() for note in group.notes] == ["It is squared.", "Remarkable."]


def test_a_pronoun_keeps_the_sentence_before_it(rule):
    asked = "Backward has another offer. It computes all of them:"
    block = text(f"That costs a forward for every layer, head and token. Much time. {asked}")
    (group,) = rule.groups([block, equation()])
    assert group.parts[1].astext().strip() == asked
    assert [note.astext().strip() for note in group.notes] == ["Much time."]


def test_questions_about_a_picture_that_moves_are_notes_on_it(rule):
    box = nodes.container("", text(nodes.strong("", "Try it."), " Drag the marker."), text("Why?"), classes=["try-it"])
    first = text("Why do some models train more easily than others do?")
    groups = rule.groups([first, nodes.image(uri="x.svg"), box, text(nodes.strong("", "Where to go."), " On."), equation()])
    assert [len(group.parts) for group in groups] == [2, 2]
    assert [note.astext() for note in groups[0].notes] == ["Try it. Drag the marker.", "Why?"] and not groups[1].notes


def test_a_paragraph_that_begins_with_a_letter_of_math_is_a_new_one(rule):
    block = text(nodes.math("", "e^{-g}"), " overflows for very negative numbers, and the tangent does not. It is this:")
    groups = rule.groups([equation(), block, equation("s = t")])
    assert [len(group.parts) for group in groups] == [1, 3]


def test_words_in_bold_begin_a_group(rule):
    bold = text(nodes.strong("", "Why the mean can go."), " It is the part of a row along one direction, of many. One of C.")
    first = text("RMSNorm divides each row by its root mean square before a branch reads it.")
    groups = rule.groups([first, equation(), text("A remark that nothing follows."), bold])
    assert len(groups) == 2 and [note.astext() for note in groups[0].notes] == [" A remark that nothing follows."]
    assert groups[1].parts[0].astext().strip().endswith("of many.")


def test_folded_code_and_imports_are_not_shown_but_outputs_are(rule):
    output = code(["1.0"], "myst-ansi", ["output"])
    imports = cell(["import numpy as np", "try:", "    import a", "except ImportError:"], output)
    assert [part.astext() for part in rule.shown(imports)] == ["1.0"]
    assert [part.astext() for part in rule.shown(cell(["x = 1", "x"], output.deepcopy()))] == ["x = 1\nx", "1.0"]
    folded = cell(["x = 1"], output.deepcopy())
    folded.children[0]["classes"] = []                                 # as in the node that folds it
    assert [part.astext() for part in rule.shown(folded)] == ["1.0"]


@pytest.mark.parametrize("n", [1, 15, 16, 41, 100])
def test_long_code_is_cut_into_pieces_that_hold_all_of_it(n, rule):
    lines = [f"{'    ' * (i % 5 != 0)}line_{i}" for i in range(n)]
    pieces = rule.chunks(lines, rule.CODE_LINES)
    assert [line for piece in pieces for line in piece] == lines and max(map(len, pieces)) <= rule.CODE_LINES
    assert all(not piece[0].startswith(" ") for piece in pieces)       # at the outermost level


def test_code_is_cut_at_a_blank_line(rule):
    lines = ["def f():", *["    x"] * 8, "", "def g():", *["    y"] * 9]
    assert [len(piece) for piece in rule.chunks(lines, 15)] == [9, 10]


def test_code_is_not_cut_before_an_else(rule):
    lines = ["a = 1", *["if a:", "    b"] * 4, "else:", "    c", *["d = 2"] * 8]
    assert all(not piece[0].startswith("else") for piece in rule.chunks(lines, 10))


def test_a_long_output_is_cut(rule):
    shown = rule.cut(code([str(i) for i in range(40)], "myst-ansi", ["output"])).astext().split("\n")
    assert shown == ["0", "1", "2", "3", "4", "5", "...", "33", "34", "35", "36", "37", "38", "39"]
    assert len(shown) == rule.OUTPUT_LINES


def test_a_long_list_keeps_its_numbers_and_its_rest_becomes_notes(rule):
    more = "And it goes on for a while. " * 6
    items = [nodes.list_item("", text(f"Item {i} begins with this sentence, which is shown. {more}")) for i in range(12)]
    parts = list(rule.split_list(nodes.enumerated_list("", *items)))
    assert [part["start"] for part in parts] == [1 + sum(map(len, parts[:n])) for n in range(len(parts))]
    assert sum(map(len, parts)) == 12 and len(parts) > 1
    assert parts[0][0].astext().strip() == "Item 0 begins with this sentence, which is shown."
    assert parts[0]["rest"][0].astext().count("And it goes on") == 12 * 6


def test_a_question_of_a_list_is_shown_with_what_it_is_about(rule):
    statement = "The lens uses the gain of the last norm at every layer, in each of the pictures above, up to the last one. "
    asked = f"{statement}Replace it by that of the next layer. Does the answer appear earlier?"
    items = [nodes.list_item("", text(each)) for each in (asked, statement * 2)]
    (part,) = rule.split_list(nodes.enumerated_list("", *items))
    assert len(asked) > rule.SHORT and [item.astext().strip() for item in part] == [asked, statement.strip()]


def test_groups_share_a_slide_until_it_is_full_and_code_never_shares_with_code(rule):
    words = [rule.Group([text("A sentence of a slide. " * 2)], []) for _ in range(20)]
    dealt = rule.deal(words)
    assert sum(len(slide.parts) for slide in dealt) == 20
    assert all(sum(map(rule.height, slide.parts)) <= rule.LINES for slide in dealt) and len(dealt) <= 4
    assert len(rule.deal([rule.Group([code(["x"])], []), rule.Group([code(["y"])], [])])) == 2


def test_a_group_that_is_too_high_gets_several_slides(rule):
    pieces = [code(["x"] * 15) for _ in range(3)]
    dealt = rule.deal([rule.Group([text("All of it:"), *pieces], [text("a note")])])
    assert [len(slide.parts) for slide in dealt] == [2, 1, 1] and dealt[0].notes


def test_links_lead_from_a_deck_to_the_book(slides):
    tree = nodes.document(None, None)
    given = ["", "../start.html#a", "softmax.html", "#here", "https://example.org/x"]
    refs = [nodes.reference("", "x", refuri=uri) if uri else nodes.reference("", "x", refid="eq") for uri in given]
    tree += nodes.section("", text(*refs))
    slides.prepare(tree, "ops/linear", str)
    expected = ["../ops/linear.html#eq", "../start.html#a", "../ops/softmax.html", "../ops/linear.html#here", given[-1]]
    assert [ref["refuri"] for ref in tree.findall(nodes.reference)] == expected


def test_what_is_not_for_a_lecture_is_left_out_with_the_sections_in_it(slides):
    def section(name, *children):
        return nodes.section("", nodes.title("", name), *children, names=[name.lower()])

    page = section("Page", section("For students"), section("For teachers", section("How a file is run")), section("Cost"))
    assert [each["names"] for each in slides.sections(page)] == [["page"], ["for students"], ["cost"]]
    assert "\n## For teachers\n" in (DOCS / "grade.md").read_text(encoding="utf-8")


def test_the_capstone_has_a_slide_in_each_of_its_weeks(slides):
    tree = type("Builder", (), {"get_relative_uri": lambda _, source, page: f"../{page}.html"})()
    decks = [slides.Deck(week, tree, None) for week in slides.syllabus.weeks() if week.capstone]
    made = [deck.capstone() for deck in decks]
    assert ["--template" in slide.body for slide in made] == [True, False, False, False]
    share = slides.duration(COURSE["llama"].minutes // 4)
    assert all(slide.above == "Your turn" and f"{share} this week" in slide.body for slide in made)
    homework = [deck.homework().body for deck in decks]
    assert [page.count(f">{share}<") for page in homework] == [1] * 4 and "10 h" not in "".join(homework)
    assert [">53<" in page for page in homework] == [False, False, False, True]


def test_no_solution_is_on_a_slide(slides, rule):
    tree = nodes.document(None, None)
    hints = nodes.container("", nodes.raw("", "<details>", format="html"), code(["return x @ w"]), classes=["exercise-hints"])
    tree += nodes.section("", hints, text("1. Write the backward yourself."))
    slides.prepare(tree, "ops/linear", str)
    assert tree.astext() == "1. Write the backward yourself."


def test_a_widget_leaves_its_picture(slides):
    tree, picture = nodes.document(None, None), nodes.image(uri="picture.svg")
    raw = nodes.raw("", '<div class="widget" data-widget="rope"></div>', format="html")
    tree += nodes.section("", cell(["Widget()"], raw, picture))
    slides.prepare(tree, "ops/rope", str)
    assert not list(tree.findall(nodes.raw)) and picture["widget"]


def test_neighbours_of_a_few_words_share_a_slide(slides):
    heads = [f"Part {i}{slides.OF}1 of 2</span>" for i in range(4)]
    few = [slides.Slide("Page", head, f"<p>{i}</p>", "note", f"#{i}", "few words") for i, head in enumerate(heads)]
    other = slides.Slide("Page", "Code", "<pre></pre>")
    made = list(slides.joined([*few, other, few[0]], "Page"))
    assert [slide.heading for slide in made] == ["Page", "Page", "Code", few[0].heading]
    assert made[0].body.count("<h3>") == 3 and ">Part 2</a></h3><p>2</p>" in made[0].body and made[0].notes.count("note") == 3


def test_the_whole_llama_is_drawn_in_two_columns_without_a_name_twice(slides):
    picture = slides.llama_in_two(lambda page: f"../{page}.html")
    assert picture.count("<svg") == 2 and picture.count('id="map-title"') == 1
    boxes = re.findall(f'viewBox="0 ([^ ]*) {slides.llama_map.WIDTH} ([^"]*)"', picture)
    (_, upper), (top, lower) = (map(float, box) for box in boxes)
    assert upper == top and upper + lower == slides.llama_map.height()


def test_code_knows_its_longest_line(slides):
    made = slides.CODE_BOX.sub(slides.with_columns, '<div class="highlight"><pre><b>a &lt; b</b>\nc</pre></div>')
    assert made == '<div class="highlight" style="--columns: 5"><pre><b>a &lt; b</b>\nc</pre></div>'
