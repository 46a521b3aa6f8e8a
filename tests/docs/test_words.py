"""The package and its documents use the field's words: private words, and words that a native speaker would not use, are gone."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ("numllama", "docs", "README.md", "examples")
ENDINGS = (".py", ".md", ".sh", ".json", ".css", ".js", ".html")
pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="tests without the documents")

WORDS = {  # pattern: what to say
    r"\b(Team|Member|ByName)\b": "SharedMemoryWorkers, worker, shared_objects",
    r"\bTurns\b|\bgive_way\b|\bStopped\b|\bturns\.(begin|end)\b": "OrderedSum, acquire and release, backoff, ShardFailed",
    r"\bworkers\.(whole|keep|rows)\(|\b(agree|check_same)\(": "gather_optimizer, any_rank, require_same",
    r"\bby_one_more\b|\bKEPT\b|\bkept memory\b": "ReferenceCounted.acquire, keep_freed_memory",
    r"\bclass _Round\b|\b_Round\(|\bdone_behind\b|\bget_on\b|\bunder_way\b": "RankGradients, send_after, progress, in_flight",
    r"\bTold\b|\btold\.send\b": "StagingBuffers, upload",
    r"\bgeneration[./](import )?(inside|products)\b": "attention_maps, gemv",
    r"\bclass (Part|Meeting|Queue|Piece)\b|\b(Part|Meeting|Queue|Piece)\(": "DecoderShard, Barrier, LayerGate, PromptSlice",
    r"\basked\b(?= ?[=.,)\[\]:(])|\basked for\b": "n_last; requested",
    r"\btail\(|\bagain=": "last_tokens(), cache_only=",
    r"\blearnt\b": "trainable, trained; learned",
    r"\brounded_to\b|\.rounded\b|\bparams\.round\(\)|\blearnt\.round\(\)": "low_precision, sync_low_precision()",
    r"\b_below\(": "base_fingerprint",
    r"\bpoint_to\b|\bset_aside\b|\bunsealed\b|\bsealed\b": "write_pointer, quarantine, with_checksum",
    r"(?<!--data )\bstand-in\b(?!\")|\bSTAND_IN\b|\bPLAY\b": "synthetic play",
    r"\b(some|all)_of_val\b": "validation(n)",
    r"\bclass (Texts|Asked)\b|\bAsked\(|\brunners_up\b|\blimits\.running\b": "Job, ParsedRequest, top_logprobs, max_concurrent",
    r"\btakes_rows\b|\bdef takes\b|\.takes\b": "supports",
    r"\brun=map\b|\brun: .*= map\b": "map_fn",
    # habits of another language
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\banew\b": "again",
    r"\bdearer\b": "more expensive",
    r"\b(whoever|whomever)\b": "a noun: the caller, the client, anyone who",
    r"\bso many\b": "n; that many",
    r"\bfor good\b": "permanently",
}

# Proper uses, by file and a part of the line.
PROPER = {
    ("numllama/commands/train.py", "or stand-in, a synthetic play"),  # the value of --data in existing runs and scripts
    ("numllama/data/synthetic.py", "mend lick taste"),  # verbs of the play
}


@cache
def lines() -> list[tuple[str, int, str]]:
    """Every line of the package, its documents and its examples: file, number, text."""
    found = []
    for place in PLACES:
        root = ROOT / place
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.suffix in ENDINGS and not {"generated", "_build", "jupyter_execute", "__pycache__"} & set(path.parts):
                name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
                found += [(name, number, line) for number, line in enumerate(text.splitlines(), 1)]
    return found


def hits(pattern: str) -> list[str]:
    """The lines that hold a word, as FILE:LINE: TEXT."""
    word = re.compile(pattern)
    return [
        f"{file}:{number}: {line.strip()}"
        for file, number, line in lines()
        if word.search(line) and not any(file == proper and part in line for proper, part in PROPER)
    ]


@pytest.mark.parametrize("pattern", WORDS)
def test_a_private_or_foreign_word_is_gone(pattern):
    found = hits(pattern)
    assert not found, f"say {WORDS[pattern]}:\n" + "\n".join(found)


GONE = ("class Piece(NamedTuple):", "the moments are learnt", "params.round()", "Asked(engine)", "it mends", "def takes(")
FINE = ("np.round(x)", "the whole text", "it takes a batch", "SentencePiece(", "queue.Queue", "He asked the model.", "begin")


@pytest.mark.parametrize("text", [*GONE, *FINE])
def test_the_patterns_find_these_words_and_no_others(text):
    assert any(re.search(pattern, text) for pattern in WORDS) == (text in GONE)
