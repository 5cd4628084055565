import json

import pytest

from quantlab.plans.command import run
from tests.plans.samples import original, row
from tests.plans.test_plan import write
from tests.report.test_storage import SQNR

NONE = {
    "bits": None, "size": None, "bar": False, "recipe": None, "by": "sqnr_db", "weights": None,
    "keep": [], "same": [],
}  # fmt: skip


def ask(directory, *settings, **options):
    return run(directory, settings, NONE | options, "plan DIR")


@pytest.fixture
def directory(tmp_path):
    return write(tmp_path, bar=SQNR)


def asked(directory):
    return json.loads((directory / "plan.json").read_bytes())["asked"]


def test_the_answer_comes_first_and_the_files_last(directory):
    text = ask(directory, bits=6.6)
    assert text.startswith("a.weight as sym 4 bits, group 32; b.weight as sym 8 bits, channel (")
    assert text.splitlines()[-3:] == [
        f"{directory}/plan.csv", f"{directory}/plan.html", f"{directory}/plan.json",
    ]  # fmt: skip
    assert all((directory / f"plan.{each}").is_file() for each in ("csv", "html", "json"))


def test_what_was_asked_is_noted(directory):
    (directory / "w.csv").write_text("tensor,alpha\nb.weight,2\n")
    ask(directory, bits=6.6, weights=directory / "w.csv", keep=["a*=sym 8 bits"])
    assert asked(directory) == {
        "bits": 6.6, "by": "sqnr_db", "weights": f"{directory}/w.csv", "keep": ["a*=sym 8 bits"],
    }  # fmt: skip
    ask(directory, bar=True)
    assert asked(directory)["bar"] == {"sqnr_db": 30.0}


def test_the_bar_and_the_language_may_be_others(directory):
    text = ask(directory, "report.bar.sqnr_db=35", "report.lang=es", bar=True)
    assert asked(directory)["bar"] == {"sqnr_db": 35}
    assert text != ask(directory, "report.bar.sqnr_db=35", bar=True)
    assert b'<html lang="en">' in (directory / "plan.html").read_bytes()


def test_a_recipe_that_cannot_be_written_writes_nothing(tmp_path):
    names = ["odd.weight", "model.layers.0.self_attn.q_proj.weight"]
    rows = [
        row(name, form, 4.5, 20.0)
        for name in names
        for form in ("ggml/q4_k", "sym 4 bits, group 32")
    ]
    write(tmp_path, rows, [original(name) for name in names])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"llama.cpp has no name for 'odd.weight'"):
        ask(tmp_path, bits=33, recipe="llama.cpp")
    assert sorted(tmp_path.iterdir()) == before
