"""A plugin of pytest: all tests through the kernels.

    PYTHONPATH=tests/cuda/emulator python -m pytest -p everywhere tests/ops tests/model tests/optim

What a test of an op or of the model says of NumPy holds for every kernel and launcher too, as it must on a GPU.
"""

from collections import deque

from emulator import Emulator

from numllama.cuda import launch

launch.backend = Emulator()
launch.backend.launched = deque(maxlen=0)  # nobody asks, and tests of memory would count it
