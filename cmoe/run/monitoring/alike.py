"""Whether a group's workers are alike: a run goes on where they aren't, and says so once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cmoe.common.versions import unlike
from cmoe.run.stalls import named

CLOCK_S = 5.0  # that a worker's clock may differ from the driver's machine's
SURE = 3  # beats: one alone may have been long under way


def differing(beats: Mapping[int, Mapping[str, Any]]) -> dict[tuple[int, str], str]:
    """Sentences on workers with other versions than most, or another time.

    Args:
        beats: As of `Board.beats`.

    Returns:
        By rank and by what differs.
    """
    found = {rank: beat["versions"] for rank, beat in beats.items() if "versions" in beat}
    names = {named(rank, beats): rank for rank in found}
    said = {}
    for name, text in unlike({n: found[r] for n, r in names.items()}, next(iter(names), "")):
        said[names[name], text.partition(" ")[0]] = f"{name}: {text}"
    for rank, beat in beats.items():
        if beat.get("heard", 0) >= SURE and abs(late := beat["late"]) > CLOCK_S:
            way = "ahead of" if late < 0 else "behind"
            text = f"its clock is {abs(late):.0f} s {way} the driver's"
            said[rank, "clock"] = f"{named(rank, beats)}: {text}"
    return {
        key: f"{text}; `cmoe check cluster` looks at all machines" for key, text in said.items()
    }
