"""The service's metrics for Prometheus, from Ray's agents on all nodes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

PREFIX = "ray_cmoe_"
TIMEOUT_S = 5.0  # after which an agent that doesn't answer is left out
BOUNDS = [0.001 * 2**n for n in range(17)]
"""Buckets of seconds, from a millisecond to a minute."""


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
    """The metrics that begin with our prefix: each family once, with the samples of all pages."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for page in pages:
        family = ""
        for line in page.splitlines():
            if found := re.match(r"# (?:HELP|TYPE) (\S+)", line):
                family = found[1]
                if family.startswith(PREFIX) and line not in heads.setdefault(family, []):
                    heads[family].append(line)
            elif line and not line.startswith("#") and family.startswith(PREFIX):
                samples.setdefault(family, []).append(line)
    lines = [line for family in heads for line in (*heads[family], *samples.get(family, ()))]
    return "".join(f"{line}\n" for line in lines)
