"""What to type to get an optional part: a line that works from where the package is."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from numllama import install
from numllama.install import install_command

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with a blank in its path, from which the package is used."""
    folder = tmp_path / "my sources"
    (folder / "numllama").mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "numllama"\n')
    monkeypatch.setattr(install, "PACKAGE", folder / "numllama")
    return folder


def test_of_a_checkout_it_is_its_path(checkout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert install_command("plot") == f'pip install -e "{checkout}[plot]"'
    assert install_command("cuda13", "nccl") == f'pip install -e "{checkout}[cuda13,nccl]"'
    monkeypatch.chdir(checkout)
    assert install_command("plot") == 'pip install -e ".[plot]"'


@pytest.mark.parametrize(
    "origin, expected",
    [
        ({"url": "file:///home/me/numllama", "dir_info": {}}, 'pip install "numllama[plot] @ file:///home/me/numllama"'),
        (
            {"url": "https://host/me/numllama", "vcs_info": {"vcs": "git", "commit_id": "1"}},
            'pip install "numllama[plot] @ git+https://host/me/numllama"',
        ),
        ({}, 'pip install -e ".[plot]" (in the folder of its sources)'),
        ("no JSON", 'pip install -e ".[plot]" (in the folder of its sources)'),
        (None, 'pip install -e ".[plot]" (in the folder of its sources)'),
    ],
)
def test_of_an_installed_package_it_is_what_it_was_installed_from(tmp_path, monkeypatch, origin, expected):
    text = json.dumps(origin) if isinstance(origin, dict) else origin
    monkeypatch.setattr(install, "PACKAGE", tmp_path / "site-packages" / "numllama")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "somebody-elses"\n')
    distribution = type("Distribution", (), {"read_text": lambda self, name: text})
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: distribution())
    assert install_command("plot") == expected


def test_a_folder_that_is_gone_and_a_package_without_metadata_are_no_trouble(tmp_path, monkeypatch, checkout):
    monkeypatch.setattr(Path, "cwd", lambda: (_ for _ in ()).throw(FileNotFoundError))
    assert install_command("plot") == f'pip install -e "{checkout}[plot]"'
    (checkout / "pyproject.toml").write_bytes(b"\xff")

    def missing(name):
        from importlib.metadata import PackageNotFoundError

        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", missing)
    assert install_command("plot") == 'pip install -e ".[plot]" (in the folder of its sources)'


def test_the_name_alone_is_nowhere_installed_from_an_index():
    asked = re.compile(r"pip install[^\n]*[\"' ]numllama(\[[\w,]+\])?[\"'\s)]")
    found = []
    for folder, pattern in (("numllama", "*.py"), ("examples", "*.py"), ("benchmarks", "*.py"), ("docs", "*.md"), (".", "*.md")):
        for path in ROOT.joinpath(folder).glob(pattern if folder == "." else f"**/{pattern}"):
            if "_build" not in path.parts and asked.search(path.read_text(encoding="utf-8")):
                found.append(path.relative_to(ROOT).as_posix())
    assert found == []


def test_sentences_of_commands_say_it(tmp_path):
    code = "import sys; sys.modules['cupy'] = None; from numllama.cli import main; main(['train', '--device', 'cuda'])"
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert f'device \'cuda\' needs CuPy: pip install -e "{ROOT}[cuda13]" (or cuda12' in ended.stderr
