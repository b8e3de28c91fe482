"""What probes measured, written down."""

from __future__ import annotations

from cmoe.methods.probe import Gain, Probing


def gained(probing_older: tuple[int, ...], *values: float, error: float = 0.0) -> Probing:
    """A probing with a probe a layer that takes all tokens, and what each layer's gains.

    Args:
        probing_older: Older experts by layer.
        values: By layer.
        error: Of each of them.
    """
    rows = tuple((*[0.0] * older, 1.0) for older in probing_older)
    whole = Gain(sum(values), error)
    return Probing(probing_older, rows, rows, gains(*values, error=error), whole, loss=1.0)


def gains(*values: float, error: float = 0.0) -> tuple[tuple[Gain, ...], ...]:
    """By layer what its one probe gains."""
    return tuple((Gain(value, error),) for value in values)
