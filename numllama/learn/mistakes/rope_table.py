"""Mistakes of RoPE's table: positions, frequencies, angles, cosines and sines."""

import math
from dataclasses import replace

import numpy as np

from numllama.backend import BFLOAT16
from numllama.learn import equations
from numllama.learn.mistakes.mistake import Catalogue, DoesNotApply
from numllama.ops.rope_scaling import scaled

catalogue = Catalogue()
forward = catalogue.forward


# ------------------------------------------------------------------------------------------------ positions


@forward("positions", "Positions begin at 1.")
def _(tokens, segments):
    return equations.positions(tokens, segments) + 1


@forward("positions", "Positions are not reset where a document begins.")
def _(tokens, segments):
    return np.broadcast_to(np.arange(tokens.shape[1]), equations.positions(tokens, segments).shape)


@forward("positions", "Positions count down: the last token has position 0.")
def _(tokens, segments):
    return tokens.shape[1] - 1 - equations.positions(tokens, segments)


@forward("positions", "All positions are 0.")
def _(tokens, segments):
    return np.zeros_like(equations.positions(tokens, segments))


@forward("positions", "All tokens have the position of the last one.")
def _(tokens, segments):
    return np.full_like(right := equations.positions(tokens, segments), right.max())


@forward("positions", "Positions count the sequences of the batch instead of their tokens.")
def _(tokens):
    return np.broadcast_to(np.arange(len(tokens))[:, None], tokens.shape)


@forward("positions", "Positions continue from one sequence of the batch to the next.")
def _(tokens):
    return np.arange(tokens.size).reshape(tokens.shape)


@forward("positions", "Positions are the numbers of the documents.")
def _(segments):
    if segments is None:
        raise DoesNotApply
    return segments


@forward("positions", "The first two tokens of a document both have position 0.")
def _(tokens, segments):
    return np.maximum(equations.positions(tokens, segments) - 1, 0)


@forward("positions", "Positions begin at 2, as in OPT and RoBERTa.")
def _(tokens, segments):
    return equations.positions(tokens, segments) + 2


@forward("positions", "Positions begin at T, as if the tokens already stood in the cache.")
def _(tokens, segments):
    return equations.positions(tokens, segments) + tokens.shape[1]


for _position in (0, 1):

    @forward("positions", f"Padding, which is document 0 here, is at position {_position}.")
    def _(tokens, segments, position=_position):
        if segments is None:
            raise DoesNotApply
        padding = (segments == 0) & (segments[:, -1:] != 0)
        return np.where(padding, position, equations.positions(tokens, segments))


# ------------------------------------------------------------------------------------------------ frequencies


def with_exponents(exponents, positions, config):
    """theta to the power of minus these, scaled."""
    return scaled(config.rope_theta ** -np.asarray(exponents, float), positions, config.rope_theta, config.rope_scaling)


@forward("frequencies", "theta is 10000, whatever the configuration says.")
def _(positions, config):
    return equations.frequencies(positions, replace(config, rope_theta=1e4))


@forward("frequencies", "theta is 500000, whatever the configuration says.")
def _(positions, config):
    return equations.frequencies(positions, replace(config, rope_theta=5e5))


@forward("frequencies", "theta is 1000000, whatever the configuration says.")
def _(positions, config):
    return equations.frequencies(positions, replace(config, rope_theta=1e6))


@forward("frequencies", "The exponents are j/D instead of 2j/D.")
def _(positions, config):
    return with_exponents(np.arange(config.head_dim // 2) / config.head_dim, positions, config)


@forward("frequencies", "The exponents are 4j/D instead of 2j/D: divided by D/2, not by D.")
def _(positions, config):
    return with_exponents(np.arange(0, config.head_dim, 2) / (config.head_dim // 2), positions, config)


@forward("frequencies", "The exponents are 2j/C instead of 2j/D: divided by the model's width, not by the head's.")
def _(positions, config):
    return with_exponents(np.arange(0, config.head_dim, 2) / config.dim, positions, config)


@forward("frequencies", "The exponents are 2j/(H·D) instead of 2j/D: divided by the width of all heads.")
def _(positions, config):
    return with_exponents(np.arange(0, config.head_dim, 2) / (config.n_heads * config.head_dim), positions, config)


@forward("frequencies", "The exponents are 2j/(D - 2) instead of 2j/D: the last one is 1.")
def _(positions, config):
    return with_exponents(np.linspace(0, 1, config.head_dim // 2), positions, config)


@forward("frequencies", "The exponents begin at 2/D instead of 0.")
def _(positions, config):
    return with_exponents(np.arange(2, config.head_dim + 2, 2) / config.head_dim, positions, config)


@forward("frequencies", "The exponents are positive: the frequencies grow.")
def _(positions, config):
    return with_exponents(-np.arange(0, config.head_dim, 2) / config.head_dim, positions, config)


@forward("frequencies", "The exponents are all 0, as after an integer division: all pairs turn equally fast.")
def _(positions, config):
    return with_exponents(np.zeros(config.head_dim // 2), positions, config)


@forward("frequencies", "The frequencies are in reverse order.")
def _(positions, config):
    return equations.frequencies(positions, config)[::-1]


@forward("frequencies", "The exponent is missing: a pair's frequency is 2j/D.")
def _(positions, config):
    return scaled(np.arange(0, config.head_dim, 2) / config.head_dim, positions, config.rope_theta, config.rope_scaling)


@forward("frequencies", "The scaling of RoPE is ignored.")
def _(positions, config):
    return equations.frequencies(positions, replace(config, rope_scaling=None))


@forward("frequencies", "All frequencies are divided by the factor, as in linear scaling.")
def _(positions, config):
    return equations.frequencies(positions, replace(config, rope_scaling=None)) / factor(config)


@forward("frequencies", "All frequencies are multiplied by the factor of the scaling.")
def _(positions, config):
    return equations.frequencies(positions, replace(config, rope_scaling=None)) * factor(config)


@forward("frequencies", "The frequencies are scaled twice.")
def _(positions, config):
    return scaled(equations.frequencies(positions, config), positions, config.rope_theta, config.rope_scaling)


@forward("frequencies", "Fast pairs are divided by the factor and slow ones are kept; it is the other way round.")
def _(positions, config):
    plain, turns, low, high = llama3(config)
    kept = 1 - ((turns - low) / (high - low)).clip(0, 1)
    return plain * (kept + (1 - kept) / factor(config))


@forward("frequencies", "The blend between kept and divided frequencies is the wrong way round.")
def _(positions, config):
    plain, turns, low, high = llama3(config)
    kept = np.where((low < turns) & (turns < high), 1 - (turns - low) / (high - low), turns >= high)
    return plain * (kept + (1 - kept) / factor(config))


@forward("frequencies", "Frequencies are kept above low_freq_factor: in Meta's code, as if both limits were exchanged.")
def _(positions, config):
    plain, turns, low, _ = llama3(config)
    return np.where(turns > low, plain, plain / factor(config))


@forward("frequencies", "Frequencies are divided below high_freq_factor: in transformers, as if both limits were exchanged.")
def _(positions, config):
    plain, turns, _, high = llama3(config)
    return np.where(turns < high, plain / factor(config), plain)


@forward("frequencies", "The wavelength is 1 / frequency: 2π is missing.")
def _(positions, config):
    plain, turns, low, high = llama3(config)
    kept = ((turns * 2 * math.pi - low) / (high - low)).clip(0, 1)
    return plain * (kept + (1 - kept) / factor(config))


@forward("frequencies", "The scaling's original length is taken to be the model's max_seq_len.")
def _(positions, config):
    return scaled_otherwise(positions, config, original_max_position_embeddings=config.max_seq_len)


@forward("frequencies", "The scaling's factor is 32, whatever the configuration says.")
def _(positions, config):
    return scaled_otherwise(positions, config, factor=32)


@forward("frequencies", "Slow frequencies are multiplied by the factor instead of divided by it.")
def _(positions, config):
    return scaled_otherwise(positions, config, factor=1 / factor(config))


@forward("frequencies", "theta is multiplied by the factor instead of scaling the frequencies, as in NTK-aware scaling.")
def _(positions, config):
    return (config.rope_theta * factor(config)) ** (-np.arange(0, config.head_dim, 2) / config.head_dim)


@forward("frequencies", "The middle band's blend is linear in the wavelength, not in its reciprocal.")
def _(positions, config):
    return blended(config, lambda turns: 1 / turns)


@forward("frequencies", "The middle band's blend is linear in the logarithm of the frequency.")
def _(positions, config):
    return blended(config, np.log)


@forward("frequencies", "The middle band's blend is geometric: frequencies are divided by a power of the factor.")
def _(positions, config):
    plain, turns, low, high = llama3(config)
    return plain / factor(config) ** (1 - ((turns - low) / (high - low)).clip(0, 1))


@forward("frequencies", "The middle band blends wavelengths instead of frequencies.")
def _(positions, config):
    plain, turns, low, high = llama3(config)
    kept = ((turns - low) / (high - low)).clip(0, 1)
    return plain / (kept + (1 - kept) * factor(config))


@forward("frequencies", "The middle band blends wavelengths, linearly in the wavelength, instead of frequencies.")
def _(positions, config):
    plain, turns, low, high = llama3(config)
    kept = ((1 / turns - 1 / low) / (1 / high - 1 / low)).clip(0, 1)
    return plain / (kept + (1 - kept) * factor(config))


def blended(config, scale):
    """With a blend that is linear in this function of a pair's turns within the original length."""
    plain, turns, low, high = llama3(config)
    kept = ((scale(turns) - scale(low)) / (scale(high) - scale(low))).clip(0, 1)
    return plain * (kept + (1 - kept) / factor(config))


for _name, _log in {"log10": math.log10, "log2": math.log2}.items():

    @forward("frequencies", f"theta is taken to a power by exp and {_name}: the logarithm should be natural.")
    def _(positions, config, log=_log):
        return equations.frequencies(positions, replace(config, rope_theta=math.exp(log(config.rope_theta))))


def factor(config):
    if "factor" not in (config.rope_scaling or {}):
        raise DoesNotApply
    return config.rope_scaling["factor"]


def llama3(config):
    """Frequencies without scaling, each one's turns within the original length, and the two limits of the blend."""
    scaling = config.rope_scaling
    if scaling is None or scaling.get("rope_type", "llama3") != "llama3":
        raise DoesNotApply
    plain = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)           # (D/2,)
    turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
    return plain, turns, scaling["low_freq_factor"], scaling["high_freq_factor"]


def scaled_otherwise(positions, config, **changes):
    if not changes.keys() <= (config.rope_scaling or {}).keys():
        raise DoesNotApply
    return equations.frequencies(positions, replace(config, rope_scaling=config.rope_scaling | changes))


# ------------------------------------------------------------------------------------------------ tables


@forward("angles", "The angles are treated as degrees.")
def _(positions, frequencies):
    return np.radians(equations.angles(positions, frequencies))


@forward("angles", "The angles are multiplied by 2π.")
def _(positions, frequencies):
    return 2 * math.pi * equations.angles(positions, frequencies)


@forward("angles", "The angles are rounded to float16.")
def _(positions, frequencies):
    return equations.angles(positions, frequencies).astype(np.float16).astype(float)


@forward("cos", "The table of cosines holds sines.")
def _(angles, config):
    return equations.sin(angles, config)


@forward("sin", "The table of sines holds cosines.")
def _(angles, config):
    return equations.cos(angles, config)


@forward("sin", "The sines have the wrong sign.")
def _(angles, config):
    return -equations.sin(angles, config)


@forward("cos", "The cosines are rounded to float16.")
def _(angles, config):
    return equations.cos(angles, config).astype(np.float16).astype(float)


@forward("sin", "The sines are rounded to float16.")
def _(angles, config):
    return equations.sin(angles, config).astype(np.float16).astype(float)


@forward("angles", "The angles are rounded to bfloat16.")
def _(positions, frequencies):
    return equations.angles(positions, frequencies).astype(BFLOAT16).astype(float)


def yarn(config):
    """By how much YaRN multiplies cosine and sine."""
    return 0.1 * math.log(factor(config)) + 1


@forward("cos", "The cosines are multiplied by 0.1·ln(factor) + 1, which is for YaRN.")
def _(angles, config):
    return equations.cos(angles, config) * yarn(config)


@forward("sin", "The sines are multiplied by 0.1·ln(factor) + 1, which is for YaRN.")
def _(angles, config):
    return equations.sin(angles, config) * yarn(config)
