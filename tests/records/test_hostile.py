"""Records that somebody edited: whatever a value became, it is a sentence and costs no other."""

import json
import os
import random
import shutil
import traceback
from copy import deepcopy
from types import SimpleNamespace

import pytest

from quantlab.records import record
from quantlab.sweep import jobs
from quantlab.verify import find_faults
from tests.conftest import ROOT, aggregate

SCHEMA6 = ROOT / "tests" / "data" / "schema6"
VALUES = (
    "text", "", "x" * 10**5, -1, 10**18, 10**400, 1e300, -1e300, None, True, [], [1], {},
    {"a": {"b": [None]}},
)  # fmt: skip


def places(node, place=()):
    """Yield the place of each value below a node; of a list, those of its ends."""
    if place:
        yield place
    if isinstance(node, dict):
        for key in node:
            yield from places(node[key], (*place, key))
    elif node and isinstance(node, list):
        for n in {0, len(node) - 1}:
            yield from places(node[n], (*place, n))


def replaced(content, place, value):
    """Copy JSON with another value in one place."""
    content = deepcopy(content)
    *inner, last = place
    node = content
    for key in inner:
        node = node[key]
    node[last] = value
    return content


def readers(path, directory, settings):
    """List all that reads the records of a sweep, which has two: one is this, one another."""
    job, other = (
        SimpleNamespace(
            run=SimpleNamespace(settings=settings, directory=name, dist="hidden", division=None),
            typed=("dist.part=0",),
        )
        for name in (path.parent.name, "other")
    )
    return (
        lambda: jobs.Job.find_state(job, directory),
        lambda: jobs.require_one_selection([other], directory),
        lambda: jobs.require_disjoint([other], directory),
        lambda: list(find_faults(directory)),
        lambda: aggregate(directory),
    )


def find_escapes(path, directory, share):
    """Replace a share of the values of a record, one at a time; list what is no sentence."""
    whole = json.loads(path.read_bytes())
    calls = readers(path, directory, record.read(path)["config"])
    changes = [(place, value) for place in places(whole) for value in VALUES]
    escapes = []
    for place, value in random.Random(0).sample(changes, round(share * len(changes))):
        path.write_text(json.dumps(replaced(whole, place, value)))
        for call in (lambda: record.read(path), *calls):
            try:
                call()
            except ValueError as reason:
                if "\n" in str(reason):
                    escapes.append((place, str(value)[:20], reason))
            except Exception as reason:
                escapes.append((place, str(value)[:20], traceback.format_exception(reason)[-2:]))
            else:
                continue
            if call is not calls[0]:
                break  # the other readers would refuse it likewise
    path.write_text(json.dumps(whole))
    return escapes


@pytest.fixture
def sweep(tmp_path):
    """A directory of two runs, whose config is short."""
    for name in ("hidden-sym-8bit-67aa6335256fa5b6", "hidden-asym-8bit-938f78f5fb7d6ee8"):
        shutil.copytree(SCHEMA6 / name, tmp_path / name)
    return tmp_path


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "share", [0.01, pytest.param(0.05, marks=pytest.mark.slow)], ids=["some", "more"]
)
def test_whatever_a_value_became_is_a_sentence(sweep, share):
    path = sweep / "hidden-sym-8bit-67aa6335256fa5b6" / record.NAME
    assert find_escapes(path, sweep, share) == []


ODD = {
    "fifo": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(record.NAME),
    "outside": lambda path: path.symlink_to("/etc/passwd"),
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.usefixtures("undrawn")
def test_what_is_no_file_is_named_and_holds_nobody_up(sweep):
    settings = record.read(sweep / "hidden-sym-8bit-67aa6335256fa5b6" / record.NAME)["config"]
    for name, make in ODD.items():
        path = sweep / name / record.NAME
        path.parent.mkdir()
        make(path)
        for read in readers(path, sweep, settings):
            read()
        with pytest.raises(ValueError, match=f"{path} is "):
            record.read(path, sweep)
    assert aggregate(sweep).findings.failures.keys() == ODD.keys()
