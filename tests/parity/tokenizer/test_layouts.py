"""tokenizer.json of well-known models: the ids and the texts of `tokenizers`, here and after saving."""

import json
import random
from unittest.mock import patch

import numpy as np
import pytest

from numllama import Tokenizer
from numllama.errors import DataError
from numllama.tokenizer import bpe
from numllama.tokenizer.spans import encode_spans

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("sentencepiece")
pytestmark = pytest.mark.parity

from parity.tokenizer.layouts import LAYOUTS  # noqa: E402
from parity.tokenizer.more_layouts import MORE_LAYOUTS, REFUSED  # noqa: E402
from parity.tokenizer.strings import strings  # noqa: E402

LAYOUTS = LAYOUTS | MORE_LAYOUTS

STRINGS = 2000
@pytest.fixture(scope="module", params=LAYOUTS.values(), ids=LAYOUTS)
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layout")
    values = request.param()
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    texts = strings(STRINGS, [token["content"] for token in values["added_tokens"]])
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), Tokenizer.load(folder), texts


def test_ids_and_texts(made):
    theirs, mine, texts = made
    for text in texts:
        ids = theirs.encode(text).ids
        assert mine.wrap(mine.encode(text, allowed_special="all")) == ids, text
        assert mine.encode(text, allowed_special="all") == theirs.encode(text, add_special_tokens=False).ids
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=False), text


@pytest.mark.parametrize(("make", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_would_give_other_ids_is_refused_by_name(tmp_path, make, sentence):
    (tmp_path / "tokenizer.json").write_text(json.dumps(make()), encoding="utf-8")
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError) as caught:
        Tokenizer.load(tmp_path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_texts_of_any_ids(made):
    theirs, mine, _ = made
    rng = random.Random(1)
    bytes_ = [i for i in range(theirs.get_vocab_size()) if theirs.id_to_token(i).startswith("<0x")] or [0]
    for _ in range(STRINGS):
        ids = [rng.choice([rng.randrange(theirs.get_vocab_size() + 20), rng.choice(bytes_)]) for _ in range(rng.randint(0, 12))]
        text = theirs.decode(ids, skip_special_tokens=False)
        assert mine.decode(ids) == text
        assert "".join(mine.decode_stream(iter(ids))) == text
        assert b"".join(mine.decode_each(ids)) == mine.decode_bytes(ids)


def test_what_is_saved_says_the_same_to_others(made, tmp_path):
    theirs, mine, texts = made
    path = mine.save(tmp_path)
    again, mine_again = tokenizers.Tokenizer.from_file(str(path)), Tokenizer.load(path)
    assert json.loads(again.to_str()) == json.loads(theirs.to_str())
    for text in texts[:100]:
        ids = theirs.encode(text).ids
        assert again.encode(text).ids == mine_again.wrap(mine_again.encode(text, allowed_special="all")) == ids
        assert again.decode(ids) == theirs.decode(ids)


def test_spans_follow_the_text(made):
    _, mine, texts = made
    for text in filter(None, texts[:300]):
        ids, spans = encode_spans(mine, text, "all")
        assert ids.tolist() == mine.encode(text, "all")
        starts, ends = spans.T
        assert (starts < ends).all() and (np.diff(starts, prepend=0) >= 0).all() and ends.max(initial=0) <= len(text), text


def test_a_long_text_in_parts_has_the_ids_of_the_whole(made):
    _, mine, texts = made
    rng = random.Random(2)
    for _ in range(30):
        text = "".join(rng.choice(texts) for _ in range(8))
        step = rng.randint(1, 20)
        with patch.object(bpe, "CHUNK", rng.randint(1, 30)):
            parts = list(mine.encode_iterable((text[i : i + step] for i in range(0, len(text), step)), "all"))
        assert parts == mine.encode(text, "all"), text
