"""What a run stands on and uses: package versions and peak memory. Torch is imported only where memory is asked for."""

from __future__ import annotations

import contextlib
import gc
import platform
import resource
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def versions() -> dict[str, str]:
    """Version by name, of Python and of the installed packages that results depend on."""
    found = {}
    for name in ("lateprompt", "torch", "transformers", "peft", "safetensors"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {**found, "python": platform.python_version()}


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory: of the GPU where one is used, else of this process."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def memory_bytes(device: torch.device) -> int:
    """Memory in use now: of the GPU where one is used, else of this process (0 where the system does not say)."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    return 0


def reset_peak_memory() -> None:
    """Let the peak begin anew, for another run in the same process; only Linux lets a process do so, and GPUs."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
