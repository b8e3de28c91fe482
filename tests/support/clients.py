"""Other people's clients, each by a script of ordinary use (`tests/clients` has the scripts)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.mini_store import collator
from support.paths import ROOT
from support.service_client import KEY, ServiceClient, answer_to, asking, conversation

from cmoe.data.batches import ChatTurn
from cmoe.data.samples import Sample
from cmoe.mini.tasks import PHRASE
from cmoe.modeling.growing import GrowingVLM

CLIENTS = ROOT / "tests" / "clients"
PYTHON = CLIENTS / ".venv" / "bin" / "python"
SCRIPTS = sorted(CLIENTS.glob("with_*"))
TASK = "VizWiz"
FURTHER = "And the other?"
TOKENS = 16  # of an answer; LiteLLM asks for no fewer


def command(script: Path) -> list[str]:
    """What runs a client's script; a test whose client isn't installed is skipped."""
    node = shutil.which("node")
    if script.suffix == ".py":
        there, program = PYTHON.exists(), str(PYTHON)
    else:
        there, program = (CLIENTS / "node_modules").exists() and node is not None, str(node)
    if not there:
        pytest.skip(f"no client for {script.name}: `make clients` installs it")
    return [program, str(script)]


def replayed(script: Path, service: ServiceClient, sample: Sample) -> Any:
    """What a client's script found when it asked the service about a sample."""
    ((picture, _),) = (message["content"] for message in asking(sample))
    asked = {
        "model": f"cmoe:{TASK}",
        "tokens": TOKENS,
        "question": sample.text,
        "further": FURTHER,
        "picture": picture["image_url"]["url"],
    }
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "OPENAI_BASE_URL": f"{service.url}/v1",
        "OPENAI_API_KEY": KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # nothing is fetched from elsewhere
    }
    done = subprocess.run(
        command(script),
        input=json.dumps(asked),
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def require_answers(
    script: Path, service: ServiceClient, answering: GrowingVLM, sample: Sample
) -> None:
    """A client's script gets the answers of the model, and errors that say what is wrong."""

    def alone(*turns: tuple[str, str]) -> str:
        inputs, _ = conversation(sample, turns, 0)
        return answer_to(answering, inputs, TASK, TOKENS)[0]

    found = replayed(script, service, sample)
    plain = collator().conversation([ChatTurn("user", (sample.text,))])
    asked = ("user", sample.text)
    shown = alone(asked)
    expected = {
        "text": answer_to(answering, plain, TASK, TOKENS)[0],
        "picture": shown,
        "streamed": shown,
        "further": alone(asked, ("assistant", shown), ("user", f"{FURTHER}\n{PHRASE}")),
    }
    for protocol, answers in found["answers"].items():
        assert answers == expected, protocol
    (status, told), *others = found["errors"]
    assert status == 400
    assert "messages.0.content.0.image_url.url: " in told
    for status, told in others:
        assert status == 404
        assert "POST /v1/chat/completions" in told
