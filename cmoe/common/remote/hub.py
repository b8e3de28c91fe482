"""Repositories of the Hugging Face hub as places of files: read, and committed to by many writers.

A commit names the commit that it was made for (`parentCommit`). The hub refuses it with 412 where
another came in between: then the files are looked at again. So of two writers of one file the
second one is told. The hub and the token are those of `huggingface_hub`: `HF_ENDPOINT`, `HF_TOKEN`
or the file that `hf auth login` writes. What was read stays in its cache.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote
from uuid import uuid4

from cmoe.common.storage import HUB, StorageError, explained
from cmoe.common.storage_errors import LISTED, READ, WRITTEN

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.file_download import HfFileMetadata
    from huggingface_hub.hf_api import RepoFile

MAIN = "main"
README, ATTRIBUTES = "README.md", ".gitattributes"
ALONE = 2**20  # bytes of a file beyond which it is uploaded, and forgotten here, by itself
TRIES = 10  # of a commit that others come in between of, with pauses that grow by
PAUSE_S = 0.2
LATEST = 50  # commits among which one's own is looked for
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_URL = re.compile(rf"hf://({_NAME}/{_NAME})(?:@(refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/([^@]*))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_KINDS = ("datasets", "spaces", "models", "buckets", "kernels")


@dataclass(frozen=True)
class Hub:
    """A model repository of the hub at a revision, or a folder in it.

    Attributes:
        url: As it was given.
        repo: `owner/name`.
        revision: A branch, a tag or a commit; only a branch is written to.
        prefix: Of the folder in it; empty for the whole.
    """

    url: str
    repo: str
    revision: str
    prefix: str

    @classmethod
    def at(cls, url: str) -> Hub:
        """The place that a URL `hf://owner/name[@revision][/folder]` names.

        Raises:
            StorageError: It names none.
        """
        match = _URL.fullmatch(url)
        if match is None or match[1].partition("/")[0] in _KINDS:
            raise StorageError(
                f"{url}: names no model repository of the hub; give {HUB}owner/name[@revision]"
            )
        return cls(url.rstrip("/"), match[1], match[2] or MAIN, (match[3] or "").strip("/"))

    @cached_property
    def api(self) -> HfApi:
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()  # a service's log is no place for them
        return HfApi(library_name="cmoe")

    # Reading

    def exists(self) -> bool:
        """Whether there is such a repository; StorageError where the hub doesn't answer."""
        with explained(self.url, READ):
            return self.api.repo_exists(self.repo)

    def files(self, revision: str | None = None) -> dict[str, RepoFile]:
        """The files in the folder by their names there; none where there is no such folder.

        Raises:
            StorageError: The hub doesn't answer, or has no such repository or revision.
        """
        from huggingface_hub.errors import RemoteEntryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        with explained(self.url, LISTED):
            try:
                tree = list(
                    self.api.list_repo_tree(
                        self.repo,
                        self.prefix or None,
                        recursive=True,
                        revision=revision or self.revision,
                    )
                )
            except RemoteEntryNotFoundError:
                return {}
        start = len(self._path(""))
        return {each.path[start:]: each for each in tree if isinstance(each, RepoFile)}

    def find(self, name: str) -> HfFileMetadata | None:
        """A file's size and commit; None where there is none; errors as of `files`."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import RemoteEntryNotFoundError

        path, endpoint = self._path(name), self.api.endpoint
        with explained(f"{self.url}/{name}", READ):
            url = hf_hub_url(self.repo, path, revision=self.revision, endpoint=endpoint)
            try:
                return self.api.get_hf_file_metadata(url=url)
            except RemoteEntryNotFoundError:
                return None

    def read(self, name: str, commit: str | None) -> bytes:
        """A whole file of a commit, from the hub's cache if it is there; errors as of `files`."""
        with explained(f"{self.url}/{name}", READ):
            path = self.api.hf_hub_download(
                self.repo, self._path(name), revision=commit or self.revision
            )
            return Path(path).read_bytes()

    def _path(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    # Writing

    def require_writable(self) -> None:
        """Make the repository, private, if there is none.

        Raises:
            StorageError: It can't be made, or the revision is a commit.
        """
        if _COMMIT.fullmatch(self.revision):
            raise StorageError(f"{self.url}: a commit stays as it is; give a branch to write to")
        if not self.exists():
            with explained(self.url, WRITTEN):
                self.api.create_repo(self.repo, private=True, exist_ok=True)

    def commit(
        self,
        files: Iterable[tuple[str, bytes | Path]],
        message: str,
        *,
        new: str | None = None,
        replaced: Collection[str] = (),
    ) -> str | None:
        """Create files in one commit: all of them, or none.

        Large ones are uploaded one by one before, which nobody sees.

        Args:
            files: By name.
            message: Of the commit.
            new: One of them that mustn't be there; others may, with the same bytes.
            replaced: Those that may be there with other bytes.

        Returns:
            The file in the way, in which case nothing was committed; None where all are there.

        Raises:
            StorageError: The hub refuses the commit, or doesn't answer.
        """
        with explained(self.url, WRITTEN):
            additions = {name: self._addition(name, content) for name, content in files}
            for turn in range(TRIES):
                time.sleep(PAUSE_S * turn)
                head = self.api.model_info(self.repo, revision=self.revision).sha
                there = self.files(head)
                missing = []
                for name, addition in additions.items():
                    if name == new and name in there:
                        return name
                    same = name in there and addition.is_in(there[name])
                    if name in there and not same and name not in replaced:
                        return name
                    missing += [] if same else [addition.operation]
                if not missing or self._commit(missing, message, head):
                    return None
        raise StorageError(
            f"{self.url}: others commit to it all the time; {TRIES} commits were overtaken. Try "
            "again later"
        )

    def _addition(self, name: str, content: bytes | Path) -> _Addition:
        from huggingface_hub import CommitOperationAdd

        source = content if isinstance(content, bytes) else str(content)
        operation = CommitOperationAdd(self._path(name), source)
        with operation.as_file() as file:
            blob = hashlib.sha1(f"blob {operation.upload_info.size}\0".encode())
            while piece := file.read(ALONE):
                blob.update(piece)
        addition = _Addition(operation, operation.upload_info.sha256.hex(), blob.hexdigest())
        if operation.upload_info.size > ALONE:
            self.api.preupload_lfs_files(self.repo, [operation], revision=self.revision)
        return addition

    def _commit(
        self, operations: list[CommitOperationAdd], message: str, parent: str | None
    ) -> bool:
        """Commit behind `parent`; False where another commit is there already."""
        from huggingface_hub.errors import HfHubHTTPError

        writer = f"cmoe {uuid4().hex}"
        try:
            self.api.create_commit(
                self.repo,
                operations,
                commit_message=message,
                commit_description=writer,
                revision=self.revision,
                parent_commit=parent,
            )
        except Exception as error:
            # An answer gets lost, or is an error though the commit was made: the log tells.
            if isinstance(error, ValueError) and README in str(error):
                raise StorageError(f"{self.url}: {error}".rstrip()) from error
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
            if not self._has_commit_of(writer):
                if status in (409, 412):
                    return False
                raise
            return True
        # Nothing is committed where the same came in between: that was another writer.
        return self._has_commit_of(writer)

    def _has_commit_of(self, writer: str) -> bool:
        """Whether one of the latest commits is a writer's; `list_repo_commits` would read all."""
        from huggingface_hub.utils import build_hf_headers, paginate  # type: ignore[attr-defined]

        branch = quote(self.revision, safe="")
        url = f"{self.api.endpoint}/api/models/{self.repo}/commits/{branch}"
        commits = islice(paginate(url, {}, build_hf_headers(library_name="cmoe")), LATEST)
        return any(writer in each["message"] for each in commits)


@dataclass(frozen=True)
class _Addition:
    """A file to be committed, and its digests, as the hub names it by one or the other."""

    operation: CommitOperationAdd
    sha256: str
    git_blob: str

    def is_in(self, file: RepoFile) -> bool:
        """Whether a file of the repository has the same bytes."""
        if file.lfs is not None:
            return bool(file.lfs.sha256 == self.sha256)
        return bool(file.blob_id == self.git_blob)
