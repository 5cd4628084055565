import os
import pty
import re
import sys
from contextlib import suppress

import pytest

from quantlab.report.terminal import MAX_COLUMNS, overview_table, render, sweep_summary
from quantlab.report.texts import Texts
from quantlab.text import NULL
from tests.conftest import ROOT, run_python, run_quantlab
from tests.report.samples import FORMAT_LEVELS as LEVELS
from tests.report.samples import findings_of, row, some, stored

MET, MISSED = "\x1b[32m", "\x1b[33m"
COLOUR = re.compile(r"\x1b\[[\d;]*m")


def on_a_terminal(*arguments, **env):
    """What a command shows on a terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", **env)
        os.execv(sys.executable, [sys.executable, *map(str, arguments)])
    shown = b""
    with suppress(OSError):  # the terminal of a process that ended
        while more := os.read(terminal, 4096):
            shown += more
    assert os.waitpid(pid, 0)[1] == 0
    return shown.decode().replace("\r\n", "\n")


@pytest.fixture(scope="module")
def piped(undisturbed):
    return run_quantlab("aggregate", undisturbed).stdout


def tables(shown):
    """The lines of the tables, which stand before the verdict."""
    return re.split(r"^.*trusted for", shown, flags=re.MULTILINE)[0].splitlines()


def test_tables_fit_a_hundred_columns(piped):
    assert max(map(len, tables(piped))) <= MAX_COLUMNS
    assert not any(line.endswith(" ") for line in piped.splitlines())


def test_the_verdict_is_not_broken_into_lines(piped):
    (line,) = re.findall(r"^verb_probs, symmetric: .*$", piped, flags=re.MULTILINE)
    assert len(line) > MAX_COLUMNS
    assert line.endswith("of the non-zero values become 0")


def test_the_files_are_named_and_the_pictures_by_their_directory(undisturbed, piped):
    named = piped.rstrip().split("\n\n")[-1].splitlines()
    assert named == [
        f"{undisturbed}/{name}"
        for name in (
            "results.json", "results.csv", "verdict.json", "plots", "error_histogram.png",
            "report.html", "report.md", "manifest.json",
        )
    ]  # fmt: skip


@pytest.mark.slow
def test_only_a_terminal_has_colours(lab_sweep):
    piped = run_quantlab("aggregate", lab_sweep[0]).stdout
    assert not COLOUR.search(piped)
    command = ["-m", "quantlab", "aggregate", lab_sweep[0]]
    coloured = on_a_terminal(*command)
    assert COLOUR.search(coloured)
    bare = [line.rstrip() for line in COLOUR.sub("", coloured).strip().splitlines()]
    assert bare == piped.strip().splitlines()
    assert "\x1b[32m" not in on_a_terminal(*command, NO_COLOR="1")


def test_no_figure_is_cut(piped):
    assert "…" not in piped


def test_what_looks_like_markup_is_text():
    assert render("[bold]x[/bold] :smile:") == "[bold]x[/bold] :smile:"


@pytest.mark.slow
def test_a_figure_is_coloured_by_the_bar(lab_sweep):
    shown = on_a_terminal("-m", "quantlab", "aggregate", lab_sweep[0])
    (line,) = re.findall(r"^tense_logits symmetric .*in order.*$", shown, flags=re.MULTILINE)
    assert [COLOUR.findall(each)[0] for each in re.findall(r"\x1b\[3\dm *[\w.%]+", line)] == [
        MISSED,
        MET,
        MET,
    ]
    assert re.search(rf"{re.escape(MISSED)} *1\.1%", line)


@pytest.mark.slow
def test_a_terminal_without_our_characters_is_no_failure(lab_sweep):
    command = ["-m", "quantlab", "aggregate", lab_sweep[0]]
    done = run_python(*command, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "0?100% kept" in done.stdout


@pytest.mark.usefixtures("undrawn")
def test_the_language_of_the_report_is_that_of_the_verdict(undisturbed, tmp_path):
    import shutil

    copy = shutil.copytree(undisturbed, tmp_path / "copy")
    done = run_quantlab("report", copy, "report.lang=es", cwd=ROOT)
    assert "ninguno de los anchos probados (2 a 8 bits) cumple los criterios" in done.stdout
    assert '<html lang="es">' in (copy / "report.html").read_text()


def test_formats_have_one_column_and_a_table_of_the_cheapest():
    long = {"block": "group", "block_size": 128, "scale_dtype": "bfloat16", "range": "percentile"}
    rows = [*some(), stored("asymmetric", 8, 8.3, 41.0, **long)]
    levels = [*LEVELS, "scale_dtype", "range"]
    shown = sweep_summary(findings_of(rows, levels), [], Texts("en"))
    heads, *lines = shown.splitlines()
    assert heads.split()[:3] == ["dist", "format", "mae"]
    assert max(map(len, lines[: len(rows)])) <= MAX_COLUMNS
    assert re.search(r"asym 8 bits, group .*\n +128, bfloat16,\n +percentile", shown)
    assert re.search(r"\nError against storage\n\ntensor +cheapest format +bits per value +SQNR, dB"
                     r"\nverb_probs +sym 8 bits +8.01 +34.00\n", shown)  # fmt: skip
    assert "\nverb_probs: cheapest format that meets the bar: sym 8 bits (8.01 bits per" in shown


def test_of_many_tensors_too():
    rows = [each for n in range(70) for each in some(tensor=f"t{n}", dist="file/npz")]
    shown = sweep_summary(findings_of(rows, [*LEVELS, "tensor"]), [], Texts("en"))
    assert "... and 10 rows more, in results.csv" in shown
    assert re.search(r"^file/npz +nf4, group 32 +70 +70", shown, flags=re.MULTILINE)
    assert "file/npz: 70 of 70 tensors have a format that meets the bar; the cheapest is" in shown


@pytest.mark.parametrize(("runs", "of_each"), [(4, 3), (5, 2), (12, 1), (13, 0)])
def test_many_runs_have_fewer_of_their_worst_tensors(runs, of_each):
    rows = [
        stored("symmetric", n_bits, n_bits, 40.0 + n_bits, tensor=f"t{n}", dist="file/npz")
        for n_bits in range(2, 2 + runs)
        for n in range(5)
    ]
    shown = sweep_summary(findings_of(rows, ["dist", "mode", "n_bits", "tensor"]), [], Texts("en"))
    title = {0: None, 1: "the worst tensor of each run"}.get(
        of_each, f"the {of_each} worst tensors of each run"
    )
    _, *tables = shown.split(f"\n{title}, by sqnr_db\n\n")
    assert [len(table.split("\n\n")[0].splitlines()) - 1 for table in tables] == (
        [runs * of_each] if of_each else []
    )
    assert ("of each run" in shown) == bool(of_each)


def test_an_exact_round_trip_is_said_one_way():
    exact = row(8, sqnr_db=None, max_err=0.0)
    texts = Texts("en")
    (cells,) = overview_table([[exact, exact]], ["dist"], texts).rows
    assert cells[3:5] == ("exact", "exact")
    (cells,) = overview_table([[row(8), exact, exact]], ["dist"], texts).rows
    assert cells[3:5] == ("exact", "50.00")
    lost = row(8, sqnr_db=None, max_err=0.1)
    (cells,) = overview_table([[lost]], ["dist"], texts).rows
    assert cells[3:5] == (NULL, NULL)
