"""What programs say: lines for people, or each an object of JSON where Ray's own logs are.

Ray's switch decides: with `RAY_LOGGING_CONFIG_ENCODING=JSON` its drivers and workers log in JSON.
The keys are those that Ray's records have, and what a line is of: its run, task, phase and so on.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

ENCODING = "RAY_LOGGING_CONFIG_ENCODING"


def in_json() -> bool:
    """Whether lines are to be JSON."""
    return os.environ.get(ENCODING) == "JSON"


def log_line(text: str, level: str = "INFO", **about: Any) -> str:
    """A line as it is shown.

    Args:
        text: What it says.
        level: Of logging.
        about: What it is of; only JSON says so.
    """
    if not in_json():
        return text
    now = time.time_ns()
    second, milliseconds = divmod(now // 10**6, 1000)
    return json.dumps(
        {
            "asctime": f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(second))},"
            f"{milliseconds:03d}",
            "levelname": level,
            "message": text.strip("\n"),
            "process": os.getpid(),
            **about,
            "timestamp_ns": now,
        }
    )


def say(text: str) -> None:
    """Show a line on the screen, or in the log that it goes to."""
    print(log_line(text), flush=True)
