"""The figures of the docs are those of the committed sweep and of the commands beside them."""

import json
import re
import shlex
import shutil

import gguf
import numpy as np
import pytest
import yaml

import quantlab
from quantlab.report import terminal
from quantlab.report.bar import Bar
from quantlab.report.texts import Texts
from tests.conftest import ROOT, run, run_python, run_quantlab
from tests.sources.samples import write_gguf, write_safetensors

PAGES = {
    path.name: path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
}
README, WRITE_UP, CHECKPOINTS, FORMATS = (
    PAGES[name] for name in ("README.md", "lab.md", "checkpoints.md", "formats.md")
)
DEMO = ROOT / ".venv/demo/silero_vad/data/silero_vad_16k.safetensors"
G2P = ROOT / ".venv/demo/g2p_en/checkpoint20.npz"
LAB = json.loads((ROOT / "multirun" / "lab" / "results.json").read_text())


def committed():
    return [
        {"dist": dist, "mode": mode, "n_bits": 8} | figures
        for dist, modes in LAB.items()
        for mode, figures in modes.items()
    ]


def test_the_committed_results_are_what_the_lab_gives(lab_sweep):
    directory, _ = lab_sweep
    for name in ("results.json", "results.csv"):
        fresh, kept = directory / name, ROOT / "multirun" / "lab" / name
        assert fresh.read_bytes() == kept.read_bytes()


def test_the_tables_are_those_of_the_committed_sweep():
    levels = ["dist", "mode"]
    measured = terminal.render(terminal.measured_table(committed(), levels, Texts("en")))
    assert measured in README
    assert measured in WRITE_UP
    assert terminal.render(terminal.predicted_table(committed(), levels, Texts("en"))) in WRITE_UP


@pytest.mark.slow
def test_the_example_prints_what_is_shown(remedies_sweep, tmp_path):
    code, printed = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.DOTALL).groups()
    assert len([line for line in code.splitlines() if line]) <= 10
    shutil.copytree(remedies_sweep[0], tmp_path / "multirun" / "remedies")
    done = run_python("-c", code, cwd=tmp_path)
    assert (done.stdout, done.stderr) == (printed, "")


def test_the_default_bar_is_the_one_argued_for():
    for key, asked in Bar().criteria.items():
        assert f"| `{key}` | `{json.dumps(asked).removesuffix('.0')}` |" in CHECKPOINTS


def test_the_claims_hold():
    verb, verb_asym = LAB["verb_probs"]["symmetric"], LAB["verb_probs"]["asymmetric"]
    hidden, tense = LAB["hidden"]["symmetric"], LAB["tense_logits"]["symmetric"]
    assert verb["kl"] is verb_asym["kl"] is None
    assert verb["top_worst"] == verb_asym["top_worst"] == 1
    finer = LAB["tense_logits"]["asymmetric"]
    for claim in (
        f"largest {verb['x_max']:.4f}, step {verb['scale']:.2e}",
        f"A mean relative error of {verb['rel_err']:.1%} ({verb_asym['rel_err']:.1%} asymmetric), "
        f"{verb['zeroed']:.1%} ({verb_asym['zeroed']:.1%})",
        f"{verb['landmark_rel_err']:.1%} wrong ({verb_asym['landmark_rel_err']:.1%} asymmetric)",
        f"rel_err {verb['rel_err']:.1%} → {verb_asym['rel_err']:.1%}",
        f"SQNR {verb['sqnr_db']:.1f} → {verb_asym['sqnr_db']:.1f} dB",
        f"{verb['top_swapped']} swaps, {verb['top_merged']} merge",
        f"no: {verb['top_merged']} pair of neighbours merges",
        f"keep the set from {verb['top_bits_sufficient']} bits",
        f"{tense['landmark_rel_err']:.1%}; half a step is {tense['scale'] / 2 / 1.2:.1%}",
        f"{hidden['landmark_rel_err']:.1%}; it is the mean, raised by values near 0, that is "
        f"{hidden['rel_err']:.1%}",
        f"s/2 = {hidden['scale'] / 2:.5f}: rms {hidden['rmse_over_scale']:.4f} steps",
        f"the data spans [{tense['x_min']:.1f}, {tense['x_max']:.1f}]",
        f"{finer['predicted_scale'] / finer['scale']:.1f} times finer",
        f"predicted as {verb['predicted_scale'] * 127:.4f} and measured as {verb['x_max']:.4f}",
        f"{verb['predicted_scale'] / verb['scale'] - 1:.0%}".replace("%", " % too large"),
        f"({verb_asym['predicted_landmark_rel_err']:.1%} predicted, "
        f"{verb_asym['landmark_rel_err']:.1%} measured)",
        f"predicted at {hidden['predicted_scale'] * 127:.2f}, its median; "
        f"the sample has {max(hidden['x_max'], -hidden['x_min']):.2f}",
        f"{hidden['scale'] / hidden['predicted_scale']:.2f} times the prediction",
        f"largest error 0.5 on tense_logits, {0.5 / finer['scale']:.0f} steps",
    ):
        assert claim in " ".join(WRITE_UP.split()), claim
    for claim in (
        f"A mean relative error of {verb['rel_err']:.1%} ({verb_asym['rel_err']:.1%} asymmetric), "
        f"{verb['zeroed']:.1%} ({verb_asym['zeroed']:.1%})",
    ):
        assert claim in " ".join(README.split())
    assert hidden["mae"] == pytest.approx(hidden["scale"] / 4, rel=0.02)


def test_the_remedies_are_those_of_the_committed_sweep():
    rows = quantlab.load(ROOT / "multirun" / "remedies").fillna({"block_size": 0})
    verb = rows[rows.dist == "verb_probs"].set_index(["mode", "n_bits", "block"])
    log, plain = verb.loc[("log", 8, "tensor")], verb.loc[("symmetric", 8, "tensor")]
    assert log.zeroed == 0
    claim = f"its relative error is {log.rel_err:.1%} where symmetric has {plain.rel_err:.1%}"
    assert claim in " ".join(FORMATS.split())
    assert f"their mean relative error is {log.rel_err:.1%}" in " ".join(README.split())
    bar = Bar()
    met = {
        tuple(key): not bar.missed(row)
        for key, row in zip(verb.index, verb.to_dict("records"), strict=True)
    }
    assert met[("log", 10, "tensor")]
    assert met[("symmetric", 14, "tensor")]
    assert not met[("symmetric", 13, "tensor")]
    assert met[("symmetric", 12, "group")]
    assert not met[("symmetric", 11, "group")]


@pytest.mark.slow
def test_the_committed_remedies_come_out_again(remedies_sweep, tmp_path):
    directory, printed = remedies_sweep
    for name in ("results.json", "results.csv"):
        committed = ROOT / "multirun" / "remedies" / name
        assert (directory / name).read_bytes() == committed.read_bytes()
    table = printed.split("Error against storage\n\n")[1].split("\n\n")[0]
    assert table in FORMATS
    copy = shutil.copytree(directory, tmp_path / "remedies")
    plan = run_quantlab("plan", copy, "--bar").stdout
    assert plan.splitlines()[0] in README


def test_the_picture_of_the_levels_is_the_one_that_is_drawn(tmp_path):
    from matplotlib.image import imread

    shutil.copy(ROOT / "docs" / "levels.py", tmp_path)
    assert run_python(tmp_path / "levels.py").returncode == 0
    drawn, kept = imread(tmp_path / "levels.png"), imread(ROOT / "docs" / "levels.png")
    assert drawn.shape == kept.shape
    assert abs(drawn - kept).mean() < 0.01


@pytest.mark.usefixtures("undrawn")
def test_the_zero_points_are_those_shown(tmp_path):
    sweep = ["dist=tense_logits", "mode=asym", "mode.zero_point=widen,clip,wide_int"]
    done = run("-m", *sweep, f"hydra.sweep.dir={tmp_path}")
    assert done.stdout.split("\n\n")[1] in WRITE_UP


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_widths_of_verb_probs_are_those_said(tmp_path):
    sweep = ["dist=verb_probs", "mode=sym,asym", "n_bits=range(2,17)"]
    done = run("-m", *sweep, f"hydra.sweep.dir={tmp_path}")
    _, *verdicts, _ = done.stdout.split("\n\n")[-2].splitlines()
    assert "\n".join(verdicts) in WRITE_UP
    table = quantlab.load(tmp_path).query("mode == 'symmetric'").set_index("n_bits")
    assert table[table["top_order_kept"]].index.tolist() == [10, 12, 13, 14, 15, 16]


# A bare `pytest` may run offline; `make test`, and so CI, fetches the checkpoint first.
@pytest.mark.skipif(not DEMO.exists(), reason=f"{DEMO} is missing: make .venv/demo fetches it")
@pytest.mark.usefixtures("undrawn")
def test_the_demo_prints_what_is_shown(tmp_path):
    done = run(
        "-m",
        "dist=file/safetensors",
        f"dist.path={DEMO}",
        "mode=sym,asym",
        "n_bits=4,8",
        f"hydra.sweep.dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    overview, heading, worst = done.stdout.split("\n\n")[1:4]
    assert f"{overview}\n\n{heading}\n\n{worst}" in CHECKPOINTS


@pytest.mark.slow
@pytest.mark.skipif(not DEMO.exists(), reason=f"{DEMO} is missing: make .venv/demo fetches it")
def test_the_plan_is_the_one_shown(tmp_path):
    typed = re.search(r"^(python run.py .*multirun/formats)$", README, re.MULTILINE | re.DOTALL)[1]
    *_, typed = typed.replace("\\\n", "").split("python run.py ")
    typed = typed.replace("$MODEL", str(DEMO)).replace("multirun/formats", str(tmp_path))
    assert run(*shlex.split(typed)).returncode == 0
    options = re.search(r"^quantlab plan multirun/formats (--bits \S+)", README, re.MULTILINE)[1]
    done = run_quantlab("plan", tmp_path, *options.split())
    lines = done.stdout.splitlines()
    ratio = next(line for line in lines if "times less" in line)
    assert f"{lines[0]}\n{ratio}\n" in README
    for text in (done.stdout[: done.stdout.index(str(tmp_path))].strip(), ratio):
        assert text in PAGES["plans.md"]
    apply = re.search(r"^quantlab (apply .*)$", PAGES["plans.md"], re.MULTILINE)[1]
    places = {"$MODEL": str(DEMO), "multirun/formats": str(tmp_path), "multirun": f"{tmp_path}/out"}
    for name, place in places.items():
        apply = apply.replace(name, place)
    assert run_quantlab(*apply.split()).stdout.startswith("7 tensors as the plan brings them back")


def test_no_value_of_the_lab_lies_on_a_half_step():
    import numpy as np

    from quantlab.formats import uniform
    from quantlab.sources.source import Hidden, TenseLogits, VerbProbs

    sources = TenseLogits(42, None), VerbProbs(42, 600, 1.5), Hidden(42, 1024, 600)
    for source in sources:
        x = next(source.tensors()).array
        for quantizer in (uniform.Symmetric(8), uniform.Asymmetric(8)):
            steps = x / quantizer.choose(*uniform.value_range(x)).scale
            assert not (np.abs(steps - np.trunc(steps)) == 0.5).any()


def test_the_readme_is_short():
    assert len(README.splitlines()) < 160


def anchors(text):
    """The anchors that a page has, as GitHub makes them of its headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
    here = ROOT if name == "README.md" else ROOT / "docs"
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        path, _, anchor = link.partition("#")
        target = here / path if path else here / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_the_way_of_a_value_names_each_room_once():
    story = README.partition("The way of one value")[2].partition("\n\nEach of")[0]
    assert len(story.partition("\n\n")[2].strip().splitlines()) <= 10
    for room in ("formats", "sources", "stats", "models", "records", "report", "plans", "sweep"):
        assert len(re.findall(rf"`{room}`", story)) == 1, room


def write_own_files(text, folder):
    """Write the files of the user's own that a page shows."""
    for name, content in re.findall(r"`(own/\S+)`\n\n```\w+\n(.*?)```", text, re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_example_of_one_s_own_classes_works_as_written(tmp_path):
    text = PAGES["extending.md"]
    write_own_files(text, tmp_path)
    command = re.search(r"^quantlab (run --config-dir own .*)$", text, re.MULTILINE)[1]
    done = run_quantlab(*shlex.split(command), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (results,) = tmp_path.glob("multirun/*/results.json")
    modes = json.loads(results.read_bytes())["laplace"]
    assert {mode: list(widths) for mode, widths in modes.items()} == {
        "power_of_two": ["4", "8"],
        "symmetric": ["4", "8"],
    }
    assert all("crest" in figures for widths in modes.values() for figures in widths.values())
    assert "| crest |" in (results.parent / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not G2P.exists(), reason=f"{G2P} is missing: make .venv/demo fetches it")
def test_four_bits_of_a_model_cost_what_is_shown(tmp_path):
    inputs, sweep = tmp_path / "inputs.npz", tmp_path / "sweep"
    assert run_python(ROOT / "docs/g2p/g2p.py", G2P.parent, inputs).returncode == 0
    settings = [
        "dist=file/npz", f"dist.path={G2P}", "dist.include=*_w*", f"model.path={G2P.parent}",
        f"metrics.inputs={inputs}", f"rounding.inputs={inputs}", f"hydra.sweep.dir={sweep}",
        "mode=sym", "n_bits=4", "block=group", "block.scale=float16", "rounding=nearest,gptq",
    ]  # fmt: skip
    done = run("--config-dir", str(ROOT / "docs/g2p"), "-m", "model=g2p", *settings)
    assert done.returncode == 0, done.stderr
    printed = run_python(ROOT / "docs/g2p/table.py", sweep).stdout.splitlines()
    assert printed[0] in FORMATS
    shown = [line.split(" | ") for line in FORMATS.splitlines()]
    for name, *cells in (line.split(" | ") for line in printed[2:]):
        (expected,) = ([*numbers] for row, *numbers in shown if row == name)
        numbers, others = ([float(cell.strip(" %|")) for cell in row] for row in (cells, expected))
        assert numbers == pytest.approx(others, rel=0.02), name


@pytest.mark.skipif(not DEMO.exists(), reason=f"{DEMO} is missing: make .venv/demo fetches it")
def test_two_files_are_compared_as_shown(tmp_path):
    pytest.importorskip("xllamacpp")
    done = run_python(ROOT / "docs/write_gguf.py", DEMO, tmp_path, "q8_0", "q4_0")
    assert done.returncode == 0, done.stderr
    examples = re.findall(
        r"^\$ quantlab ([^\n]*)\n(.*?)\n```", PAGES["stored.md"], re.MULTILINE | re.DOTALL
    )
    for command, shown in examples:
        done = run_quantlab(*shlex.split(command.replace(".venv/demo", str(tmp_path))))
        assert done.returncode == 0
        assert f"{shown}\n" in done.stdout.replace(str(tmp_path), ".venv/demo")
    assert len(examples) == 2


@pytest.mark.usefixtures("undrawn")
def test_the_workflow_follows_its_schema_and_its_commands_run(tmp_path):
    text = re.search(r"```yaml\n(name: weights\n.*?)```", PAGES["sweeps.md"], re.DOTALL)[1]
    (tmp_path / "check.yml").write_text(text)
    schema = ["--builtin-schema", "vendor.github-workflows"]
    done = run_python("-m", "check_jsonschema", *schema, tmp_path / "check.yml")
    assert done.returncode == 0, done.stdout
    x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    write_safetensors(tmp_path / "model.safetensors", w=x)
    steps = yaml.safe_load(text)["jobs"]["check"]["steps"]
    commands = [step["run"] for step in steps if step.get("run", "").startswith("quantlab")]
    for command in commands:
        done = run_quantlab(*shlex.split(command)[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "sweep" / "report.md").exists()
    assert len(commands) == 2


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_is_exported_as_shown(tmp_path):
    commands = re.findall(r"^quantlab (export .*)$", PAGES["sweeps.md"], re.MULTILINE)
    run("-m", "dist=hidden", "n_bits=4,8", "hydra.sweep.dir=multirun/mine", cwd=tmp_path)
    for command in commands[:2]:  # of MLflow tests/report/test_export.py has the server
        arguments = shlex.split(command.partition(" > ")[0], comments=True)
        done = run_quantlab(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), command
    assert (tmp_path / "mine.parquet").exists()


@pytest.mark.slow
def test_the_site_has_every_page_and_no_link_that_leads_nowhere(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    done = run_python("-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    pages = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("index.html")}
    names = {name.removesuffix(".md") for name in PAGES if name != "README.md"}
    assert pages >= {".", "benchmarks", "api/quantlab", "api/formats", *names}
    api = (tmp_path / "api" / "quantlab" / "index.html").read_text()
    for name in ("measure", "load", "answers", "verdict", "plan"):
        assert f".{name}" in api
    prose = re.sub(r"<(pre|script).*?</\1>", "", api, flags=re.DOTALL)
    assert "===" not in prose
    assert "&gt;&gt;&gt;" not in prose


def test_files_of_the_hub_are_read_as_shown(hub, tmp_path):
    x = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    write_safetensors(tmp_path / "model.safetensors", w=x)
    codes = gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0)
    write_gguf(tmp_path / "q8_0.gguf", w=(codes, gguf.GGMLQuantizationType.Q8_0))
    for repo, name in (("org/model", "model.safetensors"), ("org/model-gguf", "q8_0.gguf")):
        hub.commit(repo, {name: (tmp_path / name).read_bytes()})
    commands = re.findall(r"^quantlab (.* hf:.*|.*=hf:.*)$", CHECKPOINTS, re.MULTILINE)
    printed = []
    for command in commands:
        done = run_quantlab(*shlex.split(command, comments=True), cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        printed.append(done.stdout)
    assert "[4, 32]" in printed[0]
    assert "sqnr_db" in printed[1]


@pytest.mark.slow
def test_sweeps_resume_as_shown(tmp_path):
    commands = re.findall(r"^\$ (python .*)$", PAGES["sweeps.md"], re.MULTILINE)
    for command in commands:
        done = run_python(ROOT / command.split()[1], *command.split()[2:], cwd=tmp_path)
    assert done.stdout.splitlines()[0] in PAGES["sweeps.md"]


NUMBER = re.compile(r"\d[\d.]*%?")


def is_alike(line, shown):
    """Test for the same words, and figures that differ as those of two processors may."""
    if NUMBER.sub("0", " ".join(line.split())) != NUMBER.sub("0", " ".join(shown.split())):
        return False
    return all(
        float(figure.strip("%."))
        == pytest.approx(float(expected.strip("%.")), rel=0.05, abs=expected.endswith("%"))
        for figure, expected in zip(NUMBER.findall(line), NUMBER.findall(shown), strict=True)
    )


@pytest.mark.usefixtures("undrawn")
def test_a_language_model_answers_as_shown(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    write_own_files(PAGES["answers.md"], tmp_path)
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))
    model.save_pretrained(tmp_path / "checkpoint")
    np.savez(tmp_path / "tokens.npz", tokens=np.random.default_rng(0).integers(50, size=(6, 16)))
    (command,) = re.findall(r"```shell\nquantlab (.*?)```", PAGES["answers.md"], re.DOTALL)
    done = run_quantlab(*shlex.split(command.replace("\\\n", "")), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (directory,) = tmp_path.glob("multirun/*")
    answers = quantlab.answers(directory).set_index("n_bits")
    assert answers["samples"].tolist() == [6, 6]
    assert 0 < answers["kl"][8] < answers["kl"][4] / 30  # the square of noise: 4 bits are 48 dB


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_answers_are_those_shown(tmp_path, monkeypatch):
    text = PAGES["answers.md"]
    monkeypatch.chdir(tmp_path)
    write_own_files(text, tmp_path)
    printed = run_fences(text, tmp_path)
    assert "kinds_logits, 500 answers, from the best format to the smallest: sym 8 bits" in printed


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_keys_and_values_are_stored_as_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, sections = PAGES["activations.md"].partition("## K and V")
    assert run_fences(sections.partition("## What an error")[0], tmp_path)


def run_fences(text, tmp_path):
    """Run the commands of a text, look for what is shown of each; return what the last prints."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    blocks = [block for language, block in fences if not language]
    printed = []
    for block in blocks:
        if not re.match(r"pip|python|quantlab", block):
            lines = "\n".join(printed).splitlines()
            for shown in block.splitlines():
                assert any(is_alike(line, shown) for line in lines), shown
            continue
        printed = []
        for line in block.replace("\\\n", "").splitlines():
            command = shlex.split(line, comments=True)
            if command[0] == "pip":
                continue
            if command[0] == "quantlab":
                done = run_quantlab(*command[1:], cwd=tmp_path)
            elif command[1] == "run.py":
                done = run(*command[2:], cwd=tmp_path)
            else:
                done = run_python(ROOT / command[1], *command[2:], cwd=tmp_path)
            assert (done.returncode, done.stderr) == (int("exit code 1" in line), ""), line
            printed.append(done.stdout)
    return printed[-1]
