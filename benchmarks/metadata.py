"""What a measurement rests on: machine, versions, date."""

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def machine_metadata(*packages: str) -> dict[str, Any]:
    """Processor, cores, torch threads, versions of Python, torch, numpy and `packages`, commit-free and without host names."""
    return {
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions("torch", "numpy", *packages),
    }


def versions(*packages: str) -> dict[str, str]:
    """Installed version of each package."""
    return {name: version(name) for name in packages}


def peak_memory_mib() -> float:
    """Largest resident size of this process so far (Linux). Not `ru_maxrss`, which in a child process begins at its parent's size."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status must have a line VmHWM, it has none")


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
