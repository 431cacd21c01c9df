"""The pages for people: lines that fit a screen, links that lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WIDTH = 120
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "sdk/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
# The first is made from test results; the others have still to be wrapped.
WIDE = {"conformance.md"}


def prose(page: Path) -> Iterator[tuple[int, str]]:
    is_code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            yield number, line


def anchors(page: Path) -> set[str]:
    headings = (line.lstrip("#").strip() for _, line in prose(page) if line.startswith("#"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in WIDE], ids=lambda page: page.name)
def test_prose_is_wrapped(page: Path) -> None:
    # A table's row is one line, and a word without spaces, such as a link's address, cannot be broken.
    too_long = [
        f"{page.name}:{number}"
        for number, line in prose(page)
        if len(line) > WIDTH and not line.startswith(("|", "<!--")) and " " in line[WIDTH // 2 :]
    ]

    assert not too_long


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = "\n".join(line for _, line in prose(page))
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            lost.append(target)

    assert not lost
