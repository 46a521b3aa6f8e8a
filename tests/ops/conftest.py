"""What the tests of ops say is said of the op's own lines, of the CPU's faster ones, and of a GPU's kernels."""

import pytest

from numllama import dispatch
from numllama.backend import array_module
from numllama.errors import DeviceError


@pytest.fixture(scope="session", params=["cpu", "cuda", "reference"])
def xp(request):
    """The array module; "reference" is NumPy with no faster function, see below."""
    try:
        return array_module("cuda" if request.param == "cuda" else "cpu")
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test with "reference" runs without the functions of numllama.cpu and numllama.cuda."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if parameters.get("xp") != "reference":
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_twin", lambda package, op: None)
        return (yield)
