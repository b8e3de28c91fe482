"""What is refused at the border of the system."""

from __future__ import annotations


class DataError(ValueError):
    """A file or a row that can't be used; names the file, the row and what would be right."""
