"""What this machine is: cores, caches, memory, GPUs and their links, versions; its speed, measured."""

import html
import os
import platform
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import psutil

from fidle_utils.measure import processor

__all__ = ["DeviceReport", "device_report", "machine_name"]

CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # cgroup v1 writes a number of this order for "no limit"


@dataclass
class DeviceReport:
    """A machine as this process sees it; shows itself as a table."""

    cpu: str
    logical_cores: int  # this process may run on these (affinity)
    physical_cores: int | None  # the cores behind them; None if unknown
    core_limit: float | None  # processor time granted by a cgroup, in cores; None: no limit
    memory_bytes: int  # of the machine, or the cgroup's limit if that is less
    memory_available_bytes: int
    gpus: list = field(default_factory=list)  # dicts: name, memory_bytes
    gpu_link: str = "none"  # "none", "NVLink", "PCIe", "NVLink and PCIe", "unknown"
    system: str = ""
    python: str = ""
    torch: str = ""
    copy_bytes_per_second: float = 0.0  # the best of several; bytes read plus bytes written
    copy_threads: int = 1
    caches: list = field(default_factory=list)  # dicts: name, level, n_bytes of one, count of them
    speeds: list = field(default_factory=list)  # of `measure_speed()`, empty unless asked for
    others_share: float = 0.0  # of the cores, used by other programs while these were measured

    def to_dict(self):
        """Return the report as plain numbers, texts, lists and dicts, ready for JSON."""
        return asdict(self)

    @property
    def name(self):
        """The machine in one line, as figures print it."""
        cores = f"{self.usable_cores:g} core" + ("s" if self.usable_cores != 1 else "")
        return f"{self.cpu} · {cores} · {_gpu_names(self.gpus)}"

    @property
    def usable_cores(self):
        """How many cores' worth of processor time this process can use."""
        cores = self.physical_cores or self.logical_cores
        return min(cores, self.core_limit or cores)

    def rows(self):
        """Return the table: a list of (what, value) texts."""
        cores = f"{self.logical_cores} logical"
        if self.physical_cores:
            cores = f"{self.physical_cores} physical, {cores}"
        if self.core_limit and self.core_limit < self.logical_cores:
            cores += f", limited to the time of {self.core_limit:g}"
        caches = ", ".join(map(processor.cache_text, self.caches))
        rows = [
            ("Processor", self.cpu),
            ("Cores for you", cores),
            ("Caches", caches or "unknown"),
            ("Memory", f"{self.memory_bytes / 1e9:.1f} GB, {self.memory_available_bytes / 1e9:.1f} GB free"),
            ("Memory copy", f"{self.copy_bytes_per_second / 1e9:.1f} GB/s ({self._copied})"),
            ("GPUs", _gpu_names(self.gpus)),
        ]
        if self.gpus:
            each = ", ".join(f"{gpu['memory_bytes'] / 1e9:.0f} GB" for gpu in self.gpus)
            rows += [("GPU memory", each)]
        if len(self.gpus) > 1:
            rows += [("Between GPUs", self.gpu_link)]
        rows += _speed_rows(self.speeds)
        if self.others_share > 0.1:
            rows += [
                ("Beware", f"other programs used {self.others_share:.0%} of the cores: measure again alone")
            ]
        return rows + [("Software", f"{self.system}, Python {self.python}, PyTorch {self.torch}")]

    @property
    def _copied(self):
        return f"measured here, the best of several, {self.copy_threads} thread" + "s" * (
            self.copy_threads > 1
        )

    def __repr__(self):
        width = max(14, *(len(what) for what, _ in self.rows()))
        return "\n".join(f"{what:<{width}} {value}" for what, value in self.rows())

    def _repr_html_(self):
        cell = '<td style="text-align: left">'
        lines = (f"<tr>{cell}<b>{what}</b></td>{cell}{html.escape(v)}</td></tr>" for what, v in self.rows())
        return f"<table>{''.join(lines)}</table>"


def device_report(copy_megabytes=128, repeats=30, full=False):
    """Describe this machine in about a second: the memory copy is measured, the rest read. No CUDA context.

    A copy reads `copy_megabytes`, more than caches hold, and writes as many: both count. Of `repeats` copies,
    or as many as fit in half a second, the best is kept: what the memory can do when nothing else runs.
    Source: both rules are those of the STREAM benchmark (McCalpin, 1995). With `full`, some five seconds more
    for what `measure_speed()` finds of the CPU, and of the GPU of this process if it has one: `speeds`.
    """
    import torch

    from fidle_utils.measure.speed import default_device, measure_speed

    cores = processor.cores()
    with processor.watch_others() as shares:
        devices = dict.fromkeys(["cpu", default_device().type]) if full else []
        copy = _copy_bytes_per_second(copy_megabytes * 10**6, repeats)
        speeds = [speed for device in devices for speed in measure_speed(device)]
    memory = psutil.virtual_memory()
    memory_limit = _cgroup_memory_limit()
    gpus = list(_gpus())
    return DeviceReport(
        cpu=processor.cpu_model(),
        logical_cores=len(cores),
        physical_cores=processor.physical_cores(cores),
        core_limit=_cgroup_core_limit(),
        memory_bytes=min(memory.total, memory_limit or memory.total),
        memory_available_bytes=min(memory.available, memory_limit or memory.available),
        gpus=gpus,
        gpu_link=_gpu_link(len(gpus)),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        copy_bytes_per_second=copy,
        copy_threads=torch.get_num_threads(),
        caches=processor.caches(cores),
        speeds=speeds,
        others_share=shares[0],
    )


@lru_cache(maxsize=1)
def machine_name():
    """Return this machine in one line, for the foot of a figure; nothing is measured."""
    cores = processor.cores()
    numbers = len(cores), processor.physical_cores(cores), _cgroup_core_limit()
    return DeviceReport(processor.cpu_model(), *numbers, 0, 0, list(_gpus())).name


def _copy_bytes_per_second(n_bytes, repeats):
    import torch

    from fidle_utils.measure.speed import timings

    source, target = torch.ones(n_bytes // 4), torch.empty(n_bytes // 4)  # 4 bytes a number
    return 2 * n_bytes / min(timings(lambda: target.copy_(source), seconds=0.5, most=repeats))


def _speed_rows(speeds):
    """Return one row for each device and quantity: the best of each rate measured."""
    texts = {}
    for speed in speeds:
        factor, unit = (1e9, "GB/s") if speed["unit"] == "B/s" else (1e12, "TFLOP/s")
        row = texts.setdefault((f"{speed['device'].upper()} {speed['quantity']}", unit), [])
        row.append(f"{speed['name']} {speed['best'] / factor:.3g}")
    return [
        (what, f"{', '.join(row)} {unit} (measured here, the best)") for (what, unit), row in texts.items()
    ]


# --------------------------------------------------------------------------------------------- cgroups


def _cgroup_core_limit():
    """Return the smallest limit on processor time among the cgroups of this process, in cores, or None."""
    limits = []
    for text in _cgroup_files("cpu.max", "cpu"):  # version 2: "quota period", or "max period"
        quota, period = text.split()
        limits += [int(quota) / int(period)] if quota != "max" else []
    quotas = _cgroup_files("cpu.cfs_quota_us", "cpu")  # version 1: -1 for no limit
    for quota, period in zip(quotas, _cgroup_files("cpu.cfs_period_us", "cpu"), strict=False):
        limits += [int(quota) / int(period)] if int(quota) > 0 else []
    return min(limits, default=None)


def _cgroup_memory_limit():
    texts = _cgroup_files("memory.max", "memory") + _cgroup_files("memory.limit_in_bytes", "memory")
    return min((int(text) for text in texts if text != "max" and int(text) < _UNLIMITED), default=None)


def _cgroup_files(name, controller):
    """Return the contents of file `name` in the cgroups of this process, from its own up to the root."""
    try:
        lines = processor.read("/proc/self/cgroup").splitlines()
    except OSError:
        return []
    texts = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for root in (CGROUP / controller,) if controllers else (CGROUP, CGROUP / "unified"):
            folder = root / path.lstrip("/")
            for parent in (folder, *folder.parents):
                if parent.is_relative_to(root) and (parent / name).is_file():
                    texts.append(processor.read(parent / name))
    return texts


# ------------------------------------------------------------------------------------------------ GPUs


def _gpu_names(gpus):
    names = [gpu["name"] for gpu in gpus]
    counts = {name: names.count(name) for name in names}
    return ", ".join(f"{count} × {name}" for name, count in counts.items()) or "no GPU"


@lru_cache(maxsize=1)
def _gpus():
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves, asking the driver: no CUDA context is made."""
    rows = _nvidia_smi("--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")
    gpus = [[cell.strip() for cell in row.split(",")] for row in rows.splitlines() if row.count(",") == 3]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        wanted = [name.strip() for name in visible.split(",")]
        gpus = [gpu for gpu in gpus if gpu[0] in wanted or any(w and gpu[1].startswith(w) for w in wanted)]
    return tuple({"name": name, "memory_bytes": int(mib) << 20} for _, _, name, mib in gpus if mib.isdigit())


def _gpu_link(n_gpus):
    if n_gpus < 2:
        return "none"
    rows = [row.split() for row in _nvidia_smi("topo", "-m").splitlines() if row.startswith("GPU")]
    links = {cell for row in rows for cell in row[1 : len(rows) + 1]}
    kinds = ["NVLink"] if any(cell.startswith("NV") for cell in links) else []
    kinds += ["PCIe"] if links & {"PIX", "PXB", "PHB", "NODE", "SYS"} else []
    return " and ".join(kinds) or "unknown"


def _nvidia_smi(*arguments):
    return processor.output("nvidia-smi", *arguments)
