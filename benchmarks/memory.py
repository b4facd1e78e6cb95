"""Peak memory of a benchmark's process, and of an arm in a process of its own."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path


def peak_gb() -> float:
    "Peak resident memory of this process in GB, mapped files included; on Linux without the peak of the parent process."
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def peak_of(arm: str) -> float:
    """Peak memory of a process that runs only this arm of the current benchmark.

    The benchmark is started again with `--only ARM` and prints its peak on the last line.
    """
    command = [sys.executable, *sys.argv, "--only", arm]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])["peak_gb"]
