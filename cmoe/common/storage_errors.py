"""What a disk or S3 means by its errors: the cause and the remedy, in words."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from getpass import getuser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

READ, WRITTEN, LISTED = "read", "written", "listed"
"""What can't be done with a path or URL."""


class Meaning(NamedTuple):
    """What an error means.

    Attributes:
        transient: Whether trying again later may help.
        text: The cause and the remedy.
    """

    transient: bool
    text: str


def of_disk(error: BaseException, path: str, done: str) -> Meaning | None:
    """What an error of a disk means; None for one that isn't a disk's.

    Args:
        error: As Python raises it.
        path: Of the file or folder.
        done: READ, WRITTEN or LISTED.
    """
    if isinstance(error, ValueError):
        if "\0" not in path and not _UNENCODABLE.search(path):
            return None
        return Meaning(False, f"no file can be named so ({error}); correct it")
    if not isinstance(error, OSError):
        return None
    number = error.errno or 0
    code = errno.errorcode.get(number, "")
    if number in _LOCAL:
        return Meaning(False, f"{_LOCAL[number](path, done)} ({code})")
    if number in _LOCAL_AWAY:
        text = f"its disk or network file system doesn't answer ({code}: {error.strerror})"
        return Meaning(True, f"{text}; check it")
    return Meaning(False, f"{error}; check the path and its disk")


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


def _full(path: str, done: str) -> str:
    try:
        found = os.statvfs(_existing(path))
    except OSError:
        found = None
    if found is not None and found.f_files and not found.f_favail:  # some disks don't count them
        return "its disk can't take more files (no inode is free); remove some files there"
    return "its disk is full; free some space there"


_LOCAL: dict[int, Callable[[str, str], str]] = {
    errno.ENOSPC: _full,
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


THIS_MACHINE = {
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


def of_server(error: BaseException, url: str) -> Meaning | None:
    """What an error of S3 means, or one on the way to it; None for one of another kind.

    Args:
        error: As fsspec, botocore or aiohttp raise it.
        url: What was used.
    """
    code, status, message = answer_of(error)
    kinds = [kind.__name__ for one in chain(error) for kind in type(one).__mro__]
    mine = {kind.__name__ for kind in type(error).__mro__}
    if not mine & _OURS and not str(error).startswith("Invalid endpoint"):
        return None
    if not code and isinstance(error, OSError) and error.errno in THIS_MACHINE:
        return None  # of a copy here; who makes it knows its path
    said = f" ({': '.join(filter(None, (code, message)))})" if code else ""
    if not code and isinstance(error, OSError | ValueError) and str(error):
        said = f" ({error})"
    known = next((_REMOTE[key] for key in (code, *kinds, str(status)) if key in _REMOTE), None)
    if known is not None:
        cause, remedy = known
        bucket = urlsplit(url).netloc
        place = {"bucket": bucket, "endpoint": _endpoint()}
        return Meaning(False, f"{cause.format(**place)}{said}; {remedy}")
    if status >= 500 or status == 429 or code in _BUSY or _AWAY & set(kinds):
        said = said or f" ({type(error).__name__})"
        return Meaning(
            True,
            f"{_endpoint()} doesn't answer, or not now{said}; check AWS_ENDPOINT_URL and the "
            "network, and try again",
        )
    return Meaning(False, f"the server refuses it{said or f' ({error!r})'}; correct the URL")


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from."""
    found: BaseException | None = error
    for _ in range(10):
        if found is None:
            return
        yield found
        found = found.__cause__ or found.__context__


def answer_of(error: BaseException) -> tuple[str, int, str]:
    """What S3 answered: its code, the HTTP status, and its message; empty without an answer."""
    for one in chain(error):
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
