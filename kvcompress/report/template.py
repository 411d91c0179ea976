"""HTML pages from Jinja templates that share one layout, self-contained and without scripts."""

from __future__ import annotations

from typing import Any


def render_template(package: str, folder: str, **values: Any) -> str:
    """Return the page that `page.html.j2` of a package makes of values; every value is escaped for HTML.

    Args:
        package: Importable package that holds the template, or whose subfolder does.
        folder: The template's folder in the package. Its template may extend `layout.html.j2` of this package.
        values: What the template names; a name without a value is an error.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, folder), PackageLoader("kvcompress", "report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(**values)
