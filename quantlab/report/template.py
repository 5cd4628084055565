"""The templates of pages."""

import re
from functools import cache

import jinja2


@cache
def template(name: str) -> jinja2.Template:
    """Return the template of a name; of HTML it escapes what it is given."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("quantlab.report"),
        autoescape=".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["escaped"] = _escaped
    return environment.get_template(name)


def _escaped(text: str) -> str:
    """Return text that stands in a cell of a Markdown table as it is."""
    return re.sub(r"([|\\`*_<\[~&])", r"\\\1", " ".join(text.split()))
