"""What all HTML pages of this package have in common: one self-contained file each, and one look.

A page is a template that extends `base.html`, with a style of its own that follows `base.css`. `macros.html` has macros
for its content.
"""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import resources
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from domainbed import __version__

PACKAGE = "domainbed.reporting.formats"


class Picture(NamedTuple):
    """A picture on a page: its caption, the image as a data URL, and its size in pixels."""

    caption: str
    url: str
    width: int
    height: int


def render_page(
    package: str,
    template: str,
    name: str,
    path: str,
    summary: str,
    values: Mapping[str, Any],
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
) -> str:
    """Return a page.

    Args:
        package: the Python package that contains the page's files.
        template: the file of its template.
        name: the title.
        path: the folder or file that the page is about; "" for none.
        summary: a line below the title.
        values: the variables of the template.
        styles: the files of its own style.
        scripts: the files of its scripts, in this order.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader(PACKAGE, ".")]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["anchor"] = anchor
    css = _read(PACKAGE, "base.css") + "".join(_read(package, file) for file in styles)
    js = [_read(package, file) for file in scripts]
    html = environment.get_template(template).render(
        name=name,
        path=path,
        summary=summary,
        now=datetime.now().astimezone(),
        version=__version__,
        style=Markup(css),
        scripts=[Markup(text) for text in js],
        style_hash=_csp_hash(css),
        script_hashes=[_csp_hash(text) for text in js],
        **values,
    )
    # The page is UTF-8, but the name of a folder may not be; links are percent-encoded and stay correct.
    return html.encode(errors="replace").decode()


def anchor(*names: str) -> str:
    """Return a unique id for nested names. It needs no escaping in HTML or in the fragment of a URL."""
    return "/".join(quote(os.fsencode(name), safe="") for name in names)


def data_url(image: bytes, format: str) -> str:
    """Return the URL of an image file of a format such as "png" that the page itself contains."""
    return f"data:image/{format};base64,{base64.b64encode(image).decode()}"


def _read(package: str, name: str) -> str:
    return (resources.files(package) / name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    """Return the hash with which the page's content security policy allows its own style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
