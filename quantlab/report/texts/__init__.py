"""The words of a report: a catalogue for each language, ``en.yaml`` and ``es.yaml``."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from quantlab.text import first_few

LANGUAGES = sorted(
    path.name.removesuffix(".yaml")
    for path in files(__name__).iterdir()
    if path.name.endswith(".yaml")
)


class Texts:
    """The catalogue of one language.

    With a `variant`, a text whose key ends in it stands in for the plain one, where there is one.
    """

    def __init__(self, lang: str, variant: str = "") -> None:
        """Raise ValueError when there is no such language."""
        if lang not in LANGUAGES:
            raise ValueError(f"report.lang must be one of {', '.join(LANGUAGES)}, got {lang!r}")
        self.lang, self.variant = lang, variant
        self._texts = _catalogue(lang)

    def __call__(self, key: str, **values: Any) -> str:
        """Return a text with values in its braces; of one with two forms `n` decides which."""
        text = self._texts.get(f"{key}_{self.variant}") or self._texts[key]
        if isinstance(text, dict):
            text = text["one" if values["n"] == 1 else "other"]
        return text.format(**values)

    def first_few(self, items: Sequence[str], limit: int, more: str = "more_reasons") -> list[str]:
        """List at most `limit` items, then the text under the key `more`, which counts the rest."""
        return first_few(items, limit, lambda n: self(more, n=n))

    def __contains__(self, key: str) -> bool:
        """Test if there is a text under a key."""
        return key in self._texts


@cache
def _catalogue(lang: str) -> dict[str, Any]:
    return yaml.safe_load(files(__name__).joinpath(f"{lang}.yaml").read_text(encoding="utf-8"))
