"""Bases by name: a folder, the cache without a network, and what is said where there is none."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.mapped import mapped
from support.paths import ROOT as REPOSITORY
from support.vllm_bases import FAMILIES, write_base
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from cmoe.modeling.base import UnsupportedModelError, fingerprint
from cmoe.modeling.pretrained import (
    MissingModelError,
    load_base,
    load_config,
    load_processor,
    load_shape,
    require_base,
    squared,
)
from cmoe.modeling.settings import MINI_BASE, ModelConfig

HUB_NAME, REVISION = "someone/mini-base", "0123456789abcdef0123456789abcdef01234567"


def hub_cache(folder: Path) -> Path:
    """A cache as `hf download` leaves it, with the mini base in it."""
    model = folder / "models--someone--mini-base"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(REVISION)
    (model / "blobs").mkdir()
    snapshot = model / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(MINI_BASE.iterdir())):
        if file.is_file():
            blob = model / "blobs" / f"{number:040x}"
            shutil.copyfile(file, blob)
            (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def offline(cache: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Python in a process that knows a cache and no network: both are read when it starts."""
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_cache_serves_a_machine_without_a_network(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path)
    program = f"""
from cmoe.modeling.base import fingerprint
from cmoe.modeling.pretrained import load_base, load_shape, require_base
for revision in (None, {REVISION!r}):
    base, processor = load_base({HUB_NAME!r}, revision=revision)
    assert processor.tokenizer is not None
    print(fingerprint(base))
    require_base({HUB_NAME!r}, revision=revision)
    print(sum(p.numel() for p in load_shape({HUB_NAME!r}, revision=revision).parameters()))
"""
    done = offline(tmp_path, "-c", program)
    assert done.returncode == 0, done.stderr
    base, _ = load_base(str(MINI_BASE))
    parameters = sum(p.numel() for p in base.parameters())
    assert done.stdout.split() == [fingerprint(base), str(parameters)] * 2

    # A download that was broken off: all is there but the weights.
    (snapshot / "model.safetensors").unlink()
    done = offline(tmp_path, "ray_jobs/coin_stream.py", "--name", "x", f"--runs={tmp_path}/runs",
                   f"--model.name={HUB_NAME}", f"--model.revision={REVISION}")  # fmt: skip
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert f"`hf download {HUB_NAME} --revision {REVISION}`" in said
    assert str(tmp_path) in said
    assert "HF_HUB_OFFLINE" in said
    assert not (tmp_path / "runs").exists(), "before anything starts"


def test_a_hub_name_that_is_nowhere_says_what_fetches_it(tmp_path: Path) -> None:
    program = """
from cmoe.modeling.pretrained import load_base
load_base("llava-hf/llava-1.5-7b-hf", revision="b234b80")
"""
    done = offline(tmp_path, "-c", program)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1, "none of the hub's own errors before it"
    said = done.stderr.splitlines()[-1]
    assert said.startswith("cmoe.modeling.sources.MissingModelError: llava-hf/llava-1.5-7b-hf, ")
    assert "`hf download llava-hf/llava-1.5-7b-hf --revision b234b80`" in said
    assert str(tmp_path) in said
    job = ["ray_jobs/coin_stream.py", "--name=x", "--model.name=nobody/nothing"]
    for more in ([], ["--plan"]):
        done = offline(tmp_path, *job, f"--runs={tmp_path}/runs", *more)
        assert done.returncode == 1
        (said,) = done.stderr.splitlines()
        assert said.startswith("coin_stream.py: ")
        assert "`hf download nobody/nothing`" in said
        assert "revision main" in said


def test_the_command_that_is_named_exists() -> None:
    hf = Path(sys.executable).with_name("hf")
    done = subprocess.run([hf, "download", "--help"], capture_output=True, text=True, check=True)
    assert "--revision" in done.stdout


@pytest.mark.parametrize("load", [load_base, load_config, load_shape, require_base])
def test_a_folder_that_is_none_says_so(load, tmp_path: Path) -> None:
    for name in (str(tmp_path / "nowhere"), "./nowhere", "a/b/c"):
        with pytest.raises(MissingModelError, match="there is no such folder") as caught:
            load(name)
        assert name in str(caught.value)
        assert "hf download" not in str(caught.value)


def test_a_folder_that_lacks_its_weights_names_them(tmp_path: Path) -> None:
    shutil.copytree(MINI_BASE, tmp_path / "base")
    require_base(str(tmp_path / "base"))
    (tmp_path / "base" / "model.safetensors").unlink()
    for load in (require_base, load_base):
        with pytest.raises(MissingModelError, match=r"model\.safetensors"):
            load(str(tmp_path / "base"))
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = tmp_path / "base" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    (tmp_path / "base" / shards["a"]).touch()
    with pytest.raises(MissingModelError, match=shards["b"]):
        require_base(str(tmp_path / "base"))


def test_what_is_no_vision_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="model_type"):
        load_base(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UnsupportedModelError, match="gpt2"):
        load_shape(str(tmp_path))


def test_weights_in_their_own_dtype_are_the_files_pages(tmp_path: Path) -> None:
    """Which all processes of a machine share; also where the digest has read them."""
    shutil.copytree(MINI_BASE, tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    for dtype, shared in ((torch.float32, True), (torch.bfloat16, False)):
        base, _ = load_base(str(tmp_path / "base"), dtype=dtype)
        digest = fingerprint(base)
        held = mapped(weights)
        assert held["Anonymous"] == 0
        assert (held["Rss"] > 0.9 * weights.stat().st_size) == shared, held
        assert digest == fingerprint(load_base(str(MINI_BASE))[0])
        del base
        gc.collect()


def answers(model: Any) -> Tensor:
    ids = torch.arange(40, 64).view(2, 12)
    out: Tensor = model(input_ids=ids).logits
    return out


def test_attention_is_computed_as_it_is_named() -> None:
    found = {name: load_base(str(MINI_BASE), attention=name)[0] for name in ("eager", "sdpa")}
    for name, model in found.items():
        parts = [model.config, model.config.text_config, model.config.vision_config]
        assert {part._attn_implementation for part in parts} == {name}
    torch.testing.assert_close(answers(found["eager"]), answers(found["sdpa"]))
    assert torch.equal(answers(load_base(str(MINI_BASE))[0]), answers(found["sdpa"]))


def test_an_attention_that_a_base_lacks_is_refused_with_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LlamaPreTrainedModel, "_supports_sdpa", False)
    told = "model.attention is sdpa, and .* can't have it: LlamaModel does not support"
    for load in (load_shape, load_base):
        load(str(MINI_BASE), attention="eager")
        with pytest.raises(UnsupportedModelError, match=told):
            load(str(MINI_BASE), attention="sdpa")
    told = r"16 bits alone, and model.dtype is float32; set bfloat16"
    with pytest.raises(ValueError, match=told):
        ModelConfig(attention="flash_attention_2")


def test_a_shape_has_the_bases_parameters_and_no_weights() -> None:
    shape = load_shape(str(MINI_BASE))
    base, _ = load_base(str(MINI_BASE))
    assert {n: p.shape for n, p in shape.named_parameters()} == {
        n: p.shape for n, p in base.named_parameters()
    }
    assert all(t.device == torch.device("meta") for t in shape.parameters())


@pytest.mark.parametrize("crops", [True, False])
def test_pictures_are_padded_to_a_square_where_that_is_asked_for(
    tmp_path: Path, crops: bool
) -> None:
    """A picture's left edge is seen with padding, and cut off by a processor that crops."""
    folder = tmp_path / "base"
    shutil.copytree(MINI_BASE, folder)
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    if crops:  # as LLaVA-1.5's on the hub
        settings["image_processor"] |= {"image_processor_type": "CLIPImageProcessor"}
        del settings["image_processor"]["do_pad"]
        file.write_text(json.dumps(settings))
    picture = Image.new("RGB", (96, 32))
    picture.paste((255, 255, 255), (0, 0, 16, 32))

    def edge(processor: Any) -> float:
        pixels = processor.image_processor(images=[picture], return_tensors="pt").pixel_values
        assert pixels.shape[2] == pixels.shape[3]
        return float(pixels[0, 0, pixels.shape[2] // 2, 1])

    assert edge(load_base(str(folder), pad=True)[1]) == pytest.approx(1, abs=0.01)
    assert (edge(load_base(str(folder))[1]) < 0) == crops


@pytest.mark.parametrize("size", [(96, 32), (31, 70), (40, 40)])
def test_a_squared_picture_is_what_a_padding_processor_sees(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    picture = Image.fromarray(noise.numpy())
    padding = load_base(str(MINI_BASE), pad=True)[1].image_processor
    square = squared(padding, picture)
    assert square.size == (max(size), max(size))
    padded = padding(images=[picture], return_tensors="pt").pixel_values
    alone = padding(images=[square], do_pad=False, return_tensors="pt").pixel_values
    assert torch.equal(alone, padded)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_prepared_with_pillow_whatever_else_is_there(
    family: str, tmp_path: Path
) -> None:
    """torchvision is: without it these processors have no part for videos, and don't load."""
    write_base(FAMILIES[family], tmp_path)
    processor = load_processor(str(tmp_path))
    assert type(processor.image_processor).__name__.endswith("Pil")
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    )
    made = processor(text=[text], images=[Image.new("RGB", (40, 30))], return_tensors="pt")
    assert made["pixel_values"].numel()


def test_a_package_that_a_processor_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_base(FAMILIES["smolvlm"], tmp_path)
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(UnsupportedModelError, match="num2words"):
        load_processor(str(tmp_path))
