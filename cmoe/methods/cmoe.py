"""CMoE: probe, grow experts where the probes say so, train them with routers, fit the locator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cmoe.data.samples import Sample
from cmoe.methods.locating import fit_entry
from cmoe.methods.measure import answer_losses, probing, usage
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

AGAIN = ", built on"
"""Behind the names of phases that a task goes through a second time, on top of another task."""


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
        self.module = GrowingVLM(
            base,
            top_k=experts.top_k,
            gates=experts.gates,
            attention=experts.attention,
            locator=locator,
        )
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

    def enable_gradient_checkpointing(self, layers: int | None = None) -> None:
        self.module.enable_gradient_checkpointing(layers)

    def flops_per_token(self, task: int) -> int:
        if task == BASE:
            return self._base_flops
        total = 0
        for ffn in self.module.ffns:
            count, always = len(ffn.routers.router(task)), ffn.routers.always_on(task)
            ranks = dict(enumerate(ffn.frozen.ranks[:count]))
            others = sorted((r for e, r in ranks.items() if e not in always), reverse=True)
            added = slots(count, len(always), self.experts.top_k) - len(always)
            used = sum(ranks[e] for e in always) + sum(others[:added])
            total += 2 * (used * sum(ffn.widths) + count * ffn.hidden_size)
        for attention in self.module.attentions:
            rank = attention.rank * len(attention.adapters(task))
            total += 2 * rank * sum(attention.widths)
        return total

    def learning_flops(self, task: int, tokens: Mapping[str, int]) -> int:
        """Without fitting the locator's entry, which sees features and no tokens."""
        base, added = self._base_flops, self.flops_per_token(task)
        layers = len(self.module.ffns)
        passes = {
            "probe": training_flops(base, added),
            "train": training_flops(base, added),
            "measure": base + added,
            # With all probes, with none, and for each probe from its layer on.
            "loss gain": (2 + self.probe.experts * (layers + 1) / 2) * (base + added),
            "nearest": task * (base + added),
            "usage": base + added,
            "features": base * self.module.locator.layer // layers,
        }
        return round(sum(n * passes[p.removesuffix(AGAIN)] for p, n in tokens.items()))

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
        experts: Mapping[int, int] | None = None,
    ) -> Primitive:
        """Learn a task; its primitive is part of the method when this returns.

        Args:
            task: Its name.
            samples: Its training data.
            trainer: The worker group.
            probed: What `probe_task` found of this task after the same ones; None probes now.
            experts: Where it grows, and by how many, if not by the rule.
        """
        decision = trainer.noted("decision")
        weights: dict[str, Tensor] = {}
        if decision is None:
            decided, weights = self._decide(task, samples, trainer, probed, experts)
            decision = trainer.note("decision", decided)
        grown = {int(layer): count for layer, count in decision["experts"].items()}
        self._grow(task, grown, "train", weights, decision["builds_on"])
        trainer.fit("train", samples, self._loss(task))
        shown = samples[: self.experts.usage_samples]
        used, _ = usage(self.module, "usage", task, shown, trainer)
        entry = self._locator(task, samples, trainer) if probed is None else probed.locator
        return self.module.commit(entry, decision | {"usage": rounded(used)})

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
            experts and `widths` by layer, the layers' `hidden` size, and what a layer adds
            `beside` its experts; and the `foundation`, the task that the probes build on.
        """
        probing = probes = None
        foundation: dict[str, Any] = {"builds_on": None}
        if self.module.tasks and self.probe.enabled:
            probing, probes, foundation = self._probe(task, samples, trainer)
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
                "beside": self._beside(),
                "foundation": foundation,
            },
        )

    def _locator(
        self, task: str, samples: Sequence[Sample], trainer: Trainer
    ) -> Mapping[str, Tensor]:
        model = self.module
        return fit_entry(
            model.bank,
            model.features,
            task,
            samples,
            trainer,
            self.seed,
            model.device,
        )

    def answerer(self, stage: int, task: int) -> int:
        raise NotImplementedError("the locator finds what answers")

    def at_work(self, stage: int) -> set[int]:
        return set(range(stage + 1))

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
        experts: Mapping[int, int] | None,
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Where to grow and why, and the weights that the training starts from."""
        layers = range(len(self.module.ffns))
        if not self.module.tasks or not self.probe.enabled:
            everywhere = dict.fromkeys(map(str, layers), self.experts.per_layer)
            return {"experts": everywhere, "builds_on": None}, {}
        if probed is None:
            found, probes, foundation = self._probe(task, samples, trainer)
        else:
            found, probes = Probing.of(probed.decision["probing"]), probed
            foundation = probed.decision["foundation"]
        if experts is None:
            decision = decide(
                found,
                self.probe,
                per_layer=self.experts.per_layer,
                costs=[self._cost(layer) for layer in layers],
                beside=self._beside(),
                seed=seed_of(self.seed, task, "chance"),
            )
        else:
            decision = Decision(experts, None, ())
        seed = seed_of(self.seed, task, "fresh")
        weights, sources = starting_weights(
            self.module, probes, found, decision, self.probe, self.experts.rank, seed
        )
        return {**self._why(found, decision, sources), **foundation}, weights

    def _probe(
        self, task: str, samples: Sequence[Sample], trainer: Trainer
    ) -> tuple[Probing, Primitive, dict[str, Any]]:
        """Train probes in every layer, measure them, and take them away again.

        Returns:
            What was measured, the probes, and what the task builds on: `builds_on` with the losses
            that say so. An older task is near if its experts, as they are, answer better than
            probes do that were trained on nothing but the base; then probes are trained once more
            on top of that task's.
        """
        training, measuring = split(samples, self.probe, seed_of(self.seed, task, "probe split"))
        few = self.probe.gain_samples

        def probe(builds_on: str | None, again: str = "") -> tuple[Probing, Primitive]:
            everywhere = dict.fromkeys(range(len(self.module.ffns)), self.probe.experts)
            # Where shares of tokens decide, probes have to win them.
            compete = self.probe.rule == "relative"
            self._grow(task, everywhere, "probe", {}, builds_on, compete=compete)
            trainer.fit(f"probe{again}", training, self._loss(task), steps=self.probe.steps)
            found = probing(self.module, task, measuring, few, trainer, again)
            probes = self.module.learning()
            self.module.discard()
            return found, probes

        found, probes = probe(None)
        if self.experts.build_on == "none":
            return found, probes, {"builds_on": None}
        losses = answer_losses(self.module, measuring[:few], trainer)
        best = min(losses, key=losses.__getitem__)
        told = {name: round(loss, 6) for name, loss in {"": found.loss, **losses}.items()}
        if losses[best] >= found.loss:
            return found, probes, {"builds_on": None, "losses": told}
        return *probe(best, AGAIN), {"builds_on": best, "losses": told}

    def _cost(self, layer: int) -> int:
        """Scalars that one new expert adds to a layer, with its router row."""
        ffn = self.module.ffns[layer]
        return self.experts.rank * sum(ffn.widths) + ffn.hidden_size

    def _beside(self) -> list[int]:
        """Scalars that each layer which grows adds to its attention; nothing without adapters."""
        return [a.rank * sum(a.widths) for a in self.module.attentions]

    def _why(
        self, probing: Probing, decision: Decision, sources: dict[int, list[int | None]]
    ) -> dict[str, Any]:
        rule = asdict(self.probe) | {"per_layer": self.experts.per_layer}
        return {
            "experts": {str(layer): count for layer, count in decision.experts.items()},
            "rule": rule,
            "scores": {name: rounded(values) for name, values in probing.scores().items()},
            "threshold": decision.threshold,
            "cut": list(decision.cut),
            "older": list(probing.older),
            "probe_usage": rounded(probing.largest),
            "gains": rounded(probing.gains),
            "whole_gain": rounded(probing.whole),
            "sources": {str(layer): source for layer, source in sources.items()},
        }

    # Training

    def _grow(
        self,
        task: str,
        experts: dict[int, int],
        use: str,
        init: dict[str, Tensor],
        builds_on: str | None,
        *,
        compete: bool = False,
    ) -> None:
        self.module.grow(
            task,
            experts,
            rank=self.experts.rank,
            lora_alpha=self.experts.lora_alpha,
            seed=seed_of(self.seed, task, use),
            init=init,
            builds_on=builds_on,
            compete=compete,
        )

    def _loss(self, task: str) -> Any:
        def loss(forward: Forward, inputs: Inputs, tokens: Tensor) -> Tensor:
            out = forward(inputs, task, record=True, num_items_in_batch=tokens)
            total: Tensor = out.loss + self.experts.balance_weight * out.balance_loss
            return total

        return loss


def rounded(values: Any) -> Any:
    """Nested numbers, short enough to read in a record."""
    if isinstance(values, float):
        return round(values, 6)
    return [rounded(v) for v in values]
