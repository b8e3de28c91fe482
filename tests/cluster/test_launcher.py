"""The launcher file: Ray's own validation takes it, EC2 its machines, and nothing of it is open.

EC2 is moto's: its API model, and a copy of what its instance types have.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema
import pytest
import yaml
from support.cluster_files import IMAGE, UID, environment, launcher, machine, text_of


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` completes and validates a file, before it asks AWS for anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    made: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(made)
    return made


def start(part: str) -> str:
    """The command that starts Ray on a head, or on a worker."""
    (found,) = [c for c in launcher()[f"{part}_start_ray_commands"] if "ray start" in c]
    return str(found)


def test_rays_own_validation_takes_the_file() -> None:
    made = prepared(launcher())
    types = made["available_node_types"]
    assert {name: (each["min_workers"], each["max_workers"]) for name, each in types.items()} == {
        "head": (0, 0),
        "gpu_on_demand": (0, 1),
        "gpu_spot": (0, 2),
    }
    # The cap on the bill: both groups together have more.
    assert made["max_workers"] == 2


def test_rays_own_validation_would_find_a_typo() -> None:
    wrong = launcher()
    wrong["available_node_types"]["gpu_spot"]["max_worker"] = 2
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        prepared(wrong)


def test_nothing_is_installed_over_the_image() -> None:
    """What a file leaves out Ray fills with its defaults: they install a nightly build of Ray."""
    made = prepared(launcher())
    assert [made[f"{part}setup_commands"] for part in ("", "head_", "worker_")] == [[], [], []]


def test_the_autoscaler_asks_for_the_on_demand_machine_first() -> None:
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    config = AutoscalingConfig(launcher(), skip_content_hash=True)
    types = config.get_node_type_configs()
    assert types["gpu_on_demand"].priority > types["gpu_spot"].priority > 0
    assert types["head"].resources == {"CPU": 0}
    assert config.get_idle_timeout_s() == 600
    assert "RAY_enable_autoscaler_v2=1" in start("head")  # the first knows no priorities


@pytest.mark.parametrize("part", ["head", "worker"])
def test_every_machine_asks_for_the_token(part: str) -> None:
    before, _, _ = start(part).partition("ray start")
    assert before.startswith("export ")
    assert "RAY_AUTH_MODE=token" in before.replace(";", " ").split()
    home = environment(IMAGE)["HOME"]
    assert launcher()["file_mounts"] == {f"{home}/.ray/auth_token": "~/.ray/auth_token"}
    # The mounted file is `ubuntu`'s, and its alone: the first user of Ubuntu's machines.
    assert (launcher()["auth"]["ssh_user"], UID) == ("ubuntu", 1000)


def test_the_dashboard_listens_on_loopback() -> None:
    assert "--dashboard-host=127.0.0.1" in start("head").split()


def test_containers_gain_no_privileges() -> None:
    docker = launcher()["docker"]
    options = [*docker["run_options"], *docker["head_run_options"], *docker["worker_run_options"]]
    assert {"--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(options)
    assert not [option for option in options if option.startswith(("--privileged", "--cap-add"))]
    assert len([option for option in options if option.startswith("--shm-size=")]) == 2
    assert "--gpus=all" in docker["worker_run_options"]


@dataclass(frozen=True)
class Launched:
    """What EC2 was asked for, by node type, and the security group that it was given."""

    instances: Mapping[str, Mapping[str, Any]]
    volumes: Mapping[str, Mapping[str, Any]]
    group: Mapping[str, Any]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """The file's machines, launched by Ray's own provider."""
    from moto import mock_aws

    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray makes a key pair there
        patch.setenv("AWS_DEFAULT_REGION", "us-west-2")
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        return launch()


def launch() -> Launched:
    import boto3
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import validate_config

    ec2, iam = boto3.client("ec2"), boto3.client("iam")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    group = ec2.create_security_group(VpcId=vpc, GroupName="ray", Description="-")["GroupId"]
    for name in ("cmoe-ray-head", "cmoe-ray-worker"):
        iam.create_instance_profile(InstanceProfileName=name)
    text = text_of("aws.yaml")
    for placeholder, real in (
        ("ami-YOUR-IMAGE", ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]),
        ("subnet-YOUR-PRIVATE-SUBNET", subnet),
        ("sg-YOUR-GROUP", group),
        ("YOUR-ACCOUNT", "123456789012"),
    ):
        assert placeholder in text
        text = text.replace(placeholder, real)
    assert "YOUR-" not in text.replace("YOUR-...", "")

    config = AWSNodeProvider.fillout_available_node_types_resources(prepared(yaml.safe_load(text)))
    validate_config(config)
    config = AWSNodeProvider.bootstrap_config(config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    instances, volumes = {}, {}
    for name, each in config["available_node_types"].items():
        tags = {"ray-node-type": "worker", "ray-launch-config": "-", "ray-user-node-type": name}
        (made,) = provider.create_node(each["node_config"], tags, 1)
        (kept,) = ec2.describe_instances(InstanceIds=[made])["Reservations"]
        (instances[name],) = kept["Instances"]
        attached = [{"Name": "attachment.instance-id", "Values": [made]}]
        (volumes[name],) = ec2.describe_volumes(Filters=attached)["Volumes"]
    (security,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    return Launched(instances, volumes, security)


def test_ec2_takes_the_machines(launched: Launched) -> None:
    assert {name: each.get("InstanceLifecycle") for name, each in launched.instances.items()} == {
        "head": None,
        "gpu_on_demand": None,
        "gpu_spot": "spot",
    }
    arns = {name: each["IamInstanceProfile"]["Arn"] for name, each in launched.instances.items()}
    assert {name: arn.split("/")[-1] for name, arn in arns.items()} == {
        "head": "cmoe-ray-head",
        "gpu_on_demand": "cmoe-ray-worker",  # which can't launch machines
        "gpu_spot": "cmoe-ray-worker",
    }


def test_the_machines_are_closed_to_the_outside(launched: Launched) -> None:
    assert launched.group["IpPermissions"] == []  # Ray adds none to a group that is given
    for instance in launched.instances.values():
        groups = [group["GroupId"] for group in instance["SecurityGroups"]]
        assert groups == [launched.group["GroupId"]]
        assert instance.get("PublicIpAddress") is None
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        assert instance["MetadataOptions"]["HttpPutResponseHopLimit"] == 1


def test_the_disks_are_encrypted_and_go_with_their_machines(launched: Launched) -> None:
    assert all(volume["Encrypted"] for volume in launched.volumes.values())
    for instance in launched.instances.values():
        assert [d["Ebs"]["DeleteOnTermination"] for d in instance["BlockDeviceMappings"]] == [True]
    assert launcher()["provider"]["cache_stopped_nodes"] is False


def test_node_types_have_what_their_machines_have() -> None:
    types = launcher()["available_node_types"]
    head = types.pop("head")
    assert machine(head["node_config"]["InstanceType"])[2] == 0
    for each in types.values():
        cpus, _, gpus = machine(each["node_config"]["InstanceType"])
        assert each["resources"] == {"CPU": cpus, "GPU": gpus}
