"""What `cmoe bench gpu` computes with: a base, its prompts, and models that grow on it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cmoe.config.settings import ClusterConfig
from cmoe.config.tree import RunConfig
from cmoe.data.batches import Collator
from cmoe.data.coin import read_tasks
from cmoe.data.samples import Sample
from cmoe.data.settings import DataConfig
from cmoe.experiments.benchmarks.card import Card
from cmoe.experiments.benchmarks.timing import compare
from cmoe.experiments.planning.sizes import Shape, element_size, shape_of
from cmoe.methods.settings import ExpertsConfig, ProbeConfig
from cmoe.mini.tasks import write_mini_coin
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base, load_processor
from cmoe.modeling.settings import MINI_BASE, LocatorConfig, ModelConfig
from cmoe.training.settings import TrainingConfig

if TYPE_CHECKING:
    from transformers import LlavaConfig, PreTrainedModel

EXPERTS = ExpertsConfig(
    rank=16, lora_alpha=32, top_k=2, gates="renormalized", attention=0, build_on="none"
)
IMAGE, PATCH, POSITIONS = 336, 14, 4096  # of LLaVA-1.5: pixels of a side, and tokens
NOISE = 0.01  # deviation of what experts get for having been trained


@dataclass(frozen=True)
class Sizes:
    """How much is computed.

    Attributes:
        prompts: Of a batch that is answered.
        micro_batch: Samples of a batch that is trained on.
        tokens: That one FFN gets: of a prefill, and of a decode step.
        experts: Of that FFN.
        tasks: That are learned, each with an expert in each layer.
        rounds: Times that calls are timed in turn.
        loader_workers: Processes that make batches.
    """

    prompts: int = 16
    micro_batch: int = 8
    tokens: tuple[int, int] = (16_384, 16)
    experts: int = 16
    tasks: int = 8
    rounds: int = 9
    loader_workers: int = 4


TINY = Sizes(prompts=8, micro_batch=2, tokens=(256, 16), rounds=1, loader_workers=1)


class Workload:
    """A base and what is asked of it. Its parts are made when they are first asked for.

    Args:
        name: Of the base, as in a configuration; None is a LLaVA of random weights in the shape
            of LLaVA-1.5-7B.
        device: Where it computes.
        dtype: Of its weights.
        sizes: How much it computes.
    """

    def __init__(self, name: str | None, device: str, dtype: torch.dtype, sizes: Sizes) -> None:
        self.name, self.device, self.dtype, self.sizes = name, device, dtype, sizes
        self._folder = TemporaryDirectory(prefix="cmoe-bench-")

    @cached_property
    def card(self) -> Card:
        return Card.measured(self.device, self.dtype)

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, Any]:
        if self.name is None:
            base, processor = published_shape(self.device, self.dtype)
        else:
            path = ModelConfig(self.name).path
            base, processor = load_base(path, dtype=self.dtype, device=self.device)
        return base.requires_grad_(False), processor

    @property
    def base(self) -> PreTrainedModel:
        """The base, which nothing wraps."""
        return self._loaded[0]

    @cached_property
    def shape(self) -> Shape:
        return shape_of(self.base)

    @cached_property
    def pass_seconds(self) -> float:
        """What a prefill takes by the base alone: others are estimated in it."""
        forward = partial(self.base, **self.prompts, logits_to_keep=1)
        (seconds,) = compare({"base": forward}, rounds=1)["base"]
        return seconds

    def twin(self) -> PreTrainedModel:
        """A base that can be wrapped, with the very weights of the other ones."""
        shared = {id(t): t for t in (*self.base.parameters(), *self.base.buffers())}
        return copy.deepcopy(self.base, shared)

    def model(
        self,
        tasks: int,
        layers: Iterable[int] | None = None,
        locator: LocatorConfig | None = None,
    ) -> GrowingVLM:
        """A model that has learned so many tasks: an expert in each of the layers, or of all."""
        locator = locator or LocatorConfig(steps=1)
        model = GrowingVLM(self.twin(), top_k=EXPERTS.top_k, locator=locator)
        for task in range(tasks):
            grow(model, f"task {task}", dict.fromkeys(layers or range(self.shape.layers), 1))
            features = torch.randn(64, self.shape.width, device=self.device) + 0.5 * task
            model.commit(model.bank.fit(features, seed=task))
        return model

    @cached_property
    def grown(self) -> GrowingVLM:
        """All tasks, an expert in each layer; the feature is the decoder's output."""
        return self.model(self.sizes.tasks)

    @property
    def mixed(self) -> list[int]:
        """A task for each prompt, all of them by turns."""
        return [prompt % self.sizes.tasks for prompt in range(self.sizes.prompts)]

    @cached_property
    def samples(self) -> list[Sample]:
        """Enough for a batch, with generated images: the mini tasks', by turns."""
        root = Path(self._folder.name)
        each = -(-max(self.sizes.prompts, self.sizes.micro_batch) // 8)
        write_mini_coin(root, train=each, test=1)
        return [s for task in read_tasks(DataConfig(root=str(root)), seed=0) for s in task.train]

    @cached_property
    def collator(self) -> Collator:
        return Collator(self._loaded[1], 10**6, 1)

    @cached_property
    def prompts(self) -> dict[str, Tensor]:
        """A batch to be answered."""
        return self._placed(self.collator.prompts(self.samples[: self.sizes.prompts]))

    @cached_property
    def batch(self) -> dict[str, Tensor]:
        """A batch to be trained on."""
        return self._placed(self.collator.training(self.samples[: self.sizes.micro_batch]))

    def _placed(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: t.to(self.device, self.dtype if t.is_floating_point() else t.dtype)
            for name, t in batch.items()
        }

    def run(self, length: int) -> RunConfig:
        """What a plan is made of: a run on one GPU, whose samples have so many tokens."""
        return RunConfig(
            name="bench",
            model=ModelConfig(dtype="bfloat16" if self.dtype == torch.bfloat16 else "float32"),
            data=DataConfig(max_length=length),
            experts=EXPERTS,
            probe=ProbeConfig(enabled=False),
            training=TrainingConfig(
                global_batch=self.sizes.micro_batch,
                micro_batch=self.sizes.micro_batch,
                zero=0,
                gradient_checkpointing=True,
            ),
            cluster=ClusterConfig(workers=1),
        )

    def growth(self, tasks: int) -> list[dict[int, int]]:
        """So many tasks as `model` learns them."""
        return [dict.fromkeys(range(self.shape.layers), 1)] * tasks

    @property
    def element(self) -> int:
        """Bytes of a weight."""
        return element_size(self.run(1))


def grow(model: GrowingVLM, task: str, experts: Mapping[int, int]) -> list[nn.Parameter]:
    """Begin a task whose experts do something; returns what is to be trained."""
    parameters = model.grow(
        task, experts, rank=EXPERTS.rank, lora_alpha=EXPERTS.lora_alpha, seed=len(model.tasks)
    )
    with torch.no_grad():
        for p in parameters:
            p.add_(NOISE * torch.randn_like(p))
    return parameters


def published_shape(device: str, dtype: torch.dtype) -> tuple[PreTrainedModel, Any]:
    """A LLaVA of random weights in the shape of LLaVA-1.5-7B, made on its device.

    Its processor is the mini base's, with images and image tokens as LLaVA-1.5 has them.
    """
    from transformers import AutoModelForImageTextToText

    processor = load_processor(str(MINI_BASE))
    config = llava_7b(processor.image_token_id)
    images = processor.image_processor
    settings = images.to_dict() | {
        "size": {"shortest_edge": IMAGE},
        "crop_size": {"height": IMAGE, "width": IMAGE},
    }
    for name in ("image_processor_type", "processor_class"):
        settings.pop(name, None)
    processor.image_processor = type(images).from_dict(settings)
    processor.patch_size = PATCH
    processor.tokenizer.model_max_length = POSITIONS
    with torch.device(device):
        base = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    return base.eval(), processor


def llava_7b(image_token: int) -> LlavaConfig:
    """The shape of `llava-hf/llava-1.5-7b-hf`.

    Args:
        image_token: The token that stands for an image's.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=IMAGE,
        patch_size=PATCH,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=32_064,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=POSITIONS,
        rms_norm_eps=1e-5,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        image_seq_length=(IMAGE // PATCH) ** 2,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
