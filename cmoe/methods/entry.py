"""What is registered of a method: all that a run, a comparison and a plan need to know of it.

Nothing heavy is imported here: a job reads its configuration before it does anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from cmoe.common.nearest import unknown
from cmoe.common.packages import CMOE as CMOE
from cmoe.common.packages import RegistryError as RegistryError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cmoe.methods.method import Method

Told = Literal["", "the task", "all tasks at once", "samples of earlier tasks"]
Formula = Literal["", "probed experts", "experts everywhere", "one adapter"]
Make = TypeVar("Make", bound="Callable[..., Method]")


@dataclass(frozen=True)
class MethodEntry:
    """A method as it is registered.

    Attributes:
        name: What `method` is in a run's configuration.
        about: What it does, in a line.
        make: Makes it: `make(base, seed=..., **sections)`; a class, or a function.
        sections: Its sections of the configuration: by key a frozen dataclass, all of whose
            attributes have defaults.
        told: What it is told and a learner in a stream isn't: such a method stands apart from the
            others. Those who are told the task, or all tasks at once, are bounds.
        locates: Whether it finds a sample's task itself, as `Method.locates`.
        whole_weights: Whether it weighs or exchanges weights as a whole, which ZeRO 3 shards.
        formula: By which formulas `--plan` counts it; "" for none.
        package: That brings it.
    """

    name: str
    about: str
    make: Callable[..., Method]
    sections: Mapping[str, type[Any]]
    told: Told
    locates: bool
    whole_weights: bool
    formula: Formula
    package: str

    @property
    def joint(self) -> bool:
        """Whether all tasks are learned at once, in the place of the first."""
        return self.told == "all tasks at once"

    @property
    def recalls(self) -> bool:
        """Whether it may go back to the samples of earlier tasks."""
        return self.told == "samples of earlier tasks"

    def create(self, base: PreTrainedModel, seed: int, sections: Mapping[str, Any]) -> Method:
        """The method on a frozen base, with nothing learned yet.

        Args:
            base: Wrapped in place.
            seed: Of every random choice.
            sections: Its settings, by the keys of `sections`.

        Raises:
            RegistryError: What was made isn't what was registered.
        """
        method = self.make(base, seed=seed, **sections)
        for flag in ("locates", "joint"):
            own, registered = getattr(method, flag), getattr(self, flag)
            if own != registered:
                raise RegistryError(
                    f"method {self.name!r} of {self.package}: {flag} is {own}, but it is "
                    f"registered as {registered}"
                )
        return method


def register_method(
    name: str,
    *,
    about: str,
    sections: Mapping[str, type[Any]] | None = None,
    told: Told = "",
    locates: bool = False,
    whole_weights: bool = False,
    formula: Formula = "",
) -> Callable[[Make], Make]:
    """Register what makes a method, a class or a function, under a name.

    It is called with the frozen base, `seed=` and its sections by their keys. See `MethodEntry` for
    the arguments.

    Raises:
        RegistryError: The name or a section's key is taken, or a value is impossible.
    """
    kinds = dict(sections or {})

    def register(make: Make) -> Make:
        entry = MethodEntry(
            name, about, make, kinds, told, locates, whole_weights, formula, _package[-1]
        )
        _require_possible(entry)
        ENTRIES[name] = entry
        return make

    return register


ENTRIES: dict[str, MethodEntry] = {}
"""What was registered so far, by name; `cmoe.methods.registry.methods` is all there is."""
_package = [CMOE]


@contextmanager
def registering_for(package: str) -> Iterator[None]:
    """What the body registers is a package's."""
    _package.append(package)
    try:
        yield
    finally:
        _package.pop()


def _require_possible(entry: MethodEntry) -> None:
    name = entry.name
    if name in ENTRIES:
        raise RegistryError(f"method {name!r} is there already, from {ENTRIES[name].package}")
    for key, value, kind in (("told", entry.told, Told), ("formula", entry.formula, Formula)):
        if value not in get_args(kind):
            known = [repr(each) for each in get_args(kind)]
            raise RegistryError(f"method {name!r}: {key} is {value!r}; {unknown(value, known)}")
    for key, section in entry.sections.items():
        if not (key.isidentifier() and is_dataclass(section)):
            raise RegistryError(f"method {name!r}: section {key!r} is no dataclass under a name")
        try:
            section()
        except (TypeError, ValueError) as error:
            raise RegistryError(
                f"method {name!r}: section {key!r} lacks defaults: {error}"
            ) from error
        for other in ENTRIES.values():
            if other.sections.get(key, section) is not section:
                raise RegistryError(
                    f"method {name!r}: section {key!r} is taken by method {other.name!r} of "
                    f"{other.package}"
                )
