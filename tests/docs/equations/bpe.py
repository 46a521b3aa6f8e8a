"""docs/chapters/bpe.md"""

from itertools import pairwise

from numllama.tokenizer.train_bpe import find_merges

WORDS = {"low": 5, "lower": 2, "newest": 6, "widest": 3, "aaaa": 4}


def merge():
    merges = find_merges(WORDS, 8)
    spelled = {word: [bytes([b]) for b in word.encode()] for word in WORDS}
    for best in merges:
        pairs = {pair for tokens in spelled.values() for pair in pairwise(tokens)}

        def count(pair):
            return sum(
                f * len([i for i in range(len(spelled[w]) - 1) if (spelled[w][i], spelled[w][i + 1]) == pair])
                for w, f in WORDS.items()
            )

        literal = max(pairs, key=lambda pair: (count(pair), pair))
        yield [float(byte) for byte in b"|".join(literal)], [float(byte) for byte in b"|".join(best)]
        for word, tokens in spelled.items():
            out = []
            for token in tokens:
                if out and not isinstance(out[-1], tuple) and (out[-1], token) == best:
                    out[-1] = (out[-1] + token,)  # done: it does not merge again now
                else:
                    out.append(token)
            spelled[word] = [token[0] if isinstance(token, tuple) else token for token in out]
