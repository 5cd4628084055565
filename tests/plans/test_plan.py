import hashlib
import json

import pandas as pd
import pytest

from quantlab.plans.mixture import plan_within_budget
from quantlab.plans.plan import (
    make_plan,
    parse_keep,
    plan,
    plan_artefacts,
    plan_faults,
    plan_files,
    plan_json,
    plan_table,
    run_command,
    table_csv,
    write_files,
)
from quantlab.plans.problem import Request, build_problem
from quantlab.plans.runtimes import RUNTIMES
from quantlab.records import disk
from quantlab.records.older import UNSIZED
from quantlab.report.bar import CRITERIA, Bar
from quantlab.report.texts import Texts
from tests.plans.samples import HASHES, original, row, sweep, two
from tests.report.samples import SQNR

OUT = original("c", (5,), sha256=None, dtype="int32", n_bytes=20, reason="int32 is no float")
TENSORS = [original("a.weight"), OUT, original("b.weight")]


def write(directory, rows=None, tensors=TENSORS, failures=(), bar=None):
    """Write what a plan reads of a sweep, judged by a bar if there is one."""
    found = sweep(rows or two(), tensors)
    rows = [row | (bar.columns() if bar else {}) for row in found.rows]
    table = pd.DataFrame(rows).astype({"block_size": "Int64"})
    table.to_csv(directory / "results.csv", index=False)
    (directory / "results.json").write_text("{}\n")
    hashes = {name: disk.digest(directory / name) for name in ("results.json", "results.csv")}
    lost = {"key": None, "record_sha256": None, "status": "failed"}
    manifest = {
        "schema": 4, "command": None, "levels": found.levels, "artefacts": hashes,
        "runs": [lost | {"directory": each, "error": "no"} for each in failures], "git": None,
        "environment": {}, "start": None, "end": None, "hydra": {}, "tensors": found.tensors,
    }  # fmt: skip
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


@pytest.fixture
def directory(tmp_path):
    return write(tmp_path, bar=SQNR)


def formats(table):
    return table["format"].tolist()


def test_a_plan_for_bits_and_for_their_size_are_one(directory):
    by_bits = plan(directory, bits=(13_000 + 160) / 2005)
    by_size = plan(str(directory), size="1645 B")
    pd.testing.assert_frame_equal(by_bits, by_size)
    assert formats(by_bits) == ["sym 4 bits, group 32", "int32", "sym 8 bits, channel"]
    assert by_bits["n_bytes"].sum() == 563 + 20 + 1032
    assert not list(directory.glob("plan*"))


@pytest.mark.parametrize("extra", [0, 1, 3, 7])
def test_the_bits_of_a_plan_give_the_same_plan_again(tmp_path, extra):
    bits = (4321 + extra) / 1000
    rows = [row("a", "nf4, group 64", bits, 20.0), row("a", "sym 8 bits", 8, 40.0)]
    table = plan(write(tmp_path, rows, [original("a")]), bits=7.9)
    assert formats(table) == ["nf4, group 64"]
    assert formats(plan(tmp_path, bits=table["bits_per_value"][0])) == formats(table)
    with pytest.raises(ValueError, match="is below what there is: plans of this sweep have from"):
        plan(tmp_path, bits=table["bits_per_value"][0] - 0.001)


def test_the_bar_is_that_of_the_sweep_or_another(tmp_path):
    write(tmp_path, bar=Bar(sqnr_db=30.0))
    assert formats(plan(tmp_path, bar=True)) == ["sym 8 bits", "int32", "sym 8 bits, channel"]
    assert formats(plan(tmp_path, bar={"sqnr_db": 35})) == ["sym 8 bits", "int32", "float32"]
    write(tmp_path, bar=Bar(sqnr_db=35.0))
    assert formats(plan(tmp_path, bar=True)) == ["sym 8 bits", "int32", "float32"]


@pytest.mark.parametrize(
    "asked", [{}, {"bits": 5, "size": "1MB"}, {"bits": 5, "bar": True}, {"size": "1MB", "bar": 1}]
)
def test_exactly_one_thing_is_asked(directory, asked):
    with pytest.raises(ValueError, match="a plan takes one of bits, size, kl and bar"):
        plan(directory, **asked)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"bar": {"sqnr": 30}},
            f"report.bar takes {', '.join(CRITERIA)}, got",
        ),
        ({"bar": {}}, "report.bar asks nothing"),
        ({"bits": 9, "weights": {"x": 1}}, "weights: the sweep has no tensor 'x'"),
        ({"bits": 9, "weights": "none.csv"}, "none.csv cannot be read: No such file"),
        ({"bits": 9, "weights": {"c": 1}}, "weights: the sweep has no tensor 'c'"),
        ({"bits": 9, "keep": {"c": "int32"}}, "keep c matches none of the 2 tensors measured"),
        (
            {"bits": 2},
            "2 bits per value (501 B) is below what there is: plans of this sweep have f",
        ),
    ],
)
def test_a_mistake_is_named(directory, asked, said):
    with pytest.raises(ValueError, match=r".") as caught:
        plan(directory, **asked)
    assert said in str(caught.value)


def test_demands_and_weights_are_heeded(directory, tmp_path):
    (tmp_path / "w.csv").write_text("tensor,alpha\nb.weight,0\n")
    table = plan(directory, bits=6.6, weights=tmp_path / "w.csv")
    assert formats(table) == ["sym 8 bits, channel", "int32", "sym 4 bits, group 32"]
    assert table["noise"].tolist()[1:] == [0, 0]
    table = plan(directory, bits=33, keep={"*": "sym 8 bits", "b*": "float32"})
    assert formats(table) == ["sym 8 bits", "int32", "float32"]
    assert formats(plan(directory, bits=6.6, same=["*"])) == [
        "sym 4 bits, group 32", "int32", "sym 4 bits, group 32",
    ]  # fmt: skip


def test_mlx_pays_for_its_biases(tmp_path):
    names = ["a.weight", "b.weight"]
    rows = [
        row(name, "asym 4 bits, group 64", 4.3, 20.0, size=6400, scale_dtype="float16")
        for name in names
    ]
    rows += [row(name, "sym 8 bits", 8, 40.0, size=6400) for name in names]
    write(tmp_path, rows, [original(name, (100, 64)) for name in names])
    assert plan(tmp_path, bits=4.4)["bits_per_value"].tolist() == [4.3, 4.3]
    assert plan(tmp_path, bits=4.6, recipe="mlx")["bits_per_value"].tolist() == [4.5, 4.5]
    with pytest.raises(ValueError, match=r"4.4 bits per value \(7.04 kB\) is below what there is"):
        plan(tmp_path, bits=4.4, recipe="mlx")


def test_what_a_runtime_leaves_is_named_where_no_plan_is_small_enough(tmp_path):
    names = ["a.weight", *(f"b{n}" for n in range(5))]
    rows = [
        row(name, form, bits, 20.0, size=6400)
        for name in names
        for form, bits in (("asym 4 bits, group 64", 4.3), ("sym 8 bits", 8))
    ]
    write(tmp_path, rows, [original(name, (100, 64)) for name in names])
    left = "mlx quantizes 1 of the 6 tensors measured, not b0, b1, b2, and 2 more"
    with pytest.raises(ValueError, match=rf"below what there is: .* bits per value .*; {left}$"):
        plan(tmp_path, bits=5, recipe="mlx")


@pytest.mark.parametrize(
    "asked", [{"bits": 1e300}, {"size": f"{10**30}TB"}, {"size": "9" * 999 + "B"}]
)
def test_more_than_enough_is_enough(asked):
    made = make_plan(sweep(two(), TENSORS), Request.parse(asked))
    assert (made.total.noise, made.gap, made.total.bits) == (0, 0, 64_160)


@pytest.mark.parametrize("recipe", ["mlx", "torchao"])
def test_groups_that_do_not_divide_a_row_are_no_format_of_the_runtime(tmp_path, recipe):
    short = {"size": 400, "n_scales": 10}  # ten rows of 40 values: the groups of 64 are cut short
    rows = [row("a.weight", "asym 4 bits, group 64", 5.0, 20.0, **short)]
    rows += [row("b.weight", "asym 4 bits, group 64", 4.3, 20.0, size=640)]
    rows += [row("a.weight", "sym 8 bits", 8, 40.0, size=400)]
    write(tmp_path, rows, [original("a.weight", (10, 40)), original("b.weight", (10, 64))])
    table = plan(tmp_path, size="10MB", keep={"b.weight": "asym 4 bits, group 64"}, recipe=recipe)
    assert formats(table) == ["float32", "asym 4 bits, group 64"]
    with pytest.raises(ValueError, match=r"a\.weight' has no such format, only float32"):
        plan(tmp_path, size="10MB", keep={"*": "asym 4 bits, group 64"}, recipe=recipe)


NONE = {
    "bits": None, "size": None, "bar": False, "recipe": None, "by": "sqnr_db", "weights": None,
    "keep": [], "same": [],
}  # fmt: skip


def ask(directory, *settings, **options):
    return "\n".join(run_command(directory, settings, NONE | options, "plan DIR"))


def asked(directory):
    return json.loads((directory / "plan.json").read_bytes())["asked"]


def test_the_answer_comes_first_and_the_files_last(directory):
    text = ask(directory, bits=6.6)
    assert text.startswith("a.weight as sym 4 bits, group 32; b.weight as sym 8 bits, channel (")
    assert text.splitlines()[-3:] == [
        f"{directory}/plan.csv", f"{directory}/plan.html", f"{directory}/plan.json",
    ]  # fmt: skip
    assert all((directory / f"plan.{each}").is_file() for each in ("csv", "html", "json"))


def test_files_may_go_elsewhere(directory, tmp_path_factory):
    before = sorted(directory.iterdir())
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    out = elsewhere / "new" / "out"
    assert f"{out}/plan.json" in ask(directory, bits=6.6, out=out)
    assert sorted(directory.iterdir()) == before
    assert {path.name for path in out.iterdir()} == {"plan.csv", "plan.html", "plan.json"}
    (elsewhere / "file").touch()
    with pytest.raises(ValueError, match=r"file/out cannot be made: Not a directory"):
        ask(directory, bits=6.6, out=elsewhere / "file" / "out")


@pytest.mark.parametrize(("n", "sentence"), [(0, "takes a number of"), (9, "does not tell its")])
def test_a_context_needs_a_checkpoint_that_tells(directory, n, sentence):
    with pytest.raises(ValueError, match=rf"--context {n}|got {n}") as caught:
        ask(directory, bits=6.6, context=n, out=directory / "out")
    assert sentence in str(caught.value)
    assert not (directory / "out").exists()


def test_several_budgets_are_rows_of_one_table_and_write_nothing(directory):
    before = sorted(directory.iterdir())
    head, *lines = ask(directory, bits="6.6,32").splitlines()
    assert (head[:14], head[-9:]) == ("bits per value", "its noise")
    assert [line.split()[0] for line in lines] == ["6.439", "32"]
    assert len(ask(directory, size="1.7kB,2kB,8kB").splitlines()) == 4
    assert sorted(directory.iterdir()) == before
    with pytest.raises(
        ValueError, match=r"--bits takes a number of bits per value above 0, got ''"
    ):
        ask(directory, bits="6,")


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


def test_arguments_are_taken_as_people_write_them(directory):
    assert formats(plan(directory, bits="6.6", same="*.weight")) == [
        "sym 4 bits, group 32", "int32", "sym 4 bits, group 32",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"bits": "much"}, "bits takes a number of bits per value above 0, got 'much'"),
        ({"bits": [4]}, "bits takes a number of bits per value above 0, got [4]"),
        ({"bits": True}, "bits takes a number of bits per value above 0, got True"),
        ({"size": 60}, "size takes a number and one of B, kB, MB"),
        ({"bits": 9, "keep": {"a*": 8}}, "keep takes a mapping from patterns to formats, got {"),
        ({"bits": 9, "keep": ["a*=nf4"]}, "keep takes a mapping from patterns to formats, got ["),
        ({"bits": 9, "keep": {"a*": "nf5"}}, "keep a*=nf5: 'a.weight' has no such format, only fl"),
        ({"bits": 9, "same": "lstm*"}, "same lstm* matches none of the 2 tensors measured"),
        (
            {"bits": 9, "recipe": "onnx"},
            "recipe takes one of llama.cpp, torchao, mlx, onnxruntime, ",
        ),
        ({"bits": 9, "by": "mae"}, "by takes sqnr_db or out_sqnr_db or kl, got 'mae'"),
        ({"bits": "0.5"}, "0.5 bits per value (125 B) is below what there is"),
        ({"size": "12 B"}, "12 B (0.0478803 bits per value) is below what there is"),
    ],
)
def test_python_is_told_of_its_own_arguments(directory, wrong, sentence):
    with pytest.raises(ValueError, match=r".") as caught:
        plan(directory, **wrong)
    assert str(caught.value).startswith(sentence)


def test_the_plan_is_printed_before_its_files_cannot_be_written(directory, monkeypatch):
    def refuse(path, _):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("quantlab.records.disk._write_draft", refuse)
    texts = run_command(directory, (), NONE | {"bits": 6.6}, "plan DIR")
    assert next(texts).startswith("a.weight as sym 4 bits, group 32; b.weight as sym 8 bits, chann")
    with pytest.raises(PermissionError):
        next(texts)


def made():
    return plan_within_budget(build_problem(sweep(two(), TENSORS), Request()), 13_000)


def test_a_row_a_tensor_says_what_it_is_stored_as():
    table = plan_table(made()).set_index("tensor")
    assert table.index.tolist() == ["a.weight", "c", "b.weight"]
    assert table.loc["b.weight", "format"] == "sym 8 bits, channel"
    assert table.loc["b.weight", ["n_bytes", "bits_per_value", "sqnr_db"]].tolist() == [
        1032, 8.25, 33.0,
    ]  # fmt: skip
    assert table.loc["c", ["format", "n_bytes", "noise"]].tolist() == ["int32", 20, 0]
    assert table.loc["c", "reason"] == "int32 is no float"
    assert table["mode"].isna().tolist() == [False, True, False]


def test_every_column_has_its_dtype():
    kinds = {key: str(dtype) for key, dtype in plan_table(made()).dtypes.items()}
    for key in ("n_elements", "n_bytes", "n_bits", "block_size"):
        assert kinds.pop(key) == "Int64"
    for key in ("bits_per_value", "sqnr_db", "noise"):
        assert kinds.pop(key) == "float64"
    assert set(kinds.values()) == {"string"}


def test_the_csv_holds_the_table(tmp_path):
    table = plan_table(made())
    (tmp_path / "plan.csv").write_bytes(table_csv(table))
    again = pd.read_csv(tmp_path / "plan.csv", dtype={k: str(v) for k, v in table.dtypes.items()})
    pd.testing.assert_frame_equal(again, table, check_dtype=False)


def test_the_json_says_what_was_asked_and_hashes_what_stands_beside_it():
    plan, asked = made(), {"bits": 6.5}
    hashes = {"results.json": "1" * 64, "results.csv": "2" * 64, "answers.csv": "3" * 64}
    content = json.loads(plan_json(plan, asked, hashes, {"plan.csv": b"x"}))
    assert (content["asked"], content["results_sha256"]) == (asked, "1" * 64)
    assert content["table_sha256"] == "2" * 64
    assert "answers_sha256" not in content  # it read none
    assert content["files"] == {"plan.csv": hashlib.sha256(b"x").hexdigest()}
    assert content["n_bytes"] == sum(each["n_bytes"] for each in content["tensors"]) - 1  # rounded
    assert content["best_uniform"]["format"] == "sym 4 bits, group 32"
    assert content["noise"] == plan.total.noise
    assert content["gap"] >= 0


T = Texts("en")


def files_of(sweep_, recipe=None, budget=13_000):
    """The plan of a sweep, and its files."""
    problem = build_problem(sweep_, Request(runtime=RUNTIMES[recipe] if recipe else None))
    plan = plan_within_budget(problem, budget)
    return plan, plan_artefacts(plan, sweep_, {}, "quantlab plan", T)


def test_plan_json_is_written_last_and_hashes_the_others():
    _, files = files_of(sweep(two()), "json")
    assert list(files) == ["plan.csv", "plan.html", "plan.recipe.json", "plan.json"]
    listed = json.loads(files.pop("plan.json"))["files"]
    assert listed == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_the_files_agree_on_every_tensor():
    plan, files = files_of(sweep(two()), "json")
    tensors = json.loads(files["plan.json"])["tensors"]
    recipe = json.loads(files["plan.recipe.json"])
    lines = files["plan.csv"].decode().splitlines()[1:]
    for each, entry, line in zip(plan.assignments, tensors, lines, strict=True):
        assert entry["tensor"] == each.tensor.name
        assert entry["format"] == each.format
        assert f'"{each.format}"' in line
        assert recipe[each.tensor.name]["n_bits"] == entry["n_bits"]
        assert f"<td>{each.tensor.name}<td>{each.format}" in files["plan.html"].decode()


@pytest.mark.parametrize("name", RUNTIMES)
def test_what_was_written_has_no_fault_and_no_recipe_of_an_earlier_plan(tmp_path, name):
    found = sweep(two(), directory=tmp_path)
    (tmp_path / "results.json").write_text("{}")
    found = found._replace(artefacts=HASHES | {"results.json": hashlib.sha256(b"{}").hexdigest()})
    for runtime in RUNTIMES.values():
        (tmp_path / runtime.file).write_text("old")
    files = files_of(found, "json")[1]
    files[RUNTIMES[name].file] = files.pop("plan.recipe.json")
    write_files(tmp_path, files)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", *files}
    assert (tmp_path / RUNTIMES[name].file).read_bytes() == files[RUNTIMES[name].file]
    write_files(tmp_path, files_of(found)[1])
    assert list(plan_faults(tmp_path)) == []
    assert not (tmp_path / RUNTIMES[name].file).exists()


def test_a_recipe_is_of_one_checkpoint():
    rows = [each | {"dist": dist} for dist in ("x", "y") for each in two()]
    tensors = [
        original(name, dist=dist) for dist in ("x", "y") for name in ("a.weight", "b.weight")
    ]
    found = sweep(rows, tensors)
    assert "plan.csv" in files_of(found, budget=30_000)[1]
    with pytest.raises(
        ValueError, match=r"two sources have a 'a\.weight': a recipe is of one chec"
    ):
        files_of(found, "json", 30_000)


def test_a_recipe_needs_every_shape():
    old = original("c", sha256=None, reason="why", **{**UNSIZED, "dtype": "unknown"})
    found = sweep(two(), [*map(original, ["a.weight", "b.weight"]), old])
    assert "plan.csv" in files_of(found)[1]
    with pytest.raises(ValueError, match="an older version left tensors out without their shapes"):
        files_of(found, "json")


def test_a_name_that_is_no_unicode_can_be_written():
    rows = [*two(), row("w\udcff", "sym 8 bits", 8, 30.0)]
    for name, content in files_of(sweep(rows), "json", 40_000)[1].items():
        assert b"w\\udcff" in content, name


@pytest.fixture
def kept(tmp_path):
    """A directory with results and a plan made of them."""
    sha256 = {}
    for name in ("results.json", "results.csv", "plan.csv"):
        (tmp_path / name).write_text(name)
        sha256[name] = disk.digest(tmp_path / name)
    tables = {"results_sha256": sha256["results.json"], "table_sha256": sha256["results.csv"]}
    content = {**tables, "files": {"plan.csv": sha256["plan.csv"]}}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    return tmp_path


def test_a_plan_is_intact_until_something_changes(kept):
    assert list(plan_faults(kept)) == []
    assert list(plan_files(kept)) == ["plan.csv"]
    (kept / "plan.csv").write_text("")
    (kept / "results.json").write_text("")
    assert list(plan_faults(kept)) == [
        f"{kept}/plan.json is of other results than {kept}/results.json: run quantlab plan again",
        f"{kept}/plan.csv has changed: its sha256 is not the one in {kept}/plan.json",
    ]
    (kept / "results.json").write_text("results.json")
    (kept / "results.csv").write_text("")
    assert f"{kept}/plan.json is of other results than {kept}/results.csv" in next(
        plan_faults(kept)
    )
    (kept / "plan.csv").unlink()
    assert f"{kept}/plan.csv is missing: {kept}/plan.json lists it" in list(plan_faults(kept))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": [1]}', "[" * 99999])
def test_what_is_no_plan_is_named(kept, content):
    (kept / "plan.json").write_text(content)
    assert list(plan_faults(kept)) == [f"{kept}/plan.json is no plan: run quantlab plan again"]
    assert plan_files(kept) == {}


def test_without_a_plan_there_is_no_fault(tmp_path):
    assert list(plan_faults(tmp_path)) == []


def test_files_elsewhere_are_not_of_a_plan(kept):
    content = json.loads((kept / "plan.json").read_text())
    (kept / "plan.json").write_text(json.dumps(content | {"files": {"../x": "0" * 64}}))
    assert plan_files(kept) == {}


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("a*=nf4", ("a*", "nf4")),
        ("a=b=nf4", ("a=b", "nf4")),
        ("a=sym 4 bits, range.p=99.0", ("a", "sym 4 bits, range.p=99.0")),
    ],
)
def test_a_demand_is_split_where_a_format_follows(text, pair):
    assert parse_keep(text, ["sym 4 bits, range.p=99.0"]) == pair
    with pytest.raises(ValueError, match="--keep takes PATTERN=FORMAT"):
        parse_keep("=nf4", [])
