"""The documentation as a site: mkdocs calls these hooks, ``make docs`` calls mkdocs.

The pages are those of ``docs/`` as they stand. README.md and benchmarks/README.md join them, links
to files that the site does not have become text, and each room of the package has a page of its
docstrings.
"""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import quantlab

ROOT = Path(__file__).parents[1]
PICTURES = ("multirun/lab/error_histogram.png",)  # that pages outside their directory show
LINK = re.compile(r"(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]*)(?P<anchor>#[^)]*)?\)")
RULE = r"=+(?: +=+)+"
RST_TABLE = re.compile(rf"^{RULE}\n(?:.*\n)+?{RULE}\n(?:.*\n)+?{RULE}$", re.MULTILINE)
DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
MOVED = {"README.md": "index.md", "benchmarks/README.md": "benchmarks.md"}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that stand outside ``docs/``, and those of the API."""
    for source, name in MOVED.items():
        text = move_links((ROOT / source).read_text(), Path(source).parent)
        files.append(File.generated(config, name, content=text))
    for picture in PICTURES:
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    for name, text in api_pages().items():
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Rewrite the links of a page of ``docs/``."""
    is_own = page.file.generated_by is None
    return move_links(markdown, Path("docs")) if is_own else markdown


def move_links(markdown: str, folder: Path) -> str:
    """Rewrite the links of a page in a folder of the repository as the site has them.

    >>> move_links("[a](docs/lab.md#b), [c](conf/d.yaml)", Path())
    '[a](lab.md#b), c'
    """

    def rewrite(link: re.Match[str]) -> str:
        target, anchor = link["target"], link["anchor"] or ""
        if not target or "://" in target:
            return link[0]
        path = (ROOT / folder / target).resolve().relative_to(ROOT).as_posix()
        name = MOVED.get(path.rstrip("/"), path.removeprefix("docs/"))
        if path in MOVED or path in PICTURES or (ROOT / "docs" / name).is_file():
            return f"{link['mark']}[{link['text']}]({name}{anchor})"
        if path == "benchmarks":
            return f"[{link['text']}](benchmarks.md{anchor})"
        return link["text"]

    return LINK.sub(rewrite, markdown)


class Fences(griffe.Extension):
    """Fence the tables and examples in docstrings, which Markdown would take for other things."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object before it is parsed."""
        if obj.docstring:
            obj.docstring.value = fence(obj.docstring.value)


def fence(docstring: str) -> str:
    r"""Fence tables, and examples that have no section of their own.

    >>> fence(">>> 1 + 1")
    '```pycon\n>>> 1 + 1\n```'
    """
    text = RST_TABLE.sub(lambda table: f"```text\n{table[0]}\n```", docstring)
    if "Examples\n----" in text:
        return text
    return DOCTEST.sub(lambda example: f"```pycon\n{example[0]}\n```", text)


def api_pages() -> dict[str, str]:
    """Return the pages of the API by their names, each the docstrings of some modules."""
    public = [name for name in quantlab.__all__ if not name.startswith("_")]
    modules = {name: getattr(quantlab, name) for name in public}
    paths = [f"{value.__module__}.{name}" for name, value in modules.items() if callable(value)]
    pages = {"quantlab": "# quantlab\n\n" + "\n\n".join(f"::: {path}" for path in paths)}
    rooms = sorted(path.parent.name for path in (ROOT / "quantlab").glob("[a-z]*/__init__.py"))
    return pages | {room: f"::: quantlab.{room}\n" for room in rooms}
