"""Watch byte-pair encoding merge a word, step by step.

    python examples/bpe_steps.py                                           # learn from a few lines, then merge "lowest newer"
    python examples/bpe_steps.py --tokenizer tokens --text "Hello world"   # any tokenizer that Tokenizer.load reads

Each line is one merge: its rank (merges learned earlier are applied earlier), the pair, and all tokens after it.
"""

import argparse
import tempfile
from pathlib import Path

import numllama as nl

CORPUS = "low low low low low lower lower newest newest newest newest newest newest widest widest widest\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="default: one trained on a few words")
    parser.add_argument("--text", default="lowest newer")
    args = parser.parse_args()
    tokenizer = nl.Tokenizer.load(args.tokenizer) if args.tokenizer else learn(CORPUS)
    print("\n".join(show(tokenizer, args.text)))


def learn(text: str) -> nl.Tokenizer:
    """A tiny vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text(text, encoding="utf-8")
        return nl.Tokenizer.train(path, 270, progress=False)


def show(tokenizer: nl.Tokenizer, text: str) -> list[str]:
    """One line for the bytes, one for each merge, one for the ids."""
    lines = [f"{'':>6}  {'':<20} {joined([bytes([byte]) for byte in text.encode()])}"]
    for step in tokenizer.merges_of(text):
        lines.append(f"{step.rank:>6}  {joined([step.left, step.right], ' + '):<20} {joined(step.tokens)}")
    return [*lines, f"ids: {tokenizer.encode(text)}"]


def joined(tokens: list[bytes], between: str = "|") -> str:
    """Tokens as text; a space is shown, and so are bytes that are no characters."""
    return between.join(token.decode("utf-8", "backslashreplace").replace(" ", "␣") for token in tokens)


if __name__ == "__main__":
    main()
