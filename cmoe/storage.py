"""One door to local disks and S3, patient with a storage that fails or is away for a while.

S3 is reached as the environment says: by an instance's role or `AWS_*` variables, elsewhere than at
AWS by `AWS_ENDPOINT_URL`.
"""

from __future__ import annotations

import os
from typing import Any

S3 = "s3://"
# Of one request, with pauses of 1, 2, 4 .. 20 seconds between, half of that on average (botocore's
# "standard" mode): a storage that is away for two minutes is waited for.
ATTEMPTS = 20
READS = 8  # of a body that breaks off, each from where the last one ended


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
        found: tuple[Any, str] = url_to_fs(url, **options)
        return found
    config = {"retries": {"mode": "standard", "total_max_attempts": ATTEMPTS}}
    # s3fs would otherwise go on answering from a listing before another process's write.
    fs, path = url_to_fs(url, **{"config_kwargs": config, "use_listings_cache": False, **options})
    fs.retries = READS
    return fs, path


def exists(url: str) -> bool:
    """Whether there is such a file."""
    fs, path = filesystem(url)
    return bool(fs.isfile(path))
