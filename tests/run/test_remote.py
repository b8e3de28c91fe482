"""A run that is kept on S3, over a wire that fails, and stops, and comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import s3fs
import yaml
from support.flaky import Flaky, flaky
from support.jobs import JOB, finish, same_run, start, undisturbed, until
from support.workers import small_config

from cmoe.common.remote.mirror import mirrored
from cmoe.common.storage import filesystem
from cmoe.config.tree import RunConfig
from cmoe.store.log import Store

AWAY_S = 30.0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("remote")


@pytest.fixture(scope="module")
def reference(root: Path) -> Path:
    return undisturbed(alone(root, "whole"), workers=1)


def alone(root: Path, name: str) -> RunConfig:
    config = small_config(root, name)
    return replace(config, cluster=replace(config.cluster, workers=1))


def on_s3(root: Path, name: str, bucket: str) -> tuple[RunConfig, Path]:
    config = replace(alone(root, name), runs=f"{bucket}/runs")
    file = root / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config.as_dict()))
    return config, file


def reached(proxy: Flaky, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_run_that_can_not_be_kept_says_so_and_goes_on_later_over_a_failing_wire(
    root: Path, reference: Path, bucket: str, s3_server: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First it may not write any more; then a fifth of all calls fails, and once all of them."""
    config, file = on_s3(root, "failing", bucket)
    secret = f"secret-{uuid4().hex}"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with flaky(str(getattr(s3_server, "endpoint", "")), seed=3) as proxy:
        reached(proxy, monkeypatch)
        job = start(JOB, "--config", file)
        fs, path = filesystem(f"{config.url}/store/000.json")
        until(lambda: fs.exists(path) or job.poll() is not None, minutes=5)
        proxy.denied = True
        refused = finish(job)
        assert job.returncode == 1, refused
        assert "s3://" in refused
        assert "the access key has no permission, or is wrong" in refused
        assert "of the workers" not in refused, "what waiting can't mend is tried again"
        assert "Traceback" not in refused
        Store.open(f"{config.url}/store").verify()
        with mirrored(config.url, apart=["store", "train"]) as mirror:
            mirror.fetch()
            assert not (mirror.folder / "report.html").exists()
        proxy.denied, proxy.share = False, 0.2
        proxy.requests.clear()
        proxy.faults.clear()
        job = start(JOB, "--config", file)
        until(lambda: proxy.requests["PUT"] > 20 or job.poll() is not None, minutes=5)
        proxy.go_away(AWAY_S)
        out = finish(job, minutes=10)
        assert job.returncode == 0, out
        assert proxy.faults["away"] > 3, proxy.faults
        assert len(proxy.faults) == 6, proxy.faults
        proxy.share = 0
        same_run(config.url, reference)
        assert "finished" in finish(start(JOB, "--config", file))
        assert secret not in refused + out
        fs, path = filesystem(config.url)
        kept = fs.find(path)
        assert len(kept) > 20
        assert [name for name in kept if secret.encode() in fs.cat_file(name)] == []
