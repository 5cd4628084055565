import json
import shutil

import numpy as np
import pytest

from quantlab.records import disk, record
from tests.conftest import run, run_quantlab

pytestmark = pytest.mark.usefixtures("undrawn")


def verify(directory):
    done = run_quantlab("verify", directory)
    assert done.stderr == "", done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.fixture
def sweep(lab_sweep, tmp_path):
    return shutil.copytree(lab_sweep[0], tmp_path / "sweep")


def edit(path, change):
    content = json.loads(path.read_bytes())
    change(content)
    path.write_bytes(disk.to_json(content))


def hidden(sweep):
    (directory,) = sweep.glob("hidden-sym-*")
    return directory


def test_an_intact_sweep_is_reported_intact(sweep):
    assert verify(sweep) == (0, [f"{sweep} matches its manifest"])


def test_a_flipped_bit_is_named(sweep):
    for path in (hidden(sweep) / record.NAME, sweep / "error_histogram.png", sweep / "results.csv"):
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        code, messages = verify(sweep)
        assert code == 1
        assert messages[0] == f"{path} has changed: its sha256 is not the one in the manifest"
        path.write_bytes(content)


def test_a_missing_and_an_extra_run_are_named(sweep):
    was = hidden(sweep)
    moved = was.rename(sweep / "elsewhere")
    code, messages = verify(sweep)
    assert code == 1
    assert messages == [
        f"{was / record.NAME} is missing: the manifest lists it",
        f"{moved / record.NAME} is extra: the manifest does not list it",
    ]


@pytest.mark.parametrize("name", ["config", "hydra", "overrides"])
def test_an_edited_config_of_a_run_is_named(sweep, name):
    path = hidden(sweep) / ".hydra" / f"{name}.yaml"
    path.write_text(path.read_text().replace("42", "43") + "\n")
    assert verify(sweep) == (
        1,
        [f"{path} has changed: its sha256 is not the one in the manifest"],
    )
    path.unlink()
    assert verify(sweep) == (1, [f"{path} is missing: the manifest lists it"])


def test_an_edited_seed_of_the_sweep_is_named(sweep):
    path = sweep / "multirun.yaml"
    path.write_text(path.read_text().replace("seed: 42", "seed: 43"))
    assert verify(sweep) == (
        1,
        [f"{path} has changed: its sha256 is not the one in the manifest"],
    )


def test_files_that_no_manifest_lists_are_named(sweep):
    (sweep / "plots" / "more.png").symlink_to("/etc/hostname")
    (sweep / "plots" / "linked").symlink_to("/etc")
    (hidden(sweep) / ".hydra" / "notes.txt").write_text("mine")
    (hidden(sweep) / "weights.npy").write_bytes(b"")
    (sweep / ".lock").write_text("")  # what is hidden is a lock, or a launcher's
    code, messages = verify(sweep)
    assert code == 1
    assert messages == [
        f"{path} is extra: the manifest does not list it"
        for path in (
            hidden(sweep) / "weights.npy",
            hidden(sweep) / ".hydra" / "notes.txt",
            sweep / "plots" / "linked",
            sweep / "plots" / "more.png",
        )
    ]


def test_the_logs_of_runs_are_listed(tmp_path):
    logging = ["hydra/job_logging=default", "hydra/hydra_logging=default"]
    done = run("-m", "n_bits=4,8", *logging, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    logs = sorted(tmp_path.glob("*/run.log"))
    assert len(logs) == 2
    assert verify(tmp_path)[0] == 0
    logs[0].unlink()
    assert verify(tmp_path) == (1, [f"{logs[0]} is missing: the manifest lists it"])


def test_a_run_that_was_stopped_before_its_record_is_no_fault(sweep):
    shutil.copytree(hidden(sweep) / ".hydra", sweep / "stopped" / ".hydra")
    assert run_quantlab("aggregate", sweep).returncode == 0
    assert verify(sweep)[0] == 0


def test_a_missing_config_of_the_sweep_is_named(sweep):
    (sweep / "multirun.yaml").unlink()
    assert f"{sweep}/multirun.yaml is missing: the manifest lists it" in verify(sweep)[1]


def as_schema_1(directory):
    """Turn a manifest into one that lists nothing of what Hydra wrote."""
    edit(directory / "manifest.json", lambda it: (it.pop("hydra"), it.update(schema=1)))


def test_what_a_manifest_of_schema_1_did_not_list_is_no_fault(tmp_path):
    logging = ["hydra/job_logging=default", "hydra.output_subdir=config"]
    sweep, single = tmp_path / "sweep", tmp_path / "single"
    run("-m", "dist=hidden", *logging, f"hydra.sweep.dir={sweep}")
    run("dist=hidden", f"hydra.run.dir={single}")
    for directory in (sweep, single):
        run_quantlab("aggregate", directory)
        as_schema_1(directory)
        edit(directory / "manifest.json", lambda it: it.update(command="python run.py"))
        assert verify(directory)[0] == 0
        (directory / "plots" / "more.png").touch()
        assert verify(directory)[0] == 1


def test_an_edited_figure_is_named_also_where_the_hashes_were_edited_too(sweep):
    edit(sweep / "results.json", lambda it: it["hidden"]["symmetric"].update(mae=0.5))
    sha256 = disk.digest(sweep / "results.json")
    edit(sweep / "manifest.json", lambda it: it["artefacts"].update({"results.json": sha256}))
    code, (messages,) = verify(sweep)
    assert code == 1
    assert messages.startswith(
        f"{sweep}/results.json: hidden.symmetric.mae is 0.5, the records say 0.00"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda it: it["runs"][0].update(key="0" * 64), "does not say of "),
        (lambda it: it["runs"][0].update(status="failed"), "does not say of "),
        (lambda it: it["runs"][0].update(record_sha256=None), "has changed"),
        (
            lambda it: it.update(levels=["dist"]),
            'levels is ["dist"], the records say ["dist", "mode"]',
        ),
        (lambda it: it.update(start=None), "start is null, the records say"),
        (lambda it: it.update(command="rm"), 'command is "rm", the records say "python run.py'),
        (lambda it: it["artefacts"].pop("results.csv"), "does not list results.csv: it should"),
    ],
)
def test_what_the_manifest_says_is_checked_too(sweep, change, said):
    edit(sweep / "manifest.json", change)
    code, (messages,) = verify(sweep)
    assert code == 1
    assert said in messages


def test_a_run_that_stands_alone_is_intact(tmp_path):
    assert run("dist=hidden", f"hydra.run.dir={tmp_path}").returncode == 0
    assert run_quantlab("aggregate", tmp_path).returncode == 0
    assert verify(tmp_path)[0] == 0
    config = tmp_path / ".hydra" / "config.yaml"
    config.unlink()
    assert verify(tmp_path) == (1, [f"{config} is missing: the manifest lists it"])


def test_a_manifest_may_name_nothing_outside(sweep, tmp_path):
    (tmp_path / "secret").write_text("secret")
    edit(sweep / "manifest.json", lambda it: it["artefacts"].update({"../secret": "0" * 64}))
    edit(sweep / "manifest.json", lambda it: it["runs"][0].update(directory="/etc"))
    code, messages = verify(sweep)
    assert code == 1
    outside = "is outside the sweep: the manifest should not name it, it was not read"
    assert f"{sweep}/../secret {outside}" in messages
    assert f"/etc/record.json {outside}" in messages


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file or directory; quantlab aggregate"),
        ("[" * 100_000, "does not follow its schema: it is nested more than 100 deep"),
        ("{", "does not follow its schema: Expecting"),
        ("[]", "does not follow its schema: it must be object"),
        ('{"schema": 9}', "does not follow its schema: it must contain"),
    ],
)
def test_without_a_manifest_there_is_nothing_to_hold_against(sweep, content, why):
    path = sweep / "manifest.json"
    path.unlink()
    if content:
        path.write_text(content)
    code, (messages,) = verify(sweep)
    assert code == 1
    assert why in messages
    assert str(path) in messages


def test_what_follows_no_schema_is_named(sweep):
    edit(sweep / "results.json", lambda it: it["hidden"].update(symmetric=[]))
    code, messages = verify(sweep)
    assert code == 1
    assert (
        f"{sweep}/results.json does not follow its schema: hidden.symmetric must be object"
        in messages
    )


def test_a_run_comes_out_again(sweep):
    for directory in sorted(sweep.glob("*/"))[::3]:
        done = run_quantlab("reproduce", directory)
        assert done.returncode == 0, done.stdout
        assert done.stdout == f"{directory}: reproduced, every figure bit for bit\n"


def test_a_figure_that_does_not_come_out_again_is_named(sweep):
    def change(it):
        it["tensors"]["hidden"]["measured"].update(mae=0.5)

    edit(hidden(sweep) / record.NAME, change)
    done = run_quantlab("reproduce", hidden(sweep))
    assert done.returncode == 1
    assert "tensors.hidden.measured.mae is 0.00" in done.stdout
    assert "now, 0.5 in the record" in done.stdout
    assert done.stdout.endswith(f"{hidden(sweep)} was not reproduced\n")
    edit(hidden(sweep) / record.NAME, lambda it: it["versions"].update(numpy="1.0", gone="2.0"))
    done = run_quantlab("reproduce", hidden(sweep))
    assert "was not reproduced: it was recorded with numpy 1.0, now " in done.stdout
    assert done.stdout.endswith("; gone 2.0, now none\n")
    edit(hidden(sweep) / record.NAME, lambda it: it["versions"].pop("numpy"))  # as numba may be new
    done = run_quantlab("reproduce", hidden(sweep))
    assert "it was recorded with gone 2.0, now none; numpy none, now " in done.stdout
    assert "Traceback" not in done.stderr


def test_a_run_that_lacks_tensors_is_what_older_versions_wrote_in_other_words(tmp_path):
    np.savez(tmp_path / "w.npz", good=np.arange(9.0), bad=np.full(1, np.nan))
    done = run(
        "-m", "dist=file/npz", f"dist.path={tmp_path}/w.npz", f"hydra.sweep.dir={tmp_path}/s"
    )
    assert done.returncode == 1
    (path,) = (tmp_path / "s").glob("*/record.json")
    assert verify(tmp_path / "s") == (0, [f"{tmp_path}/s matches its manifest"])
    assert run_quantlab("reproduce", path.parent).returncode == 0

    def as_recorded_before(content):
        content["schema"] = 8
        content["failed"]["bad"] = "tensor 'bad' holds 1 NaN or Inf among its 1 values"
        content["error"] = f"1 of 2 tensors failed: {content['failed']['bad']}"
        return content

    old = as_recorded_before(json.loads(path.read_text()))
    edit(path, lambda content: content.update(old))
    assert run_quantlab("reproduce", path.parent).returncode == 0
    assert run_quantlab("aggregate", tmp_path / "s").returncode == 1
    edit(tmp_path / "s" / "manifest.json", lambda content: content["runs"][0].pop("unmeasured"))
    assert verify(tmp_path / "s") == (0, [f"{tmp_path}/s matches its manifest"])


def test_a_directory_without_a_run_cannot_be_reproduced(tmp_path):
    done = run_quantlab("reproduce", tmp_path)
    assert done.returncode == 1
    messages = f"quantlab: {tmp_path} holds no record.json: name the directory of one run\n"
    assert done.stderr == messages


def test_a_directory_that_is_not_there_is_named():
    done = run_quantlab("verify", "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "quantlab: nowhere does not exist: give the directory of a sweep\n"
