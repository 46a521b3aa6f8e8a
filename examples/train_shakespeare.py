"""Train a Llama on Shakespeare, in NumPy or on a GPU.

    python examples/train_shakespeare.py
    python examples/train_shakespeare.py --device cuda
    python examples/train_shakespeare.py --data my_book.txt --steps 3000 --out runs/my_book
    python examples/train_shakespeare.py --help

The same as `numllama train`, whose default data is tinyshakespeare.
"""

import sys

from numllama.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
