"""Where the bytes of a training step are, part by part: `with memory_ledger(model, optimizer) as ledger: …`.

A ledger is plain data: it travels from a rank to the notebook. What counts is in `memory_hooks`.
"""

import html
from dataclasses import dataclass, field

__all__ = ["PARTS", "MemoryLedger", "memory_ledger"]

PARTS = (
    "parameters",
    "gathered parameters",
    "gradients",
    "gradient buckets",
    "optimizer states",
    "buffers",
    "inputs",
    "activations",
)


def _most(part, doc):
    return property(lambda ledger: ledger.most(part), doc=doc)


@dataclass
class MemoryLedger:
    """Bytes of one rank by part, over time; shows itself as a table.

    `ledger.parameters`, `.gradients`, … are the most that a part took, `total` their sum; `peak` is the most
    that all parts took together at one time, which is less where one part leaves before another comes.
    """

    rank: int | None = None
    device: str = "cpu"  # of the parameters
    events: list = field(default_factory=list)  # (seconds, part, device, bytes that came or, negative, left)
    moments: list = field(default_factory=list)  # dicts: moment, seconds, n_events so far, allocated bytes
    allocated_peak: int | None = None  # CUDA: torch.cuda.max_memory_allocated
    predicted_optimizer_states: int | None = None  # after the first step; None once measured, or unknown

    parameters = _most("parameters", "This rank's parameters; its shards where they are sharded.")
    gathered_parameters = _most("gathered parameters", "Full parameters that FSDP2 holds for a while.")
    gradients = _most("gradients", "What `.grad` of the parameters holds.")
    gradient_buckets = _most("gradient buckets", "DDP's buckets, where `.grad` does not lie in them.")
    optimizer_states = _most("optimizer states", "State tensors and master copies of the parameters.")
    buffers = _most("buffers", "Buffers of the model, persistent or not.")
    inputs = _most("inputs", "What the model was called with, and what was named in `inputs`.")
    activations = _most("activations", "Tensors that autograd held for backward.")

    _watch = None  # of the process that measures, until its block ends

    def __enter__(self):
        if self._watch is None:
            raise RuntimeError("this ledger is complete: call memory_ledger(...) again for a new one")
        self._watch.open()
        return self

    def __exit__(self, *_):
        watch, self._watch = self._watch, None
        watch.close()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "_watch"}

    @property
    def total(self):
        """The sum of the most of each part: what would be taken if they all stood side by side."""
        return sum(row["n_bytes"] for row in self.rows())

    @property
    def peak(self):
        """The most bytes that all parts took together at one time."""
        return sum(self.at("peak").values())

    @property
    def other(self):
        """On CUDA: bytes allocated at their peak, less the ledger's peak there; None elsewhere.

        Workspace, temporaries, communication buffers, and sizes rounded up by the allocator.
        """
        if self.allocated_peak is None:
            return None
        return self.allocated_peak - max(sum(levels.values()) for _, levels in self._levels("cuda"))

    def most(self, part):
        """Return the most bytes that `part` took."""
        return sum(row["n_bytes"] for row in self.rows() if row["part"] == part)

    def at(self, moment):
        """Return the bytes of each part at a moment, as a dict; the last one of that name.

        Moments: "start", "end of forward", "end of backward", "before optimizer step", "after optimizer
        step", "end", those you named with `mark()`, and "peak".
        """
        if moment == "peak":
            index = self._peak_index()
        else:
            found = [row["n_events"] for row in self.moments if row["moment"] == moment]
            if not found:
                known = ", ".join(dict.fromkeys(row["moment"] for row in self.moments))
                raise KeyError(f"no moment {moment!r} was seen: there are {known}, peak")
            index = found[-1]
        parts = dict.fromkeys(PARTS, 0)
        for _, part, _, delta in self.events[:index]:
            parts[part] += delta
        return parts

    def mark(self, moment):
        """Name this moment of the block: `ledger.mark("second layer")`, then `ledger.at("second layer")`."""
        if self._watch is None:
            raise RuntimeError("the block has ended: call mark() inside `with memory_ledger(...) as ledger:`")
        self._watch.measure(moment)

    def rows(self):
        """Return one dict a part and device: part, device, n_bytes (the most), n_bytes_at_peak."""
        level, most, at_peak = {}, {}, {}
        peak = self._peak_index()
        for i, (_, part, device, delta) in enumerate(self.events):
            key = part, device
            level[key] = level.get(key, 0) + delta
            most[key] = max(most.get(key, 0), level[key])
            if i < peak:
                at_peak[key] = level[key]
        keys = sorted((key for key in most if most[key]), key=lambda key: (PARTS.index(key[0]), key[1]))
        names = "part", "device", "n_bytes", "n_bytes_at_peak"
        return [dict(zip(names, (*key, most[key], at_peak.get(key, 0)), strict=True)) for key in keys]

    def curve(self):
        """Return memory over time: one dict an event with seconds, moment (or ""), each part, total."""
        named = {}
        for row in self.moments:
            named[row["n_events"]] = row["moment"]
        return [
            {"seconds": seconds, "moment": named.get(i + 1, ""), **levels, "total": sum(levels.values())}
            for i, (seconds, levels) in enumerate(self._levels())
        ]

    def _levels(self, device=None):
        """After each event: seconds, and the bytes of each part, on one kind of device or on all."""
        levels = dict.fromkeys(PARTS, 0)
        for seconds, part, where, delta in self.events:
            if device in (None, where):
                levels[part] += delta
            yield seconds, dict(levels)

    def _peak_index(self):
        total, highest, index = 0, 0, 0
        for i, (_, _, _, delta) in enumerate(self.events):
            total += delta
            if total > highest:
                highest, index = total, i + 1
        return index

    # --------------------------------------------------------------------------------------------- shown

    def _notes(self):
        if self.predicted_optimizer_states:
            size = human_size(self.predicted_optimizer_states)
            yield f"optimizer states will take {size} after the first step (computed)"
        if self.allocated_peak is not None:
            yield (
                f"CUDA allocated {human_size(self.allocated_peak)} at its peak; "
                f"other (workspace, temporaries, rounding, other tensors): {human_size(self.other)}"
            )
        elif self.device == "cpu":
            yield "bytes of tensors; the process takes more, as the allocator keeps what was freed"

    def _table(self):
        rows = self.rows()
        several = len({row["device"] for row in rows}) > 1
        yield "part", "bytes", "size", "at the peak"
        for row in rows:
            name = f"{row['part']} ({row['device']})" if several else row["part"]
            sizes = human_size(row["n_bytes"]), human_size(row["n_bytes_at_peak"])
            yield name, f"{row['n_bytes']:,}", *sizes
        yield "total", f"{self.total:,}", human_size(self.total), human_size(self.peak)

    def _title(self):
        return f"Memory of rank {self.rank}" if self.rank is not None else "Memory"

    def __repr__(self):
        table = list(self._table())
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for name, *numbers in table:
            cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *cells]))
        return "\n".join([f"{self._title()} on {self.device}", *lines, *self._notes()])

    def _repr_html_(self):
        def line(cells, tag):
            first, *rest = map(html.escape, cells)
            return f'<tr><{tag} style="text-align: left">{first}</{tag}>' + "".join(
                f"<{tag}>{cell}</{tag}>" for cell in rest
            )

        head, *body, total = self._table()
        lines = [line(head, "th"), *(line(row, "td") for row in body), line(total, "th")]
        notes = "<br>".join(html.escape(note) for note in self._notes())
        title = f"<caption>{self._title()} on {self.device}</caption>"
        return f"<table>{title}{'</tr>'.join(lines)}</tr></table><small>{notes}</small>"


def human_size(n_bytes):
    """Return bytes as a text with three digits: 1_234_567 → "1.23 MB"; decimal units."""
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    unit, factor = next((unit for unit in units if abs(n_bytes) >= unit[1]), ("bytes", 1))
    return f"{n_bytes / factor:.3g} {unit}"


def memory_ledger(model, optimizer=None, *, inputs=()):
    """Count the bytes of a training step on this rank, each storage once, exact to the byte.

        with memory_ledger(model, optimizer) as ledger:
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()

    Without `with`, the ledger holds what there is now: no activations. `optimizer` may be a list of them.
    The rules:

    - A tensor counts with its whole storage, which is what it keeps in memory; views and tied weights once.
    - activations: what autograd saves for backward (saved-tensor hooks), from the operation that saves it to
      the node that lets it go. Parameters, buffers and inputs that are saved count there, not here. Copies in
      low precision that autocast makes of weights are activations. With `torch.utils.checkpoint`, forward
      holds a block's inputs; what backward computes again counts until it is freed. What an
      `autograd.Function` keeps without `save_for_backward`, or your own saved-tensor hooks keep, is not seen.
    - inputs: what the model is called with, and the tensors in `inputs` (name the targets there, or they are
      activations of the loss, which saves them), until they are freed.
    - sharded parameters (DTensor) and their gradients: this rank's shard, with its padding. FSDP2's full
      parameters are looked at when a module's forward begins and ends and when backward reads them; its
      communication buffers and full gradients are not seen. FSDP1 and DeepSpeed's stage 3 are not followed.
    - gradient buckets: DDP's second copy of the gradients, as large as they are: computed. Where
      `gradient_as_bucket_view` makes `.grad` a view of them, they count as gradients, from the start.
    - A first step has no optimizer states before its end: measure the second step to see them at the peak.
    - On CUDA the peak of `max_memory_allocated` is reset at the start and stands beside the ledger. On a CPU
      the resident set is not used: it keeps what the allocator has not given back.

    Enter it before other saved-tensor hooks. For the formulas of a transformer layer: Korthikanti et al.,
    Reducing Activation Recomputation in Large Transformer Models, arXiv:2205.05198, 2022, section 4.1.
    """
    from fidle_utils.measure.memory_hooks import Watch

    ledger = MemoryLedger()
    ledger._watch = Watch(ledger, model, optimizer, inputs)
    return ledger
