"""A plugin of pytest: all tests through the kernels.

    PYTHONPATH=tests/cuda/emulator python -m pytest -p everywhere tests/ops tests/model tests/optim

What a test of an op or of the model says of NumPy holds for every kernel and launcher too, as it must on a GPU.
"""

from emulator import Emulator

from numllama.cuda import launch

launch.backend = Emulator()
