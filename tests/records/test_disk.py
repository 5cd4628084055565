import json
import os
import threading
from itertools import pairwise

import pytest

from quantlab.records import disk

OLD = {"a": b"old a", "plots/b": b"old b", "stale": b"old", "voucher": b"old"}
NEW = {"a": b"new a", "plots/b": b"new b", "voucher": b"new"}


@pytest.mark.parametrize("read", [disk.read_file, disk.read_json, disk.read_yaml, disk.digest])
def test_what_is_no_file_holds_nobody_up(tmp_path, read):
    fifo, device, loop, gone = (tmp_path / name for name in ("fifo", "device", "loop", "gone"))
    os.mkfifo(fifo)
    device.symlink_to("/dev/zero")
    loop.symlink_to("loop")
    for path in (fifo, device):
        with pytest.raises(ValueError, match=f"^{path} is no regular file$"):
            read(path)
    for path, why in ((loop, "symbolic link"), (gone, "No such file"), (tmp_path, "directory")):
        with pytest.raises(OSError, match=why) as caught:
            read(path)
        assert caught.value.filename == str(path)


def test_links_are_followed_inside_a_directory_alone(tmp_path):
    inside, outside, loop = tmp_path / "sweep" / "a", tmp_path / "b", tmp_path / "sweep" / "loop"
    inside.parent.mkdir()
    for path in (inside, outside):
        path.write_text("{}")
        (inside.parent / f"to_{path.name}").symlink_to(path)
    loop.symlink_to("loop")
    assert disk.read_json(inside.parent / "to_a", inside.parent) == {}
    with pytest.raises(ValueError, match="to_b is a link out of the sweep"):
        disk.read_json(inside.parent / "to_b", inside.parent)
    with pytest.raises(OSError, match="symbolic links"):
        disk.read_json(loop, inside.parent)


def test_no_more_is_read_than_a_file_may_hold(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert disk.read_file(path, max_bytes=5) == b"12345"
    with pytest.raises(ValueError, match="x is larger than 4 B"):
        disk.read_file(path, max_bytes=4)


def test_a_file_that_grows_is_not_read_in_part(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"1")
    status = path.stat()
    path.write_bytes(b"12")
    monkeypatch.setattr(disk.os, "fstat", lambda _: status)
    with pytest.raises(ValueError, match="x grew while it was read"):
        disk.read_file(path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 50 + b"1" + b"]" * 50, None),
        (b"[" * 101 + b"1" + b"]" * 101, "nested more than 100 deep"),
        (b"[" * 100_000, "nested more than 100 deep"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "nested more than 100 deep"),
        (b"1e999", "a number beyond float64"),
        (b'{"a": [1, -1e999]}', "a number beyond float64"),
        (b"9223372036854775808", "an integer beyond 64 bits"),
        (b'[{"a": 1' + b"0" * 400 + b"}]", "an integer beyond 64 bits"),
        (b"[1" + b"0" * 5000 + b"]", "integer string conversion"),
        (b"[NaN]", "it holds NaN, which is not JSON"),
        (b"[", "Expecting value"),
        (b"\xff\xfe", "Expecting value"),
    ],
)
def test_json_that_cannot_be_computed_with_is_named(tmp_path, content, why):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    if why is None:
        disk.read_json(path)
    else:
        with pytest.raises(ValueError, match=rf"x\.json is no readable JSON \(.*({why})"):
            disk.read_json(path)


BOMB = "a: &a [1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcde"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("a: {b: 1}", None),
        ("", None),
        (BOMB, "an alias"),
        ("a: " + "[" * 100_000, "nested more than 100 deep"),
        ("a: [", "parsing a"),
        ("- 1", "no mapping"),
        ("7", "Invalid loaded object type"),
        ("a: ${", "no viable alternative"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_yaml_that_is_no_config_of_hydra_s_is_named(tmp_path, content, why):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    if why is None:
        disk.read_yaml(path)
    else:
        with pytest.raises(ValueError, match=rf"x\.yaml is no config.*({why})"):
            disk.read_yaml(path)


def test_a_reader_does_not_wait_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    done = threading.Event()

    def read():
        with pytest.raises(ValueError, match="no regular file"):
            disk.read_file(tmp_path / "fifo")
        done.set()

    threading.Thread(target=read, daemon=True).start()
    assert done.wait(10)


def write_set(directory):
    disk.write_together(directory, NEW, voucher="voucher", stale=[directory / "stale"])


def read_set(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.endswith(disk.TEMPORARY)
    }


class StopError(BaseException):
    """What no code of ours catches, as none does when it is killed."""


def stop_at(call, monkeypatch):
    """Stop the process before its n-th change of the disk."""
    left = [call]

    def stopping(change):
        def changed(*arguments, **keywords):
            left[0] -= 1
            if left[0] == -1:
                raise StopError
            return change(*arguments, **keywords)

        return changed

    for name in ("fsync", "replace", "unlink"):
        monkeypatch.setattr(os, name, stopping(getattr(os, name)))


def state_after(call, directory):
    """Replace old files by new ones, stopped at a change; return what is there, and if it was."""
    disk.write_together(directory, OLD, voucher="voucher")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(call, patch)
        try:
            write_set(directory)
        except StopError:
            return read_set(directory), True
    return read_set(directory), False


def test_files_that_are_written_together_are_whole_or_have_no_voucher(tmp_path):
    states, was_stopped = [], True
    while was_stopped:
        directory = tmp_path / str(len(states))
        directory.mkdir()
        found, was_stopped = state_after(len(states), directory)
        assert "voucher" not in found or found in (OLD, NEW)
        states.append("old" if found == OLD else "new" if found == NEW else "none")
    assert set(states) == {"old", "none", "new"}
    assert states == sorted(states, key=["old", "none", "new"].index)


def test_a_full_disk_leaves_every_file_as_it_was(tmp_path, monkeypatch):
    disk.write_together(tmp_path, OLD, voucher="voucher")
    calls = []

    def fill(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(OSError, match="No space left") as caught:
        write_set(tmp_path)
    assert caught.value.filename == str(tmp_path / "plots" / "b")
    assert read_set(tmp_path) == OLD
    assert not list(tmp_path.rglob(".*"))


def test_partial_files_of_the_killed_are_removed(tmp_path):
    names = [f".results.csv.1.{disk.TEMPORARY}", f".plan.csv.22.{disk.TEMPORARY}", "results.csv"]
    for name in names:
        (tmp_path / name).touch()
    disk.clear(tmp_path, ["results.csv"])
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:]}
    disk.clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.csv"}


def test_a_lock_names_who_holds_it_and_what_else_there_is(tmp_path):
    why = f"{tmp_path} is in use by process {os.getpid()} on .*: wait for it to end, or go on"
    with (
        disk.lock_directory(tmp_path),
        pytest.raises(ValueError, match=why),
        disk.lock_directory(tmp_path, ", or go on"),
    ):
        pytest.fail("locked twice")
    with disk.lock_directory(tmp_path):
        pass


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b"[-0, -0.0, 5e-324, 1e300, 1e-400]", [0, -0.0, 5e-324, 1e300, 0.0]),
        (rb'"\ud800"', "\ud800"),
        (b"[9223372036854775807, 9223372036854775808.0]", [2**63 - 1, 2.0**63]),
        ("[1]".encode("utf-16"), [1]),
    ],
)
def test_json_is_read_as_the_standard_library_reads_it(content, value):
    assert repr(disk.parse_json(content)) == repr(value) == repr(json.loads(content))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[1, NaN]", "NaN, which is not JSON"),
        (b"1e999", "a number beyond float64"),
        (b"9223372036854775808", "an integer beyond 64 bits"),
        (b"[1.5, 123456789012345678901234567890]", "an integer beyond 64 bits"),
        (b"[" * 101 + b"]" * 101, "nested more than 100 deep"),
        (b"[" * 10**5 + b"]" * 10**5, "nested more than 100 deep"),
        (b"[1,]", "trailing comma|Expecting value"),
    ],
)
def test_json_that_cannot_be_computed_with_is_refused(content, reason):
    with pytest.raises(ValueError, match=reason):
        disk.parse_json(content)
