"""Random numbers that are computed from names, so that nothing is drawn or stored: dropout's masks, and the order of an epoch.

`mix` is the 32-bit mixer "lowbias32" (C. Wellons 2018). `fold_key` makes the two words of a key from any integers, such as a seed
and a step, by the mixer of splitmix64 (Steele et al. 2014). A CUDA graph is given the words that the host has folded.
"""

from collections.abc import Sequence

from numllama.backend import Array

BITS = 0xFFFFFFFF


def mix(h: Array) -> Array:
    """lowbias32: every bit of a uint32 changes every bit of the result with probability close to a half."""
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)


def fold_key(key: Sequence[int]) -> tuple[int, int]:
    """A tuple of integers of any length as two 32-bit words; an array of two has been folded."""
    if hasattr(key, "dtype"):
        return key[0], key[1]
    h = len(key)
    for part in key:
        h = (h + int(part) + 0x9E3779B97F4A7C15) % 2**64
        h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        h = (h ^ (h >> 27)) * 0x94D049BB133111EB % 2**64
        h ^= h >> 31
    return h & BITS, h >> 32
