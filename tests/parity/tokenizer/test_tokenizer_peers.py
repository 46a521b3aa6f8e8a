"""Tokenizers against tiktoken, Hugging Face tokenizers and transformers: the same ids, whoever reads whose files."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from realdata import real_data
from tokenizer.test_sentencepiece import tokenizer as sentencepiece

from numllama import ModelConfig, Tokenizer, Transformer
from numllama.interop import save
from numllama.tokenizer.layout import PREFIXES
from numllama.tokenizer.patterns import PATTERNS

tiktoken = pytest.importorskip("tiktoken")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

END = "<|endoftext|>"
LIKELY = [*"aeinost 's\n\t.,é中1", "the ", " and", "  ", "don't ", "I'LL", END, "<s>", "123"]
TEXT = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(LIKELY), max_size=30).map("".join))


@pytest.fixture(scope="module")
def shakespeare():
    return real_data("tinyshakespeare.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def gpt2():
    return Tokenizer.load(real_data("gpt2_vocab.json"))


def as_tiktoken(tokenizer):
    special = tokenizer.special_tokens
    ranks = {token: i for i, token in tokenizer.vocab.items() if i not in special.values()}
    return tiktoken.Encoding("ours", pat_str=tokenizer.pattern, mergeable_ranks=ranks, special_tokens=special)


def as_hugging_face(tokenizer, tmp_path_factory):
    return tokenizers.Tokenizer.from_file(str(tokenizer.save(tmp_path_factory.mktemp("tokenizer"))))


@pytest.fixture(scope="module")
def gpt2_tiktoken(gpt2):
    return as_tiktoken(gpt2)


def trained(pattern):
    return Tokenizer.train(real_data("tinyshakespeare.txt"), 2000, special_tokens=[END], pattern=pattern, progress=False)


@pytest.fixture(scope="module")
def ours():
    return trained("gpt2")


@pytest.fixture(scope="module")
def ours_hugging_face(ours, tmp_path_factory):
    return as_hugging_face(ours, tmp_path_factory)


@pytest.fixture(scope="module", params=["cl100k", "llama3"])
def llama3_style(request, tmp_path_factory):
    """A vocabulary of ours with Llama 3's pattern, read from a rank file: it looks whole pre-tokens up."""
    made = trained(request.param)
    path = tmp_path_factory.mktemp("ranks") / "tokenizer.model"
    tokens = [token for i, token in made.vocab.items() if i != made.special_tokens[END]]
    path.write_text("".join(f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate([*tokens, b"Xyzzy"])))
    return Tokenizer.load(path, pattern=request.param, special_tokens={END: len(tokens) + 1})


# ------------------------------------------------------------------------------------------------ tiktoken


def test_tinyshakespeare_with_gpt2s_vocabulary(gpt2, gpt2_tiktoken, shakespeare):
    same = gpt2.encode(shakespeare) == gpt2_tiktoken.encode(shakespeare)
    assert same


@settings(max_examples=2000)
@given(text=TEXT)
def test_gpt2s_ids_of_any_text(gpt2, gpt2_tiktoken, text):
    assert gpt2.encode(text, allowed_special="all") == gpt2_tiktoken.encode(text, allowed_special="all")
    assert gpt2.encode(text, disallowed_special=()) == gpt2_tiktoken.encode(text, disallowed_special=())


@settings(max_examples=500)
@given(text=st.text(st.characters(), max_size=20) | st.text(st.sampled_from("a\ud800\udc00\ude00 é"), max_size=20))
def test_surrogates(gpt2, gpt2_tiktoken, text):
    assert gpt2.encode(text, disallowed_special=()) == gpt2_tiktoken.encode(text, disallowed_special=())


@settings(max_examples=500)
@given(ids=st.lists(st.integers(0, 50_256), max_size=30))
def test_decoding_any_ids(gpt2, gpt2_tiktoken, ids):
    assert gpt2.decode(ids) == gpt2_tiktoken.decode(ids)
    assert gpt2.decode_bytes(ids) == gpt2_tiktoken.decode_bytes(ids)


def test_the_errors_are_raised_where_tiktoken_raises_them(gpt2, gpt2_tiktoken):
    for tokenizer in (gpt2, gpt2_tiktoken):
        with pytest.raises(ValueError, match=r"endoftext"):
            tokenizer.encode(f"a{END}")
    assert gpt2.encode(f"a{END}", allowed_special={END}) == gpt2_tiktoken.encode(f"a{END}", allowed_special={END}) == [64, 50256]


def test_long_runs(gpt2, gpt2_tiktoken):
    for character in ("a", " ", "1", ".", "é"):
        same = gpt2.encode(character * 3001) == gpt2_tiktoken.encode(character * 3001)
        assert same


@settings(max_examples=2000)
@given(text=TEXT)
def test_rank_files(llama3_style, llama3_tiktoken, text):
    assert llama3_style.encode(text, allowed_special="all") == llama3_tiktoken.encode(text, allowed_special="all")


@pytest.fixture(scope="module")
def llama3_tiktoken(llama3_style):
    return as_tiktoken(llama3_style)


def test_a_whole_pre_token_is_looked_up_as_in_llama_3(llama3_style):
    assert llama3_style.encode("Xyzzy") == as_tiktoken(llama3_style).encode("Xyzzy") == [llama3_style.vocab_size - 2]


# ------------------------------------------------------------------------------------------------ Hugging Face reads ours


@settings(max_examples=10_000)
@given(text=TEXT)
def test_a_vocabulary_trained_here_gives_the_same_ids_there(ours, ours_hugging_face, text):
    assert ours.encode(text, allowed_special="all") == ours_hugging_face.encode(text).ids


def test_and_of_a_whole_book(ours, ours_hugging_face, shakespeare):
    same = ours.encode(shakespeare) == ours_hugging_face.encode(shakespeare).ids
    assert same


OPENED = {
    "ours": lambda: trained("gpt2"),
    "Llama 3's pattern": lambda: trained("llama3"),
    "llama2.c": lambda: Tokenizer.load(real_data("tok512.bin")),
}


@pytest.mark.parametrize("with_model", [False, True])
@pytest.mark.parametrize("make", OPENED.values(), ids=OPENED)
def test_a_saved_folder_opens_in_transformers(tmp_path, shakespeare, make, with_model):
    mine = make()
    if with_model:  # its config.json says that this is a Llama
        config = ModelConfig(vocab_size=mine.vocab_size, dim=16, n_layers=1, n_heads=2, max_seq_len=16)
        save(Transformer(config, seed=0), tmp_path, tokenizer=mine)
    else:
        mine.save(tmp_path)
    text = shakespeare[:5000] + f" naïve  中文 😀{[*mine.special_tokens][-1]}x"
    ids = mine.encode(text, allowed_special="all")
    for reader in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
        theirs = reader.from_pretrained(tmp_path)
        assert theirs(text)["input_ids"] == mine.wrap(ids)
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == mine.decode(ids)
        assert len(theirs) == mine.vocab_size


@settings(max_examples=1000)
@given(text=TEXT)
def test_gpt2s_and_llama_3s_tokenizer_json(gpt2_saved, llama3_saved, text):
    for mine, theirs in (gpt2_saved, llama3_saved):
        assert mine.encode(text, allowed_special="all") == theirs.encode(text).ids


@pytest.fixture(scope="module")
def gpt2_saved(gpt2, tmp_path_factory):
    return gpt2, as_hugging_face(gpt2, tmp_path_factory)


@pytest.fixture(scope="module")
def llama3_saved(llama3_style, tmp_path_factory):
    return llama3_style, as_hugging_face(llama3_style, tmp_path_factory)


@pytest.fixture(scope="module", params=[(prefix, one) for prefix in PREFIXES for one in (False, True)], ids=str)
def pieces(request, tmp_path_factory):
    mine = sentencepiece(prefix=request.param[0], one_space=request.param[1])
    return mine, as_hugging_face(mine, tmp_path_factory)


@settings(max_examples=300)
@given(text=st.text(st.sampled_from("abt  é中\n<s>"), max_size=30))
def test_sentencepiece_style(pieces, text):
    mine, theirs = pieces
    ids = mine.encode(text, allowed_special="all")
    assert ids == theirs.encode(text).ids
    assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


@settings(max_examples=500)
@given(text=TEXT)
def test_llama2cs_tokenizer(tok512_saved, text):
    mine, theirs = tok512_saved
    ids = mine.encode(text, allowed_special="all")
    assert mine.wrap(ids) == [1, *ids] == theirs.encode(text).ids  # as run.c begins every text
    assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


@pytest.fixture(scope="module")
def tok512_saved(tmp_path_factory):
    mine = Tokenizer.load(real_data("tok512.bin"))
    return mine, as_hugging_face(mine, tmp_path_factory)


# ------------------------------------------------------------------------------------------------ ours reads theirs


@pytest.fixture(scope="module", params=["ByteLevel", "Llama 3", "transformers"])
def theirs(request, tmp_path_factory):
    """Trained by Hugging Face's trainer, and saved by it or by transformers; special tokens come first there."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=request.param == "Llama 3"))
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    if request.param == "Llama 3":
        split = tokenizers.pre_tokenizers.Sequence([
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERNS["llama3"]), behavior="isolated", invert=False),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
    made.pre_tokenizer, made.decoder = split, tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1500, special_tokens=[END, "<s>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train([str(real_data("tinyshakespeare.txt"))], trainer)
    folder = tmp_path_factory.mktemp("theirs")
    if request.param == "transformers":
        transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END).save_pretrained(folder)
    else:
        made.save(str(folder / "tokenizer.json"))
    return made, Tokenizer.load(folder)


@settings(max_examples=1000)
@given(text=TEXT)
def test_their_files_give_the_same_ids_here(theirs, text):
    face, mine = theirs
    ids = mine.encode(text, allowed_special="all")
    assert ids == face.encode(text).ids
    assert mine.decode(ids) == face.decode(ids, skip_special_tokens=False)


def test_a_llama_that_transformers_saves_gives_the_same_ids_here(tmp_path, shakespeare):
    mine = Tokenizer.load(real_data("tok512.bin"))
    vocab = {token.decode(): i for i, token in mine.vocab.items()}
    merges = [(left.decode(), right.decode()) for left, right in mine.merges]
    made = transformers.LlamaTokenizer(vocab=vocab, merges=merges, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    made.save_pretrained(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    for text in (shakespeare[:3000], " a", "a<s> b</s>c", "  two  spaces é中\n", ""):
        assert loaded.encode(text, allowed_special="all") == made(text, add_special_tokens=False)["input_ids"]
