"""The name quantlab on the package index belongs to another project."""

import re

import pytest

from tests.conftest import ROOT

TEXTS = [
    path
    for pattern in ("quantlab/**/*.py", "quantlab/**/*.yaml", "conf/**/*.yaml", "docs/*.md", "*.md")
    for path in ROOT.glob(pattern)
] + [ROOT / "Makefile"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nobody_is_told_to_install_the_namesake(path):
    text = " ".join(path.read_text().split())
    assert not re.search(r"pip install [^`\n]{0,40}quantlab|quantlab\[", text)
