"""A job that is stopped, not killed: nobody learns that by its end."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.holding import holding
from support.jobs import until

from cmoe.run import holder as holder_module
from cmoe.run import lease
from cmoe.run.lease import LeaseError, held

holder_of = contextmanager(holding)


def silent(_: str) -> None:
    raise AssertionError("nothing is to be waited for")


def test_a_stopped_holder_of_this_machine_is_said_to_be_stopped(tmp_path: Path) -> None:
    """It may go on at any moment, and its workers do meanwhile: nobody takes over by himself."""
    url = str(tmp_path / "run")
    with holder_of(url) as holder:
        holder.send_signal(signal.SIGSTOP)
        until(lambda: (holder_module._status(holder.pid) or "?")[0] == "T")
        with pytest.raises(LeaseError) as refused, held(url, silent):
            raise AssertionError("it is held")
        assert f"`kill -CONT {holder.pid}` lets it go on" in str(refused.value)
        holder.send_signal(signal.SIGKILL)  # as it says
        holder.wait()
        with held(url, silent):
            pass


def test_a_stopped_holder_elsewhere_is_taken_over_and_ends_when_it_wakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY_S", 2.0)
    url = str(tmp_path / "run")
    with holder_of(url) as holder:
        (tmp_path / "run" / "config.yaml").touch()  # it was begun
        holder.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(holder_module, "_machine", lambda: "another machine")
        with held(url, lambda _: None):
            holder.send_signal(signal.SIGCONT)
            _, said = holder.communicate(timeout=60)
            assert "another job has taken over: " in said
            assert f"process {os.getpid()} of " in said
        assert holder.returncode == 1
