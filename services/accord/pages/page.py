"""HTML pages that stand alone: one file, no network, one look, everything escaped that a template does not call safe.

What does not belong here: what a page says; a room that has a page keeps its template in its own folder `templates`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def render_page(package: str, template: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """The page of a template in `templates` of a package, which finds the common `style.css` too; a name that it lacks is an error."""
    import jinja2

    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader(__package__)])
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, loader=loader)
    environment.filters |= filters
    page: str = environment.get_template(template).render(**values)
    return page
