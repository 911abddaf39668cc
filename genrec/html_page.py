"""A report's page: one HTML file, whole in itself, for light and dark and for phones.

Owns the look that reports share (`page.css`) and the template engine's settings: everything that
comes from data is escaped. Knows no report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_STYLE = Path(__file__).with_name("page.css")


def render_page(template: Path, **values: Any) -> str:
    """The page of a template, which gets the shared style as `page_style`.

    Raises:
        jinja2.UndefinedError: the template names a value that was not given.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    style = Markup(_STYLE.read_text(encoding="utf-8"))
    page = environment.from_string(template.read_text(encoding="utf-8"))
    return page.render(page_style=style, **values)
