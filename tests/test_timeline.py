"""Timelines of constructed events: sums, waiting, GPUs, export, figure. Exact."""

import json
import random

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex
from test_plots import texts
from test_trace import STEP, trace

from fidle_utils.measure.timeline import Timeline
from fidle_utils.measure.trace import KINDS, Event, read
from fidle_utils.plots import plot_timeline
from fidle_utils.plots.timeline import COLORS

BASE = 1_790_000_000_000_000_000  # ns of a clock that counts from 1970: more digits than a double holds


def event(kind, start_ms, end_ms, what="", lane="main thread", group=None, name=None):
    times = BASE + round(1e6 * start_ms), BASE + round(1e6 * end_ms)
    return Event(kind, what, name or what or kind, lane, group, *times)


def sent(what, start_ms, end_ms, group=None, lane="gloo 0"):
    return event("communication", start_ms, end_ms, what, lane, group)


def timeline(*ranks, numbers=None):
    numbers = numbers or range(len(ranks))
    return Timeline.of_ranks(
        [
            {"rank": number, "events": list(events), "operators": []}
            for number, events in zip(numbers, ranks, strict=True)
        ]
    )


def waiting(made):
    return [list(mine.waiting_ms) for _, mine in made.events.groupby("rank")]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


# -------------------------------------------------------------------------------------------- the sums


def test_all_ranks_share_one_clock_to_the_nanosecond():
    table = timeline([event("compute", 1.000001, 1.003)], [event("compute", 0, 0.000002)]).events
    assert list(table["rank"]) == [0, 1]
    assert table.start_ms.tolist() == pytest.approx([1.000001, 0.0], abs=1e-9)
    assert table.end_ms.tolist() == pytest.approx([1.003, 0.000002], abs=1e-9)


def test_a_summary_by_hand():
    group = (0, 1)
    fast = [
        event("data loading", 0, 10),
        event("forward", 10, 30),
        event("backward", 30, 60),
        event("backward", 40, 50, lane="thread 1"),  # beside another: counts once
        sent("all_reduce", 50, 90, group),
        sent("all_reduce", 55, 100, group, lane="gloo 1"),
        event("optimizer", 110, 120),
    ]
    slow = [event("forward", 0, 80), sent("all_reduce", 80, 90, group), sent("all_reduce", 85, 100, group)]
    summary = timeline(fast, slow).summary()
    assert summary.loc[0].to_dict() == {
        "span_ms": 120,
        "compute_ms": 60,  # 10–60 and 110–120
        "communication_ms": 50,  # 50–100
        "exposed_ms": 40,  # 60–100
        "overlap_ms": 10,  # 50–60
        "waiting_ms": 35,  # 50–80 and 55–85
        "idle_ms": 20,  # 0–10 and 100–110
        "data_loading_ms": 10,
    }
    assert summary.loc[1, ["waiting_ms", "exposed_ms", "idle_ms"]].tolist() == [0, 20, 0]
    part = timeline(fast, slow).summary(45, 75).loc[0]
    assert part.tolist() == [30, 15, 25, 15, 10, 25, 0, 0]
    assert "communication_ms" in repr(summary) and "..." not in repr(summary)


@pytest.mark.parametrize("seed", range(50))
def test_what_is_printed_adds_up(seed):
    draw = random.Random(seed)
    made = [
        event(
            draw.choice(KINDS), start := draw.uniform(0, 50), start + draw.expovariate(0.2), lane=str(i % 3)
        )
        for i in range(30)
    ]
    for times in ((None, None), (10, 31.234567)):
        row = timeline(made).summary(*times).loc[0]
        assert row.compute_ms + row.exposed_ms + row.idle_ms == pytest.approx(row.span_ms, abs=1e-9)
        assert row.exposed_ms + row.overlap_ms == pytest.approx(row.communication_ms, abs=1e-9)
        assert row.waiting_ms == 0 and (row >= 0).all() and row.data_loading_ms <= row.idle_ms


def test_nothing_recorded_is_an_empty_table():
    empty = timeline([], [])
    assert len(empty.events) == 0 and len(empty.totals()) == 0
    assert (empty.summary() == 0).all(axis=None) and list(empty.summary().index) == [0, 1]
    plot_timeline(empty)


def test_totals_by_collective():
    ranks = [sent("all_reduce", 0, 10), sent("all_reduce", 5, 12, lane="gloo 1"), sent("barrier", 20, 21)]
    totals = timeline(ranks).totals()
    assert totals.loc[0, "communication", "all_reduce"].tolist() == [2, 12, 0]
    assert totals.loc[0, "communication", "barrier"].tolist() == [1, 1, 0]


# -------------------------------------------------------------------------------------------- waiting


def test_the_kth_call_in_a_group_meets_the_kth_call_of_its_ranks():
    a, b = (0, 1), (2, 3)
    first = [sent("all_reduce", 0, 12, a), sent("all_gather", 13, 20, a), sent("all_reduce", 30, 41, a)]
    second = [sent("all_reduce", 10, 12, a), sent("all_gather", 12, 20, a), sent("all_reduce", 39, 41, a)]
    third, fourth = [sent("all_reduce", 1, 8, b)], [sent("all_reduce", 3, 8, b)]
    assert waiting(timeline(first, second, third, fourth)) == [[10, 0, 9], [0, 1, 0], [2], [0]]


def test_messages_meet_by_source_and_destination():
    first = [sent("send", 0, 11, (0, 1)), sent("send", 12, 30, (0, 2)), sent("recv", 40, 50, (2, 0))]
    second = [sent("recv", 10, 11, (0, 1))]
    third = [sent("recv", 5, 30, (0, 2)), sent("send", 45, 46, (2, 0))]
    assert waiting(timeline(first, second, third)) == [[10, 0, 5], [0], [7, 0]]


def test_a_rank_that_was_done_before_the_last_one_came_did_not_wait():
    root, late = [sent("broadcast", 0, 2, (0, 1))], [sent("broadcast", 10, 11, (0, 1))]
    assert waiting(timeline(root, late)) == [[0], [0]]


def test_a_message_that_seems_to_arrive_before_it_is_sent_was_waited_for():
    receiver, sender = [sent("recv", 2, 9, (0, 1))], [sent("send", 10, 11, (0, 1))]  # a stamp that came late
    assert waiting(timeline(sender, receiver)) == [[0], [7]]


def test_only_ranks_that_were_recorded_are_expected_and_unsure_calls_do_not_wait():
    first, third = [sent("all_reduce", 0, 9, (0, 1, 2))], [sent("all_reduce", 4, 9, (0, 1, 2))]
    made = timeline(first, third, numbers=[0, 2])
    assert waiting(made) == [[4], [0]] and list(made.summary().index) == [0, 2]
    unknown = [sent("all_reduce", 0, 9)], [sent("all_reduce", 4, 9)]
    assert waiting(timeline(*unknown)) == [[4], [0]]
    assert waiting(timeline(unknown[0] + [sent("all_reduce", 10, 12)], unknown[1])) == [[0, 0], [0]]
    assert waiting(timeline([sent("recv", 0, 9)], [sent("send", 4, 9)])) == [[0], [0]]


# ---------------------------------------------------------------------------------------- with GPUs


def on_gpus():
    """Two ranks with one step each, the second 150 µs later: a hand-made trace, in the profiler's format."""
    ranks = []
    for rank in (0, 1):
        made = trace(*STEP)
        made["baseTimeNanoseconds"] += 150_000 * rank
        events, operators = read(made)
        late = [e for e in events if e.what]  # a collective ends together
        events = [e._replace(end=e.end + 150_000) if rank == 0 and e in late else e for e in events]
        ranks.append({"rank": rank, "events": events, "operators": operators})
    return Timeline.of_ranks(ranks)


def test_on_gpus_computing_means_kernels():
    row = on_gpus().summary().loc[1]  # launching took the CPU from 16 to 200 µs and counts nowhere
    assert row.span_ms == 0.950 and row.compute_ms == 0.650 and row.communication_ms == 0.400
    assert row.overlap_ms == 0.200 and row.exposed_ms == 0.200 and row.idle_ms == 0.100
    assert row.data_loading_ms == 0.085  # 15 µs of the loader, 70 µs of a copy
    assert on_gpus().summary().waiting_ms.tolist() == [0.150, 0]


# ----------------------------------------------------------------------------------- export and figure


def test_the_export_holds_what_perfetto_needs(tmp_path):
    made = on_gpus()
    with open(made.to_chrome(tmp_path / "trace.json")) as file:
        written = json.load(file)
    assert written["displayTimeUnit"] == "ms"
    events = [e for e in written["traceEvents"] if e["ph"] == "X"]
    named = {(e["name"], e["pid"], e["tid"]): e["args"] for e in written["traceEvents"] if e["ph"] == "M"}
    assert len(events) == len(made.events) + len(made.operators)
    assert [named["process_name", rank, 0]["name"] for rank in (0, 1)] == ["rank 0", "rank 1"]
    assert [named["process_sort_index", rank, 0]["sort_index"] for rank in (0, 1)] == [0, 1]
    for one in events:  # Trace Event Format: complete events
        assert {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"} == set(one)
        assert one["ts"] >= 0 and one["dur"] >= 0 and isinstance(one["tid"], int)
        assert named["thread_name", one["pid"], one["tid"]]["name"]
    back = sorted((e["pid"], e["cat"], e["ts"]) for e in events if e["cat"] != "operator")
    table = made.events
    assert back == sorted(zip(table["rank"], table.kind, (1e3 * table.start_ms).round(3), strict=True))
    assert {e["name"] for e in events if e["cat"] == "communication"} == {"all_reduce"}
    assert nested(events)


def nested(events):
    """True if the slices of a lane lie in each other or apart, as the format asks."""
    open_ends = {}
    for one in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        ends = open_ends.setdefault((one["pid"], one["tid"]), [])
        while ends and ends[-1] <= one["ts"] + 1e-6:
            ends.pop()
        end = one["ts"] + one["dur"]
        if ends and end > ends[-1] + 1e-6:
            return False
        ends.append(end)
    return True


def test_messages_under_way_together_get_lanes_of_their_own(tmp_path):
    both = [sent("send", 0, 10, (0, 1)), sent("recv", 5, 15, (1, 0))]
    with open(timeline(both).to_chrome(tmp_path / "trace.json")) as file:
        assert nested([e for e in json.load(file)["traceEvents"] if e["ph"] == "X"])


STEPS = [
    [event("data loading", 0, 2), event("forward", 2, 10), event("backward", 10, 30)]
    + [sent("all_reduce", 15, 40, (0, 1, 2, 3)), sent("all_gather", 45, 70, (0, 1, 2, 3))]
    + [event("optimizer", 70, 80)],
    *[[sent("all_reduce", 30, 40, (0, 1, 2, 3)), sent("all_gather", 46, 70, (0, 1, 2, 3))]] * 3,
]


def bars(ax):
    """(label, colour, row, start, end) of each bar."""
    found = []
    for bar in ax.collections:
        for path in bar.get_paths():
            (x0, y0), (x1, y1) = path.get_extents().get_points()
            row = round((y0 + y1) / 2)
            found.append((bar.get_label(), to_hex(bar.get_facecolor()[0]), row, round(x0, 6), round(x1, 6)))
    return found


def test_the_figure_shows_each_event_where_it_was():
    ax = plot_timeline(timeline(*STEPS))
    assert "measured here · " in texts(ax) and "milliseconds" in texts(ax)
    shown = bars(ax)
    assert ("forward", to_hex(COLORS["forward"]), 0, 2, 10) in shown
    solid, pale = [(row[3], row[4]) for row in shown if row[0] == "all_reduce" and row[2] == 0][::-1]
    assert (pale, solid) == ((15, 30), (30, 40))  # waiting, then reducing
    assert [t.get_text() for t in ax.texts if t.get_text().startswith("all")].count("all_gather") == 4
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"rank {i}" for i in range(4)]
    legend = [t.get_text() for t in ax.get_legend().get_texts()]
    assert legend == ["forward", "backward", "optimizer", "data loading", "all_reduce", "all_gather"] + [
        "waiting for peers"
    ]


@pytest.mark.parametrize("n", [1, 2, 8, 16])
def test_nothing_is_cut_off_with_few_ranks_and_with_many(n):
    ax = plot_timeline(timeline(*([STEPS[0]] * n)))
    texts(ax)
    box, frame = ax.get_legend().get_window_extent(), ax.figure.bbox.padded(2)
    assert box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
    assert ax.figure.get_size_inches()[1] <= 8


def test_a_figure_can_show_a_part():
    ax = plot_timeline(timeline(*STEPS), 40, 75, source="emulated")
    assert ax.get_xlim() == (40, 75) and "emulated" in texts(ax)
    assert {row[0] for row in bars(ax)} == {"all_gather", "optimizer"}
    assert plot_timeline(timeline(*STEPS), ax=ax) is ax
