"""What a measurement rests on: machine, versions, date, clock and memory."""

import datetime
import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def machine_metadata(*packages: str) -> dict[str, Any]:
    """Machine and versions (of Python, torch, numpy and `packages`), commit-free and without host names.

    Processor, cores, load average of the last minute (asked before a measurement: what others were doing), torch
    threads, GPU.
    """
    return {
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions("torch", "numpy", *packages),
    } | (_gpu() if torch.cuda.is_available() else {})


def versions(*packages: str) -> dict[str, str]:
    """Installed version of each package."""
    return {name: version(name) for name in packages}


def now(device: str = "cpu") -> float:
    """Seconds on a clock that never goes back, after all work that the device was given is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory_mib(device: str = "cpu") -> float:
    """Most memory in use so far: what torch allocated on a GPU, or the largest resident size of this process (Linux).

    Not `ru_maxrss`, which in a child process begins at its parent's size.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status must have a line VmHWM, it has none")


def _gpu() -> dict[str, str]:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip() if shutil.which(query[0]) else "unknown"
    return {"gpu": torch.cuda.get_device_name(0), "driver": driver, "cuda": str(torch.version.cuda)}


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
