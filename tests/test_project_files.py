"""The project's own files agree: one version everywhere, issue forms that ask for the machine, a FAQ of real errors."""

from __future__ import annotations

import re

import pytest
import yaml
from support.paths import ROOT

from bgpt_fast.version import __version__


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_version() -> None:
    assert re.search(r'^version = "(.*)"$', text("pyproject.toml"), re.MULTILINE)[1] == __version__  # type: ignore[index]
    assert yaml.safe_load(text("CITATION.cff"))["version"] == __version__
    # The first version of the changelog is the current one, or changes wait for a release.
    assert re.search(r"^## \[(.*?)\]", text("CHANGELOG.md"), re.MULTILINE)[1] in ("Unreleased", __version__)  # type: ignore[index]


@pytest.mark.parametrize("name", ["bug", "speed"])
def test_an_issue_form_asks_for_the_environment(name: str) -> None:
    fields = yaml.safe_load(text(f".github/ISSUE_TEMPLATE/{name}.yml"))["body"]
    environment = next(field for field in fields if field.get("id") == "environment")
    assert "bgpt-fast env" in environment["attributes"]["label"]
    assert environment["validations"]["required"]


def test_the_faq_has_ten_errors_that_the_source_raises() -> None:
    headings = re.findall(r"^## \d+\. (.*)$", text("docs/faq.md"), re.MULTILINE)
    assert len(headings) == 10
    paths = [ROOT / "setup.py", *(ROOT / "bgpt_fast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    # Literals that the source splits over lines are joined.
    source = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text(encoding="utf-8") for path in paths))
    for error in re.findall(r'"(.*?)"', " ".join(headings)):
        assert error in source, error


def test_the_reports_name_tests_that_exist() -> None:
    page = text("docs/reports-tried.md")
    rows = [line for line in page.splitlines() if re.match(r"\| .*(#\d|[0-9a-f]{7} |abc2midi)", line)]
    assert len(rows) >= 50
    for row in rows:
        file = ""
        for quoted in re.findall(r"`([\w/]+\.py(?:::test_\w+)?|test_\w+)`", row):
            name = quoted.rpartition("::")[2]
            file = quoted.partition("::")[0] if ".py" in quoted else file
            assert name == file or f"def {name}(" in text(f"tests/{file}"), quoted
        assert file or re.search("the run above|as blt#123", row), row
