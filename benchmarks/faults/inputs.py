"""Kinds of faults of what is measured: files that change, hostile names, hostile files."""

import csv
import io
import json
import os
import random
import re
import struct
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from faults.command import QUANTLAB, RUN
from faults.reference import Reference
from faults.trial import SWEEP, Trial

LONG = (700, 640)  # the shape of tensors that take a moment to measure
LONGEST_SECONDS = 2.0  # until an input changes
SLOW = ["range=mse", "block=group", "threads=1", "n_bits=4,6,8"]
TERABYTES = 2**42
EVIL = "<script>alert(1)</script>"
MARKUP = re.compile(r"(?<!\\)<script>alert|(?<!\\)<img src=x")
SAFE_CONTROLS = {"\n", "\t", "\r"}
NAMES = (
    "../../etc/passwd", "/etc/passwd", "..", ".", "", " ", "a\0b", "a\nb", "a\r\nb", "a\tb",
    "\x1b[2J\x1b[31mred", EVIL, '"><img src=x onerror=alert(1)>', "=cmd|' /C calc'!A0", "+1", "-1",
    "@a",
    "x" * 255, "x" * 10_000, "NA", "nan", "null", "None", "True", "1e5", "007", "${oc.env:HOME}",
    "${now:}", "$(touch pwned)", "`touch pwned`", "%s%n", "{0}", "a,b;c", '"', "'", "\\", "*",
    "[a-z]",
    "?", "\u202egnp", "\ufeffa", "e\u0301", "\U0001f600", "a|b", "# a", "](javascript:1)",
    "</title>", "&lt;", "$x$", "_^{", "\\frac{",
)  # fmt: skip
# Without "${a}", which Hydra resolves as often as it meets it: refused in a sentence.
FILE_NAMES = (
    "a b", "a'b", 'a"b', "a\nb", "a\\b", "a=b", "a,b", "[a]", "{a}", "(a)", "a:b", "~a", "-a",
    "%(a)s", "$a", "*", "?", "é\u0301", "\U0001f600", "x" * 255, "a#b", "a;b", "a|b", "null",
    "a\tb",
)  # fmt: skip


def changed_input(trial: Trial, _: Reference) -> None:
    """Truncate, replace, overwrite or delete a file while it is measured."""
    form = trial.rng.choice(["npy", "npz", "safetensors"])
    path = trial.folder / f"long.{form}"
    _write_long(path)
    content = path.read_bytes()
    arguments = ["-m", f"dist=file/{form}", f"dist.path={path.name}", *SLOW]
    undisturbed = trial.run(RUN, [*arguments, "hydra.sweep.dir=undisturbed"])
    trial.require_success(undisturbed, "an undisturbed sweep")
    arguments.append(f"hydra.sweep.dir={SWEEP}")
    started = trial.start(RUN, arguments)
    time.sleep(trial.rng.uniform(0, LONGEST_SECONDS))
    change = trial.rng.choice(sorted(CHANGES))
    CHANGES[change](path, trial.rng)
    trial.story = f"{path.name}: {change}"
    ended = trial.end(started, "a sweep whose input changes")
    trial.require(ended.code >= 0, f"a sweep whose input changes ends by signal {-ended.code}")
    trial.probe()
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    trial.require_success(trial.run(RUN, arguments), "resuming the sweep")
    for name in ("results.json", "results.csv", "verdict.json"):
        theirs, ours = (trial.folder / folder / name for folder in ("undisturbed", SWEEP))
        is_same = ours.is_file() and ours.read_bytes() == theirs.read_bytes()
        trial.require(is_same, f"{name} is not that of the undisturbed sweep")


def hostile_names(trial: Trial, _: Reference) -> None:
    """Measure tensors whose names are paths, markup, formulas, escapes or no text at all."""
    names = trial.rng.sample(NAMES, 8)
    path = trial.folder / "names.safetensors"
    write_safetensors(path, dict.fromkeys(names, (8, 5)))
    trial.story = f"tensors {names}"
    sweep = ["-m", "dist=file/safetensors", f"dist.path={path.name}", "n_bits=4,8"]
    outputs = [trial.run(RUN, [*sweep, f"hydra.sweep.dir={SWEEP}"])]
    trial.require_success(outputs[0], "a sweep of hostile names")
    for command in (
        ["tensors", path.name], ["tensors", path.name, "--json"], ["aggregate", SWEEP],
        ["report", SWEEP, "report.lang=es"], ["plan", SWEEP, "--bits", "7"],
        ["plan", SWEEP, "--bar"],
        ["diff", SWEEP, SWEEP], ["verify", SWEEP],
    ):  # fmt: skip
        ended = trial.run(QUANTLAB, command)
        trial.require_success(ended, " ".join(command))
        outputs.append(ended)
    outputs.append(trial.run(QUANTLAB, ["check", SWEEP]))
    text = "".join(ended.stdout + ended.stderr for ended in outputs)
    controls = {char for char in text if not char.isprintable()} - SAFE_CONTROLS
    trial.require(not controls, f"the terminal gets {sorted(controls)!r}")
    for page in ("report.html", "plan.html", "report.md"):
        content = (trial.sweep / page).read_text("utf-8", "surrogateescape")
        trial.require(not MARKUP.search(content), f"{page} has the markup of a name")
    _require_names(trial, names)
    trial.require(not (trial.folder / "pwned").exists(), "the name of a tensor was run")


def hostile_paths(trial: Trial, reference: Reference) -> None:
    """Sweep into a directory, and from a file, whose names have quotes, newlines and the like."""
    name, folder = trial.rng.choice(FILE_NAMES), trial.rng.choice(FILE_NAMES)
    path = trial.folder / f"{name[:240]}.npz"
    (trial.folder / "weights.npz").rename(path)
    trial.story = f"file {path.name!r}, directory {folder!r}"
    sweep = ["-m", "dist=file/npz", f"dist.path={_quote(path.name)}", "n_bits=4,6,8", "threads=1"]
    sweep += [f"hydra.sweep.dir={_quote(folder)}", "block=group"]
    trial.require_success(trial.run(RUN, sweep), "a sweep into a directory of a hostile name")
    trial.require_success(trial.run(RUN, sweep), "resuming it")
    table = trial.folder / folder / "results.csv"
    theirs = reference.whole / SWEEP / "results.csv"
    is_same = table.is_file() and table.read_bytes() == theirs.read_bytes()
    trial.require(is_same, "results.csv is not that of another directory")
    for command in (["aggregate"], ["verify"], ["check"], ["plan", "--bits", "7"], ["report"]):
        ended = trial.run(QUANTLAB, [command[0], *command[1:], "--", folder])
        trial.require_success(ended, f"{command[0]} of a hostile name")
    ended = trial.run(QUANTLAB, ["tensors", "--", path.name])
    trial.require_success(ended, "tensors of a hostile name")


def hostile_input(trial: Trial, _: Reference) -> None:
    """List and measure files that say what is not so, to take memory, time or other files."""
    name = trial.rng.choice(sorted(HOSTILE_INPUTS))
    (trial.folder / "inside").mkdir()
    write_safetensors(trial.folder / "secret.safetensors", {"secret": (8, 5)})
    (trial.folder / "secret.bin").write_bytes(bytes(8 * 5 * 4))
    path = HOSTILE_INPUTS[name](trial.folder / "inside")
    trial.story = name
    form = {".json": "safetensors"}.get(path.suffix, path.suffix[1:])
    file = path.relative_to(trial.folder).as_posix()
    listed = trial.run(QUANTLAB, ["tensors", file])
    trial.require(listed.code in (0, 1), f"tensors ends with exit code {listed.code}")
    sweep = ["-m", f"dist=file/{form}", f"dist.path={file}", "n_bits=4,8"]
    ended = trial.run(RUN, [*sweep, f"hydra.sweep.dir={SWEEP}"])
    trial.require(ended.code == 1, f"the sweep ends with exit code {ended.code}")
    trial.require(ended.stderr.startswith("quantlab: "), f"no sentence: {ended.stderr[:200]}")
    trial.require(not (trial.folder / "pwned").exists(), "a file was run")


def _require_names(trial: Trial, names: list[str]) -> None:
    """Require the names of tensors to come back from the table as they went in."""
    text = (trial.sweep / "results.csv").read_bytes().decode("utf-8", "surrogateescape")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    written = {row["tensor"] for row in rows}
    expected = {name.encode("utf-8", "backslashreplace").decode() for name in names}
    trial.require(written == expected, f"results.csv has {written ^ expected} otherwise")


def _write_long(path: Path) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal(LONG, np.float32), rng.standard_normal(LONG, np.float32)
    if path.suffix == ".npy":
        np.save(path, a)
    elif path.suffix == ".npz":
        np.savez(path, a=a, b=b)
    else:
        write_safetensors(path, {"a": LONG, "b": LONG})


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write float32 tensors of normal values under any names."""
    header, start = {}, 0
    for name, shape in shapes.items():
        stop = start + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    values = np.random.default_rng(2).standard_normal(start // 4, np.float32)
    path.write_bytes(struct.pack("<Q", len(text)) + text + values.tobytes())


def _quote(value: str) -> str:
    """Quote a value for Hydra, which interpolates what has a dollar and a brace."""
    text = value.replace("\\", "\\\\") if value.endswith("\\") else value
    return "'" + text.replace("'", "\\'").replace("${", "\\${") + "'"


def _truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.choice([0, rng.randrange(path.stat().st_size)]))


def _replace(path: Path, rng: random.Random) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(_changed(path, rng))
    other.replace(path)


def _overwrite(path: Path, rng: random.Random) -> None:
    content = _changed(path, rng)
    with path.open("r+b") as file:
        file.write(content)


def _changed(path: Path, rng: random.Random) -> bytes:
    """Change the second half of a file, which is values but in a zip."""
    content = path.read_bytes()
    half = len(content) // 2
    return content[:half] + rng.randbytes(16) + content[half + 16 :]


CHANGES: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": _truncate,
    "replaced": _replace,
    "overwritten": _overwrite,
    "deleted": lambda path, _: path.unlink(),
}


def _npy_bytes(shape: tuple[int, ...], n_bytes: int, text: str | None = None) -> bytes:
    header = text or str({"descr": "<f4", "fortran_order": False, "shape": shape})
    padded = header.ljust(118 if len(header) < 118 else len(header)) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode() + bytes(n_bytes)


def _npz(content: bytes, told: int | None = None) -> Callable[[Path], Path]:
    """Make a writer of a zip of one array, whose directory tells another size."""

    def write(folder: Path) -> Path:
        path = folder / "a.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.npy", content)
        if told:
            size = struct.pack("<I", len(content))
            path.write_bytes(path.read_bytes().replace(size, struct.pack("<I", told)))
        return path

    return write


def _file(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _safetensors(header: bytes, length: int | None = None) -> Callable[[Path], Path]:
    size = struct.pack("<Q", len(header) if length is None else length)
    return _file("a.safetensors", size + header + bytes(64))


def _entry(shape: list[int], offsets: list[int]) -> bytes:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    return json.dumps({"a": entry}).encode()


def _index(file: str) -> Callable[[Path], Path]:
    content = json.dumps({"metadata": {}, "weight_map": {"secret": file}}).encode()
    return _file("model.safetensors.index.json", content)


def _onnx(location: str, link: str | None = None) -> Callable[[Path], Path]:
    """Make a writer of a model whose one weight stands in another file."""

    def write(folder: Path) -> Path:
        import onnx

        weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[8, 5])
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
        node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
        x, y = (
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, n])
            for name, n in (("x", 8), ("y", 5))
        )
        graph = onnx.helper.make_graph([node], "graph", [x], [y], [weight])
        path = folder / "a.onnx"
        path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
        if link:
            (folder / location).symlink_to(link)
        return path

    return write


RUNS_CODE = "__import__('os').system('touch pwned')"
GGUF = b"GGUF" + struct.pack("<I", 3)
HOSTILE_INPUTS: dict[str, Callable[[Path], Path]] = {
    "an npz that tells terabytes": _npz(_npy_bytes((TERABYTES, 2), 64)),
    "an npz whose directory tells gigabytes": _npz(_npy_bytes((2**29, 1), 64), 2**31 + 128),
    "an npz with a short array": _npz(_npy_bytes((100, 100), 64)),
    "an npz that is cut off": _file("a.npz", b"PK\x03\x04" + bytes(99)),
    "an npy that tells terabytes": _file("a.npy", _npy_bytes((TERABYTES, 2), 64)),
    "an npy of a negative shape": _file("a.npy", _npy_bytes((-8, 5), 160)),
    "an npy with code in its header": _file("a.npy", _npy_bytes((), 64, RUNS_CODE)),
    "an npy with a deep header": _file("a.npy", _npy_bytes((), 64, "(" * 40_000)),
    "safetensors with a header without end": _safetensors(b"{}", length=2**62),
    "safetensors with a deep header": _safetensors(b"[" * 500_000),
    "safetensors with offsets beyond": _safetensors(_entry([8, 5], [0, 2**50])),
    "safetensors of a negative offset": _safetensors(_entry([8, 5], [-160, 0])),
    "safetensors of an overflowing shape": _safetensors(_entry([2**32, 2**32], [0, 0])),
    "safetensors with values for a shape": _safetensors(b'{"a": {"dtype": "F32", "shape": 8}}'),
    "safetensors with half a character": _safetensors(b'{"\\ud800": {}}'),
    "an index of files above": _index("../secret.safetensors"),
    "an index of itself": _index("model.safetensors.index.json"),
    "gguf of 2^60 tensors": _file("a.gguf", GGUF + struct.pack("<QQ", 2**60, 0) + bytes(999)),
    "gguf of 2^60 keys": _file("a.gguf", GGUF + struct.pack("<QQ", 1, 2**60) + bytes(999)),
    "gguf that is cut off": _file("a.gguf", GGUF),
    "onnx with values above": _onnx("../secret.bin"),
    "onnx with values at an absolute path": _onnx("/etc/passwd"),
    "onnx with values behind a link": _onnx("link.bin", "../secret.bin"),
    "onnx with values in /dev/zero": _onnx("/dev/zero"),
    "onnx with values in a link to /dev/zero": _onnx("zero.bin", "/dev/zero"),
    "onnx of random bytes": _file("a.onnx", bytes(range(256)) * 40),
    "onnx of deep messages": _file("a.onnx", b"\x3a\xff\x7f" * 50_000),
}
