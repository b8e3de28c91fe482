"""CMoE: probe, grow experts where the probes say so, train them with routers, fit the locator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmoe.data.samples import Sample
from cmoe.methods.method import Forward, Trainer, decoder_flops, seed_of, training_flops
from cmoe.methods.probe import Decision, Probing, decide, split, starting_weights
from cmoe.methods.settings import ExpertsConfig, ProbeConfig
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.locator import Location
from cmoe.modeling.outputs import Inputs
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import LocatorConfig, slots

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CMoE:
    """The method of the paper on a frozen base (arXiv 2503.21227).

    Args:
        base: Frozen and wrapped in place.
        experts: Size and number of experts.
        probe: Where to grow.
        locator: How samples are matched to tasks.
        seed: Of every random choice.
    """

    locates = True
    joint = False

    def __init__(
        self,
        base: PreTrainedModel,
        experts: ExpertsConfig,
        probe: ProbeConfig,
        locator: LocatorConfig,
        seed: int,
    ) -> None:
        self._base_flops = decoder_flops(base)
        self.module = GrowingVLM(base, top_k=experts.top_k, gates=experts.gates, locator=locator)
        self.base_digest = self.module.base_digest
        self.base_parameters = self.module.base_parameters
        self.experts = experts
        self.probe = probe
        self.seed = seed

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.module.tasks

    def settings(self) -> dict[str, Any]:
        return self.module.settings()

    def enable_gradient_checkpointing(self) -> None:
        self.module.enable_gradient_checkpointing()

    def flops_per_token(self, task: int) -> int:
        if task == BASE:
            return self._base_flops
        total = 0
        for ffn in self.module.ffns:
            count, own = len(ffn.routers.router(task)), ffn.routers.always_on(task)
            older, always = ffn.frozen.ranks[: count - own], ffn.frozen.ranks[count - own : count]
            added = slots(count, own, self.experts.top_k) - own
            used = [*always, *sorted(older, reverse=True)[:added]]
            total += 2 * (sum(used) * sum(ffn.widths) + count * ffn.hidden_size)
        return total

    def learning_flops(self, task: int, tokens: Mapping[str, int]) -> int:
        """Without fitting the locator's entry, which sees features and no tokens."""
        base, added = self._base_flops, self.flops_per_token(task)
        layers = len(self.module.ffns)
        passes = {
            "probe": training_flops(base, added),
            "train": training_flops(base, added),
            "measure": base + added,
            "loss gain": (1 + layers) * (base + added),
            "usage": base + added,
            "features": base * self.module.locator.layer // layers,
        }
        return sum(count * passes[phase] for phase, count in tokens.items())

    def expert_similarity(self) -> list[float | None]:
        means: list[float | None] = []
        for ffn in self.module.ffns:
            count = len(ffn.frozen)
            if count < 2:
                means.append(None)
                continue
            pairs = ffn.similarity().sum().item() - count  # both orders of each, without itself
            means.append(round(pairs / (count * (count - 1)), 6))
        return means

    def append(self, *primitives: Primitive) -> None:
        self.module.append(*primitives)

    def learn(
        self,
        task: str,
        samples: Sequence[Sample],
        trainer: Trainer,
        probed: Primitive | None = None,
    ) -> Primitive:
        """Learn a task; its primitive is part of the method when this returns.

        Args:
            task: Its name.
            samples: Its training data.
            trainer: The worker group.
            probed: What `probe_task` found of this task after the same ones; None probes now.
        """
        decision = trainer.noted("decision")
        weights: dict[str, Tensor] = {}
        if decision is None:
            decided, weights = self._decide(task, samples, trainer, probed)
            decision = trainer.note("decision", decided)
        experts = {int(layer): count for layer, count in decision["experts"].items()}
        self._grow(task, experts, "train", weights)
        trainer.fit("train", samples, self._loss(task))
        shown = samples[: self.experts.usage_samples]
        usage, _ = self._usage(task, trainer.map("usage", shown, self._record(task), answers=True))
        entry = self._locator(task, samples, trainer) if probed is None else probed.locator
        return self.module.commit(entry, decision | {"usage": _rounded(usage)})

    def probe_task(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        """What every choice of thresholds, counts and budgets shares: probes, and the locator.

        The method is as it was before when this returns.

        Args:
            task: The next task.
            samples: Its training data.
            trainer: The worker group.

        Returns:
            The trained probes with their routers (none for a first task) and the task's entry in
            the locator. The decision holds `probing`, or null, and what growing costs: `older`
            experts and `widths` by layer, and the layers' `hidden` size.
        """
        probing = probes = None
        if self.module.tasks and self.probe.enabled:
            probing, probes = self._probe(task, samples, trainer)
        entry = self._locator(task, samples, trainer)
        return Primitive(
            task=task,
            rank=self.experts.rank,
            lora_alpha=self.experts.lora_alpha,
            experts=probes.experts if probes else {},
            routers=probes.routers if probes else {},
            locator=entry,
            decision={
                "probing": asdict(probing) if probing else None,
                "older": [len(ffn.frozen) for ffn in self.module.ffns],
                "widths": [sum(ffn.widths) for ffn in self.module.ffns],
                "hidden": self.module.ffns[0].hidden_size,
            },
        )

    def _locator(
        self, task: str, samples: Sequence[Sample], trainer: Trainer
    ) -> Mapping[str, Tensor]:
        model = self.module
        features = torch.cat(trainer.map("features", samples, model.features))
        seed = seed_of(self.seed, task, "locator")
        return trainer.once(lambda: model.bank.fit(features.to(model.device), seed))

    def answerer(self, stage: int, task: int) -> int:
        raise NotImplementedError("the locator finds what answers")

    def features(self, inputs: Inputs) -> Tensor:
        return self.module.features(inputs)

    def locate(self, features: Tensor) -> Location:
        return self.module.locate_features(features)

    def generate(self, inputs: Inputs, task: int, **kwargs: Any) -> Tensor:
        return self.module.generate(inputs, task, **kwargs).sequences

    # Probing

    def _decide(
        self,
        task: str,
        samples: Sequence[Sample],
        trainer: Trainer,
        probed: Primitive | None,
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Where to grow and why, and the weights that the training starts from."""
        layers = range(len(self.module.ffns))
        if not self.module.tasks or not self.probe.enabled:
            return {"experts": dict.fromkeys(map(str, layers), self.experts.per_layer)}, {}
        if probed is None:
            probing, probes = self._probe(task, samples, trainer)
        else:
            probing, probes = Probing.of(probed.decision["probing"]), probed
        costs = [self._cost(layer) for layer in layers]
        decision = decide(probing, self.probe, per_layer=self.experts.per_layer, costs=costs)
        seed = seed_of(self.seed, task, "fresh")
        weights, sources = starting_weights(
            self.module, probes, probing, decision, self.probe, self.experts.rank, seed
        )
        return self._why(probing, decision, sources), weights

    def _probe(
        self, task: str, samples: Sequence[Sample], trainer: Trainer
    ) -> tuple[Probing, Primitive]:
        """Train probes in every layer, measure them, and take them away again."""
        train, measure = split(samples, self.probe, seed_of(self.seed, task, "probe split"))
        layers = range(len(self.module.ffns))
        self._grow(task, dict.fromkeys(layers, self.probe.experts), "probe", {}, always=False)
        trainer.fit("probe", train, self._loss(task), steps=self.probe.steps)
        probing = self._measure(task, measure, trainer)
        probes = self.module.learning()
        self.module.discard()
        return probing, probes

    def _measure(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Probing:
        """Usage of every layer's experts, and the loss with each layer's probes switched off."""
        largest, gates = self._usage(
            task, trainer.map("measure", samples, self._record(task), answers=True)
        )
        few = samples[: self.probe.gain_samples]
        layers: list[tuple[int, ...]] = [(), *((f.layer,) for f in self.module.ffns)]

        @torch.no_grad()
        def losses(inputs: Inputs) -> Tensor:
            """Summed losses [1 + L] of the batch, and the answer tokens [1] behind them."""
            tokens = (inputs["labels"] != -100).sum().float()
            runs = [
                self.module(inputs, task, without=off, num_items_in_batch=1).loss for off in layers
            ]
            return torch.stack([*runs, tokens])

        sums = torch.stack(trainer.map("loss gain", few, losses, answers=True)).double().sum(0)
        loss, *without = (sums[:-1] / sums[-1]).tolist()
        older = tuple(len(f.frozen) for f in self.module.ffns)
        draw = Random(seed_of(self.seed, task, "chance"))
        chance = tuple(round(draw.random(), 6) for _ in older)
        return Probing(older, largest, gates, tuple(w - loss for w in without), chance)

    def _record(self, task: str) -> Any:
        @torch.no_grad()
        def record(inputs: Inputs) -> Tensor:
            """Every layer's usage behind one another: largest [E], gates [E]."""
            out = self.module(_unlabelled(inputs), task, record=True, logits_to_keep=1)
            return torch.cat([part for u in out.usage for part in (u.largest, u.gates)])

        return record

    def _usage(
        self, task: str, batches: Iterable[Tensor]
    ) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
        """Shares of the tokens by layer and expert: those whose largest gate it has, mean gates."""
        total = torch.stack(list(batches)).double().sum(0)
        largest, gates, at = [], [], 0
        for ffn in self.module.ffns:
            count = len(ffn.frozen) + (0 if ffn.learning is None else len(ffn.learning))
            hits, mass = total[at : at + 2 * count].view(2, count)
            tokens = hits.sum().clamp_min(1)
            largest.append(tuple((hits / tokens).tolist()))
            gates.append(tuple((mass / tokens).tolist()))
            at += 2 * count
        return tuple(largest), tuple(gates)

    def _cost(self, layer: int) -> int:
        """Scalars that one new expert adds to a layer, with its router row."""
        ffn = self.module.ffns[layer]
        return self.experts.rank * sum(ffn.widths) + ffn.hidden_size

    def _why(
        self, probing: Probing, decision: Decision, sources: dict[int, list[int | None]]
    ) -> dict[str, Any]:
        rule = asdict(self.probe) | {"per_layer": self.experts.per_layer}
        scores = {**probing.scores(), self.probe.score: probing.score(self.probe.score)}
        return {
            "experts": {str(layer): count for layer, count in decision.experts.items()},
            "rule": rule,
            "scores": {name: _rounded(values) for name, values in scores.items()},
            "threshold": decision.threshold,
            "cut": list(decision.cut),
            "older": list(probing.older),
            "probe_usage": _rounded(probing.largest),
            "sources": {str(layer): source for layer, source in sources.items()},
        }

    # Training

    def _grow(
        self,
        task: str,
        experts: dict[int, int],
        use: str,
        init: dict[str, Tensor],
        *,
        always: bool = True,
    ) -> None:
        self.module.grow(
            task,
            experts,
            rank=self.experts.rank,
            lora_alpha=self.experts.lora_alpha,
            seed=seed_of(self.seed, task, use),
            init=init,
            always=always,
        )

    def _loss(self, task: str) -> Any:
        def loss(forward: Forward, inputs: Inputs, tokens: Tensor) -> Tensor:
            out = forward(inputs, task, record=True, num_items_in_batch=tokens)
            total: Tensor = out.loss + self.experts.balance_weight * out.balance_loss
            return total

        return loss


def _unlabelled(inputs: Inputs) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in inputs.items() if name != "labels"}


def _rounded(values: Any) -> Any:
    """Nested numbers, short enough to read in a record."""
    if isinstance(values, float):
        return round(values, 6)
    return [_rounded(v) for v in values]
