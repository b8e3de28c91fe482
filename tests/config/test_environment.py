"""Environment variables that a configuration gives to workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmoe.config.environment import is_secret
from cmoe.config.parse import parse
from cmoe.config.settings import ClusterConfig


def test_values_are_texts_as_a_process_has_them(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    variables = "{NCCL_SOCKET_IFNAME: =eth0, NCCL_IB_TIMEOUT: 22, TOKENIZERS_PARALLELISM: 'false'}"
    file.write_text(f"name: mine\ncluster:\n  environment: {variables}\n")
    words = ["--config", str(file), "--cluster.environment.GLOO_SOCKET_IFNAME", "eth0"]
    assert parse(words).cluster.runtime_env["env_vars"] == {
        "NCCL_SOCKET_IFNAME": "=eth0",
        "NCCL_IB_TIMEOUT": "22",
        "TOKENIZERS_PARALLELISM": "false",
        "GLOO_SOCKET_IFNAME": "eth0",
    }


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "GITHUB_PAT"),
        *("MLFLOW_TRACKING_PASSWORD", "PGPASSWORD", "MYSQL_PWD", "COMET_APIKEY", "hf_token"),
        *("SSH_AUTH_SOCK", "ENCRYPTION_KEY", "MY_PASSPHRASE", "CLIENTSECRET", "API_KEYS"),
    ],
)
def test_secrets_are_refused_by_their_names(name: str) -> None:
    with pytest.raises(ValueError, match=rf"cluster\.environment\.{name} holds a secret by its na"):
        ClusterConfig(environment={name: "x"})


@pytest.mark.parametrize(
    "name",
    [
        *("NCCL_IB_PKEY", "UCX_IB_PKEY", "TOKENIZERS_PARALLELISM", "NCCL_DEBUG_FILE", "MONKEY"),
        *("AWS_WEB_IDENTITY_TOKEN_FILE", "HF_TOKEN_PATH", "FI_PROVIDER", "PATH", "BYPASS"),
    ],
)
def test_what_only_looks_like_a_secret_is_taken(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("HTTPS_PROXY", "http://me:word@proxy:3128", "holds a secret by its value"),
        ("STORAGE", "https://host/?token=abc", "holds a secret by its value"),
        ("MASTER_PORT", 29500, "is set by Ray"),
        ("RAY_ADDRESS", "auto", "is set by Ray"),
        ("1ST", "x", "no digit first"),
        ("A B", "x", "letters, digits and _"),
        ("A", "x\0y", "null character"),
    ],
)
def test_what_would_break_workers_or_show_a_login_is_refused(
    name: str, value: str | int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        ClusterConfig(environment={name: value})


@pytest.mark.parametrize(
    "given", ["{A: true}", "{A: [1]}", "{A: null}", "{A: {B: 1}}", "A", "null"]
)
def test_a_value_of_another_kind_is_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--name", "mine", "--cluster.environment", given], "cmoe run")
    said = capsys.readouterr().err
    assert "a mapping of names, each to a text or an integer or a number, is needed" in said
