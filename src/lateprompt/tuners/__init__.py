"""Tuners that PEFT lacks, for comparison with a late prompt or beneath one: BitFit, Houlsby's adapters, PHM layers."""

from __future__ import annotations

from lateprompt.tuners.adapter import AdapterConfig, AdapterModel
from lateprompt.tuners.bitfit import BitFitConfig, BitFitModel
from lateprompt.tuners.phm import PHMLinear

__all__ = ["AdapterConfig", "AdapterModel", "BitFitConfig", "BitFitModel", "PHMLinear"]
