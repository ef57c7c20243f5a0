"""Where a result comes from: code, packages, machine."""

import functools
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench import __version__
from bench.core.distributed import world_size

PACKAGES = ("torchvision", "timm", "lightly", "numpy")


def provenance(device: torch.device) -> dict[str, Any]:
    """Return what a record says of its origin."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": _code(),
        "python": platform.python_version(),
        "packages": {"torch": torch.__version__, **{name: version(name) for name in PACKAGES}},
        "cuda": torch.version.cuda if gpu else None,
        "device": device.type,
        "gpu": gpu,
        "cpu": _cpu(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": torch.backends.cudnn.allow_tf32 if gpu else None,
        "cudnn_benchmark": torch.backends.cudnn.benchmark if gpu else None,
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "platform": sys.platform,
    }


@functools.cache
def _code() -> dict[str, Any]:
    """Return the version, and commit and dirty flag where the code is a git checkout."""
    here = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    code: dict[str, Any] = {"version": __version__, "commit": None, "dirty": None}
    with suppress(OSError, subprocess.SubprocessError):
        if (here / ".git").exists():
            changed = git("status", "--porcelain", "--", "bench", "methods", "priors", "pyproject.toml")
            code |= {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    return code


@functools.cache
def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
