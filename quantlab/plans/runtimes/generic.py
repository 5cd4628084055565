"""No runtime: for each tensor the settings of its format, as a record has them, in JSON."""

from collections.abc import Iterable
from typing import Any

from quantlab.plans.options import OF_FORMAT
from quantlab.plans.runtimes.runtime import Runtime, Taken
from quantlab.records import disk
from quantlab.records.record import Row


class Generic(Runtime):
    """A recipe for tools of one's own; it has every format."""

    name = "json"
    file = "plan.recipe.json"
    hint = "mode=glob(*)"
    least_dims = 0

    def settings(self, row: Row) -> dict[str, Any]:
        """Return the settings of a row's format, without those that it does not have."""
        return {key: row[key] for key in OF_FORMAT if row.get(key) is not None}

    def recipe(self, taken: Iterable[Taken]) -> bytes:
        """Return the mapping from tensors to their settings; null keeps one as it is."""
        return disk.to_json(
            {each.tensor.name: self.settings(each.row) if each.row else None for each in taken}
        )

    def usage(self, path: str) -> str:
        """Return where it stands."""
        return path
