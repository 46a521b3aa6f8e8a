"""All of training on one page: batch, gradients, clipping, learning rate, AdamW; then a sample.

    python examples/train_loop.py [my_book.txt]        # default: a play that is generated here
`numllama train` does the same on all cores, with validation, checkpoints and a log.
"""

import sys
from pathlib import Path

import numpy as np

import numllama as nl
from numllama.data.synthetic import write_play

STEPS, BATCH, T, LR = 300, 12, 64, 3e-3  # steps; sequences in a batch; tokens in a sequence; highest learning rate


def train(text: str, steps: int = STEPS) -> tuple[nl.Transformer, nl.CharTokenizer]:
    tokenizer = nl.CharTokenizer(text)                                 # one token per character
    tokens = np.array(tokenizer.encode(text))
    model = nl.Transformer(nl.ModelConfig(tokenizer.vocab_size, dim=64, n_layers=2, n_heads=4, max_seq_len=T), seed=0)
    optimizer = nl.AdamW(model.params, betas=(0.9, 0.99), weight_decay=0.1)

    for step in range(1, steps + 1):
        starts = np.random.default_rng([0, step]).integers(0, len(tokens) - T, size=BATCH)
        inputs = np.stack([tokens[i : i + T] for i in starts])         # (BATCH, T)
        targets = np.stack([tokens[i + 1 : i + T + 1] for i in starts])    # the token that follows each token
        loss, grads = model.loss_and_grads(inputs, targets)            # forward and backward
        norm = nl.clip_grad_norm(grads, max_norm=1.0)
        lr = nl.cosine_schedule(step, LR, LR / 10, warmup_steps=30, total_steps=steps)
        optimizer.step(grads, lr)
        if step % 50 == 0 or step in (1, steps):
            print(f"step {step:4}   loss {loss:.3f}   gradient norm {norm:.2f}   learning rate {lr:.1e}")
    return model, tokenizer


if __name__ == "__main__":
    model, tokenizer = train(Path(sys.argv[1]).read_text(encoding="utf-8") if len(sys.argv) > 1 else write_play(200_000))
    print(nl.complete(model, tokenizer, "\n", 300, temperature=0.8, seed=0, window=T))
