"""GPUs, links and nodes: plain data, that a site extends with `replace` or a Machine of its own."""

from dataclasses import dataclass, replace

from fidle_utils.planner import calibration
from fidle_utils.planner.errors import check, check_counts
from fidle_utils.reference import table

__all__ = ["GPUS", "MACHINES", "Gpu", "Machine"]


@dataclass(frozen=True)
class Gpu:
    """A GPU: dense peaks and matmul ceilings in TFLOP/s by precision, memory in GB and GB/s, TDP in W.

    A ceiling is the most that a matrix product reached on this GPU, whatever its size ("MAMF" in
    ml-engineering's accelerator page); the planner computes with it, and MFU divides by the peak.
    """

    name: str
    peak_tflops: dict
    ceiling_tflops: dict
    memory_gb: float
    memory_gb_per_second: float
    tdp_w: float
    generation: str
    multiprocessors: int
    source: str = ""


@dataclass(frozen=True)
class Machine:
    """Equal nodes: what a GPU reaches inside a node, and what a whole node reaches on the network.

    `gpu_bus_gb_per_second`: NCCL's bus bandwidth of an all-reduce inside a node, measured at large sizes.
    `node_gb_per_second`: the sum of the network links of a node, one way, as sold. `network_fraction`: the
    part of it that training gets; `ring_fraction`: the part that one ring alone gets (None: as much).
    `nodes`: how many there are (None: no limit). `pue`, `grid_g_per_kwh`: energy and carbon, None: unknown.
    """

    name: str
    gpu: Gpu
    gpus_per_node: int
    gpu_bus_gb_per_second: float
    node_gb_per_second: float
    network_fraction: float = calibration.NETWORK_FRACTION["InfiniBand"]
    ring_gb_per_second: float | None = None
    nodes: int | None = None
    pue: float | None = None
    grid_g_per_kwh: float | None = None
    source: str = ""

    def __post_init__(self):
        check_counts(GPUs_per_node=self.gpus_per_node)
        rates = (self.gpu_bus_gb_per_second, self.node_gb_per_second, self.network_fraction)
        check(min(rates) > 0, f"{self.name}: a bandwidth is more than 0, and so is the part that is reached")

    def with_(self, **changes):
        """Return the machine with some of its fields changed: `machine.with_(node_gb_per_second=100)`."""
        return replace(self, **changes)

    def __repr__(self):
        return (
            f"{self.name}: nodes of {self.gpus_per_node} × {self.gpu.name} · {self.gpu_bus_gb_per_second:g} "
            f"GB/s between GPUs · {self.node_gb_per_second:g} GB/s out of a node"
        )


def _generation(name):
    return {"V": "Volta", "A": "Ampere", "H": "Hopper", "B": "Blackwell", "G": "Blackwell"}.get(
        name[0], "other"
    )


def _generation_multiprocessors(name):
    """Those that the table leaves out: H200 as H100; 148 of a B200 and 304 of an MI300X are not verified."""
    return {"H": 132, "B": 148, "M": 304}.get(name[0], 100)


def _read_gpus():
    """The GPUs of the reference tables that have both a peak and a bandwidth of memory."""
    measured = {}
    for row in table("matmul_ceilings"):
        measured.setdefault(row["gpu"], {})[row["dtype"]] = row["tflops"]
    # Same chip as the H100, same peak: only its fp8 ceiling was printed. A100-40 as A100-80.
    measured["H200-SXM-141GB"]["bf16"] = measured["H100-SXM5-80GB"]["bf16"]
    measured["A100-SXM4-40GB"] = measured["A100-SXM4-80GB"]
    gpus = {}
    for row in table("gpu_specs"):
        peaks = {p: row[f"{p}_tflops"] for p in ("fp32", "fp16", "bf16", "fp8") if row[f"{p}_tflops"]}
        if not row["memory_gb_per_second"] or not row["tdp_w"]:
            continue
        # No ceiling of the V100 and some others was read: the fraction of the A100 is assumed.
        ceilings = {p: 0.869 * tflops for p, tflops in peaks.items()} | measured.get(row["gpu"], {})
        if "fp16" in peaks and "bf16" in measured.get(row["gpu"], {}):
            ceilings["fp16"] = ceilings["bf16"]
        gpus[row["gpu"]] = Gpu(
            row["gpu"],
            peaks,
            ceilings,
            row["memory_gb"],
            row["memory_gb_per_second"],
            row["tdp_w"],
            _generation(row["gpu"]),
            row["multiprocessors"] or _generation_multiprocessors(row["gpu"]),
            row["source"],
        )
    # IDRIS prints 186 GB; FACTS' dense bf16 peak of a GB200 is 2500: the ceiling is B200's 77.6 % of it.
    b200 = gpus["B200-SXM"]
    gpus["GB200-186GB"] = replace(
        b200,
        name="GB200-186GB",
        memory_gb=186,
        peak_tflops=b200.peak_tflops | {"fp16": 2500, "bf16": 2500},
        ceiling_tflops=b200.ceiling_tflops | {"fp16": 1940, "bf16": 1940},
        tdp_w=1200,
        source="IDRIS poster v1.2 (186 GB); peak and TDP of a GB200 not verified; bandwidth as B200",
    )
    return gpus


GPUS = _read_gpus()

_FRANCE = {"pue": 1.2, "grid_g_per_kwh": 57}  # both quoted from arXiv:2211.02001 on BLOOM at Jean Zay
_SLIDE = "bus bandwidth: NVIDIA GTC24 S62129"
_LIST = (
    Machine(
        "Jean Zay V100",
        GPUS["V100-SXM2-32GB"],
        4,
        122,
        50,
        calibration.NETWORK_FRACTION["Omni-Path"],
        nodes=270,
        **_FRANCE,
        source=f"IDRIS course 2024; {_SLIDE}; 4 Omni-Path links of 12.5 GB/s stated, 2 drawn",
    ),
    Machine(
        "Jean Zay A100",
        GPUS["A100-SXM4-80GB"],
        8,
        232,
        50,
        calibration.NETWORK_FRACTION["Omni-Path"],
        nodes=52,
        **_FRANCE,
        source=f"IDRIS poster v1.2: 4 Omni-Path links of 12.5 GB/s; {_SLIDE}",
    ),
    Machine(
        "Jean Zay H100",
        GPUS["H100-SXM5-80GB"],
        4,
        370,
        200,
        nodes=364,
        **_FRANCE,
        source=f"IDRIS poster v1.2: 4 NDR400 links of 50 GB/s, read off a drawing; {_SLIDE}",
    ),
    Machine(
        "DALIA GB200",
        GPUS["GB200-186GB"],
        72,
        840,
        900,
        nodes=1,
        source="IDRIS poster v1.2: 72 GPUs on one NVLink spine; bus bandwidth as 8×B200, ml-engineering",
    ),
    Machine(
        "DGX V100",
        GPUS["V100-SXM2-32GB"],
        16,
        122,
        100,
        source=f"{_SLIDE}; 8 × 100 Gb/s of a DGX-2 not verified",
    ),
    Machine(
        "DGX A100", GPUS["A100-SXM4-80GB"], 8, 232, 200, source=f"8 × 200 Gb/s (arXiv:2104.04473); {_SLIDE}"
    ),
    Machine(
        "DGX H100", GPUS["H100-SXM5-80GB"], 8, 370, 400, source=f"8 × 400 Gb/s (ml-engineering); {_SLIDE}"
    ),
    Machine("DGX H200", GPUS["H200-SXM-141GB"], 8, 370, 400, source="as DGX H100, with H200"),
    Machine("DGX B200", GPUS["B200-SXM"], 8, 840, 400, source="8 × 50 GB/s EFA and busbw: ml-engineering"),
)
MACHINES = {machine.name: machine for machine in _LIST}
# How fast one ring goes out of a node, where a table shows that it is less than the links: calibration.py.
for _name, _of, _software in (
    ("Jean Zay A100 (2025 logs)", "Jean Zay A100", "FSDP2"),
    ("Jean Zay A100 (2025 logs, NeMo)", "Jean Zay A100", "NeMo"),
    ("DGX A100 (ZeRO-3 of 2021)", "DGX A100", "DeepSpeed ZeRO-3 2021"),
):
    MACHINES[_name] = MACHINES[_of].with_(name=_name, ring_gb_per_second=calibration.RING[_software])
