"""`cmoe export --to hub`: one commit, which others load by its name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from support.hub import HubServer
from support.logs import primitive
from support.mini_store import TASKS
from transformers import AutoModelForImageTextToText

import cmoe
from cmoe.cli.main import main
from cmoe.modeling.settings import MINI_BASE
from cmoe.store.log import Store


def base() -> Any:
    return AutoModelForImageTextToText.from_pretrained(MINI_BASE).eval()


@pytest.mark.parametrize("out", ["me/store", "hf://me/store"])
def test_a_store_on_the_hub_is_one_commit_and_loads_by_its_name(
    hub: HubServer, run: Path, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), out, "--to", "hub", "--license", "mit"]) == 0
    assert capsys.readouterr().out.startswith(f"hf://me/store: {', '.join(TASKS[:2])}; ")
    assert [each.title for each in hub.repos["me/store"].commits] == ["initial commit", "Export"]
    assert hub.requests["commit"] == 1
    shared, wanted = Store.open("hf://me/store"), Store.open(run / "store")
    shared.verify()
    assert [r.task for r in shared.records()] == [r.task for r in wanted.records()]
    loaded = cmoe.load_model(shared, base())
    theirs = dict(cmoe.load_model(wanted, base()).named_buffers())
    assert all(torch.equal(value, theirs[name]) for name, value in loaded.named_buffers())
    card = ModelCard.load("me/store")
    assert card.data.license == "mit"
    assert 'Store.open("hf://me/store")' in card.text
    assert "## Results" in card.text
    for name, data in hub.files("me/store").items():
        assert str(run.parent).encode() not in data, name


def test_the_same_again_commits_nothing_and_a_longer_log_what_is_new(
    hub: HubServer, run: Path, tmp_path: Path
) -> None:
    words = ["export", str(run), "me/store", "--to", "hub"]
    assert main([*words, "--tasks", "1"]) == 0
    one = hub.files("me/store")
    assert main([*words, "--tasks", "1"]) == 0
    assert hub.requests["commit"] == 1
    assert main(words) == 0
    assert hub.requests["commit"] == 2
    both = hub.files("me/store")
    assert {n: both[n] for n in one if n != "README.md"} == {
        n: data for n, data in one.items() if n != "README.md"
    }
    Store.open("hf://me/store").verify()
    assert main(["export", "hf://me/store", str(tmp_path / "back")]) == 0
    Store.open(tmp_path / "back").verify()
    assert main(["export", "hf://me/store", str(tmp_path / "peft"), *_peft(TASKS[0])]) == 0


def _peft(task: str) -> list[str]:
    return ["--to", "peft", "--task", task]


def test_what_is_not_accepted_changes_nothing(
    hub: HubServer, run: Path, loras: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(run), "me/store", "--to", "hub"]
    assert main([*words, "--license", "my-own"]) == 1
    assert "\"license\" must not be 'my-own'" in capsys.readouterr().err
    assert hub.files("me/store") == {}
    hub.put("me/store", {"notes.txt": b"mine"})
    assert main(words) == 1
    assert "has something else in it (notes.txt)" in capsys.readouterr().err
    assert main(["export", str(loras), "hf://me/store", "--to", "peft"]) == 1
    assert "has something else in it (notes.txt)" in capsys.readouterr().err
    assert hub.files("me/store") == {"notes.txt": b"mine"}
    hub.put("me/store", {"notes.txt": None})
    assert main(words) == 0
    before = hub.files("me/store")
    assert main(["export", str(loras), "me/store", "--to", "hub"]) == 1
    assert "has something else in it" in capsys.readouterr().err
    assert hub.files("me/store") == before


def test_a_writer_that_comes_in_between_is_not_overwritten(
    hub: HubServer, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """He appends to the log while its next task is being exported, too."""
    words = ["export", str(run), "me/store", "--to", "hub"]
    assert main([*words, "--tasks", "1"]) == 0
    other = Store.open("hf://me/store")

    def overtake() -> None:
        hub.before.clear()
        other.append(primitive("Flickr"))

    hub.before["commit"] = overtake
    assert main(words) == 1
    assert "hf://me/store/001.json: is of another export" in capsys.readouterr().err
    found = Store.open("hf://me/store")
    found.verify()
    assert found.tasks == (TASKS[0], "Flickr")


LOADED_BY_OTHERS = f"""
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = AutoModelForImageTextToText.from_pretrained({str(MINI_BASE)!r})
tuned = PeftModel.from_pretrained(base, "me/adapters", subfolder={TASKS[1]!r}).eval()
merged = AutoModelForImageTextToText.from_pretrained("me/merged").eval()
processor = AutoProcessor.from_pretrained("me/merged")
inputs = processor(text="What is it? ASSISTANT:", return_tensors="pt")
with torch.no_grad():
    wanted, found = tuned(**inputs).logits, merged(**inputs).logits
assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
"""


def test_adapters_and_a_model_are_loaded_from_the_hub(hub: HubServer, loras: Path) -> None:
    """In a process of their own, as PEFT reads the hub's address when it is imported."""
    assert main(["export", str(loras), "hf://me/adapters", "--to", "peft"]) == 0
    words = ["me/merged", "--to", "hub", "--merge", "--task", TASKS[1], "--language", "en"]
    assert main(["export", str(loras), *words]) == 0
    assert [each.title for each in hub.repos["me/merged"].commits] == ["initial commit", "Export"]
    assert ModelCard.load("me/merged").data.language == "en"
    subprocess.run([sys.executable, "-c", LOADED_BY_OTHERS], check=True)
