from pathlib import Path

import pytest

from quantlab.records.division import (
    WHOLE,
    Division,
    claim,
    division,
    of_division,
    require_apart,
    undivided,
    without_part,
)


def config(part=0, parts=1, **others):
    return {"dist": {"path": "w.npy", "part": part, "parts": parts}, "n_bits": 8, **others}


@pytest.mark.parametrize("dist", [None, "w.npy", {}, {"part": 1}, {"part": 0, "parts": "2"}])
def test_what_cannot_be_divided_has_no_division(dist):
    assert division(dist) is None


def test_a_division_is_in_the_config_of_a_source_and_in_the_name_of_its_runs():
    assert division(config(1, 4)["dist"]) == Division(1, 4)
    assert division(config(None, 1)["dist"]) == WHOLE
    assert without_part(config(1, 4)) == {"dist": {"path": "w.npy"}, "n_bits": 8}
    assert [Division(1, 4).suffix, Division(0, 1).suffix] == ["-part-1-of-4", ""]
    asked = ["threads=2", "n_bits=4", "dist.part=1", "+dist.parts=4", "dist=file/npy"]
    assert undivided(asked) == ("dist=file/npy", "n_bits=4")
    typed = ["dist.part=1", "+dist.parts=4", "dist.path=parts", "dist.party=1", "part=1"]
    assert [of_division(each) for each in typed] == [True, True, False, False, False]


def test_parts_share_a_question_unless_a_setting_that_changes_figures_differs():
    def question(**others):
        return claim("run", "file/npy", config(**others)).question

    assert question(part=1, parts=4) == question(part=2, parts=4, threads=1) == question()
    assert question() != question(seed=1)
    assert question() != claim("run", "file/npz", config()).question


def test_only_parts_that_overlap_clash():
    def require(*configs):
        claims = [claim(str(n), "file/npy", each) for n, each in enumerate(configs)]
        require_apart(claims, Path("s"))

    require(config(0, 2), config(1, 2), config(0, 3, seed=1), config(0, 1, seed=2))
    require(config(), config())  # two answers of the whole: the table says so better
    for one, two in (((0, 2), (0, 3)), ((0, 2), (0, 1)), ((0, 1), (1, 2)), ((1, 2), (1, 2))):
        with pytest.raises(ValueError, match=r"^s/0 \(.*\) and s/1 \(.*\) would measure the same"):
            require(config(*one), config(*two))
