from hydra.core.override_parser.overrides_parser import OverridesParser

from quantlab.sweep.grid import combinations
from tests.conftest import run


def test_a_wrong_combination_is_refused_before_the_first_run(tmp_path):
    for modes in ("asym,sym", "sym,asym"):
        sweep = [
            "-m",
            f"mode={modes}",
            "mode.zero_point=clip,widen",
            f"hydra.sweep.dir={tmp_path}/s",
        ]
        done = run(*sweep)
        assert done.returncode == 1
        assert "mode.zero_point=clip sets an unknown key" in done.stderr
        assert not (tmp_path / "s").exists()
    for value, line in (
        ("hydra/launcher=none", "hydra/launcher=none does not exist: choose one of basic"),
        ("+note=nan,1", "a setting cannot be recorded as JSON (Out of range"),
        ("+note={1:a,b:c}", "a setting cannot be recorded as JSON ('<' not supported"),
        ("threads=1,2", "threads=1,2: threads changes no figure, give it one value"),
        ("n_bits=range(5,2)", "n_bits=range(5,2) matches nothing: name at least one value"),
    ):
        done = run("-m", value, f"hydra.sweep.dir={tmp_path}/s")
        assert done.returncode == 1
        assert line in done.stderr
        assert not (tmp_path / "s").exists()
    endless = run("-m", "n_bits=interval(2,8)")
    assert "n_bits=interval(2,8): an interval has no end" in endless.stderr


def test_the_last_of_two_values_typed_for_a_key_counts():
    parsed = OverridesParser.create().parse_overrides(["a=1,2", "b=3", "a=4,5,4", "~c"])
    assert combinations(parsed) == [["a=4", "b=3", "~c"], ["a=5", "b=3", "~c"]]
