"""Faults of a machine, for the workers that Ray starts with this folder on their path.

Python imports this file before it runs a program. `CMOE_TEST_CLOCK_S` puts a worker's clock ahead;
`CMOE_TEST_HIDES` lays an empty disk over a folder, in a mount namespace of the worker's own.
"""

import ctypes
import os
import sys
import time

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000


def hide(folder: str) -> None:
    uid, gid, libc = os.getuid(), os.getgid(), ctypes.CDLL(None, use_errno=True)
    alone = CLONE_NEWNS if uid == 0 else CLONE_NEWNS | CLONE_NEWUSER
    for done in (
        lambda: libc.unshare(alone),
        lambda: uid and own(uid, gid),
        lambda: libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None),
        lambda: libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, None),
    ):
        if done():
            raise OSError(ctypes.get_errno(), f"can't hide {folder}")


def own(uid: int, gid: int) -> None:
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


if len(sys.orig_argv) > 1 and sys.orig_argv[1].endswith("/ray/_private/workers/default_worker.py"):
    if ahead := float(os.environ.get("CMOE_TEST_CLOCK_S", "0")):
        real = time.time
        time.time = lambda: real() + ahead
    if folder := os.environ.get("CMOE_TEST_HIDES"):
        hide(folder)
