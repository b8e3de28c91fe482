"""The image, the versions, and what holds for every file of the folder: no secret, no dead name."""

from __future__ import annotations

import re

import pytest
from support.cluster_files import (
    BEFORE,
    BUILD,
    CLUSTER,
    FILES,
    IMAGE,
    ROOT,
    STREAM,
    UID,
    cluster_of,
    config_of,
    copied,
    environment,
    launcher,
    said,
    text_of,
)

import cmoe
from cmoe.serving.launch import RAY

PINNED = dict(
    re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
)


def test_the_image_has_the_project() -> None:
    for source in copied(BUILD) + copied(IMAGE):
        assert (ROOT / source).exists(), source
    assert not said(BUILD, "ADD") + said(IMAGE, "ADD")
    files = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert set(copied(IMAGE)) == {"cmoe", "ray_jobs", "configs"} | files


def test_both_stages_of_the_image_have_the_same_base_by_its_version() -> None:
    (base,) = said(BEFORE, "ARG")
    assert re.fullmatch(r"BASE=python:3\.11\.\d+-slim-\w+", base)
    assert said(BUILD, "FROM") + said(IMAGE, "FROM") == ["${BASE} AS build", "${BASE}"]
    assert said(BUILD, "WORKDIR") == said(IMAGE, "WORKDIR")  # an editable install is a path


def test_the_image_installs_what_the_constraints_pin() -> None:
    commands = [part for run in said(BUILD, "RUN") for part in run.split("&&")]
    installs = [command for command in commands if "pip install" in command]
    assert len(installs) == 2
    assert all("pip install -c constraints.txt " in install for install in installs)
    # Also for what pip installs to build a package.
    (place,) = said(BUILD, "WORKDIR")
    assert environment(BUILD)["PIP_CONSTRAINT"] == f"{place}/constraints.txt"
    assert not any("pip" in run for run in said(IMAGE, "RUN"))
    assert "boto3" in PINNED


def test_the_image_has_the_tools_that_its_clusters_call_and_no_compiler() -> None:
    (run,) = [run for run in said(IMAGE, "RUN") if "apt-get install" in run]
    words = run.split("apt-get install")[1].split("&&")[0].split()
    packages = {word for word in words if not word.startswith("-")}
    assert packages == {"openssh-client", "rsync", "wget"}


def test_the_image_runs_as_a_user_and_asks_for_the_token() -> None:
    assert IMAGE[-1][0] == "USER"
    assert UID > 0  # by number: Kubernetes can't tell whether a name is root
    assert any(f"useradd --uid {UID} " in run for run in said(IMAGE, "RUN"))
    variables = environment(IMAGE)
    assert variables["RAY_AUTH_MODE"] == "token"
    # The launcher's shells are login shells, which set PATH anew.
    paths = variables["PATH"].replace("$PATH", "")
    assert any(f"PATH={paths}" in run and "/etc/profile.d/" in run for run in said(IMAGE, "RUN"))


def test_the_image_sets_what_the_services_proxies_read() -> None:
    assert environment(IMAGE).items() >= RAY.items()


def test_versions_are_the_projects() -> None:
    assert cluster_of("cluster")["rayVersion"] == PINNED["ray"]
    assert launcher()["docker"]["image"].rpartition(":")[2] == cmoe.__version__


SECRETS = {
    "an AWS key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN",
    "a token in hex": r"\b[0-9a-f]{32,}\b",
    "a random word": r"(?<![\w/.-])(?=\w*\d)(?=\w*[A-Z])(?=\w*[a-z])[A-Za-z0-9+/]{32,}",
    "a named value": r"(?i)(secret|password|token|api_?key)\w*['\"]?\s*[:=]\s*['\"]?\w{16,}",
}


@pytest.mark.parametrize("name", FILES)
def test_no_file_holds_a_secret(name: str) -> None:
    # The commit of the hub's base is public.
    text = text_of(name).replace(config_of(STREAM)["model"]["revision"], "")
    assert [what for what, pattern in SECRETS.items() if re.search(pattern, text)] == []


@pytest.mark.parametrize(
    "line",
    [
        "aws_access_key_id: AKIAIOSFODNN7EXAMPLE",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        f"value: {'0123456789abcdef' * 4}",
        "value: wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
        'RAY_AUTH_TOKEN: "correcthorsebattery"',
    ],
)
def test_a_secret_would_be_found(line: str) -> None:
    assert any(re.search(pattern, line) for pattern in SECRETS.values())


def test_the_readme_names_every_file_and_none_that_is_not_there() -> None:
    text = text_of("README.md")
    named = set(re.findall(r"\b(?:cluster|configs|ray_jobs)/[\w./-]*\w", text))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    assert {f"cluster/{name}" for name in FILES} - named == {"cluster/README.md"}
    assert CLUSTER.name == "cluster"


def test_no_file_or_folder_grows_beyond_what_is_read_in_a_sitting() -> None:
    folders = [CLUSTER, *(path for path in CLUSTER.rglob("*") if path.is_dir())]
    assert max(len(list(folder.iterdir())) for folder in folders) <= 20
