"""One door to local disks and S3, patient with a storage that fails or is away for a while.

S3 is reached as the environment says: by an instance's role or `AWS_*` variables, elsewhere than at
AWS by `AWS_ENDPOINT_URL`.
"""

from __future__ import annotations

import os
from typing import Any

S3 = "s3://"
# Of one request, with pauses of 1, 2, 4 .. 20 seconds between, half of that on average (botocore's
# "standard" mode): a storage that is away for two minutes is waited for. Many calls at a time share
# a budget of retries, and give up sooner. s3fs tries again where an answer breaks off.
ATTEMPTS = 20


def is_remote(url: str | os.PathLike[str]) -> bool:
    """Whether it is a URL, not a path."""
    return "://" in os.fspath(url)


def filesystem(url: str | os.PathLike[str], **options: Any) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path in it.

    Args:
        url: A path, `s3://bucket/prefix`, or another that fsspec knows.
        options: Of the file system, besides the ones for patience.
    """
    from fsspec.core import url_to_fs

    url = os.fspath(url)
    if not url.startswith(S3):
        local: tuple[Any, str] = url_to_fs(url, **options)
        return local
    config = {"retries": {"mode": "standard", "total_max_attempts": ATTEMPTS}}
    # s3fs would otherwise go on answering from a listing before another process's write.
    patient = {"config_kwargs": config, "use_listings_cache": False, **options}
    remote: tuple[Any, str] = url_to_fs(url, **patient)
    return remote


def exists(url: str) -> bool:
    """Whether there is such a file; a storage that can't tell raises its own error."""
    fs, path = filesystem(url)
    try:
        return bool(fs.info(path)["type"] == "file")
    except FileNotFoundError:
        return False
