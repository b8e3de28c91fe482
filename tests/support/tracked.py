"""What trackers have kept on the disk, read by their own readers; steps by the name of a value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

Kept = dict[str, list[tuple[int, float]]]
"""By name the steps and values, in the order in which they were logged."""


def of_tensorboard(folder: Path) -> Kept:
    """All event files of a run, as TensorBoard itself loads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def of_mlflow(uri: str, experiment: str = "cmoe") -> dict[str, tuple[str, Kept]]:
    """By the name of a run its status and values; no name has two runs."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    known = client.get_experiment_by_name(experiment)
    assert known is not None
    runs = client.search_runs([known.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {
        run.info.run_name: (
            run.info.status,
            {
                name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            },
        )
        for run in runs
    }


def of_wandb(folder: Path) -> tuple[list[int], Kept]:
    """W&B's own steps, and a run's values over the axes that were defined; of all its files."""
    from wandb.proto import wandb_internal_pb2 as messages

    rows: list[int] = []
    kept: Kept = {}
    axes: dict[str, str] = {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        assert file.name == f"run-{folder.name}.wandb", "its id is the run's name"
        for data in _records(file.read_bytes()):
            record = messages.Record()
            record.ParseFromString(data)
            if record.HasField("metric") and record.metric.step_metric:
                axes[record.metric.name] = record.metric.step_metric
            if not record.HasField("history"):
                continue
            values = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            rows.append(record.history.step.num)
            for name in values.keys() & axes.keys():
                kept.setdefault(name, []).append((values[axes[name]], values[name]))
    return rows, kept


def _records(data: bytes) -> Iterator[bytes]:
    """Of a log as LevelDB writes it, behind W&B's header of seven bytes.

    Blocks have 32 KiB; a record's header is its checksum (4 bytes), length (2) and whether it is
    whole, or the first, a middle or the last part. A killed process may have left half a record.
    """
    block, position, begun = 32 * 1024, 7, b""
    while position + 7 <= len(data):
        if block - position % block < 7:
            position += block - position % block
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        part, kind = data[position + 7 : position + 7 + length], data[position + 6]
        if kind == 0 or len(part) < length:
            return
        begun += part
        if kind in (1, 4):
            yield begun
            begun = b""
        position += 7 + length
