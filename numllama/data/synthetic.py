"""A generated play, for when tinyshakespeare can be neither found nor downloaded.

Its *source has an exact predictor that can be computed*: a model's validation loss can be compared with
the loss of the best possible predictor on the same windows. The source is a graph. An arc leads from
node u to node v, is taken with chance p and spells a text, or is silent and spells nothing.
A state s is a letter of an arc's text: T moves on to the next letter or, at the end, to another arc.

    silent walks     E = I + S + S² + …              S[u, v]: chance of the silent arcs from u to v
    moves            T(r, s) = 1 inside an arc, and E[v(r), u(s)] p(s) from its end to a first letter
    stationary       ν = νQ,  π(s) ∝ ν(u(s)) p(s)    Q[u, v]: chance of all the arcs from u to v
    first character  α₀(s) ∝ π(s) [s emits x₀]
    filter           αₜ(s) ∝ Σᵣ αₜ₋₁(r) T(r, s) [s emits xₜ],   where Σᵣ αₜ₋₁(r) = 1
    best prediction  P(xₜ | x₀ … xₜ₋₁) = the sum that normalises αₜ;  the loss is the mean of −ln P

Attention has something to learn: the speaker's temper chooses the words of a whole speech, the next
speaker has another temper, a verb agrees with its subject. A text often has several readings, because
tempers share words and silent arcs leave no trace: the filter weighs all that are still possible.
"""

from bisect import bisect
from functools import cache
from itertools import accumulate, product
from math import fsum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# node: its arcs, each (chance in percent, pattern, next node). A pattern names at most one table of words,
# which are capitalised if the name is. Each temper has its own copy of the graph; "reply" enters the others.
_GRAMMAR = {
    "enter": [(100, "{speakers}:\n", "line")],
    "line": [(34, "{openers} ", "subject"), (62, "", "capital"), (4, "{cries}\n", "line")],
    "capital": [(64, "{Determiners} ", "phrase"), (13, "{Singulars} ", "acts"), (23, "{Plurals} ", "act")],
    "subject": [(70, "{determiners} ", "phrase"), (12, "{singulars} ", "acts"), (18, "{plurals} ", "act")],
    "phrase": [(45, "{adjectives} ", "noun"), (55, "", "noun")],
    "noun": [(100, "{nouns}", "number")],
    "number": [(55, "", "one"), (45, "s", "many")],
    "one": [(74, " ", "acts"), (12, " {origins} ", "acts"), (14, "", "modal")],
    "many": [(74, " ", "act"), (12, " {origins} ", "act"), (14, "", "modal")],
    "modal": [(100, " {modals} ", "act")],  # "shall sing", whether one or many
    "acts": [(100, "{verbs}s", "one acted")],
    "act": [(100, "{verbs}", "many acted")],
    "one acted": [(8, " and ", "acts"), (92, "", "acted")],
    "many acted": [(8, " and ", "act"), (92, "", "acted")],
    "acted": [(65, " ", "object"), (15, " {pronouns}", "pause"), (20, "", "relation")],
    "relation": [(100, " {prepositions} ", "object")],
    "object": [(100, "{determiners} ", "object phrase")],
    "object phrase": [(40, "{adjectives} ", "object noun"), (60, "", "object noun")],
    "object noun": [(100, "{nouns}", "object number")],
    "object number": [(55, "", "pause"), (45, "s", "pause")],
    "pause": [(30, "", "addition"), (56, "{stops}\n", "line"), (14, "{ends}\n\n", "reply")],
    "addition": [(70, "", "relation"), (30, "\n{Prepositions} ", "object")],
}


def write_play(n_characters: int = 1_000_000, seed: int = 0) -> str:
    """Draw a play from the source; it opens with a speech heading and is cut to length.

    Parameters
    ----------
    n_characters : int
        Length, at least 2.
    seed : int
        The same seed gives the same play on every platform, and a longer play begins with the shorter one.

    Returns
    -------
    str
        Exactly `n_characters` characters, all of them ASCII.

    Raises
    ------
    ValueError
        If `n_characters` is less than 2.
    """
    if n_characters < 2:
        raise ValueError(f"n_characters is {n_characters}, but must be at least 2")
    leaving: list[list[_Arc]] = [[] for _ in _source().reach]
    for arc in _arcs():
        leaving[arc.node].append(arc)
    # The last bound, which may round to less than one, is dropped, so that bisect always finds an arc.
    bounds = [list(accumulate(arc.chance for arc in arcs))[:-1] for arcs in leaving]

    draw = np.random.Generator(np.random.PCG64(seed)).random
    texts, length, node = [], 0, 0  # node 0 is the first of the grammar: a speaker enters
    while length < n_characters:
        arc = leaving[node][bisect(bounds[node], draw())]
        texts.append(arc.text)
        length, node = length + len(arc.text), arc.next
    return "".join(texts)[:n_characters]


def best_loss(text: str, window: int) -> float:
    """The loss of the exact predictor on `text`, in non-overlapping windows as in validation.

    The inputs ``text[i : i + window]`` have the targets ``text[i + 1 : i + window + 1]``, i = 0, window,
    2 window, …; the last window may be shorter. The predictor sees nothing before its window, so in each
    one, the first included, it starts from the stationary distribution.

    Parameters
    ----------
    text : str
        At least 2 characters of this source, such as any part of a play.
    window : int
        The number of inputs in a window, at least 1.

    Returns
    -------
    float
        Mean nats per target; every character but the first is a target once.

    Raises
    ------
    ValueError
        If an argument is too small, or if the source cannot produce the text of some window.
    """
    if len(text) < 2:
        raise ValueError(f"text has length {len(text)}, but must have at least 2 characters")
    if window < 1:
        raise ValueError(f"window is {window}, but must be at least 1")
    n_targets = len(text) - 1
    window = min(window, n_targets)
    padded = _code_points(text + "\0" * window)  # fills the last window with a character that no state emits
    windows = np.lib.stride_tricks.sliding_window_view(padded, window + 1)[:n_targets:window]
    parts = [_chances(windows[i : i + 128]) for i in range(0, len(windows), 128)]  # bounds the memory
    chances = np.concatenate([parts[0][0, :1], *(part[:, 1:].ravel() for part in parts)])[: len(text)]
    if not chances.all():
        i = int(np.argmin(chances))
        raise ValueError(f"text has {text[i]!r} at position {i}, but the source cannot produce it there")
    return float(-np.log(chances[1:]).mean())


def _chances(windows: NDArray[np.uint32]) -> NDArray[np.float64]:
    """The chance of each character given those before it in its window; both (windows, characters)."""
    source = _source()
    n_rows, n_nodes = len(windows), len(source.reach)
    chances = np.zeros(windows.shape)
    row, state = np.nonzero(windows[:, :1] == source.letter)  # only the states still possible are kept:
    weight = source.stationary[state]  # in window row[k], state[k] has the weight weight[k]
    for t, seen in enumerate(windows.T):
        if t > 0:
            following = source.next[state]
            inside, ended = following < 0, following >= 0
            place = row[ended] * n_nodes + following[ended]
            mass = np.bincount(place, weight[ended], n_rows * n_nodes).reshape(n_rows, n_nodes) @ source.reach
            new, arc = np.nonzero((source.letter[source.first] == seen[:, None]) & (mass > 0)[:, source.node])
            row = np.concatenate([row[inside], new])
            state = np.concatenate([state[inside] + 1, source.first[arc]])
            weight = np.concatenate([weight[inside], mass[new, source.node[arc]] * source.chance[arc]])
            possible = source.letter[state] == seen[row]
            row, state, weight = row[possible], state[possible], weight[possible]
        chances[:, t] = np.bincount(row, weight, n_rows)
        weight = weight / chances[row, t]
    return chances


class _Arc(NamedTuple):
    node: int
    text: str
    chance: float
    next: int


@cache
def _arcs() -> tuple[_Arc, ...]:
    """The arcs of the graph: one for each temper, rule and word."""
    number = {place: i for i, place in enumerate(product(range(len(_TEMPERS)), _GRAMMAR))}
    arcs = []
    for (temper, name), node in number.items():
        others = [(other, "enter") for other in range(len(_TEMPERS)) if other != temper]
        for percent, pattern, following in _GRAMMAR[name]:
            ends = others if following == "reply" else [(temper, following)]
            for (text, chance), end in product(_spell(pattern, _COMMON | _TEMPERS[temper]), ends):
                arcs.append(_Arc(node, text, percent / 100 * chance / len(ends), number[end]))
    return tuple(arcs)


def _spell(pattern: str, tables: dict[str, str]) -> list[tuple[str, float]]:
    """The texts of a pattern and their chances, by the law of Zipf and Mandelbrot."""
    name = pattern.partition("{")[2].partition("}")[0]
    if not name:
        return [(pattern, 1.0)]
    words = [word.replace("_", " ") for word in tables[name.lower()].split()]
    if name[0].isupper():
        words = [word[0].upper() + word[1:] for word in words]
    weights = [1 / (rank + 6) for rank in range(len(words))]
    total = fsum(weights)  # unlike sum, it gives the same bits in every Python
    return [(pattern.replace(f"{{{name}}}", word), w / total) for word, w in zip(words, weights, strict=True)]


class _Source(NamedTuple):
    """The arcs as arrays. A state is the index of a letter in their concatenated texts."""

    reach: NDArray[np.float64]  # (nodes, nodes)  E, the silent walks
    node: NDArray[np.intp]  # (arcs,)  where an arc begins; silent arcs are left out
    chance: NDArray[np.float64]  # (arcs,)
    first: NDArray[np.intp]  # (arcs,)  its first state
    letter: NDArray[np.uint32]  # (states,)  code point
    next: NDArray[np.intp]  # (states,)  the node after the last letter of an arc, -1 after the others
    stationary: NDArray[np.float64]  # (states,)  π


@cache
def _source() -> _Source:
    arcs = _arcs()
    n_nodes = 1 + max(arc.node for arc in arcs)
    every, silent = np.zeros((2, n_nodes, n_nodes))
    for arc in arcs:
        every[arc.node, arc.next] += arc.chance
        silent[arc.node, arc.next] += 0.0 if arc.text else arc.chance
    reach = walk = np.eye(n_nodes)
    while walk.any():  # silent arcs form no cycle, so the series ends and its zeros are exact
        walk = walk @ silent
        reach = reach + walk
    balance = every.T - np.eye(n_nodes)
    balance[-1] = 1  # one equation is redundant: Σ ν = 1 takes its place
    visits = np.linalg.solve(balance, np.eye(n_nodes)[-1])

    spoken = [arc for arc in arcs if arc.text]
    lengths = np.array([len(arc.text) for arc in spoken])
    node = np.array([arc.node for arc in spoken])
    chance = np.array([arc.chance for arc in spoken])
    end = np.cumsum(lengths)
    following = np.full(end[-1], -1)
    following[end - 1] = [arc.next for arc in spoken]
    stationary = np.repeat(visits[node] * chance, lengths)
    letter = _code_points("".join(arc.text for arc in spoken))
    return _Source(reach, node, chance, end - lengths, letter, following, stationary / stationary.sum())


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


# The frequent words come first; an underscore stands for a space. Nouns and verbs all take a plain "s".
_COMMON = {
    "openers": "But And Now Yet Then So When If O, For Thus How Though Alas, Nay, Hark, 'Tis_said",
    "determiners": "the my thy his her our your no their yon some mine_own all_the",
    "singulars": "he she who none it love time nature",
    "plurals": "I they we you I_will thou_shalt let_us",
    "modals": "shall will may must would can should might",
    "origins": "of_old of_Rome at_court in_love at_sea in_arms of_mine of_Spain",
    "pronouns": "me thee him us them her you myself",
    "prepositions": "in of with for by from to like upon beneath under without before near",
    "stops": ", . ; ! : _-",
    "ends": ". !",
}
_TEMPERS = (
    {
        "speakers": "LADY_ISAUDE DORALICE THE_POET FLORIZANE PRINCESS AMARIS",
        "cries": "Ah_me! O_happy_day! What_says_the_nightingale?",
        "nouns": """rose heart star moon dream tear sigh lip eye song dove lute flower garden breath spring
            maiden lover vow pearl cheek dawn night cloud lark brook harp name face hand smile sorrow veil
            swan flame hour joy hope lamp wing""",
        "adjectives": """sweet soft fair gentle tender pale bright dear true kind lovely fond shy mild pure
            golden silver faint lonely young blue warm secret silent calm weary sad trembling""",
        "verbs": """love adore praise charm woo seek keep wake sing dream hold serve trust forgive forget heal
            follow greet call hear want melt win comfort honour remember enchant haunt mourn warm light""",
    },
    {
        "speakers": "DUKE KING_ALDRAN CAPTAIN FIRST_SOLDIER BARON_MORROW HERALD",
        "cries": "To_arms! Sound_the_drum! Who_goes_there?",
        "nouns": """sword crown king throne shield drum horse banner spear wound tower wall oath foe war field
            grave ghost blade lance knight soldier traitor arrow bow helm hill storm eagle lion bone scar flag
            gate trumpet fire heart hand lord night""",
        "adjectives": """bold grim proud cruel stern bloody fierce black red iron dark high mighty brave cold
            noble royal bitter wild dire dead loyal false rebel loud broken weary silent pale true""",
        "verbs": """fight strike kill slay burn break storm command lead curse dare defend fear guard hate
            hunt scorn rule bind smite wound haunt tear raise drown betray spare trust follow serve keep""",
    },
    {
        "speakers": "FOOL COOK PIPER INNKEEPER GOODWIFE_JOAN SECOND_CLOWN",
        "cries": "Ha,_ha! More_ale,_I_say! Who_stole_the_goose?",
        "nouns": """pot pie pig hen cow cup jug nose barrel tavern cheese sausage onion shoe cap bell pipe
            tune jest joke fiddle mule dog rat cook widow miller sack purse coin hat wig beard ear leg egg bun
            song duck owl hand""",
        "adjectives": """fat merry old round thin drunken red silly foolish plump greasy jolly warm lazy
            hungry thirsty muddy poor rich honest crooked hot dull sly small sleepy salty sour bald young""",
        "verbs": """eat drink steal sell buy cook roast boil bake kick tickle bite chase fool cheat tease mock
            mend lick taste spill hide lose find trip stuff beat rob praise love follow pull hug keep""",
    },
)
