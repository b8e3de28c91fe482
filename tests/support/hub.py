"""A stand-in of the Hugging Face hub's HTTP API: model repositories in memory, behind a real wire.

It answers what `huggingface_hub` asks for models, with the hub's own statuses, headers and error
codes: repositories, trees, `paths-info`, `resolve` (large files by a redirection, as to a CDN),
`preupload`, LFS's batch API, commits with their parent, and the check of a card's front matter.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from support.hub_cards import problems_of

TOKEN = "hf_of_the_stand_in_0123456789"
LARGE = 10 * 2**20  # bytes from which a file is no longer kept in git itself
PAGE = 1000  # entries of a tree at a time


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    sha: str
    title: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A repository: what each branch and commit has."""

    private: bool
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        sha = self.branches.get(revision, revision)
        return next((each for each in self.commits if each.sha == sha), None)

    def log(self, revision: str) -> list[Commit]:
        """The newest first; one line of history, whatever the branch."""
        found = self.at(revision)
        assert found is not None
        return self.commits[self.commits.index(found) :: -1]

    def commit(self, branch: str, title: str, message: str, files: dict[str, bytes]) -> Commit:
        parent = self.branches.get(branch, "")
        content = [(name, hashlib.sha1(data).hexdigest()) for name, data in sorted(files.items())]
        named = json.dumps([parent, len(self.commits), title, message, content])
        made = Commit(hashlib.sha1(named.encode()).hexdigest(), title, message, files)
        self.commits.append(made)
        self.branches[branch] = made.sha
        return made


def is_large(name: str, size: int) -> bool:
    """Whether the hub keeps a file outside git: by its new repositories' `.gitattributes`."""
    return name.endswith(".safetensors") or size > LARGE


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubServer(ThreadingHTTPServer):
    """The stand-in.

    Attributes:
        repos: By `owner/name`.
        requests: How many came, by what they were for.
        before: Called before a request of a name is answered, such as `commit`: others may come in
            between.
        lost: How many commits are made, and answered with an error 500.
        away: Whether every request is answered with an error 503.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.before: dict[str, Callable[[], object]] = {}
        self.lost = 0
        self.away = False
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def make(self, name: str, *, private: bool = False) -> Repo:
        repo = self.repos[name] = Repo(private)
        repo.commit("main", "initial commit", "", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return repo

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository has, but for what the hub itself puts there."""
        found = self.repos[name].at(revision)
        assert found is not None
        return {path: data for path, data in found.files.items() if path != ".gitattributes"}

    def put(self, name: str, files: dict[str, bytes | None]) -> None:
        """Commit for somebody else; None removes a file."""
        with self.lock:
            repo = self.repos[name]
            head = repo.at("main")
            assert head is not None
            changed = {path: data for path, data in files.items() if data is not None}
            kept = {path: data for path, data in head.files.items() if path not in files}
            repo.commit("main", "by somebody else", "", kept | changed)


@contextmanager
def running_hub() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # headers and body go in one packet: nobody waits for an acknowledgement

    def log_message(self, *_: Any) -> None: ...

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(length)
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        try:
            if self.server.away:
                raise _RefusedError(503, message="Service Unavailable")
            with self.server.lock:
                self._answer(parts, parse_qs(url.query), body)
        except _RefusedError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self._send(
                error.status, {"error": error.message}, {k: v for k, v in headers.items() if v}
            )

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _send(
        self, status: int, content: Any = None, headers: dict[str, str] | None = None
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # What is asked

    def _answer(self, parts: list[str], query: dict[str, list[str]], body: bytes) -> None:
        counted = self.server.requests
        match parts:
            case ["api", "repos", "create"]:
                counted["create"] += 1
                self._create(json.loads(body))
            case ["api", "validate-yaml"]:
                counted["validate"] += 1
                self._validate(json.loads(body)["content"])
            case ["api", "models", owner, name]:
                self._info(f"{owner}/{name}", "main")
            case ["api", "models", owner, name, "revision", revision]:
                self._info(f"{owner}/{name}", revision)
            case ["api", "models", owner, name, "tree", revision, *path]:
                counted["tree"] += 1
                recursive = query.get("recursive", ["False"])[0].lower() == "true"
                self._tree(f"{owner}/{name}", revision, "/".join(path), recursive)
            case ["api", "models", owner, name, "paths-info", revision]:
                asked = parse_qs(body.decode())["paths"]
                found = self._entries(f"{owner}/{name}", revision)
                self._send(200, [found[path] for path in asked if path in found])
            case ["api", "models", owner, name, "commits", revision]:
                self._found(f"{owner}/{name}", revision)
                self._log(self.server.repos[f"{owner}/{name}"].log(revision))
            case ["api", "models", owner, name, "preupload", revision]:
                counted["preupload"] += 1
                self._preupload(f"{owner}/{name}", revision, json.loads(body))
            case ["api", "models", owner, name, "commit", revision]:
                counted["commit"] += 1
                self._commit(f"{owner}/{name}", revision, body)
            case [owner, name, "info", "lfs", "objects", "batch"]:
                counted["batch"] += 1
                self._batch(f"{owner}/{name.removesuffix('.git')}", json.loads(body))
            case ["lfs", digest]:
                if hashlib.sha256(body).hexdigest() != digest:
                    raise _RefusedError(400, message="the content has another digest")
                self.server.large[digest] = body
                self._send(200, {})
            case ["lfs", digest, "verify"]:
                self._send(200 if digest in self.server.large else 404, {})
            case ["cdn", digest]:
                counted["cdn"] += 1
                self._send(200, self.server.large[digest], {"ETag": f'"{digest}"'})
            case [owner, name, "resolve", revision, *path]:
                counted[f"resolve {self.command}"] += 1
                self._resolve(f"{owner}/{name}", revision, "/".join(path))
            case _:
                raise _RefusedError(404, message=f"nothing at {self.path}")

    def _let_others(self, asked: str) -> None:
        if (other := self.server.before.get(asked)) is not None:
            self.server.lock.release()
            try:
                other()
            finally:
                self.server.lock.acquire()

    def _may_write(self) -> None:
        given = self.headers.get("Authorization")
        if given is None:
            raise _RefusedError(401, message="Invalid username or password.")
        if given != f"Bearer {TOKEN}":
            raise _RefusedError(401, message="Invalid credentials in Authorization header")

    def _found(self, name: str, revision: str) -> Commit:
        repo = self.server.repos.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.private and not known):
            raise _RefusedError(404 if known else 401, "RepoNotFound", "Repository not found")
        if (found := repo.at(revision)) is None:
            raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def _entries(self, name: str, revision: str) -> dict[str, dict[str, Any]]:
        """All files and folders, as the hub lists them."""
        found: dict[str, dict[str, Any]] = {}
        for path, data in sorted(self._found(name, revision).files.items()):
            for folder in ("/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 1)):
                found[folder] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder}
            entry = {"type": "file", "oid": git_blob(data), "size": len(data), "path": path}
            if is_large(path, len(data)):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
                entry["oid"] = git_blob(f"pointer to {digest}".encode())
            found[path] = entry
        return found

    def _create(self, asked: dict[str, Any]) -> None:
        self._may_write()
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        if name in self.server.repos:
            raise _RefusedError(409, message="You already created this model repo")
        self.server.make(name, private=asked.get("visibility") == "private")
        self._send(200, {"url": f"{self.server.url}/{name}"})

    def _validate(self, content: str) -> None:
        errors, warnings = problems_of(content)
        told = {"errors": [{"message": e} for e in errors]}
        told["warnings"] = [{"message": w} for w in warnings]
        self._send(400 if errors else 200, told)

    def _info(self, name: str, revision: str) -> None:
        found = self._found(name, revision)
        files = [{"rfilename": path} for path in found.files]
        repo = self.server.repos[name]
        about = {"id": name, "modelId": name, "sha": found.sha, "private": repo.private}
        self._send(200, {**about, "siblings": files, "tags": []})

    def _tree(self, name: str, revision: str, folder: str, recursive: bool) -> None:
        start = f"{folder}/" if folder else ""
        entries = self._entries(name, revision)
        found = [entry for path, entry in entries.items() if path.startswith(start)]
        if folder and not found:
            raise _RefusedError(404, "EntryNotFound", f"{folder} does not exist on {revision!r}")
        if not recursive:
            found = [each for each in found if "/" not in each["path"].removeprefix(start)]
        query = parse_qs(urlsplit(self.path).query)
        first = int(query.get("cursor", ["0"])[0])
        headers = {}
        if len(found) > first + PAGE:
            path = f"{self.server.url}{urlsplit(self.path).path}?recursive={recursive}"
            headers["Link"] = f'<{path}&cursor={first + PAGE}>; rel="next"'
        self._send(200, found[first : first + PAGE], headers)

    def _log(self, commits: list[Commit]) -> None:
        self._send(
            200,
            [
                {"id": each.sha, "title": each.title, "message": each.message}
                | {"authors": [{"user": "me"}], "date": "2026-01-01T00:00:00.000Z"}
                for each in commits
            ],
        )

    def _resolve(self, name: str, revision: str, path: str) -> None:
        commit = self._found(name, revision)
        if (data := commit.files.get(path)) is None:
            told = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.sha}
            self._send(404, {"error": "Entry not found"}, told)
            return
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if is_large(path, len(data)):
            digest = hashlib.sha256(data).hexdigest()
            self.server.large[digest] = data
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            port = self.server.server_address[1]  # another host than the hub's, as a CDN has
            place = {"Location": f"http://localhost:{port}/cdn/{digest}"}
            self._send(302, b"", headers | linked | place)
            return
        self._send(200, data, headers | {"ETag": f'"{git_blob(data)}"'})

    def _preupload(self, name: str, revision: str, asked: dict[str, Any]) -> None:
        self._may_write()
        self._let_others("preupload")
        there = self._entries(name, revision)
        answers = []
        for file in asked["files"]:
            entry = there.get(file["path"], {})
            large = is_large(file["path"], file["size"])
            known = entry.get("lfs", entry).get("oid")
            mode = {"uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            answers.append({"path": file["path"], **mode, "oid": known})
        self._send(200, {"files": answers})

    def _batch(self, name: str, asked: dict[str, Any]) -> None:
        self._may_write()
        self._found(name, asked["ref"]["name"])
        objects = []
        for each in asked["objects"]:
            url = f"{self.server.url}/lfs/{each['oid']}"
            actions = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
            known = each["oid"] in self.server.large
            objects.append(dict(each) if known else {**each, "actions": actions})
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        self._may_write()
        self._let_others("commit")
        head = self._found(name, branch)
        header, *lines = (json.loads(line) for line in body.splitlines())
        asked = header["value"]
        if asked.get("parentCommit", head.sha) != head.sha:
            said = "A commit has happened since. Please refresh and try again."
            raise _RefusedError(412, message=said)
        if branch not in self.server.repos[name].branches:
            raise _RefusedError(400, message=f"{branch} is not a branch")
        files = dict(head.files)
        for line in lines:
            file = line["value"]
            if line["key"] == "lfsFile":
                if file["oid"] not in self.server.large:
                    raise _RefusedError(400, message=f"{file['path']} was not uploaded")
                files[file["path"]] = self.server.large[file["oid"]]
            else:
                assert line["key"] == "file", line["key"]
                files[file["path"]] = base64.b64decode(file["content"])
        made = self.server.repos[name].commit(branch, asked["summary"], asked["description"], files)
        if self.server.lost > 0:
            self.server.lost -= 1
            raise _RefusedError(500, message="Internal Server Error")
        url = f"{self.server.url}/{name}/commit/{made.sha}"
        self._send(200, {"success": True, "commitOid": made.sha, "commitUrl": url})
