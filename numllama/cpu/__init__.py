"""The ops made fast on a CPU: the functions of :mod:`numllama.ops` by file and name, in place, in tiles, in blocks.

`@accelerated` finds them, as it finds those of :mod:`numllama.cuda`. Each gives what the op's own lines give, to rounding, and
exists because `benchmarks/twins.py` shows that it saves at least one percent of a training step or of a decoded token.
:mod:`numllama.cpu.onednn` is an optional library for products, and :mod:`numllama.cpu.products` chooses who computes one.
"""
