"""Code for GPUs: one launcher for each op that has a kernel, named like the op. Importing it does not import CuPy.

A launcher has its op's signature and results, cache included. For types or shapes that its kernel does not
support it returns NotImplemented, and :mod:`numllama.dispatch` runs the op itself.
"""
