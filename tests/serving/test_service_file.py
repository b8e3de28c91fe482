"""Files of services: those that come with the project are right, and mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.paths import CONFIGS

from cmoe.serving.launch import ServiceError, read_service
from cmoe.serving.settings import ServeConfig


@pytest.mark.parametrize("name", sorted(file.name for file in CONFIGS.glob("serve_*.yaml")))
def test_files_of_services_name_what_is_there(name: str) -> None:
    """Every deployment is one of ours, every argument a known one, and all is Ray's own format."""
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema(**yaml.safe_load((CONFIGS / name).read_text()))
    (application,) = schema.applications
    assert application.import_path == "cmoe.serving.app:build"
    assert {d.name for d in application.deployments} == {"gateway", "locator", "executor"}
    config = ServeConfig.of(application.args)
    assert config.auth.required
    options = {d.name: d for d in application.deployments}
    assert options["executor"].max_ongoing_requests >= config.engine.max_batch
    for one in options.values():
        assert one.max_queued_requests > 0, "bounded"


MINI = (CONFIGS / "serve_mini.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (MINI.replace("    batch: 16", "    poll_s: 3\n    batch: 16"), "'poll_s' stands.*line 19"),
        (MINI.replace("http_options:", "http_options: ["), "line 9, column 7"),
        (MINI.replace("proxy_loc", "proxyloc"), "proxylocation: .* did you mean proxy_location"),
        (MINI.replace("  port:", "  prot:"), r"http_options.prot: .* did you mean port\?"),
        (MINI.replace("route_prefix", "prefix"), "applications.0.prefix: there is no such key"),
        (MINI.replace("poll_s", "pol_s"), "applications.0.args.pol_s: .* mean poll_s"),
        (MINI.replace("in_flight", "in_fligth"), "args.limits.in_fligth: .* mean in_flight"),
        (MINI.replace("num_replicas", "num_replica"), "deployments.0.num_replica: .* num_replicas"),
        (MINI.replace("num_cpus", "num_cpu"), "ray_actor_options.num_cpu: .* mean num_cpus"),
        (MINI.replace(" gateway", " gatway"), "deployments.0.name is 'gatway'; .* mean gateway"),
        (MINI.replace("app:build", "app:make"), "import_path is 'cmoe.serving.app:make'; cmoe"),
        (
            MINI.replace("HeadOnly", "Head"),
            "proxy_location: Input should be 'Disabled', 'HeadOnly'",
        ),
        (MINI.replace("num_replicas: 2", "num_replicas: x"), "deployments.0: `num_replicas` must"),
        (MINI.replace("port: 8000", "port: 80000"), "port.* is 80000; 1 to 65535"),
        (MINI + MINI[MINI.index("- name: cmoe") :].replace("/\n", "/b\n"), "there are 2; one is"),
        (MINI[: MINI.index("applications")], "applications: there are 0; one is served here"),
        (MINI[: MINI.index("  args:")] + "  args:\n", "applications.0.args"),
        ("", "a mapping with the key applications is needed, not None"),
        ("- a\n", "a mapping with the key applications is needed"),
    ],
)
def test_a_wrong_file_of_a_service_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, cause: str
) -> None:
    """Ray itself would drop most of these keys without a word."""
    monkeypatch.setenv("CMOE_API_KEYS", "key")
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ServiceError, match=cause) as refused:
        read_service(file)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for file, cause in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ServiceError, match=f"{file}: {cause}.*--config names"):
            read_service(file)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ServiceError, match=r"bytes\.yaml: .*decode byte 0xff"):
        read_service(tmp_path / "bytes.yaml")
