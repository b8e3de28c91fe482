"""Local disks and S3: how they are reached, and what their errors mean.

S3 is reached as the environment says: by an instance's role or `AWS_*` variables, elsewhere than at
AWS by `AWS_ENDPOINT_URL`. Whatever a disk or a server raises becomes a `StorageError`: one sentence
with the path, the cause and the remedy.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

S3 = "s3://"
# Of one request, with pauses of 1, 2, 4 .. 20 seconds between, half of that on average (botocore's
# "standard" mode): a storage that is away for two minutes is waited for. Many calls at a time share
# a budget of retries, and give up sooner. s3fs tries again where an answer breaks off. What isn't
# transient, a wrong key for example, is tried once.
ATTEMPTS = 20
FIRST_ATTEMPTS = 6  # before there is work to lose: what is away is told after about 15 seconds
_ONE_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/?(?!/)")

READ, WRITTEN, LISTED = "read", "written", "listed"


class StorageError(Exception):
    """A path or URL can't be used; says which, why, and what helps.

    Attributes:
        transient: Whether trying again later may help.
    """

    transient = False


class StorageAwayError(StorageError):
    """A storage doesn't answer, or not now."""

    transient = True


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
    try:
        found: tuple[Any, str] = url_to_fs(url, **options)
    except (ImportError, ValueError) as error:  # of a kind of URL that isn't known or installed
        raise StorageError(f"{url}: can't be used: {error}; give a path or {S3}") from error
    return found


def exists(url: str) -> bool:
    """Whether there is such a file.

    Raises:
        StorageError: The storage can't tell.
    """
    fs, path = filesystem(url)
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
    """Whether a file alone is missing, not its bucket."""
    return _said(error)[0] != "NoSuchBucket"


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
    found = _remote(error, where) if is_remote(where) else _local(error, where, done)
    if found is None:
        return None
    kind, text = found
    return kind(f"{where}: can't be {done}: {text}")


Found = tuple[type[StorageError], str]


def _local(error: BaseException, path: str, done: str) -> Found | None:
    """An error of a disk."""
    if isinstance(error, ValueError):
        if "\0" not in path and not _UNENCODABLE.search(path):
            return None
        return StorageError, f"no file can be named so ({error}); correct it"
    if not isinstance(error, OSError):
        return None
    number = error.errno or 0
    code = errno.errorcode.get(number, "")
    if number in _LOCAL:
        return StorageError, f"{_LOCAL[number](path, done)} ({code})"
    if number in _LOCAL_AWAY:
        text = f"its disk or network file system doesn't answer ({code}: {error.strerror})"
        return StorageAwayError, f"{text}; check it"
    return StorageError, f"{error}; check the path and its disk"


_UNENCODABLE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # of surrogates, all but escaped bytes


def _existing(path: str) -> Path:
    """The path, or the nearest folder above it that is there."""
    place = Path(path).absolute()
    for found in (place, *place.parents):
        if os.path.lexists(found):
            return found
    return Path("/")


def _not_permitted(path: str, done: str) -> str:
    place, user = _existing(path), _user()
    try:
        info = place.stat()
        owner = f"{place} belongs to {_name(info.st_uid)} with mode {info.st_mode & 0o7777:03o}"
    except OSError:
        owner = f"{place} lets nobody in"
    needed = "write" if done == WRITTEN else "read"
    return f"{owner}, and {user} may not {needed} there; give that right, or use another path"


def _not_a_folder(path: str, done: str) -> str:
    place = Path(path).absolute()
    files = [p for p in (*reversed(place.parents), place) if p.exists() and not p.is_dir()]
    name = files[0] if files else place
    return f"{name} is a file where a folder is needed; move it away, or use another path"


def _missing(path: str, done: str) -> str:
    if done == WRITTEN:
        folder = Path(path).absolute().parent
        return f"the folder {folder} isn't there, or can't be; make it, or use another path"
    place = Path(path).absolute()
    return f"there is none; {_existing(str(place.parent))} is there, correct the path behind it"


_LOCAL: dict[int, Callable[[str, str], str]] = {
    errno.ENOSPC: lambda *_: "its disk is full; free some space there",
    errno.EDQUOT: lambda *_: f"the disk quota of {_user()} is used up; free some space there",
    errno.EROFS: lambda *_: "its file system is read-only; use another path",
    errno.EACCES: _not_permitted,
    errno.EPERM: _not_permitted,
    errno.ENOENT: _missing,
    errno.ENOTDIR: _not_a_folder,
    errno.EEXIST: _not_a_folder,
    errno.EISDIR: lambda *_: "it is a folder, and a file is needed; use another path",
    errno.ELOOP: lambda *_: "symbolic links in it lead in a circle; mend them",
    errno.ENAMETOOLONG: lambda *_: "a name in it is too long; most disks take 255 bytes",
    errno.EFBIG: lambda *_: "it would be larger than is allowed; raise `ulimit -f`",
    errno.EMFILE: lambda *_: "this process has too many open files; raise `ulimit -n`",
    errno.ENFILE: lambda *_: "this machine has too many open files; end other programs",
}
_LOCAL_AWAY = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENOTCONN,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EREMOTEIO,
}


_THIS_MACHINE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EFBIG,
    errno.EMFILE,
    errno.ENFILE,
}


def _user() -> str:
    try:
        return getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def _name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _remote(error: BaseException, url: str) -> Found | None:
    """An error of a server, or on the way to it."""
    code, status, message = _said(error)
    kinds = [kind.__name__ for one in _chain(error) for kind in type(one).__mro__]
    mine = {kind.__name__ for kind in type(error).__mro__}
    if not mine & _OURS and not str(error).startswith("Invalid endpoint"):
        return None
    if not code and isinstance(error, OSError) and error.errno in _THIS_MACHINE:
        return None  # of a copy here; who makes it knows its path
    said = f" ({': '.join(filter(None, (code, message)))})" if code else ""
    if not code and isinstance(error, OSError | ValueError) and str(error):
        said = f" ({error})"
    known = next((_REMOTE[key] for key in (code, *kinds, str(status)) if key in _REMOTE), None)
    if known is not None:
        cause, remedy = known
        bucket = url.removeprefix(S3).partition("/")[0]
        place = {"bucket": bucket, "endpoint": _endpoint()}
        return StorageError, f"{cause.format(**place)}{said}; {remedy}"
    if status >= 500 or status == 429 or code in _BUSY or _AWAY & set(kinds):
        said = said or f" ({type(error).__name__})"
        return StorageAwayError, (
            f"{_endpoint()} doesn't answer, or not now{said}; check AWS_ENDPOINT_URL and the "
            "network, and try again"
        )
    return StorageError, f"the server refuses it{said or f' ({error!r})'}; correct the URL"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from."""
    found: BaseException | None = error
    for _ in range(10):
        if found is None:
            return
        yield found
        found = found.__cause__ or found.__context__


def _said(error: BaseException) -> tuple[str, int, str]:
    """What S3 answered: its code, the HTTP status, and its message; empty without an answer."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict) and "Error" in response:
            told = response["Error"]
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(told.get("Code", "")), int(status), str(told.get("Message", ""))
    return "", 0, ""


def _endpoint() -> str:
    """Where S3 is reached, without what only its owner may know."""
    place = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not place:
        return "AWS"
    parts = urlsplit(place)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else place


_KEYS = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_PROFILE"
_NAMED = "the bucket's name, the region or the endpoint can't be right"
_SET = "correct the URL, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL"
_MEANINGS: tuple[tuple[str, str, str], ...] = (
    ("NoSuchBucket", "{endpoint} has no bucket {bucket!r}", "create it, or correct the URL"),
    ("NoSuchKey 404 FileNotFoundError", "there is none", "correct the URL"),
    (
        "InvalidAccessKeyId SignatureDoesNotMatch AuthFailure InvalidSecurity",
        "the access key is wrong",
        _KEYS,
    ),
    (
        "ExpiredToken ExpiredTokenException TokenRefreshRequired InvalidToken",
        "the session token has expired or is wrong",
        "renew AWS_SESSION_TOKEN and the keys that go with it",
    ),
    ("RequestTimeTooSkewed RequestExpired", "this machine's clock is wrong", "set it"),
    (
        "PermanentRedirect TemporaryRedirect AuthorizationHeaderMalformed RecursionError 301 307 "
        "IllegalLocationConstraintException",
        "bucket {bucket!r} is in another region or at another endpoint",
        "set AWS_DEFAULT_REGION and AWS_ENDPOINT_URL to the bucket's",
    ),
    (
        "QuotaExceeded QuotaExceededException InsufficientStorage InsufficientCapacity 507 "
        "XMinioStorageFull XMinioAdminBucketQuotaExceeded",
        "the storage is full or its quota is used up",
        "free some space there",
    ),
    ("KeyTooLongError KeyTooLong", "its name is too long", "shorten the prefix or the name"),
    ("InvalidObjectState", "the object is archived", "restore it"),
    (
        "NotImplemented MethodNotAllowed 501 405",
        "{endpoint} can't do what is asked for",
        "use an S3 server that can, or a shared disk",
    ),
    (
        "AccessDenied AllAccessDisabled AccountProblem PermissionError 401 403",
        "the access key has no permission, or is wrong",
        "give it the right to read, write and list there, or use another key",
    ),
    (
        "NoCredentialsError PartialCredentialsError CredentialRetrievalError TokenRetrievalError "
        "SSOError ProfileNotFound ConfigParseError",
        "there are no credentials",
        _KEYS,
    ),
    (
        "SSLError",
        "there is no safe connection to {endpoint}",
        "check its certificate, and http or https in AWS_ENDPOINT_URL",
    ),
    (
        "ParamValidationError InvalidBucketName InvalidRegionError NoRegionError ValueError "
        "UnknownEndpointError EndpointProviderError",
        _NAMED,
        _SET,
    ),
    ("400", "the request is refused, perhaps for an expired token or another region", _SET),
)
"""Codes of S3, HTTP statuses and classes of errors; what they mean; what helps."""
_REMOTE = {key: (cause, remedy) for keys, cause, remedy in _MEANINGS for key in keys.split()}
_BUSY = {
    "ConditionalRequestConflict",
    "InternalError",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
}
_AWAY = {
    "HTTPClientError",
    "ConnectionError",
    "ClientConnectionError",
    "ClientPayloadError",
    "TimeoutError",
    "ResponseParserError",
    "IncompleteRead",
    "IncompleteReadError",
}
# Python's, botocore's and aiohttp's; recursion comes of a redirection without an end.
_OURS = _AWAY | {"OSError", "BotoCoreError", "ClientError", "RecursionError"}
