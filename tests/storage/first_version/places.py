"""Puts files of a run, which hold paths, in another place: the paths change, and the checksums of the files that hold them."""

import hashlib
import json
from pathlib import Path


def move(folder: Path, old: str, new: str) -> None:
    """Replace one path by another in the JSON files of a folder. Checksums are computed as commit 1734a78 does."""
    paths = sorted(folder.rglob("*.json"), key=lambda path: path.name == "checksums.json")  # which lists the others
    for path in paths:
        values = json.loads(path.read_text())
        before = json.dumps(values)
        if path.name == "checksums.json":
            values["files"] = {name: hashlib.sha256((path.parent / name).read_bytes()).hexdigest() for name in values["files"]}
        values = _replaced(values, old, new)
        if json.dumps(values) == before:
            continue
        if values.pop("seal", None):
            values["seal"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(values, indent=1) + "\n")


def _replaced(value: object, old: str, new: str) -> object:
    if isinstance(value, dict):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, old, new) for item in value]
    return value.replace(old, new) if isinstance(value, str) else value
