"""What only a GPU needs: one launcher for each op that has a kernel, named like the op. Nothing here imports CuPy by itself.

A launcher has its op's signature and returns what the op returns, cache included. For types or shapes that its kernel does
not take it returns NotImplemented, and :mod:`numllama.dispatch` runs the op itself.
"""
