"""A step on a whole batch, for groups of every kind."""

from numllama.data.batches import counted
from numllama.parallel.shards import ShardPlan


def loss_and_grads(group, tokens, targets, shards, segments=None, **options):
    """As the Trainer calls it: with the rows that this group computes."""
    plan = ShardPlan(len(tokens), shards)
    return group.loss_and_grads(counted(tokens, targets, segments).rows(group.local_rows(plan)), plan, **options)
