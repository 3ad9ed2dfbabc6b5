"""What the ranks did and what it cost: time, samples, bytes sent, bytes held, the machine itself."""

from fidle_utils.measure.communication import count_communication
from fidle_utils.measure.machine import device_report, machine_name
from fidle_utils.measure.memory import memory_ledger
from fidle_utils.measure.roofline import operation, roofline
from fidle_utils.measure.tracking import track

__all__ = [
    "count_communication",
    "device_report",
    "machine_name",
    "memory_ledger",
    "operation",
    "roofline",
    "track",
]
