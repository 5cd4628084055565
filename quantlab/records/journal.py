"""The answers of a run that is not done, line by line: once stopped, it goes on from there."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantlab.records import disk, schema
from quantlab.records.record import AnswerJson

NAME = ".answers.jsonl"  # hidden: no part of a sweep
Answers = list[dict[str, Any]]  # an `AnswerJson` each


class Journal:
    """The answers with each tensor alone that are done, in a run directory.

    The first line is the `key` of the run: answers of another are dropped. A line that was cut off
    is not read.
    """

    def __init__(self, directory: Path, key: str) -> None:
        self._path = directory / NAME
        self._answers = self._read(key)
        lines = [json.dumps(key), *map(json.dumps, self._answers.items())]
        disk.write(self._path, "".join(f"{line}\n" for line in lines).encode())

    def _read(self, key: str) -> dict[str, Answers]:
        """Read the answers of the run of this key; none from what is no journal."""
        content = b""
        with suppress(OSError, ValueError):
            content = disk.read_file(self._path, self._path.parent)
        first, *lines = content.split(b"\n")
        if first != json.dumps(key).encode():
            return {}
        answers = {}
        for line in lines:
            with suppress(ValueError, TypeError):
                tensor, done = disk.parse_json(line)
                schema.require(list[AnswerJson], done)
                answers[str(tensor)] = done
        return answers

    def find(self, tensor: str) -> Answers | None:
        """Return the answers with a tensor alone, None where they are not done."""
        return self._answers.get(tensor)

    def add(self, tensor: str, answers: Answers) -> None:
        """Append the answers with a tensor alone."""
        with self._path.open("a") as file:
            file.write(f"{json.dumps([tensor, answers])}\n")


def remove_journal(directory: Path) -> None:
    """Remove the journal of a run directory, once the record has all answers."""
    (directory / NAME).unlink(missing_ok=True)
