"""Strings to encode: languages, code, numbers, emoji, white space, control characters, special tokens, any characters."""

import random
import unicodedata

import tokenizers
from parity.tokenizer.layouts import TEXT

from numllama.tokenizer.normalizers import TABLE as NORMALIZERS
from numllama.tokenizer.pre_tokenizers import PUNCTUATION
from numllama.tokenizer.rewriting import compile_oniguruma

LIKELY = [
    *"aeinost 's\n\t.,é中1", "the ", " and", "  ", "   ", '\n\n', '\r\n', "don't ", "I'LL", "123", "1234567", "½",
    "٣", '\u2167', "²", "ſ", '\xa0', '\u3000', '\u2028', '\x85', 'e\u0301', '\u0301', '\uac01', '\uac01', '\ufb01',
    "Å", "Å", "नमस्ते", '\U0001f44d\U0001f3fd', '\U0001f600', '\x04', '\x7f', '\ua66e', '\u2581', "▁the", "COVID",
    " COVID ", "COVID19", "hello", "hello!", "xhello", "naïve", "õ", "÷", "ȷ", "İ", "Σς", "__init__", "-->", "''",
    '\x00', "``", "a\u0323\u0302", "ﬃ", "㍿", "\u200b", "\u200d", "\ufeff", " \t ", "        ", "\t\t\t", "3.14e-10",
    "0x7F", "1,234,567.89", "१२३", "👨‍👩‍👧‍👦", "🇫🇷🇩🇪", "❤️", "\x1b[0m", "\u202e", "\ud7a3", "\U0010ffff", "<0x0A>",
]  # fmt: skip
LANGUAGES = [
    "All human beings are born free and equal in dignity and rights.", "Tous les êtres humains naissent libres et égaux.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren.", "Todos los seres humanos nacen libres e iguales; ¿no?",
    "Todos os seres humanos nascem livres e iguais.", "Tutti gli esseri umani nascono liberi: è così.",
    "Wszyscy ludzie rodzą się wolni i równi.", "Všichni lidé se rodí svobodní a sobě rovní.",
    "Bütün insanlar hür doğarlar, İŞTE.",
    "Tất cả mọi người sinh ra đều được tự do.", "Все люди рождаются свободными и равными.", "Усі люди народжуються вільними.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι.", "يولد جميع الناس أحرارًا متساوين.", "כל בני האדם נולדו בני חורין.",
    "सभी मनुष्यों को गौरव और अधिकार प्राप्त है।", "সমস্ত মানুষ স্বাধীনভাবে জন্মগ্রহণ করে।", "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே.",
    "มนุษย์ทั้งหลายเกิดมามีอิสระ", "ადამიანები იბადებიან თავისუფალნი.", "人人生而自由，在尊严和权利上一律平等。",
    "すべての人間は、生まれながらにして自由であり、ﾊﾟｿｺﾝ。", "모든 인간은 태어날 때부터 자유로우며.", "ሰብአዊ ፍጡራን ሁሉ ነጻ ናቸው።",
]  # fmt: skip
CODE = [
    "for (int i = 0; i < n; ++i) {\n\t\tsum += a[i] * b[i];  // dot\n\t}\n",
    "def f(x: float) -> str:\n    return f'{x!r:>8}'\n",
    "SELECT * FROM t WHERE id != 0x1F AND name LIKE '%_a%';",
    "<div class=\"a-b\">&nbsp;</div>\r\n", "\\frac{1}{2} + \\alpha_{i}^2 \\\\\n",
    "https://example.org/a?b=c&d=%20#e", "git commit -m \"fix: don't\" && make -j8 > log.txt 2>&1", "let x = vec![1u8; 1_000];",
]  # fmt: skip
TEXTS = [TEXT, *LANGUAGES, *CODE]
STEPS = [getattr(tokenizers.normalizers, name)() for name in ("NFD", "NFKD", "StripAccents", "Lowercase")]
OURS = [NORMALIZERS[name]({"type": name}).apply for name in ("NFD", "NFKD", "StripAccents", "Lowercase")]
SIGNS, IS_SIGN = tokenizers.pre_tokenizers.Punctuation("removed"), compile_oniguruma(PUNCTUATION).match


def draw(rng, special):
    """A string."""
    parts = []
    for _ in range(rng.randint(0, 14)):
        kind = rng.random()
        if kind < 0.45:
            parts.append(rng.choice(LIKELY))
        elif kind < 0.6:
            parts.append(rng.choice(["", " ", "  ", "\n", "a"]) + rng.choice(special) + rng.choice(["", " ", " \n", "b"]))
        elif kind < 0.9:
            text = rng.choice(TEXTS)
            at = rng.randrange(len(text))
            parts.append(text[at : at + rng.randint(1, 20)])
        else:
            parts.append(known(chr(rng.choice([rng.randrange(0x3000), rng.randrange(0xD800), rng.randrange(0x10000, 0x12000)]))))
    return "".join(parts)


def known(character):
    """The character, if both libraries know it: Unicode's tables in `tokenizers` are of several versions, from 8.0 on."""
    changed = any(mine(character) != theirs.normalize_str(character) for mine, theirs in zip(OURS, STEPS, strict=True))
    sign = bool(IS_SIGN(character)) != (not SIGNS.pre_tokenize_str(character))
    return "?" if changed or sign or unicodedata.category(character) == "Cn" else character


def strings(n, special=("<s>",), seed=0):
    """Some picked strings, each of the special tokens, and `n` that are drawn."""
    rng = random.Random(seed)
    return ["", " ", "▁", "\x1c a \x1f", *special, *LANGUAGES, *CODE, *(draw(rng, special) for _ in range(n))]
