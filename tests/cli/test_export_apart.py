"""`cmoe export` for other tools: PEFT loads the adapters, transformers loads the model."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.mini_store import TASKS, collator, make_data
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from cmoe.cli.main import main
from cmoe.exports import folders
from cmoe.methods.baselines.per_task_lora import PerTaskLoRA
from cmoe.methods.settings import LoRAConfig
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE
from cmoe.store.log import Store
from cmoe.store.model import load_model


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    (task, *_) = make_data(tmp_path_factory.mktemp("data") / "coin")
    return collator().prompts(task.test[:4])


def base() -> Any:
    return AutoModelForImageTextToText.from_pretrained(MINI_BASE).eval()


@torch.no_grad()
def logits(model: Any, inputs: Any, *args: Any) -> Tensor:
    found: Tensor = model(*args).logits if args else model(**inputs).logits
    return found


def ours(store: Path, task: int, inputs: Any) -> Tensor:
    method = PerTaskLoRA(load_base(MINI_BASE)[0], LoRAConfig(rank=2, lora_alpha=3), 0)
    log = Store.open(store)
    method.append(log.read(0), log.read(1))
    method._take(task)
    return logits(method.module, inputs)


def exported(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main(["export", *map(str, words)]) == 0
    return capsys.readouterr().out


def require_no_path_of_this_machine(folder: Path) -> None:
    for file in (each for each in folder.rglob("*") if each.is_file()):
        assert str(MINI_BASE.parent).encode() not in file.read_bytes(), file
        assert str(folder.parent).encode() not in file.read_bytes(), file


def snippet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the card's own lines load."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder.parent)
    found: dict[str, Any] = {}
    exec(code, found)
    return found


def test_a_folder_for_each_task_is_loaded_by_peft(
    loras: Path,
    inputs: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = exported(capsys, loras, tmp_path / "out", "--to", "peft")
    assert said == f"{tmp_path}/out: adapters for PEFT (2) of {TASKS[0]}, {TASKS[1]}\n"
    for index, task in enumerate(TASKS[:2]):
        tuned = PeftModel.from_pretrained(base(), tmp_path / "out", subfolder=task).eval()
        assert torch.equal(logits(tuned, inputs), ours(loras / "store", index, inputs))
    assert "## Results" in (tmp_path / "out" / "README.md").read_text()
    require_no_path_of_this_machine(tmp_path / "out")
    shutil.copytree(MINI_BASE, tmp_path / "base")  # what the base's folder is called elsewhere
    mine = snippet(tmp_path / "out", monkeypatch)["model"]
    assert torch.equal(logits(mine.eval(), inputs), ours(loras / "store", 0, inputs))


def test_one_task_is_loaded_by_peft_and_merged(
    loras: Path,
    inputs: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = ours(loras / "store", 1, inputs)
    exported(capsys, loras, tmp_path / "one", "--to", "peft", "--task", TASKS[1])
    tuned = PeftModel.from_pretrained(base(), tmp_path / "one").eval()
    assert torch.equal(logits(tuned, inputs), wanted)
    monkeypatch.setattr(folders, "SHARD", "1MB")
    said = exported(capsys, loras, tmp_path / "model", "--merge", "--task", TASKS[1])
    assert said.endswith(f"{tmp_path}/model: a model of {TASKS[1]}\n")
    sizes = [file.stat().st_size for file in (tmp_path / "model").glob("model-*.safetensors")]
    assert len(sizes) > 4
    assert max(sizes) < 1.1e6
    require_no_path_of_this_machine(tmp_path / "model")
    found = snippet(tmp_path / "model", monkeypatch)
    merged = logits(found["model"].eval(), inputs)
    # Each weight is rounded once more: in fp32, 1e-4 of the largest logit.
    assert (merged - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert (logits(base(), inputs) - wanted).abs().max() > 0.1 * wanted.abs().max()
    with_padding = AutoProcessor.from_pretrained(tmp_path / "model").image_processor
    assert with_padding.do_pad  # as the run's own processor did
    assert "## Results" not in (tmp_path / "model" / "README.md").read_text()


def test_a_task_is_merged_into_a_base_on_s3(
    mirrored_loras: Path, inputs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which stays as it was: its copy's pages were written to in this process alone."""
    copy = next((tmp_path / "cache").glob("s3--*/*/model.safetensors"))
    wanted = ours(mirrored_loras / "store", 1, inputs)
    exported(capsys, mirrored_loras, tmp_path / "model", "--merge", "--task", TASKS[1])
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    assert (logits(merged, inputs) - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert copy.read_bytes() == (MINI_BASE / "model.safetensors").read_bytes()


def test_a_task_of_cmoe_is_exact_where_its_gates_are_fixed(
    run: Path, inputs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open(run / "store")
    wanted = logits(load_model(store, base()), inputs, inputs, TASKS[0])
    exported(capsys, run, tmp_path / "one", "--to", "peft", "--task", TASKS[0])
    tuned = PeftModel.from_pretrained(base(), tmp_path / "one").eval()
    torch.testing.assert_close(logits(tuned, inputs), wanted, rtol=1e-5, atol=1e-5)
    exported(capsys, run, tmp_path / "prefix", "--merge", "--tasks", "1")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "prefix").eval()
    assert (logits(merged, inputs) - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert main(["export", str(run), str(tmp_path / "all"), "--to", "peft"]) == 1
    err = capsys.readouterr().err
    assert f"task {TASKS[1]!r}: the router of layer 4 weighs its 2 experts token by token" in err
    assert f"of one LoRA each: {TASKS[0]}" in err
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize("step", ["save_pretrained", "write_text", "rename"])
@pytest.mark.parametrize("how", [["--to", "peft"], ["--merge", "--task", TASKS[0]]])
def test_interrupted_it_leaves_nothing(
    loras: Path,
    tmp_path: Path,
    step: str,
    how: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cut(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "save_pretrained":
            patch.setattr("peft.LoraConfig.save_pretrained", cut)
            patch.setattr("transformers.ProcessorMixin.save_pretrained", cut)
        else:
            patch.setattr(Path, step, cut)
        assert main(["export", str(loras), str(tmp_path / "out"), *how]) == 130
    assert list(tmp_path.iterdir()) == []
    exported(capsys, loras, tmp_path / "out", *how)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out", "--merge", "--to", "peft"], "--merge writes a whole model, and --to peft"),
        (["out", "--merge", "--to", "store"], "--merge writes a whole model, and --to store"),
        (["out", "--task", "GQA"], "--task is for --to peft and --merge"),
        (["out", "--to", "peft", "--task", "GQA", "--tasks", "1"], "--task names one task and"),
        (["out", "--tasks", "0"], "--tasks is 0; 1 or more"),
        (["out", "--to", "hub"], "OUT is 'out'; with --to hub it is owner/name"),
        (["s3://b/out", "--to", "hub"], "with --to hub it is owner/name"),
        (["s3://b/out", "--to", "peft"], "PEFT and transformers load from folders and from"),
        (["s3://b/out", "--merge"], "PEFT and transformers load from folders and from"),
        (["out", "--license", "Apache 2.0"], "--license is 'Apache 2.0'; an identifier such as"),
        (["out", "--language", "English"], "--language is 'English'; a code of ISO 639"),
    ],
)
def test_contradictions_are_refused_before_anything_is_read(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["export", "runs/nowhere", *words])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--merge"], f"and one can be merged; give --task NAME: {TASKS[0]}, {TASKS[1]}"),
        (["--to", "peft", "--task", "GQA"], f"no task 'GQA' among {TASKS[0]}, {TASKS[1]}"),
        (["--to", "peft", "--tasks", "3"], "has 2 tasks; can't export 3"),
    ],
)
def test_what_the_run_does_not_have_is_told(
    loras: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(loras), str(tmp_path / "out"), *words]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(
    loras: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    exported(capsys, loras, tmp_path / "out", "--to", "peft")  # an empty one is taken
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", str(loras), str(tmp_path / "out"), "--merge", "--task", TASKS[0]]) == 1
    assert "something is there; give an empty folder or a new one" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_another_base_is_not_merged_into(
    loras: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = base()
    with torch.no_grad():
        changed.lm_head.weight.add_(1)
    changed.save_pretrained(tmp_path / "other")
    for file in MINI_BASE.iterdir():
        if not (tmp_path / "other" / file.name).exists():
            shutil.copy(file, tmp_path / "other")
    named = folders.base_of(Store.open(loras / "store"))
    other = replace(named, name=str(tmp_path / "other"))
    monkeypatch.setattr(folders, "base_of", lambda _: other)
    assert main(["export", str(loras), str(tmp_path / "out"), "--merge", "--task", TASKS[0]]) == 1
    assert "not for one with digest" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
