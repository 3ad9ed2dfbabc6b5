"""What `track()` recorded: a table of steps, their throughput, and the rows that show it while it runs."""

import json
import math
from pathlib import Path

from tqdm import tqdm

__all__ = ["Throughput"]

COLUMNS = ("step", "start_s", "seconds", "data_seconds", "samples", "flops", "warmup")
LIVE_SECONDS = 1.5  # the throughput shown while a loop runs is that of so much of the past
WORTH_SAYING_SECONDS = 0.05  # of waiting for data


class Throughput:
    """A record for each step of each rank.

    `steps` is a pandas.DataFrame: rank, loop (counted from 0 on each rank), name, step, start_s (from the
    first step of any rank), seconds, data_seconds (of those, the time the loop waited for its item), samples,
    flops, warmup (True: counted in no throughput), and a column for each metric that the loop logged.
    `unit` is what is counted: samples, images, tokens…; steps where the samples are not known.
    """

    def __init__(self, steps, unit="samples"):
        self.steps, self.unit = steps, unit

    @classmethod
    def of_reports(cls, reports):
        """From (rank, report) pairs, as `track` makes the reports."""
        import pandas as pd

        table, loops, unit = [], {}, "samples"
        for rank, report in reports:
            mine = loops.setdefault(rank, {})
            loop = mine.setdefault(report["number"], len(mine))
            unit = report["unit"]
            for row in report["rows"]:
                fixed = dict(zip(COLUMNS, row, strict=False))
                table.append({"rank": rank, "loop": loop, "name": report["name"], **fixed, **row[-1]})
        steps = pd.DataFrame(table, columns=None if table else ["rank", "loop", "name", *COLUMNS])
        steps = steps.astype({"samples": float, "flops": float, "warmup": bool})
        if steps.samples.isna().any():
            steps["samples"], unit = 1.0, "steps"
        steps["start_s"] -= steps.start_s.min()
        return cls(steps.sort_values(["rank", "loop", "step"], ignore_index=True), unit)

    @classmethod
    def load(cls, folder):
        """Read what scripts wrote that were started with FIDLE_TRACK=folder (torchrun, Slurm)."""
        paths = sorted(Path(folder).glob("rank*.jsonl"))
        if not paths:
            raise FileNotFoundError(f"no records in {folder}: was the job started with FIDLE_TRACK={folder}?")
        reports = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        return cls.of_reports([(report["rank"], report) for report in reports])

    @property
    def steady(self):
        """The steps after the warm-up."""
        return self.steps[~self.steps.warmup]

    def summary(self):
        """A pandas.DataFrame, one row a rank: steps, samples_per_second, step_ms (median), data_wait (share).

        `flops_per_second` too, where the FLOPs of a step are known. Warm-up steps count in none of them.
        """
        import pandas as pd

        rows = {}
        for rank, mine in self.steady.groupby("rank"):
            seconds = mine.seconds.sum()
            rows[rank] = {
                "steps": len(mine),
                f"{self.unit}_per_second": mine.samples.sum() / seconds,
                "step_ms": 1e3 * mine.seconds.median(),
                "data_wait": mine.data_seconds.sum() / seconds,
            }
            if mine.flops.notna().all():
                rows[rank]["flops_per_second"] = mine.flops.sum() / seconds
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("rank")

    @property
    def samples_per_second(self):
        """Of all ranks together: the sum of what each achieved."""
        by_rank = self.steady.groupby("rank")
        return float((by_rank.samples.sum() / by_rank.seconds.sum()).sum())

    @property
    def by_step(self):
        """Samples per second of all ranks, a pandas.Series by step: the slowest rank sets the time."""
        steps = self.steady.groupby(["loop", "step"])
        return steps.samples.sum() / steps.seconds.max()

    def mfu(self, peak_flops_per_second):
        """Model FLOPs utilisation of each rank, a pandas.Series: FLOPs achieved over those of the device.

        `peak_flops_per_second` is of one rank's device, for the precision used; say with the number whether
        it is the maker's or one you measured. FLOPs that activation checkpointing computes again are not the
        model's: give `track` a formula then. Source: Chowdhery et al., PaLM, 2022, appendix B.
        """
        table = self.summary()
        if "flops_per_second" not in table:
            raise ValueError("the FLOPs of a step are not known: track(…, flops=True) counts them")
        return (table.flops_per_second / peak_flops_per_second).rename("mfu")

    def __len__(self):
        return len(self.steps)

    def __repr__(self):
        ranks = self.steps["rank"].nunique()
        if not len(self.steady):
            return f"Throughput of {ranks} ranks: {len(self)} steps, all of them warm-up"
        total = rate(self.samples_per_second, self.unit)
        return f"Throughput of {ranks} ranks: {len(self)} steps, {total} in all\n{self.summary()}"


class Progress:
    """The reports of the ranks in one cell, and one row of text for each rank: its latest loop."""

    def __init__(self):
        self.reports, self.loops = [], {}

    def receive(self, rank, report):
        """Take in one report of a rank."""
        self.reports.append((rank, report))
        loop = self.loops.get(rank)
        if loop is None or loop.number != report["number"]:
            loop = self.loops[rank] = _Loop(report)
        loop.add(report["rows"])
        loop.done = report["done"]

    def throughput(self):
        """What has been recorded, None if no rank tracked anything."""
        return Throughput.of_reports(self.reports) if self.reports else None

    def rows(self):
        """A dict, rank → text; None → the text for all ranks together, where there are several."""
        rows = {rank: str(loop) for rank, loop in sorted(self.loops.items())}
        rates = [loop.rate() for loop in self.loops.values()]
        if len(rows) > 1 and all(rates):
            rows[None] = rate(sum(rates), next(iter(self.loops.values())).unit)
        return rows


class _Loop:
    """One loop of one rank as the rows show it."""

    def __init__(self, report):
        self.number, self.name, self.total = report["number"], report["name"], report["total"]
        self.unit, self.rows, self.done = report["unit"], [], False
        self.samples = self.seconds = self.waited = 0.0  # after the warm-up

    def add(self, rows):
        self.rows += rows
        for _, _, seconds, waited, samples, _, warmup, _ in rows:
            if samples is None:
                self.unit = "steps"
            if not warmup:
                self.samples += samples or 1
                self.seconds += seconds
                self.waited += waited

    def rate(self):
        """Samples a second after the warm-up: lately, and in all once the loop is over; 0.0 before."""
        if self.done or not self.seconds:
            return self.samples / self.seconds if self.seconds else 0.0
        samples = seconds = 0.0
        for row in reversed(self.rows):
            if row[6] or seconds > LIVE_SECONDS:
                break
            samples += row[4] or 1
            seconds += row[2]
        return samples / seconds

    def speed(self):
        """The rate as text."""
        return rate(now, self.unit) if (now := self.rate()) else "warming up"

    def __str__(self):
        n = len(self.rows)
        if self.total:
            bar = "{percentage:3.0f}% {bar:16} {n_fmt}/{total_fmt}"
            parts = [tqdm.format_meter(n, self.total, 0, bar_format=bar, ascii=False)]
        else:
            parts = [f"{n} steps"]
        if self.name:
            parts.insert(0, self.name)
        parts.append(self.speed())
        if self.waited > max(0.05 * self.seconds, WORTH_SAYING_SECONDS):
            parts.append(f"{self.waited / self.seconds:.0%} waiting for data")
        metrics = self.rows[-1][-1] if self.rows else {}
        parts += [f"{name} {value:.3g}" for name, value in metrics.items()]
        return " · ".join(parts)


def rate(per_second, unit):
    """A throughput in three digits or more, as text: `12 300 samples/s`."""
    if per_second >= 999.5:
        step = 10 ** (math.floor(math.log10(per_second)) - 2)
        return f"{round(per_second / step) * step:,.0f} {unit}/s".replace(",", " ")
    return f"{per_second:.3g} {unit}/s"
