"""Watch byte-pair encoding merge a word, step by step.

    python examples/bpe_steps.py                                           # train on a few words, then merge "lowest newer"
    python examples/bpe_steps.py --tokenizer tokens --text "Hello world"   # any tokenizer that Tokenizer.load reads

Each line is one merge: its rank (merges run in the order of training), the pair, and all tokens after the merge.
"""

import argparse
import tempfile
from pathlib import Path

import numllama as nl

CORPUS = "low low low low low lower lower newest newest newest newest newest newest widest widest widest\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="default: one that is trained on a few words")
    parser.add_argument("--text", default="lowest newer")
    args = parser.parse_args()
    tokenizer = nl.Tokenizer.load(args.tokenizer) if args.tokenizer else learn(CORPUS)
    print("\n".join(show(tokenizer, args.text)))


def learn(text: str) -> nl.Tokenizer:
    """Train a tiny vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text(text, encoding="utf-8")
        return nl.Tokenizer.train(path, 270, progress=False)


def show(tokenizer: nl.Tokenizer, text: str) -> list[str]:
    """One line for the bytes, one per merge, one for the ids."""
    lines = [f"{'':>6}  {'':<20} {joined([bytes([byte]) for byte in text.encode()])}"]
    for step in tokenizer.merges_of(text):
        lines.append(f"{step.rank:>6}  {joined([step.left, step.right], ' + '):<20} {joined(step.tokens)}")
    return [*lines, f"ids: {tokenizer.encode(text)}"]


def joined(tokens: list[bytes], between: str = "|") -> str:
    """Tokens as text; spaces and bytes that are not characters are made visible."""
    return between.join(token.decode("utf-8", "backslashreplace").replace(" ", "␣") for token in tokens)


if __name__ == "__main__":
    main()
