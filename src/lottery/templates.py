"""The templates of pages and cards."""

from pathlib import Path

import jinja2


def environment(folder: Path, escape: bool = True) -> jinja2.Environment:
    """The templates of a folder, in which a name that is not given is an error; ``escape``: they are HTML."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=escape,  # noqa: S701  # Markdown is no HTML, and its names are those that params.yaml allows
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not escape,  # a text file ends with one
        undefined=jinja2.StrictUndefined,
    )
