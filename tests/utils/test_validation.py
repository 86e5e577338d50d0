"""The one validator: what a field's annotation takes, and what is said of anything else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from annotated_types import Ge, Gt

from lateprompt.experiments.compare.plan import Shots
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.validation import Count, OneOf, Rate, Seed, check_types, checked


@dataclass
class Settings:
    count: Count | None = None
    least: Annotated[int, Ge(4)] = 4
    rate: Rate = 0.0
    lr: Annotated[float, Gt(0)] = 1.0
    seed: Seed = 0
    layer: int | float | str = "0.5"
    flag: bool = False
    name: str = ""
    kind: Annotated[str, OneOf(("fp32", "bf16"))] | None = None
    kinds: list[Annotated[str, OneOf(("fp32", "bf16"))]] | None = None
    shots: list[Shots] | None = None
    options: dict[str, int] | None = None


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("count", None, None),
        ("count", 2.0, 2),
        ("count", np.int64(3), 3),
        ("lr", np.float32(0.5), 0.5),
        ("lr", 2, 2.0),
        ("layer", 3, 3),
        ("layer", "0.5", "0.5"),
        ("layer", 0.5, 0.5),
        ("name", Path("a/b"), "a/b"),
        ("kinds", ("fp32",), ["fp32"]),
        ("shots", [16, "full"], [16, "full"]),
        ("seed", 2**32 - 1, 2**32 - 1),
        ("flag", np.bool_(True), True),
    ],
)
def test_values_become_plain(name, value, plain):
    found = checked(Settings, name, value)
    assert (found, type(found)) == (plain, type(plain))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", 0, "count 0 is no value for it; give a whole number from 1"),
        ("count", True, "count True is no value for it; give a whole number from 1"),
        ("count", "3", "count '3' is no value for it; give a whole number from 1"),
        ("count", 1.5, "count 1.5 is no value for it; give a whole number from 1"),
        ("least", 3, "least 3 is no value for it; give a whole number from 4"),
        ("rate", 1.0, "rate 1.0 is no value for it; give a number from 0 to below 1"),
        ("rate", float("nan"), "rate nan is no value for it; give a number from 0 to below 1"),
        ("lr", 0, "lr 0 is no value for it; give a number above 0"),
        ("seed", -1, "seed -1 is no value for it; give a whole number from 0 to 4294967295"),
        ("layer", True, "layer True is no value for it; give a whole number or a number or a text"),
        ("flag", 1, "flag 1 is no value for it; give true or false"),
        ("name", 3, "name 3 is no value for it; give a text"),
        ("kind", "bf61", "kind 'bf61' is unknown (did you mean 'bf16'?); choose one of fp32, bf16"),
        ("kind", 3, "kind 3 is unknown; choose one of fp32, bf16"),
        ("kinds", ["fp32", "bf61"], "kinds 'bf61' is unknown (did you mean 'bf16'?); choose one of fp32, bf16"),
        ("kinds", "fp32", "kinds 'fp32' is no value for it; give a list of fp32 or bf16"),
        ("shots", [16, 0], "shots 0 is no value for it; give a whole number from 1 or full"),
        ("options", [1], "options [1] is no value for it; give a mapping"),
        ("options", {"a": "b"}, "options {'a': 'b'} is no value for it; give a mapping"),
    ],
)
def test_what_cannot_be(name, value, message):
    with pytest.raises(LatePromptError) as caught:
        checked(Settings, name, value)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("lr", "1e-3", 1e-3),
        ("count", "4", 4),
        ("layer", "0.5", "0.5"),
        ("name", False, "off"),
        ("name", 3, "3"),
        ("shots", ["16", "full"], [16, "full"]),
    ],
)
def test_what_yaml_makes_of_a_value(name, value, meant):
    assert checked(Settings, name, value, written=True) == meant
    if value != meant:
        with pytest.raises(LatePromptError):
            checked(Settings, name, value)


def test_a_whole_dataclass():
    settings = Settings(count=np.int32(2), rate=np.float64(0.5))
    check_types(settings)
    assert (type(settings.count), type(settings.rate)) == (int, float)
    settings.least = 1
    check_types(settings, ["count"])
    with pytest.raises(LatePromptError, match="least 1"):
        check_types(settings)
