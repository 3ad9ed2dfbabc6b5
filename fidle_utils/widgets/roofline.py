"""A roofline to move by hand: what bounds an operation, on a machine that the learner changes.

Source: Williams, Waterman, Patterson, Roofline, Commun. ACM 52(4), 2009.
"""

import math
from dataclasses import dataclass
from functools import partial

from fidle_utils.measure import work
from fidle_utils.reference import table
from fidle_utils.widgets.roofline_figure import RooflineFigure, si
from fidle_utils.widgets.show import Live, png

__all__ = ["RooflineSliders", "roofline_sliders"]

_STEP = 0.02  # of the sliders, in decades
N_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
GPUS = ("V100-SXM2-32GB", "A100-SXM4-80GB", "H100-SXM5-80GB", "MI300X", "RTX 4090")


def _powers(low, high):
    return [1 << bit for bit in range(low, high + 1)]


@dataclass(frozen=True)
class Kind:
    """An operation whose sizes can be chosen: `work(*sizes, bytes_per_number=…)` says what it does."""

    work: object
    sizes: tuple  # (name, values, the value to begin with) of each size


_LENGTH, _WIDTH = ("length", _powers(5, 16), 2048), ("head width", _powers(4, 8), 64)
_TOKENS = ("tokens", _powers(0, 16), 4096)
KINDS = {
    "matmul n × n × n": Kind(lambda n, **kw: work.matmul(n, n, n, **kw), (("n", _powers(3, 14), 1024),)),
    "linear layer": Kind(
        lambda m, n, **kw: work.matmul(m, n, n, **kw),
        (("tokens", _powers(0, 14), 1), ("width", _powers(6, 14), 4096)),
    ),
    "attention, fused": Kind(partial(work.attention, 1, 16), (_LENGTH, _WIDTH)),
    "attention, scores in memory": Kind(partial(work.attention, 1, 16, fused=False), (_LENGTH, _WIDTH)),
    "softmax": Kind(work.softmax, (("rows", _powers(0, 16), 4096), ("columns", _powers(4, 16), 1024))),
    "layer norm": Kind(work.layer_norm, (_TOKENS, ("width", _powers(4, 14), 1024))),
    "step of Adam": Kind(work.adam_step, (("parameters", _powers(10, 36), 1 << 27),)),
}


def roofline_sliders(roofline=None, operation="matmul n × n × n", dtype=None, gpus=GPUS):
    """Show where an operation sits under a roofline, with sliders for the machine, the operation, its sizes.

    `roofline`: the `Roofline` measured here, the machine to begin with. `gpus`: names of
    `table("gpu_specs")`, with their published peaks (of tensor cores, without sparsity) as presets. `dtype`:
    the one to begin with, of all numbers read and written. Attention: 16 heads. Bytes are the compulsory
    traffic with the memory; caches are left out. Headless: the first state. Raises LookupError.
    """
    return RooflineSliders(roofline, operation, dtype, gpus)


def _machines(roofline, gpus):
    """Name → (FLOP/s by dtype, bytes/s, where they come from); the measured one first."""
    machines = {}
    if roofline is not None:
        compute = {dtype: rate for dtype, rate in roofline.compute.items() if dtype in N_BYTES}
        note = f"ceilings {roofline.kind}: {roofline.machine}"
        machines[f"this machine, {roofline.kind}"] = compute, roofline.memory["memory"], note
    rows = {row["gpu"]: row for row in table("gpu_specs")}
    for name in gpus:
        if name not in rows or not rows[name]["memory_gb_per_second"]:
            raise LookupError(f"no published memory of {name!r}: take others of table('gpu_specs').")
        peaks = {dtype: rows[name].get(f"{dtype}_tflops") for dtype in N_BYTES}
        compute = {dtype: 1e12 * peak for dtype, peak in peaks.items() if peak}
        note = f"ceilings published: {name} · {rows[name]['source']}"
        machines[f"{name}, published"] = compute, 1e9 * rows[name]["memory_gb_per_second"], note
    if not machines:
        raise LookupError("no machine: give a roofline, or names of table('gpu_specs').")
    return machines


class RooflineSliders(Live):
    """The state (`machine`, `dtype`, `peak`, `bandwidth`, `operation`, `sizes`), its `verdict()`, its figure.

    `controls`: the widgets, by name. `figure.axes`: the Axes of the roofline and of the times.
    """

    def __init__(self, roofline=None, operation="matmul n × n × n", dtype=None, gpus=GPUS):
        if operation not in KINDS:
            raise LookupError(f"{operation!r}: choose one of {', '.join(KINDS)}.")
        self.machines = _machines(roofline, gpus)
        self.machine = next(iter(self.machines))
        known = self.machines[self.machine][0]
        self.dtype = dtype or next(iter(known))
        if self.dtype not in known:
            raise LookupError(f"no {self.dtype} peak of {self.machine}: there are {', '.join(known)}.")
        self._take_machine()
        self.take_operation(operation)
        self.figure = None

    def _take_machine(self):
        compute, self.bandwidth, _ = self.machines[self.machine]
        self.dtype = self.dtype if self.dtype in compute else next(iter(compute))
        self.peak = compute[self.dtype]

    def take_operation(self, operation):
        self.operation = operation
        self.sizes = [first for _, _, first in KINDS[operation].sizes]

    def verdict(self, sizes=None):
        """Return what the roofline says of the operation: a dict, seconds and bytes in SI units."""
        done = KINDS[self.operation].work(*(sizes or self.sizes), bytes_per_number=N_BYTES[self.dtype])
        computing, moving = done.flops / self.peak, done.n_bytes / self.bandwidth
        return {
            "flops": done.flops,
            "n_bytes": done.n_bytes,
            "intensity": done.intensity,
            "peak": self.peak,
            "bandwidth": self.bandwidth,
            "ridge": self.peak / self.bandwidth,
            "attainable": min(self.peak, done.intensity * self.bandwidth),
            "compute_seconds": computing,
            "memory_seconds": moving,
            "seconds": max(computing, moving),
            "bound": "memory" if moving > computing else "compute",
        }

    def text(self):
        v = self.verdict()
        sign = "<" if v["bound"] == "memory" else "≥"
        return (
            f"{self._what()}, in {self.dtype}: {si(v['flops'], 'FLOP')}, {si(v['n_bytes'], 'B')}. "
            f"{v['intensity']:.3g} FLOP/byte {sign} ridge {v['ridge']:.3g}: {v['bound']}-bound, "
            f"at most {si(v['attainable'], 'FLOP/s')}, at least {si(v['seconds'], 's')}"
        )

    def static(self):
        return self._draw().axes[0].figure

    def _draw(self):
        """Bring the figure up to date, and return it."""
        self.figure = self.figure or RooflineFigure()
        known, (name, values, _) = self.machines[self.machine], KINDS[self.operation].sizes[0]
        v, own = self.verdict(), (known[0][self.dtype], known[1])
        moved = own != (self.peak, self.bandwidth)
        words = {
            "title": f"{self._what()}, {self.dtype}: {v['bound']}-bound",
            "operation": self.operation,
            "dtype": self.dtype,
            "hint": f"small dots: other values of {name}" + (f"\ndashed: {self.machine}" if moved else ""),
            "note": "ceilings that you chose" if moved else known[2],
        }
        others = [self.verdict([value, *self.sizes[1:]]) for value in values]
        self.figure.draw(v, others, own, words)
        return self.figure

    def _what(self):
        sizes = zip(KINDS[self.operation].sizes, self.sizes, strict=True)
        return f"{self.operation}, " + ", ".join(f"{name} = {_digits(size)}" for (name, *_), size in sizes)

    # ---------------------------------------------------------------------------------------- controls

    def _build(self):
        import ipywidgets as w

        c = self.controls = {
            "machine": w.Dropdown(options=list(self.machines), description="machine"),
            "dtype": w.Dropdown(options=self._dtypes(), value=self.dtype, description="dtype"),
            "peak": w.FloatLogSlider(self.peak, min=9, max=16),
            "bandwidth": w.FloatLogSlider(self.bandwidth, min=9, max=13.5),
            "operation": w.Dropdown(options=list(KINDS), value=self.operation, description="operation"),
            "size": w.SelectionSlider(options=[1]),
            "size2": w.SelectionSlider(options=[1]),
        }
        for control in c.values():  # a layout each: one size may be hidden
            control.layout, control.style.description_width = w.Layout(width="48%", min_width="20em"), "10em"
        for name in ("peak", "bandwidth"):
            c[name].step, c[name].readout = _STEP, False  # the front end rounds to steps; we say it exactly
        self.says, self.image = w.HTML(), w.Image(format="png", layout=w.Layout(max_width="100%"))
        self._quiet = False
        for name, control in self.controls.items():
            control.observe(partial(self._moved, name), "value")
        self._show_state()
        rows = [("machine", "dtype"), ("peak", "bandwidth"), ("operation",), ("size", "size2")]
        wrap = w.Layout(flex_flow="row wrap")
        boxes = [w.HBox([c[name] for name in row], layout=wrap) for row in rows]
        return w.VBox([*boxes, self.says, self.image])

    def _dtypes(self):
        return list(self.machines[self.machine][0])

    def _moved(self, name, change):
        """Take over what a control says; controls that follow from it are set without an echo."""
        if self._quiet:
            return
        if name in ("machine", "dtype"):
            setattr(self, name, change["new"])
            self._take_machine()
        elif name == "operation":
            self.take_operation(change["new"])
        elif name.startswith("size"):
            self.sizes[name == "size2"] = change["new"]
        else:
            compute, rate, _ = self.machines[self.machine]
            own = compute[self.dtype] if name == "peak" else rate
            setattr(self, name, own if _near(own, change["new"]) else change["new"])
        self._show_state()

    def _show_state(self):
        c, self._quiet = self.controls, True
        try:
            if list(c["dtype"].options) != self._dtypes():
                c["dtype"].options = self._dtypes()
            c["dtype"].value = self.dtype
            for name, value in (("peak", self.peak), ("bandwidth", self.bandwidth)):
                if not _near(c[name].value, value):  # or it rounds, answers, is set again, and so on for ever
                    c[name].value = value
            c["peak"].description = f"peak {si(self.peak, 'FLOP/s')}"
            c["bandwidth"].description = f"memory {si(self.bandwidth, 'B/s')}"
            sizes = [*KINDS[self.operation].sizes, None][:2]
            for control, size, value in zip(
                (c["size"], c["size2"]), sizes, [*self.sizes, None], strict=False
            ):
                control.layout.visibility = "visible" if size else "hidden"
                if size and (control.description, list(control.options)) != (size[0], _options(size)):
                    control.description, control.options = size[0], _options(size)
                if size:
                    control.value = value
        finally:
            self._quiet = False
        self.image.value = png(self._draw().axes[0].figure)
        self.says.value = f'<div role="status">{self.text().replace("<", "&lt;")}</div>'


def _near(a, b):
    """Whether a slider cannot tell two values apart."""
    return abs(math.log10(a / b)) < _STEP


def _options(size):
    return [(_digits(value), value) for value in size[1]]


def _digits(value):
    return f"{value:,}".replace(",", "\u202f")
