import subprocess

from quantlab.records import manifest
from tests.conftest import ROOT


def test_a_clone_is_known_by_its_commit():
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert manifest.manifest({}, {}, {})["git"]["commit"] == head.stdout.strip()


def test_a_copy_inside_another_repository_has_no_commit(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / "manifest.py").touch()
    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "manifest.py"))
    assert manifest.manifest({}, {}, {})["git"] is None
