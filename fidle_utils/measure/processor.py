"""What the system says of the processor: its model, the cores of this process, their caches."""

import contextlib
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

import psutil

CORES = Path("/sys/devices/system/cpu")
_MAC_CACHES = {1: "l1d", 2: "l2", 3: "l3"}


def cores():
    """Return the numbers of the logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def physical_cores(cores):
    """Return how many physical cores stand behind the logical `cores`; None if unknown."""
    siblings = set()
    for core in cores:
        try:
            siblings.add(read(CORES / f"cpu{core}/topology/thread_siblings_list"))
        except OSError:
            return psutil.cpu_count(logical=False)
    return len(siblings)


def caches(cores):
    """Return the data caches of the logical `cores`, first level first; [] where the system names none.

    Dicts: name ("L2"), level, n_bytes of one cache, count: how many these cores use, None: unknown.
    """
    found = {}
    for core in cores:
        for folder in sorted((CORES / f"cpu{core}" / "cache").glob("index*")):
            with contextlib.suppress(OSError, ValueError):
                kind, sharing = read(folder / "type"), read(folder / "shared_cpu_list")
                if kind != "Instruction":
                    size = int(read(folder / "size").removesuffix("K")) << 10
                    found[int(read(folder / "level")), sharing] = size
    if not found and platform.system() == "Darwin":
        sizes = {level: output("sysctl", "-n", f"hw.{name}cachesize") for level, name in _MAC_CACHES.items()}
        return [_cache(level, int(size), None) for level, size in sizes.items() if size.strip().isdigit()]
    sizes = [(level, size) for (level, _), size in sorted(found.items())]
    return [_cache(level, size, sizes.count((level, size))) for level, size in dict.fromkeys(sizes)]


def _cache(level, n_bytes, count):
    return {"name": f"L{level}", "level": level, "n_bytes": n_bytes, "count": count}


def cache_text(cache):
    """Return a cache as text: "2 × 1 MiB L2"."""
    n_bytes = cache["n_bytes"]
    size = f"{n_bytes / (1 << 20):g} MiB" if n_bytes >= 1 << 20 else f"{n_bytes / (1 << 10):g} KiB"
    return f"{cache['count']} × {size} {cache['name']}".removeprefix("None × ")


def cpu_model():
    """Return the name that the maker gave the processor."""
    try:
        for line in read("/proc/cpuinfo").splitlines():
            if line.startswith(("model name", "Model\t")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        name = output("sysctl", "-n", "machdep.cpu.brand_string")
    else:
        name = next((row[11:] for row in output("lscpu").splitlines() if row.startswith("Model name:")), "")
    return name.strip() or platform.processor() or platform.machine()


def seconds_of_others():
    """Return the seconds that the cores of this process have given to others since the machine started."""
    times = dict(enumerate(psutil.cpu_times(percpu=True)))
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    busy = sum(getattr(times[core], name, 0.0) for core in cores() if core in times for name in names)
    return busy - time.process_time()


@contextlib.contextmanager
def watch_others():
    """Yield a list; after the block it holds the share of this process's cores that others used, 0 to 1.

    What is measured on a busy machine is slower than the machine: say so beside the numbers.
    """
    shares, before, start = [], seconds_of_others(), time.perf_counter()
    yield shares
    used = (seconds_of_others() - before) / (time.perf_counter() - start) / len(cores())
    shares.append(min(max(used, 0.0), 1.0))


def output(*command):
    """Return what a command prints, or "" if it is absent, fails or takes more than ten seconds."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def read(path):
    return Path(path).read_text().strip()
