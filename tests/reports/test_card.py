"""A model card's front matter: what the hub's own checks and `huggingface_hub` make of it."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard
from support.hub import HubServer

from cmoe.reports.card import Published, model_card

HASH = "0123456789abcdef0123456789abcdef01234567"
ABOUT: dict[str, Any] = {
    "kind": "store",
    "place": "me/store",
    "base": {"name": "llava-hf/llava-1.5-7b-hf", "revision": HASH},
    "config": {"data": {"root": "hf://datasets/me/coin@v1"}, "model": {"dtype": "bfloat16"}},
    "method": "cmoe",
    "tasks": ("GQA", "VizWiz"),
}


def card(**changes: Any) -> str:
    return model_card(Published(**{**ABOUT, **changes}), None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"license": "cc-by-4.0", "language": "en"},
        {"kind": "peft", "folders": ("GQA", "VizWiz"), "method": "located_lora"},
        {"kind": "model", "base": {"name": "mini", "revision": "default"}, "config": {}},
        {"base": {"name": "/models/llava", "revision": "default"}, "method": "no: yes"},
        {"tasks": ("no", "1e3", "2026-01-01")},
    ],
)
def test_the_hub_accepts_it(hub: HubServer, changes: dict[str, Any]) -> None:
    made = ModelCard(card(**changes))
    made.validate()
    assert hub.requests["validate"] == 1
    about = {**ABOUT, **changes}
    data = made.data.to_dict()
    assert data["pipeline_tag"] == "image-text-to-text"
    assert data["metrics"] == ["accuracy"]
    assert about["method"] in data["tags"]
    libraries = {"store": "cmoe", "peft": "peft", "model": "transformers"}
    assert data["library_name"] == libraries[about["kind"]]
    assert data.get("license") == about.get("license")  # nobody makes one up
    assert data.get("language") == about.get("language")


def test_a_base_and_data_of_the_hub_are_named_and_others_are_not() -> None:
    data = ModelCard(card()).data.to_dict()
    assert data["base_model"] == "llava-hf/llava-1.5-7b-hf"
    assert data["base_model_relation"] == "adapter"
    assert data["datasets"] == ["me/coin"]
    assert ModelCard(card(kind="model")).data.to_dict()["base_model_relation"] == "finetune"
    for name in ("mini", "/models/llava", "cmoe/mini"):  # the last one is a folder here
        other = ModelCard(card(base={"name": name, "revision": "default"})).data.to_dict()
        assert not {"base_model", "base_model_relation"} & other.keys()
    for root in ("data/coin", "s3://bucket/coin"):
        other = ModelCard(card(config={"data": {"root": root}})).data.to_dict()
        assert "datasets" not in other


def test_the_stand_ins_checks_refuse_what_the_hub_does(hub: HubServer) -> None:
    for front in ("license: apache", "base_model: [1]", "language: English"):
        with pytest.raises(ValueError, match="must"):
            ModelCard(f"---\n{front}\n---\n# A card\n").validate()


def test_a_runs_report_follows_without_its_own_front_matter() -> None:
    report = "---\ntags:\n- old\n---\n## Results\n\n| a | b |\n"
    made = ModelCard(model_card(Published(**ABOUT), report))
    assert "old" not in made.data.tags
    assert made.text.startswith("# store\n")
    assert made.text.endswith("## Results\n\n| a | b |\n")
    assert f'load_base("llava-hf/llava-1.5-7b-hf", revision="{HASH}")' in made.text


@pytest.mark.parametrize(("kind", "dtype"), [("store", ""), ("peft", ', dtype="bfloat16"')])
def test_a_quantised_base_is_loaded_so(kind: str, dtype: str) -> None:
    model = {"quantization": "nf4", "dtype": "bfloat16"}
    made = card(kind=kind, config={"model": model})
    assert f'load_base("llava-hf/llava-1.5-7b-hf", revision="{HASH}"{dtype}, quantiz' in made
    assert 'quantization="nf4")' in made
    assert "AutoModel" not in made
