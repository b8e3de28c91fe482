"""`cmoe check cluster` on a real cluster of several nodes: healthy, and each fault on one node."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
import ray.cluster_utils
from conftest import S3Server, running_s3
from support.forking import FORKS, PYTHONPATH
from support.paths import ROOT

from cmoe.cli.main import main

FAULTS = ROOT / "tests" / "support" / "faults"
READING = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}
    ],
}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """An S3 server that asks for rights, as soon as `Place` says so."""
    with running_s3() as server:
        yield server


@dataclass
class Place:
    """A cluster of two good nodes, `vm` and `second`, and what is checked on it.

    Attributes:
        nodes: The cluster.
        folder: For files.
        reader: The environment of one who may only read in the bucket.
    """

    nodes: ray.cluster_utils.Cluster
    folder: Path
    reader: dict[str, str]

    def check(self, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
        """The command's status, and what it says."""
        given = {
            "--runs": self.folder / "runs",
            "--data.root": self.folder / "data",
            "--cluster.address": self.nodes.address,
            "--wait_s": 120,
        } | dict(zip(words[::2], words[1::2], strict=True))
        flat = [str(word) for pair in given.items() for word in pair]
        status = main(["check", "cluster", *flat])
        return status, capsys.readouterr().out


@pytest.fixture(scope="module")
def place(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("check")
    data = folder / "data" / "Instructions_Original" / "GQA"
    data.mkdir(parents=True)
    (data / "train.json").write_text("[]")
    admin, reader = _keys(s3)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in admin.items():
            patch.setenv(name, value)
        nodes = ray.cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            nodes.add_node(num_cpus=1, node_name="second")
            yield Place(nodes, folder, reader)
        finally:
            nodes.shutdown()


def _keys(s3: S3Server) -> tuple[dict[str, str], dict[str, str]]:
    """Environments of one who may do all, and of one who may only read."""
    at = {"endpoint_url": s3.endpoint, "region_name": "us-east-1"}
    at |= {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    boto3.client("s3", **at).create_bucket(Bucket="runs")
    iam, found = boto3.client("iam", **at), []
    everything = {"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]} | {
        "Version": "2012-10-17"
    }
    for name, policy in (("admin", everything), ("reader", READING)):
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        found.append(
            {
                "AWS_ENDPOINT_URL": s3.endpoint,
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
                "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            }
        )
    # From now on they are asked for.
    # From now on they are asked for.
    plain = {"Content-Type": "text/plain"}
    asking = urllib.request.Request(f"{s3.endpoint}/moto-api/reset-auth", b"0", plain)
    urllib.request.urlopen(asking, timeout=10).close()
    return found[0], found[1]


def wrong(out: str) -> list[str]:
    """The sentences about what is wrong."""
    return [line.removeprefix("WRONG ") for line in out.splitlines() if line.startswith("WRONG ")]


def test_a_healthy_cluster_is_measured_and_left_as_it_was(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    file = place.folder / "found.json"
    status, out = place.check(capsys, "--json", file)
    assert (status, wrong(out)) == (0, []), out
    assert re.search(r"^\S+ \(head\) .* ok$", out, re.MULTILINE)
    assert re.search(r"^second .* \+?-?0\.0\d\d ± 0\.\d{3} .* ok$", out, re.MULTILINE)
    assert "all-reduce of 2 workers by gloo: 1 MiB" in out
    assert not (place.folder / "runs").exists()
    assert [*(place.folder / "data").iterdir()] == [place.folder / "data/Instructions_Original"]
    found = json.loads(file.read_text())
    assert found["ok"]
    assert found["machines"]["second"]["versions"]["python"]
    (link,) = found["group"]["links"]
    assert link["bandwidth"] > 0


def test_workers_that_do_not_come_together_are_named(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's environment reaches them before their network does."""
    status, out = place.check(capsys, "--cluster.environment.GLOO_SOCKET_IFNAME", "nope0")
    assert status == 1
    texts = wrong(out)
    assert len(texts) == 2
    assert re.search(r": worker 0 failed while joining the group: .*nope0", texts[0])
    assert re.search(r"^second: worker 1 failed while joining the group: .*nope0", texts[1])


def test_workers_without_room_are_told(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = place.check(capsys, "--cluster.cpus_per_worker", 2, "--wait_s", 10)
    assert status == 1
    (text,) = [text for text in wrong(out) if "weren't placed" in text]
    assert "2 workers with 2 CPUs each weren't placed within 10 s. The cluster has 2 CPUs" in text
    assert "It has room for 0 of these workers" in text


def test_a_node_that_hangs_is_named_and_not_waited_for(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    node = place.nodes.add_node(num_cpus=0, node_name="stuck")
    raylet = node.all_processes["raylet"][0].process
    raylet.send_signal(signal.SIGSTOP)
    try:
        status, out = place.check(capsys, "--wait_s", 20)
    finally:
        raylet.send_signal(signal.SIGCONT)
        place.nodes.remove_node(node)
    assert status == 1
    text = only(wrong(out), "stuck")
    assert "didn't answer within 20 s while starting a process" in text
    assert re.search(r"^stuck .* no answer$", out, re.MULTILINE)


@pytest.fixture(scope="module")
def sick(place: Place, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What is said of a cluster with more nodes, each with a fault of its own."""
    old = tmp_path_factory.mktemp("old") / "deepspeed-0.0.1.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.0.1\n")
    faults = os.pathsep.join([str(FAULTS), *PYTHONPATH.split(os.pathsep)[1:]])
    other = tmp_path_factory.mktemp("other") / "cmoe"
    other.mkdir()
    (other / "__init__.py").write_text('__version__ = "0.0.9"\n')
    environments: dict[str, dict[str, str]] = {
        "stranger": {"PYTHONPATH": os.pathsep.join([str(FORKS), str(other.parent), PYTHONPATH])},
        "old": {"PYTHONPATH": os.pathsep.join([str(FORKS), str(old.parent), PYTHONPATH])},
        "early": {"PYTHONPATH": faults, "CMOE_TEST_CLOCK_S": "90"},
        "apart": {"PYTHONPATH": faults, "CMOE_TEST_HIDES": str(place.folder / "data")},
        "reader": place.reader,
    }
    for name, environment in environments.items():
        place.nodes.add_node(num_cpus=0, node_name=name, env_vars=environment)
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.chdir(place.folder)  # Ray's workers import what lies where the driver works
        patch.setattr("builtins.print", lambda *words, **_: said.extend(map(str, words)))
        words = ["--runs", "s3://runs/all", "--data.root", str(place.folder / "data")]
        words += ["--cluster.address", place.nodes.address, "--wait_s", "120"]
        status = main(["check", "cluster", *words])
    assert status == 1
    return wrong("\n".join(said))


def only(sick: list[str], name: str) -> str:
    """The one sentence on a node."""
    (found,) = [text for text in sick if text.startswith(f"{name}: ")]
    return found


def test_a_node_with_another_version_is_named(sick: list[str]) -> None:
    assert "deepspeed is 0.0.1, and" in only(sick, "old")


def test_a_node_with_another_cmoe_can_say_so(sick: list[str]) -> None:
    """What looks there is this cmoe's, whatever the node has."""
    told = [text for text in sick if text.startswith("stranger: ")]
    assert any("cmoe is 0.0.9 (" in text for text in told)


def test_a_node_whose_clock_is_off_is_named_with_how_sure_that_is(sick: list[str]) -> None:
    found = re.search(r"its clock is (\d+\.\d) s ahead of .* \(± (0\.\d+) s\)", only(sick, "early"))
    assert found
    assert abs(float(found[1]) - 90) < 1


def test_a_node_that_does_not_share_a_folder_is_named(place: Place, sick: list[str]) -> None:
    text = only(sick, "apart")
    assert f"data.root {place.folder / 'data'} is another folder than on" in text
    assert "without Instructions_Original" in text


def test_a_node_without_rights_in_s3_is_named(sick: list[str]) -> None:
    text = only(sick, "reader")
    assert "can't write: s3://runs/all/check: can't be written: the access key has no per" in text


def test_nothing_else_is_named(sick: list[str]) -> None:
    faulty = {"stranger", "old", "early", "apart", "reader"}
    assert {text.partition(":")[0] for text in sick} == faulty
