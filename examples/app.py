"""Open a model in the browser.

    numllama train --data stand-in --out runs/first
    python examples/app.py --model runs/first

The same as `numllama serve`; http://localhost:7860.
"""

import sys

from numllama.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
