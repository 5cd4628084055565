import shutil

import numpy as np
import pytest

from quantlab.records import disk, record
from tests.conftest import ALL, ROOT, SWEEP, require_same, run


def test_what_is_complete_is_not_done_again(undisturbed, tmp_path):
    copy = shutil.copytree(undisturbed, tmp_path / "copy")
    paths = sorted(copy.glob("*/record.json"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    missing, failed, torn, foreign, *complete = paths
    missing.unlink()
    failed.write_bytes(disk.to_json(record.read(failed) | {"status": "failed"}))
    torn.write_bytes(torn.read_bytes()[:1000])
    foreign.write_bytes(complete[0].read_bytes())  # it answers another question
    done = run(*SWEEP, f"hydra.sweep.dir={copy}")
    assert done.returncode == 0, done.stderr
    said = "resuming: 24 complete, 1 failed, 1 missing, 1 unreadable, 1 changed; 4 to do"
    assert said in done.stdout
    assert "4/4 runs, 0 failed" in done.stdout
    require_same(copy, undisturbed)
    assert all(path.stat().st_mtime_ns == before[path] for path in complete)


def test_resume_false_does_all_again(undisturbed, tmp_path):
    copy = shutil.copytree(undisturbed, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in copy.glob("*/record.json")}
    done = run(*SWEEP, f"hydra.sweep.dir={copy}", "resume=false")
    assert f"{ALL}/{ALL} runs, 0 failed" in done.stdout
    assert set(copy.glob("*/record.json")) == set(before)
    assert all(path.stat().st_mtime_ns != old for path, old in before.items())
    require_same(copy, undisturbed)


def test_a_changed_file_is_measured_again_and_threads_change_nothing(tmp_path):
    path = tmp_path / "w.npy"
    sweep = ["-m", "dist=file/npy", f"dist.path={path}", f"hydra.sweep.dir={tmp_path}/s"]
    np.save(path, np.float32([1, 2]))
    assert run(*sweep).returncode == 0
    assert "1 complete; 0 to do" in run(*sweep).stdout
    np.save(path, np.float32([1, 3]))
    assert "1 changed; 1 to do" in run(*sweep).stdout
    (one,) = (tmp_path / "s").glob("*/record.json")
    assert record.read(one)["tensors"]["w"]["range"] == [1, 3]
    assert "1 complete; 0 to do" in run(*sweep, "threads=1").stdout
    np.savez(tmp_path / "w.npz", x=np.float32([1, 3]))
    npz = ["-m", "dist=file/npz", f"dist.path={tmp_path}/w.npz", f"hydra.sweep.dir={tmp_path}/npz"]
    assert run(*npz).returncode == 0
    np.savez(tmp_path / "w.npz", y=np.float32([1, 3]))  # the same bytes under another name
    assert "1 changed; 1 to do" in run(*npz).stdout
    np.save(path, np.float32([1, 3]).view(np.float16))  # the same bytes as other values
    assert "1 changed; 1 to do" in run(*sweep).stdout
    np.save(path, np.float32([1, 3]))
    assert run(*sweep).returncode == 0
    config = (ROOT / "conf" / "config.yaml").read_text()
    (tmp_path / "other.yaml").write_text(config.replace("seed: 42", "seed: 1"))
    other = run(*sweep, "--config-name", "other", "--config-dir", str(tmp_path))
    assert "1 changed; 1 to do" in other.stdout


def test_directories_named_by_number_are_never_mistaken_for_complete(tmp_path):
    sweep = [
        "-m",
        "n_bits=4,8",
        f"hydra.sweep.dir={tmp_path}",
        "hydra.sweep.subdir=${hydra.job.num}",
    ]
    for _ in range(2):
        done = run(*sweep)
        assert done.returncode == 0, done.stderr
        assert "2/2 runs, 0 failed" in done.stdout


def test_settings_of_the_environment_are_resumed(tmp_path):
    sweep = ["-m", "dist=hidden", "+note=${oc.env:NOTE}", "+hydra.job.env_set.NOTE=7"]
    for said in ("1/1 runs, 0 failed", "1 complete; 0 to do"):
        done = run(*sweep, f"hydra.sweep.dir={tmp_path}/s")
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def test_one_question_asked_in_two_ways_is_reported_and_costs_nothing(tmp_path):
    sweep = ["-m", "dist=verb_probs", f"hydra.sweep.dir={tmp_path}"]
    assert run(*sweep, "n_bits=8").returncode == 0
    before = (tmp_path / "results.json").read_bytes()
    done = run(*sweep)  # 8 is the default
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("quantlab: two runs are of dist=verb_probs, mode=symmetric: ")
    assert line.endswith(f"remove one, then quantlab aggregate {tmp_path}")
    assert (tmp_path / "results.json").read_bytes() == before


@pytest.mark.parametrize("value", ["maybe", "no", "1", "null"])
def test_resume_is_true_or_false(tmp_path, value):
    done = run("-m", "n_bits=4,8", f"resume={value}", f"hydra.sweep.dir={tmp_path}/s")
    assert done.returncode == 1
    assert done.stderr.startswith("quantlab: resume must be true or false, got ")
    assert not (tmp_path / "s").exists()
