"""A service that answers from a store on the hub, and grows with what is committed there."""

from __future__ import annotations

from pathlib import Path

from support.forking import SOCKET
from support.hub import TOKEN, HubServer
from support.jobs import until
from support.service import running_service, service_file
from support.service_client import KEY, ServiceClient, answer_alone, ask

from cmoe.data.samples import Task
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE
from cmoe.store.export import export
from cmoe.store.log import Store
from cmoe.store.model import load_model

URL = "hf://me/store"


def test_it_serves_from_the_hub_and_takes_what_is_committed_there(
    hub: HubServer, stores: dict[str, Store], tasks: tuple[Task, ...], tmp_path: Path
) -> None:
    shared = export(stores["front"], URL, tasks=1)
    file = service_file(tmp_path, poll_s=0.5, reject_unknown=False)
    # Workers of their own: a fork has read the hub's address when it was not yet this one's.
    environment = {"CMOE_API_KEYS": KEY, SOCKET: ""}
    with running_service(URL, "--config", str(file), environment=environment) as running:
        service = ServiceClient(running, KEY)
        client = service.openai_client()
        assert [m.id for m in client.models.list()] == ["cmoe", f"cmoe:{tasks[0].name}"]
        shared.append(stores["front"].read(1))
        until(lambda: len(list(client.models.list())) == 3)
        model = load_model(Store.open(URL), load_base(MINI_BASE)[0])
        for task in tasks[:2]:
            sample = task.test[0]
            found = ask(client, sample, f"cmoe:{task.name}")
            assert found.choices[0].message.content == answer_alone(model, sample, task.name)[0]
        _, state = service.get("/healthz")
        assert state["executor"]["refused"] is None
        assert TOKEN not in str(state)
