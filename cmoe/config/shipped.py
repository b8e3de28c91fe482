"""The configurations that come with cmoe, found by their names from any folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from cmoe.common.nearest import unknown

PACKAGE = Path(__file__).parents[1]
_NAME = re.compile(r"[\w-]+")


def shipped() -> dict[str, Path]:
    """Their files by name. The wheel has them inside of the package, a checkout beside it."""
    folders = (PACKAGE / "configs", PACKAGE.parent / "configs")
    folder = next((f for f in folders if f.is_dir()), folders[0])
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find_config(given: str) -> Path:
    """The file that is meant by `--config GIVEN`: a path, or the name of one that comes with cmoe.

    Raises:
        ValueError: It is a name, and there is neither such a file nor such a configuration.
    """
    if not _is_name(given):
        return Path(given)
    known = shipped()
    if given not in known:
        raise ValueError(
            f"{given}: no such file, and no configuration that comes with cmoe; "
            f"{unknown(given, known)}"
        )
    return known[given]


def with_files(words: Sequence[str], flag: str) -> Iterator[str]:
    """A command line with the files of such configurations in place of their names.

    Args:
        words: The command line.
        flag: That they follow, as the next word or behind `=`.
    """
    follows = False
    for number, word in enumerate(words):
        if word == "--":
            yield from words[number:]
            return
        if follows:
            yield _file(word)
        elif word.startswith(f"{flag}="):
            yield f"{flag}={_file(word.removeprefix(f'{flag}='))}"
        else:
            yield word
        follows = word == flag


def _file(given: str) -> str:
    return str(shipped().get(given, given)) if _is_name(given) else given


def _is_name(given: str) -> bool:
    return bool(_NAME.fullmatch(given)) and not Path(given).exists()
