"""A job that can not use a place says so before it works."""

from __future__ import annotations

import io
import runpy
import sys
from pathlib import Path

import pytest
import s3fs
from support.bad_paths import a_circle
from support.jobs import REPOSITORY

# Jobs, as their users start them


def ran(monkeypatch: pytest.MonkeyPatch, job: str, *flags: object) -> tuple[int, str, str]:
    """A job's status, and what it says."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", [job, *map(str, flags)])
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "ray_jobs" / job), run_name="__main__")
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def bad_place(kind: str, bucket: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    match kind:
        case "no bucket":
            return "s3://coin-nowhere/a"
        case "no name":
            return "s3://"
        case "one slash":
            return "s3:/bucket/a"
        case "no endpoint":
            monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9")
            s3fs.S3FileSystem.clear_instance_cache()
            return bucket
        case "no key":
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                monkeypatch.delenv(name)
            monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
            s3fs.S3FileSystem.clear_instance_cache()
            return bucket
        case "a file":
            (root / "taken").write_text("")
            return str(root / "taken")
        case "a circle":
            return str(a_circle(root).parent)
        case "a long name":
            return str(root / ("n" * 300))
    return "/proc/cmoe"


REMOTE_PLACES = ("no bucket", "no name", "no endpoint", "no key")


LOCAL_PLACES = ("one slash", "a file", "a circle", "a long name", "/proc")


STREAM = ("coin_stream.py", "--config", "configs/coin_mini.yaml", "--data.root", "{root}/data")


METHODS = ("--methods", "lora")


COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "stream": ((*STREAM, "--runs"), REMOTE_PLACES + LOCAL_PLACES),
    "compare": ((*STREAM, *METHODS, "--runs"), ("no bucket", "no name", "a file")),
    "sweep": (
        ("coin_sweep.py", "--config", "configs/sweep_mini.yaml", "--runs"),
        ("one slash", "a file", "a circle", "/proc"),
    ),
    "data": (
        ("coin_stream.py", "--config", "configs/coin_mini.yaml", "--runs", "{root}", "--data.root"),
        ("no bucket", "no name", "a file", "/proc"),
    ),
    "locate": (
        ("coin_locate.py", "--config", "configs/coin_mini.yaml", "--data.root"),
        ("no bucket", "no name", "/proc"),
    ),
    "prepare": (
        ("coin_prepare.py", "--root", "{root}", "--out"),
        ("no bucket", "no name", "no key", "a file", "/proc"),
    ),
    "serve": (
        ("coin_serve.py", "--config", "configs/serve_mini.yaml", "--no-auth", "--store"),
        ("no bucket", "no name", "no key", "a file", "a circle"),
    ),
    "bench": (
        ("bench.py", "serve", "--data", "{root}", "--store"),
        ("no bucket", "no name"),
    ),
}


@pytest.mark.parametrize(
    ("job", "place"), [(job, place) for job, (_, places) in COMMANDS.items() for place in places]
)
def test_a_job_that_can_not_use_a_place_says_so_before_it_works(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, place: str
) -> None:
    url = bad_place(place, bucket, tmp_path, monkeypatch)
    command = [str(word).format(root=tmp_path) for word in COMMANDS[job][0]]

    def no_ray(*_: object, **__: object) -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr("ray.init", no_ray)
    monkeypatch.setenv("CMOE_API_KEYS", "a")
    status, out, err = ran(monkeypatch, *command, url)
    assert status == 1, (out, err)
    assert err.startswith(f"{command[0]}: "), err
    assert len(err.splitlines()) == 1, err
    assert url.rstrip("/") in err
    assert "Traceback" not in out + err
    assert not Path("s3:").exists()
