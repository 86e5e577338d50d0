"""Tuners that PEFT lacks, for comparison with a late prompt or beneath one: BitFit, Houlsby's adapters, PHM layers."""

from __future__ import annotations

from lateprompt.peft_method.extra.bitfit import BitFitConfig, BitFitModel
from lateprompt.peft_method.extra.houlsby import AdapterConfig, AdapterModel
from lateprompt.peft_method.extra.phm import PHMLinear

__all__ = ["AdapterConfig", "AdapterModel", "BitFitConfig", "BitFitModel", "PHMLinear"]
