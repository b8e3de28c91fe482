"""Tell Ray that this machine is about to be taken away, so that training saves what it has.

`python ray_jobs/spot_notice.py` runs beside Ray on a spot machine of AWS, and asks the machine's
metadata service (IMDSv2) for the notice that comes two minutes before the end. With
`--leaves-in SECONDS` it is the notice itself, for other providers and as a pod's preStop hook: it
tells Ray at once, and ends when the time is over.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

from cmoe.common.command_line import Parser

METADATA = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254")
NOTICE = "/latest/meta-data/spot/instance-action"
SESSION_S = 21_600  # that a session of the metadata service may last
POLL_S = 5.0
ANSWER_S = 5.0


def main() -> int:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--leaves-in", type=int, metavar="SECONDS", help="the notice itself")
    seconds = parser.parse_args().leaves_in
    if seconds is None:
        seconds = noticed()
        print(f"spot_notice.py: this machine leaves in {seconds} s", flush=True)
    end = time.monotonic() + seconds
    while not (told := drain(seconds)) and time.monotonic() + POLL_S < end:
        time.sleep(POLL_S)  # Ray may be busy, or still on its way
    if told:
        time.sleep(max(0.0, end - time.monotonic()))
    return 0 if told else 1


def noticed() -> int:
    """Wait for the notice; the seconds that are left then."""
    while True:
        try:
            token = _asked("PUT", "/latest/api/token", "token-ttl-seconds", str(SESSION_S))
            said = json.loads(_asked("GET", NOTICE, "token", token))
            if said["action"] != "hibernate":
                end = datetime.fromisoformat(said["time"].replace("Z", "+00:00"))
                return max(1, int((end - datetime.now(UTC)).total_seconds()))
        except urllib.error.HTTPError as error:
            if error.code != 404:  # which says that there is no notice
                print(f"spot_notice.py: the metadata service says {error}", file=sys.stderr)
        except (OSError, ValueError, KeyError) as error:
            print(f"spot_notice.py: no metadata service: {error}", file=sys.stderr)
        time.sleep(POLL_S)


def _asked(method: str, path: str, header: str, value: str) -> str:
    request = urllib.request.Request(f"{METADATA}{path}", method=method)
    request.add_header(f"X-aws-ec2-metadata-{header}", value)
    with urllib.request.urlopen(request, timeout=ANSWER_S) as response:
        text: str = response.read().decode()
        return text


def drain(seconds: int) -> bool:
    """Whether Ray was told that the node of this machine leaves."""
    import ray

    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        print(f"spot_notice.py: no Ray on this machine: {error}", file=sys.stderr)
        return False
    context = ray.get_runtime_context()
    node, address = context.get_node_id(), context.gcs_address
    ray.shutdown()
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address]
    command += ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "the machine is taken away"]
    command += ["--deadline-remaining-seconds", str(seconds)]
    told = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if told.returncode:
        print(f"spot_notice.py: Ray wasn't told: {told.stdout}", file=sys.stderr)
    return told.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
