import json
import os
import re
import shutil

import numpy as np
import pytest

import quantlab
from quantlab.formats.format import PLAIN
from quantlab.formats.uniform import Asymmetric, Symmetric
from quantlab.records.record import Outcome
from quantlab.records.table import read_aggregate
from quantlab.report import page, tables
from quantlab.report.aggregate import aggregate as collect
from quantlab.report.bar import CRITERIA, ReportSettings
from quantlab.report.page import places, tensor_detail, worst_rows
from quantlab.report.plots import plot_style, svg, tensor_plot
from quantlab.report.texts import LANGUAGES, Texts
from tests.conftest import aggregate, measure, run, run_quantlab
from tests.report.samples import FORMAT_LEVELS, answer, findings_of, many_answers, row, some, stored
from tests.report.test_aggregate import keep

HOSTILE = "w|<script>alert(1)</script>`[x](y)*_\n"


@pytest.fixture
def lab(lab_sweep, tmp_path):
    """A copy of the lab's sweep, to be written to."""
    return shutil.copytree(lab_sweep[0], tmp_path / "lab")


def test_a_sweep_ends_with_a_report(lab_sweep):
    directory, _ = lab_sweep
    artefacts = json.loads((directory / "manifest.json").read_text())["artefacts"]
    plots = {
        f"plots/{name}.{form}" for name in ("error_vs_bits", "closer_6") for form in ("png", "svg")
    }
    assert {"report.html", "report.md", "error_histogram.png"} | plots <= artefacts.keys()


def test_the_page_stands_alone(lab_sweep):
    page = (lab_sweep[0] / "report.html").read_text()
    addresses = set(re.findall(r"\b(?:https?|file|data):[^\"' )>]*", page))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink", "data:,"}
    assert not re.search(
        r"<(?:link(?! rel=\"icon\" href=\"data:,\")|img|iframe|object)|@import|url\(h", page
    )


def test_the_page_says_why_not_and_by_which_figures(lab_sweep):
    page = (lab_sweep[0] / "report.html").read_text()
    text = " ".join(re.sub(r"<[^>]+>", "", page).split())
    results = json.loads((lab_sweep[0] / "results.json").read_text())["verb_probs"]["symmetric"]
    assert (
        "Can INT8 alone be trusted for verb-form prediction? No. verb_probs, symmetric: the top 10 "
        f"loses its order (1 merged, the same set), the mean relative error is "
        f"{100 * results['rel_err']:.3g}% (limit 1%), {100 * results['zeroed']:.3g}% of the "
        "non-zero values become 0"
    ) in text
    assert f"those with |x| ≤ s/2 = {results['scale'] / 2:.3g}" in text
    assert f"{results['n_codes']} of 256 codes are used" in text
    # in both modes two of the verb forms merge, and of hidden the tenth with the one after it
    assert page.count('<tr class="merged">') == 8


def test_the_order_is_verdict_bits_predictions_closer_look_table_provenance(lab_sweep):
    page = (lab_sweep[0] / "report.html").read_text()
    assert re.findall(r"<h[12]>([^<]+)", page) == [
        "How many bits do these tensors need?", "Verdict", "Error against bits",
        "Predicted against measured", "A closer look", "All metrics", "Provenance",
    ]  # fmt: skip


@pytest.mark.slow
def test_another_bar_gives_another_verdict_and_measures_nothing(lab):
    before = {path: path.read_bytes() for path in lab.rglob("record.json")}
    done = run_quantlab("report", lab, "report.bar.rel_err=0.5", "report.bar.top_order=null")
    assert done.returncode == 0, done.stderr
    assert "Yes. verb_probs, symmetric: the mean relative error is 34.1%" in done.stdout
    assert {path: path.read_bytes() for path in before} == before
    assert run_quantlab("verify", lab).returncode == 0


@pytest.mark.slow
def test_the_settings_of_a_sweep_are_those_of_its_report(tmp_path):
    sweep = ["-m", "dist=tense_logits", f"hydra.sweep.dir={tmp_path}"]
    done = run(*sweep, "report.lang=es", "report.bar.rel_err=null")
    assert done.returncode == 0, done.stderr
    assert (
        "8 bits cumplen los criterios; los 5 mayores conservan su orden, la SQNR es" in done.stdout
    )
    again = run_quantlab("aggregate", tmp_path)
    assert "los 5 mayores conservan su orden, la SQNR es" in again.stdout
    other = run(*sweep)
    assert "resuming: 1 complete; 0 to do" in other.stdout  # a report is no reason to measure
    assert "8 bits meet the bar; the top 5 keeps its order, the SQNR is" in other.stdout
    other = run(*sweep, "report.bar.rel_err=0.01")
    assert "0 to do" in other.stdout
    assert "8 bits do not meet the bar; the mean relative error is 1.14%" in other.stdout


@pytest.mark.parametrize("asked", ["report.lang=fr", "report.bar.rel_err=-1"])
def test_a_bad_setting_is_refused_before_the_first_run(tmp_path, asked):
    done = run("-m", "n_bits=4,8", asked, f"hydra.sweep.dir={tmp_path}/s")
    assert done.returncode == 1
    assert done.stderr.startswith(f"quantlab: {asked.partition('=')[0]} must be ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (
            "report.bar.ssim=1",
            f"report.bar.ssim is an unknown key: choose one of {', '.join(sorted(CRITERIA))}",
        ),
        ("report.lang=fr", "report.lang must be one of en, es, got 'fr'"),
        ("report=3", "report takes lang and bar, got 3"),
    ],
)
def test_a_bad_setting_leaves_the_report_that_was_there(lab, asked, why):
    before = (lab / "report.html").read_bytes()
    done = run_quantlab("report", lab, asked)
    assert (done.returncode, done.stderr) == (1, f"quantlab: {why}\n")
    assert (lab / "report.html").read_bytes() == before


def many(directory, names):
    """A record of many tensors."""
    rng = np.random.default_rng(0)
    from quantlab.formats.uniform import Symmetric
    from tests.conftest import measure

    for n_bits in (4, 8):
        tensors = {
            name: measure(rng.standard_normal(50) ** 3, Symmetric(n_bits), name=name)
            | {"sha256": "0" * 64, "predicted": None}
            for name in names
        }
        outcome = Outcome(tensors, skipped={f"skipped {HOSTILE}": HOSTILE}, format=PLAIN)
        keep(directory / str(n_bits), n_bits, n_bits, work=lambda outcome=outcome: outcome)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_no_name_is_taken_for_markup(tmp_path, lang):
    def fail():
        raise ValueError(HOSTILE)

    many(tmp_path, [HOSTILE, "plain"])
    keep(tmp_path / "bad", 2, 3, work=fail)
    collect(tmp_path, ReportSettings({}, Texts(lang)))
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    text = (tmp_path / "report.md").read_text()
    assert "script" in text
    assert not re.search(r"(?<!\\)[<`*~]", text)
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 2
    for rows in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows.splitlines()}) == 1


@pytest.mark.usefixtures("undrawn")
def test_hundreds_of_tensors_are_folded_and_stay_small(tmp_path):
    many(tmp_path, [f"blocks.{n}.weight" for n in range(300)])
    aggregate(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert len(html) < 5e6
    assert len(re.findall("<tr><td>hidden<td>blocks", html)) == 600
    shown = re.sub(r"<details>.*?</details>", "", html, flags=re.DOTALL)
    assert shown.count('<th scope="row">') == page.FIRST_ROWS
    assert html.count('<th scope="row">') == 300


def test_a_sweep_of_failures_has_a_page_too(tmp_path):
    def fail():
        raise ValueError("tensor 'w' is empty")

    keep(tmp_path / "bad", work=fail)
    aggregate(tmp_path)
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert "No run produced results." in text
        assert "One run failed or left no record that can be read" in text
        assert "tensor 'w' is empty" in text or "tensor &#39;w&#39; is empty" in text


LEVELS = ["dist", "mode", "n_bits", "tensor"]


def test_pictures_of_an_earlier_report_go_and_nothing_else_does(lab):
    (lab / "plots" / "mine.png").write_bytes(b"mine")
    for path in [*lab.glob("hidden-*"), *lab.glob("tense_logits-*")]:
        shutil.rmtree(path)
    aggregate(lab)
    assert {path.name for path in (lab / "plots").iterdir()} == {
        f"{name}.{form}"
        for name in ("error_vs_bits", "closer_1", "closer_2")
        for form in ("png", "svg")
    } | {"mine.png"}


def test_every_prediction_is_coloured_by_how_wrong_it_was(lab_sweep):
    table = quantlab.load(lab_sweep[0])
    page = (lab_sweep[0] / "report.html").read_text()
    guesses = tables.prediction_table(table.to_dict("records"), ["dist", "mode"], Texts("en"))
    expected = [each.grade for _, row in guesses for each in row]
    assert re.findall(r'<td class="(close|off|wrong)">', page) == expected
    assert set(expected) == {"close", "off", "wrong"}


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_predictions_beyond_the_first_twelve_are_folded(tmp_path):
    sweep = ["dist=glob(*)", "mode=sym,asym", "n_bits=4,6,8"]
    done = run("-m", *sweep, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "report.html").read_text()
    section = html.partition("<h2>Predicted against measured</h2>")[2].partition("</section>")[0]
    folded = re.search(
        r"<details>\n<summary>6 more rows</summary>(.*)</details>", section, re.DOTALL
    )
    assert folded[1].count('<th scope="row">') == 6
    assert section.count('<th scope="row">') == 18


@pytest.mark.usefixtures("undrawn")
def test_a_file_s_name_need_not_be_unicode(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path / "caf") + b"\xe9.npy")
    np.save(tmp_path / "plain.npy", np.float32([1, 2, 3]))
    (tmp_path / "plain.npy").rename(path)
    done = run("-m", "dist=file/npy", f"dist.path='{path}'", f"hydra.sweep.dir={tmp_path}/s")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s" / "report.html").exists()


def test_a_report_of_a_file_begins_with_its_size_in_the_least_format(tmp_path):
    path, rng = tmp_path / "x.npz", np.random.default_rng(0)
    np.savez(path, **{name: np.float32(rng.standard_normal((40, 50))) for name in "ab"})
    sweep = ["-m", "dist=file/npz", f"dist.path={path}", "mode=sym,asym"]
    assert run(*sweep, f"hydra.sweep.dir={tmp_path}/s").returncode == 0
    sentence = "x.npz: 16 kB → 4.01 kB in sym 8 bits, 3.99 times smaller, and all meet the bar"
    for name in ("report.html", "report.md"):
        assert sentence in (tmp_path / "s" / name).read_text()


def test_what_was_not_measured_is_said_beside_the_verdict(tmp_path):
    np.savez(tmp_path / "x.npz", good=np.arange(50.0), bad=np.float32([1, np.nan]))
    done = run(
        "-m", "dist=file/npz", f"dist.path={tmp_path}/x.npz", f"hydra.sweep.dir={tmp_path}/s"
    )
    assert done.returncode == 1
    assert "\nNo verdict for bad: not measured\n" in done.stdout
    for name in ("report.html", "report.md"):
        text = (tmp_path / "s" / name).read_text()
        assert "No verdict for bad: not measured" in text
        assert "times smaller" not in text  # of some of the file


def test_the_same_records_give_the_same_report(lab_sweep, lab):
    artefacts = json.loads((lab / "manifest.json").read_text())["artefacts"]
    for name in artefacts:
        (lab / name).unlink()
    assert run_quantlab("report", lab).returncode == 0
    for name in artefacts:
        assert (lab / name).read_bytes() == (lab_sweep[0] / name).read_bytes(), name


def written(findings, lang="en"):
    """The page and report.md of what was found, and the names of all files."""
    files = page.artefacts(findings, Texts(lang))
    return files["report.html"].decode(), files["report.md"].decode(), sorted(files)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_sweep_of_formats_has_error_against_storage(lang):
    html, text, files = written(findings_of(some()), lang)
    assert {"plots/error_vs_storage.png", "plots/error_vs_storage.svg"} <= set(files)
    heading = Texts(lang)("section_storage")
    assert f"<h2>{heading}</h2>" in html
    assert f"## {heading}\n\n![{heading}](plots/error_vs_storage.png)" in text
    assert '<th scope="row">verb_probs<td class="text">sym 8 bits<td>8.01<td>34.00' in html
    assert r"| verb\_probs | sym 8 bits | 8.01 | 34.00 |" in text
    for key in ("bits_per_value", "bits_above_bound", "clip_share", "zero_share", "round_share"):
        assert f"<dt>{key}<dd>" in html


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_answers_of_a_model_have_a_section(lang):
    rows = [*many_answers(), *many_answers("<b>"), answer("nf4", 4.0, output="y", kind="values")]
    html, text, files = written(findings_of(some(), answers=rows), lang)
    t = Texts(lang)
    pictures = [name for name in files if name.startswith("plots/kl_vs_")]
    assert pictures == [
        f"plots/kl_vs_storage_{n}.{kind}" for n in (1, 2) for kind in ("png", "svg")
    ]
    assert f"<h2>{t('section_answers')}</h2>" in html
    assert f"## {t('section_answers')}\n" in text
    assert f"{t('axis_kl')}](plots/kl_vs_storage_2.png)" in text
    for key in ("answers_changes", "answers_additivity"):
        assert f"<h3>{t(key)}</h3>" in html
    assert '<td class="text">&lt;b&gt;<td>' in html
    assert "<b>, " not in html
    assert t("heat_rest", n=2 * 12 * 3 - page.FIRST_CHANGES) in html


def test_a_sweep_without_a_model_says_nothing_of_answers():
    html, text, files = written(findings_of(some()))
    assert "answers survive" not in html + text
    assert not [name for name in files if "kl_vs" in name]


def test_where_nothing_was_predicted_there_is_no_section_of_it():
    html, text, _ = written(findings_of(some()))
    assert Texts("en")("section_bits") in html
    assert Texts("en")("section_predicted") not in html + text


def test_the_verdict_begins_with_the_cheapest_format():
    html, text, _ = written(findings_of(some()))
    said = "verb_probs: cheapest format that meets the bar: sym 8 bits (8.01 bits per value)"
    assert re.sub("<[^>]+>", "", re.search("<li>(.*)", html)[1]) == said
    assert f"- {said}\n".replace("verb_", r"verb\_") in text


def test_formats_are_named_in_short_wherever_a_tensor_is():
    html, *_ = written(findings_of(some()))
    assert '<th scope="row">verb_probs, symmetric, group 32<td>' in html
    assert "block=group" not in html


def test_where_formats_were_tried_nothing_supposes_one_scale():
    html, *_ = written(findings_of(some()))
    t = Texts("en")
    for key in ("scale", "zero_point", "top_k"):
        assert f"<dd>{t(f'column_{key}')}\n" not in html
        assert f"<dd>{t(f'column_{key}_formats')}\n" in html


def test_a_plain_sweep_has_the_page_that_it_always_had():
    """What a row says of its storage changes nothing where all are plain integers."""
    rows = [
        stored(mode, n, n + 0.05, 6.0 * n) for mode in ("symmetric", "asymmetric") for n in (4, 8)
    ]
    old = ("dist", "mode", "tensor", "n_bits", "rel_err", "sqnr_db", "max_err", "zeroed")
    old += ("settings", "format", *PLAIN)
    kept = [
        {key: value for key, value in each.items() if key in old or key.startswith("top_")}
        for each in rows
    ]
    levels = ["dist", "mode", "n_bits"]
    assert written(findings_of(rows, levels)) == written(findings_of(kept, levels))
    assert "storage" not in "".join(written(findings_of(rows, levels))[2])


def test_of_many_tensors_the_cheapest_formats_are_folded():
    rows = [each for n in range(page.FIRST_ROWS + 5) for each in some(tensor=f"t{n}")]
    html, *_ = written(findings_of(rows, [*FORMAT_LEVELS, "tensor"]))
    section = html.partition("<h2>Error against storage</h2>")[2].partition("</section>")[0]
    assert section.count('<th scope="row">') == page.FIRST_ROWS + 5
    folded = section.partition("<summary>5 more rows</summary>")[2]
    assert folded.count('<th scope="row">') == 5
    assert "the median of 45 tensors" in section


def test_the_picture_of_storage_goes_with_the_formats(lab):
    (lab / "plots" / "error_vs_storage.png").write_bytes(b"of an earlier sweep")
    aggregate(lab)
    assert not (lab / "plots" / "error_vs_storage.png").exists()


T = Texts("en")


def printed(x, x_hat, k):
    top = {"indices": list(range(len(x))), "x": x, "x_hat": x_hat}
    return [(place.after, place.merged) for place in places(top, k, T)]


def test_values_that_became_equal_share_their_places():
    assert printed([9.0, 8.0, 7.9, 5.0, 3.0], [9.0, 8.0, 8.0, 5.0, 3.0], 4) == [
        ("1", False),
        ("2–3", True),
        ("2–3", True),
        ("4", False),
    ]


def test_the_next_value_is_shown_where_it_ties_with_the_last():
    assert printed([9.0, 8.0, 7.0], [9.0, 8.0, 8.0], 2) == [
        ("1", False),
        ("2 or lower", True),
        ("2 or lower", True),
    ]
    assert printed([9.0, 8.0, 7.0], [8.0, 8.0, 8.0], 2) == [("1–2 or lower", True)] * 3


def test_values_that_were_equal_are_not_marked():
    assert printed([9.0, 5.0, 5.0, 5.0], [9.0, 5.0, 5.0, 5.0], 3) == [
        ("1", False),
        ("2–3 or lower", False),
        ("2–3 or lower", False),
    ]


def test_a_tensor_of_k_values_has_no_next():
    assert printed([9.0, 8.0], [8.0, 8.0], 2) == [("1–2", True)] * 2


def test_of_a_long_top_the_first_places_are_shown():
    values = [float(100 - n) for n in range(21)]
    shown = printed(values, values, 1000)
    assert shown == [(str(n), False) for n in range(1, 21)]


@pytest.mark.parametrize(
    ("x", "quantizer", "said"),
    [
        (
            [1.2, 4.7, 3.1, 0.5, 2.9],
            Asymmetric(8, "clip"),
            ["the errors reach 61 times s/2", "20% of the values lay beyond the code range"],
        ),
        ([1.0, 2.0, 127.0], Symmetric(8), ["nothing is lost", "No non-zero value became 0."]),
        (
            [0.001, 1.0, 127.0],
            Symmetric(8),
            ["stay within 0.002 times s/2", "33.3% of the non-zero values became 0"],
        ),
    ],
)
def test_what_is_said_of_a_tensor(x, quantizer, said):
    entry = measure(np.float32(x), quantizer)
    with plot_style():
        drawn = svg(tensor_plot(entry, T), "x")
    shown = tensor_detail("x", 8, entry, drawn, T)
    assert shown.heading == "x, 8 bits"
    text = " ".join(shown.sentences)
    assert all(each in text for each in said), text
    assert ("clipped" in text) == (entry["measured"]["clipped"] > 0)


def test_of_many_scales_no_half_step_is_said():
    entry = measure(np.float32([0.001, 1.0, 126.7]), Symmetric(8))
    none = dict.fromkeys(("bound_ratio", "rmse_over_scale"))
    many = entry | {
        "params": entry["params"] | {"scale": None, "zero_point": None},
        "measured": entry["measured"] | none,
    }
    with plot_style():
        drawn = svg(tensor_plot(many, T), "x")
    shown = tensor_detail("x", 8, many, drawn, T)
    largest = f"{entry['measured']['max_err']:.3g}"
    assert shown.sentences[0] == f"Errors: the largest error is {largest}."
    assert shown.sentences[2] == "33.3% of the non-zero values became 0."
    assert "s/2" not in " ".join([*shown.sentences, shown.picture])


def test_with_many_scales_ranks_are_those_among_the_values_listed():
    entry = measure(np.float32([9.0, 8.0, 7.0, 6.9]), Symmetric(8), k=2)
    top = {"indices": [0, 1, 2], "x": [9.0, 8.0, 7.0], "x_hat": [8.0, 8.5, 8.0]}
    many = entry | {"params": entry["params"] | {"scale": None, "zero_point": None}, "top": top}
    with plot_style():
        drawn = svg(tensor_plot(many, T), "x")
    shown = tensor_detail("x", 8, many, drawn, T)
    assert [place.after for place in shown.places] == ["2", "1"]
    assert shown.caption.endswith("ranks are those among the values listed.")
    one = tensor_detail("x", 8, entry, drawn, T)
    assert "many scales" not in one.caption


def test_of_too_many_rows_a_page_shows_the_worst_and_counts_the_others(tmp_path, monkeypatch):
    many(tmp_path, "abcde")
    monkeypatch.setattr("quantlab.report.page.MAX_PAGE_ROWS", 3)
    monkeypatch.setattr("quantlab.report.tables.MAX_PAGE_ROWS", 3)
    aggregate(tmp_path)
    text = (tmp_path / "report.html").read_text()
    n_rows = len(read_aggregate(tmp_path).rows)
    for n_more in (n_rows - 3, n_rows // 2 - 3):  # of rows, and of tensors
        assert f"... and {n_more} rows more, in results.csv" in text
    table = text[text.index('<table id="all">') :]
    assert table[: table.index("</table>")].count("<tr>") == 1 + 3


def test_the_worst_rows_have_the_least_sqnr():
    rows = [row(8, sqnr_db=value) for value in (30.0, None, 10.0, 20.0)]
    assert worst_rows(rows, 4) is rows
    assert [each["sqnr_db"] for each in worst_rows(rows, 2)] == [10.0, 20.0]
