"""What all pages share: their templates, how values are written, and what a missing field means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmoe.common.run_files import RunFileError

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def rendered(template: str, values: Mapping[str, Any], **filters: Any) -> str:
    """A page's text.

    Args:
        template: Name of the page, without `.j2`.
        values: What the template shows, by name.
        filters: How it writes values, beside what all pages do.
    """
    made = environment()
    made.filters |= filters
    return made.get_template(f"{template}.j2").render(values)


def environment() -> Environment:
    """Where pages are made: their templates, and how values are written."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"fixed": fixed, "signed": signed, "cell": cell}
    return made


@contextmanager
def needing_fields(source: object, remedy: str) -> Iterator[None]:
    """Where a page is made: a field that its JSON lacks is told as a sentence.

    Args:
        source: The file that has the JSON.
        remedy: What helps.

    Raises:
        RunFileError: A field is missing.
    """
    from jinja2 import UndefinedError

    try:
        yield
    except (KeyError, UndefinedError) as error:
        missing = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise RunFileError(
            f"{source}: lacks what its page shows ({missing}): another version of cmoe wrote it; "
            f"{remedy}"
        ) from error


# How values are written


def fixed(value: float | None, digits: int = 1) -> str:
    return "\N{EN DASH}" if value is None else f"{value:,.{digits}f}"


def signed(value: float | None, digits: int = 1) -> str:
    """With its sign; what rounds to nothing has none."""
    text = fixed(value if value is None else abs(value), digits)
    if value is None or not text.strip("0."):
        return text
    return f"+{text}" if value > 0 else f"\N{MINUS SIGN}{text}"


def cell(value: object) -> str:
    """Text for a cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")
