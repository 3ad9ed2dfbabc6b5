"""Pipeline schedules as data: the order of work of each rank, and what it costs in time and activations.

`one_f_one_b(4, 8).simulate(forward=1, backward_input=1, backward_weight=1).bubble_of_total` is one number;
`.events` is a Gantt chart. A schedule is only an order, so you can write your own: `Schedule(name, order)`.
"""

from fidle_utils.schedules.clock import DeadlockError, Event, Simulation
from fidle_utils.schedules.known import SCHEDULES, gpipe, interleaved, one_f_one_b, zb_h1, zb_h2, zb_v
from fidle_utils.schedules.schedule import Operation, Schedule

__all__ = [
    "SCHEDULES",
    "DeadlockError",
    "Event",
    "Operation",
    "Schedule",
    "Simulation",
    "gpipe",
    "interleaved",
    "one_f_one_b",
    "zb_h1",
    "zb_h2",
    "zb_v",
]
