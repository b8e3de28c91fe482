"""What is refused at the border of the system."""

from __future__ import annotations


class DataError(ValueError):
    """A file or a row that can't be used; names the file, the row and what would be right."""


class RunError(Exception):
    """A run can't start or resume; the message says why, and what would help."""
