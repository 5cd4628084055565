import re
import string

import pytest
import yaml

from quantlab.report import tables, texts
from quantlab.report.bar import Bar
from quantlab.report.texts import LANGUAGES, Texts
from tests.conftest import ROOT

FOLDER = ROOT / "quantlab" / "report" / "texts"


def catalogue(lang):
    return yaml.safe_load((FOLDER / f"{lang}.yaml").read_text(encoding="utf-8"))


def fields(text):
    """The braces of a text, each form of it."""
    forms = text.values() if isinstance(text, dict) else [text]
    return {name for form in forms for _, name, _, _ in string.Formatter().parse(form) if name}


def test_the_languages_are_the_catalogues():
    assert {"en", "es"} <= set(LANGUAGES)
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == LANGUAGES


@pytest.mark.parametrize("lang", LANGUAGES)
def test_no_catalogue_lacks_a_text_or_a_value(lang):
    english, other = catalogue("en"), catalogue(lang)
    assert list(other) == list(english)
    for key, text in english.items():
        assert fields(other[key]) - {"n"} == fields(text) - {"n"}, key


@pytest.mark.parametrize("lang", LANGUAGES)
def test_two_forms_are_one_and_other(lang):
    t = Texts(lang)
    for key, text in catalogue(lang).items():
        if isinstance(text, dict):
            assert list(text) == ["one", "other"]
            values = dict.fromkeys(fields(text), "x")
            assert t(key, **values | {"n": 1}) != t(key, **values | {"n": 2})


def test_no_text_is_left_over():
    sources = [*ROOT.glob("quantlab/**/*.py"), *ROOT.glob("quantlab/report/templates/*")]
    code = "\n".join(path.read_text() for path in sources)
    named = set(re.findall(r"\"(\w+)\"", code))
    begun = tuple(re.findall(r"\"(\w+_|meets|misses)(?:\{|\" ~)", code))
    assert {key for key in catalogue("en").keys() - named if not key.startswith(begun)} == set()


def test_what_is_named_by_a_key_has_a_text():
    t = Texts("en")
    assert all(f"column_{key}" in t for key in tables.GLOSSARY)
    assert all(f"{kind}_{key}" in t for key in Bar().criteria for kind in ("is", "missed"))
    assert all(f"grade_{grade}" in t for grade in tables.GRADES)


def test_an_unknown_language_is_named():
    with pytest.raises(ValueError, match=r"report\.lang must be one of en, es.*, got 'xx'"):
        texts.Texts("xx")
