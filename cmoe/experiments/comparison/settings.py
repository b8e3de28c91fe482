"""What is compared: a section of the run's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cmoe.common.bounds import require
from cmoe.common.nearest import did_you_mean, near, unknown
from cmoe.methods.registry import methods

STUDIED = "cmoe"
"""The method whose locator and experts a study looks into."""


@dataclass(frozen=True)
class CompareConfig:
    """Methods side by side, instead of the one `method`.

    Attributes:
        methods: Their names, with commas between; none runs `method` alone. Those of `variants` are
            names, too.
        variants: Further entrants by name: a `method`, if not `cmoe`, and what it has otherwise
            than the rest of the configuration: `{own_only: {experts.top_k: 1}}`.
        seeds: Every method runs with each of them.
        at_once: Runs at a time; each has `cluster.workers` of its own.
        settings: By method, what it has otherwise than the rest of the configuration, by key:
            `{lora: {training.learning_rate: 0.002}}`.
        candidates: By method, settings to choose from, each beside `settings`: a stream of its own
            is judged on the selection split, and the best Last wins. All methods that have any
            have as many: the budget of their tuning is the same.
        candidate_seeds: Each candidate is judged by the mean over so many of the first seeds.
        candidate_tasks: Candidates learn so many of the stream's first tasks; null takes all.
        study: Streams of `cmoe` with other settings, by group and label:
            `{rank: {"4": {experts.rank: 4}, "16": {experts.rank: 16}}}`. With any, the comparison
            also says what `cmoe`'s own streams show of its locator and its experts.
    """

    methods: str = ""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    at_once: int = 1
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    candidates: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    candidate_seeds: int = 1
    candidate_tasks: int | None = None
    study: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, variant in self.variants.items():
            if name in methods() or not name.isidentifier():
                raise ValueError(f"variants: {name!r} is a method's name, or no plain word")
            if (method := variant.get("method", STUDIED)) not in methods():
                raise ValueError(
                    f"variants.{name}: method is {method!r}; {unknown(str(method), methods())}"
                )
        known = [*methods(), *self.variants]
        for name in (*self.names, *self.settings, *self.candidates):
            if name not in known:
                close = did_you_mean(near(name, known))
                raise ValueError(f"methods: {name!r} is none; there are {', '.join(known)}{close}")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"methods is {self.methods!r}; each once")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {list(self.seeds)}; one or more, each once")
        if self.study and STUDIED not in self.names:
            raise ValueError(f"methods is {self.methods!r}; a study is of {STUDIED}: name it, too")
        require(self, "", "at_once", "candidate_seeds", "candidate_tasks", least=1)
        if self.candidate_seeds > len(self.seeds):
            raise ValueError(
                f"candidate_seeds is {self.candidate_seeds}, and seeds has {len(self.seeds)}; "
                "at most as many"
            )
        counts = {method: len(tried) for method, tried in self.candidates.items() if tried}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{count} of {method}" for method, count in counts.items())
            raise ValueError(f"candidates are {listed}; as many for each method that has any")

    def method_of(self, name: str) -> str:
        """The method of an entrant: itself, or a variant's."""
        found: str = self.variants.get(name, {"method": name}).get("method", STUDIED)
        return found

    def settings_of(self, name: str) -> dict[str, Any]:
        """What an entrant has otherwise than the rest of the configuration, by key."""
        variant = {k: v for k, v in self.variants.get(name, {}).items() if k != "method"}
        return variant | self.settings.get(name, {})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.methods.split(",") if name.strip())
