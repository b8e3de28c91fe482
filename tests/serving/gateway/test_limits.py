"""Limits that can't be are refused."""

from __future__ import annotations

import pytest

from cmoe.data.image_limits import FORMATS
from cmoe.serving.gateway.limits import LimitsConfig


def test_formats_of_a_service_are_those_that_are_read_or_fewer() -> None:
    assert LimitsConfig().formats == FORMATS
    assert LimitsConfig(formats=("PNG",)).image.formats == ("PNG",)
    for formats in (("PNG", "TIFF"), ("EPS",), ("png",), ()):
        with pytest.raises(ValueError, match=r"limits\.formats has .*JPEG, PNG, WEBP, GIF, BMP"):
            LimitsConfig(formats=formats)
