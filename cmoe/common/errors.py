"""Errors that a user can mend; their text is what the user reads."""

from __future__ import annotations


class KnownError(Exception):
    """Something that a user can mend: its text says what, where, and what would be right.

    A command prints it as one sentence, without a traceback, and ends with status 1.
    """


class DataError(KnownError, ValueError):
    """A file or a row that can't be used; names the file, the row and what would be right."""


class RunError(KnownError):
    """A run can't start or resume; the message says why, and what would help."""
