"""Optimizers, the learning-rate schedule, and clipping."""

from numllama.optim.adamw import AdamW, adamw_update
from numllama.optim.clip import clip_grad_norm, grad_norm
from numllama.optim.schedule import cosine_schedule
from numllama.optim.sgd import SGD, sgd_update

__all__ = ["AdamW", "SGD", "adamw_update", "sgd_update", "clip_grad_norm", "grad_norm", "cosine_schedule"]
