"""The service's metrics for Prometheus: how they are made, and all of them on one page.

Ray's agents on all nodes export them, by the file that Ray's agents are found by. The page is for
who has no way to the agents: it asks them all.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any

from ray.serve import metrics as serve_metrics

from cmoe.common.metrics import RAY, SERVING, Metric

NAMES = re.compile("|".join(f"{RAY}{each.name}(_total)?" for each in SERVING))
TIMEOUT_S = 5.0  # after which an agent that doesn't answer is left out


def made(metric: Metric) -> Any:
    """Ray's own of a metric, in a replica."""
    bounds = {"boundaries": [*metric.bounds]} if metric.bounds else {}
    kind = getattr(serve_metrics, metric.kind)
    return kind(metric.name, metric.text, tag_keys=metric.labels, **bounds)


async def exposition() -> str:
    """The metrics of the whole cluster's replicas, in Prometheus' text format."""
    import aiohttp
    import ray

    urls = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"]
    ]
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:

        async def scraped(url: str) -> str:
            try:
                async with session.get(url) as response:
                    return await response.text()
            except (aiohttp.ClientError, TimeoutError):
                return ""

        return merged(await asyncio.gather(*map(scraped, urls)))


def merged(pages: Iterable[str]) -> str:
    """The metrics of services: each family once, with the samples of all pages."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for page in pages:
        family = ""
        for line in page.splitlines():
            if found := re.match(r"# (?:HELP|TYPE) (\S+)", line):
                family = found[1]
                if NAMES.fullmatch(family) and line not in heads.setdefault(family, []):
                    heads[family].append(line)
            elif line and not line.startswith("#") and family in heads:
                samples.setdefault(family, []).append(line)
    lines = [line for family in heads for line in (*heads[family], *samples.get(family, ()))]
    return "".join(f"{line}\n" for line in lines)
