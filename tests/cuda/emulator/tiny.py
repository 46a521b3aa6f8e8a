"""A run of a tiny model whose heads of 64 the kernels take, for tests with the stand-in for CuPy."""

import numpy as np

from numllama import ModelConfig, TrainConfig, Trainer, Transformer
from numllama.data.dataset import Dataset

CONFIG = ModelConfig(vocab_size=61, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=64, max_seq_len=24, dropout=0.1)
TOKENS = (np.arange(4000) ** 2 // 7 % 61).astype("uint16")
SETTINGS = TrainConfig(steps=4, batch_size=3, lr=1e-2, warmup_steps=2, eval_every=2, eval_batches=1, workers=1, shards=1)


def trainer(out=None, device="cuda", dtype="float32", config=CONFIG, **changes):
    model = Transformer(config, seed=0, device=device, compute_dtype=dtype)
    data = Dataset(TOKENS[:3000], TOKENS[3000:], config.vocab_size)
    return Trainer(model, data, TrainConfig(**{**SETTINGS.to_dict(), **changes}), out)
