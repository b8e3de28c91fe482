"""What the Hugging Face hub means by its errors: the cause and the remedy, in words."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from cmoe.common.storage_errors import THIS_MACHINE, Meaning, chain, of_disk

HOME = "https://huggingface.co"
_TOKEN = "set HF_TOKEN, or use `hf auth login`"
_MEANINGS: tuple[tuple[str, str, str], ...] = (
    (
        "HfUriError HFValidationError",
        "it names no repository of the hub",
        "give hf://owner/name[@revision]",
    ),
    ("OfflineModeIsEnabled", "HF_HUB_OFFLINE is set, so {hub} isn't asked", "unset it"),
    ("GatedRepoError", "{hub} wants its terms to be accepted first", "accept them on its page"),
    (
        "DisabledRepoError",
        "{hub} has disabled the repository",
        "ask its owner, or use another",
    ),
    ("RevisionNotFoundError", "there is no such revision", "correct what stands behind @"),
    (
        "RepositoryNotFoundError",
        "{hub} has no such repository, or doesn't show it to whoever has no right to it",
        f"correct the name, create it, or {_TOKEN}",
    ),
    ("RemoteEntryNotFoundError 404", "there is none", "correct the URL"),
    ("401", "{hub} doesn't know the token", f"{_TOKEN}, with a token that is valid"),
    ("403", "the token has no right to it", f"{_TOKEN}, with a token that may write there"),
    ("413 507", "it is too large for {hub}", "free some space there, or use another place"),
    ("400 422", "{hub} refuses it", "correct what it names"),
)
"""Classes of errors and HTTP statuses; what they mean; what helps."""
_KNOWN = {key: (cause, remedy) for keys, cause, remedy in _MEANINGS for key in keys.split()}
_OURS = {"HfHubHTTPError", "HTTPError", "EntryNotFoundError", "OSError", "HfUriError"}
_OURS |= {"HFValidationError"}


def of_hub(error: BaseException, url: str) -> Meaning | None:
    """What an error of the hub means, or one on the way to it; None for one of another kind.

    Args:
        error: As huggingface_hub and httpx raise it.
        url: What was used.
    """
    if not {kind.__name__ for kind in type(error).__mro__} & _OURS:
        return None
    for one in chain(error):
        if isinstance(one, OSError) and one.errno in THIS_MACHINE:
            return of_disk(one, str(one.filename or _cache()), "written")
    kinds = [kind.__name__ for one in chain(error) for kind in type(one).__mro__]
    status, said = _answer_of(error)
    told = f" ({said})" if said else ""
    known = next((_KNOWN[key] for key in (*kinds, str(status)) if key in _KNOWN), None)
    if known is not None:
        cause, remedy = known
        return Meaning(False, f"{cause.format(hub=endpoint())}{told}; {remedy}")
    if status == 429 or status >= 500 or not status:
        told = told or f" ({status or type(error).__name__})"
        text = f"{endpoint()} doesn't answer, or not now{told}; check HF_ENDPOINT and the network"
        return Meaning(True, f"{text}, and try again")
    return Meaning(False, f"{endpoint()} refuses it (status {status}{told}); correct the URL")


def is_no_file(error: BaseException) -> bool:
    """Whether the hub lacks more than a file: its repository, or its revision."""
    kinds = {kind.__name__ for one in chain(error) for kind in type(one).__mro__}
    return bool(kinds & {"RepositoryNotFoundError", "RevisionNotFoundError"})


def _answer_of(error: BaseException) -> tuple[int, str]:
    """The HTTP status, and the first line of what the hub said; 0 without an answer."""
    for one in chain(error):
        status = getattr(getattr(one, "response", None), "status_code", None)
        if status is not None:
            said = str(getattr(one, "server_message", None) or "").strip()
            return int(status), said.partition("\n")[0]
    return 0, ""


def endpoint() -> str:
    """Where the hub is reached, without what only its owner may know."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else HOME


def _cache() -> str:
    from huggingface_hub import constants

    return os.fspath(constants.HF_HUB_CACHE)
