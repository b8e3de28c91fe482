"""Local disks, S3 and the hub: how they are reached, and the one kind of error that all raise.

S3 is reached as the environment says: by an instance's role or `AWS_*` variables, elsewhere than at
AWS by `AWS_ENDPOINT_URL`. The hub is reached as `huggingface_hub` does. Whatever a disk or a server
raises becomes a `StorageError`: one sentence with the path, the cause and the remedy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmoe.common.errors import KnownError
from cmoe.common.remote.hub_errors import is_no_file, of_hub
from cmoe.common.storage_errors import READ, answer_of, of_disk, of_server

S3, HUB = "s3://", "hf://"
# Of one request, with pauses of 1, 2, 4 .. 20 seconds between, half of that on average (botocore's
# "standard" mode): a storage that is away for two minutes is waited for. Many calls at a time share
# a budget of retries, and give up sooner. s3fs tries again where an answer breaks off. What isn't
# transient, a wrong key for example, is tried once.
ATTEMPTS = 20
FIRST_ATTEMPTS = 6  # before there is work to lose: what is away is told after about 30 seconds
_ONE_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/?(?!/)")


class StorageError(KnownError):
    """A path or URL can't be used; says which, why, and what helps.

    Attributes:
        transient: Whether trying again later may help.
    """

    transient = False


class StorageAwayError(StorageError):
    """A storage doesn't answer, or not now."""

    transient = True


def is_local(fs: Any) -> bool:
    """Whether a file system is this machine's own."""
    return "file" in fs.protocol


def is_remote(url: str | os.PathLike[str]) -> bool:
    """Whether it is a URL, not a path."""
    return "://" in os.fspath(url)


def require_url(url: str | os.PathLike[str]) -> str:
    """A path or URL as text, refused where it can't be meant.

    Raises:
        StorageError: An S3 URL has no bucket, or a URL has one slash.
    """
    url = os.fspath(url)
    if url.startswith(S3):
        if not url.removeprefix(S3).partition("/")[0]:
            raise StorageError(f"{url}: names no bucket; give s3://bucket/prefix")
    elif not is_remote(url) and _ONE_SLASH.match(url) and not Path(url).exists():
        raise StorageError(f"{url}: is neither a path nor a URL; give s3://bucket/prefix")
    return url


def filesystem(
    url: str | os.PathLike[str], *, attempts: int = ATTEMPTS, **options: Any
) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path in it.

    Args:
        url: A path, `s3://bucket/prefix`, or another that fsspec knows.
        attempts: Of a request to S3 that fails for a transient reason.
        options: Of the file system, besides the ones for patience.

    Raises:
        StorageError: There is no such storage.
    """
    from fsspec.core import url_to_fs

    url = require_url(url)
    if url.startswith(S3):
        config = {"retries": {"mode": "standard", "total_max_attempts": attempts}}
        # s3fs would otherwise go on answering from a listing before another process's write.
        options = {"config_kwargs": config, "use_listings_cache": False, **options}
    if url.startswith(HUB):
        options = {"skip_instance_cache": True, **options}  # likewise
    try:
        found: tuple[Any, str] = url_to_fs(url, **options)
    except (ImportError, ValueError) as error:  # of a kind of URL that isn't known or installed
        raise StorageError(f"{url}: can't be used: {error}; give a path or {S3}") from error
    return found


def exists(url: str, **options: Any) -> bool:
    """Whether there is such a file; `options` are those of `filesystem`.

    Raises:
        StorageError: The storage can't tell.
    """
    fs, path = filesystem(url, **options)
    with explained(url, READ):
        try:
            return bool(fs.info(path)["type"] == "file")
        except FileNotFoundError as error:
            if is_missing(error):
                return False
            raise


def require_reachable(url: str) -> None:
    """Refuse a storage that doesn't answer, before work begins, sooner than in the middle of it.

    Raises:
        StorageError: It doesn't, or refuses.
    """
    fs, path = filesystem(url, attempts=FIRST_ATTEMPTS)
    with explained(url, READ):
        try:
            fs.info(path)
        except FileNotFoundError as error:
            if not is_missing(error):
                raise


def is_missing(error: FileNotFoundError) -> bool:
    """Whether a file alone is missing, not its bucket or repository."""
    return answer_of(error)[0] != "NoSuchBucket" and not is_no_file(error)


# Errors in words


@contextmanager
def explained(url: str | os.PathLike[str] | None, done: str = "used") -> Iterator[None]:
    """Turn what a storage raises in the body into a sentence; other errors pass.

    Args:
        url: What the body uses; None takes the file that the error names.
        done: READ, WRITTEN or LISTED.

    Raises:
        StorageError: About `url`.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        found = storage_error(error, url, done)
        if found is None:
            raise
        raise found from error


def storage_error(
    error: BaseException, url: str | os.PathLike[str] | None = None, done: str = "used"
) -> StorageError | None:
    """What an error of a storage means to a user; None for one that isn't a storage's.

    Args:
        error: As Python, fsspec, botocore or aiohttp raise it.
        url: What was used; None takes the file that the error names.
        done: READ, WRITTEN or LISTED.
    """
    if isinstance(error, StorageError):
        return error
    if url is None:
        if isinstance(error, ConnectionError | TimeoutError):
            return None  # of any network
        url = str(getattr(error, "filename", None) or "a file")
    where = os.fspath(url)
    if where.startswith(HUB):
        found = of_hub(error, where)
    else:
        found = of_server(error, where) if is_remote(where) else of_disk(error, where, done)
    if found is None:
        return None
    kind = StorageAwayError if found.transient else StorageError
    return kind(f"{where}: can't be {done}: {found.text}")
