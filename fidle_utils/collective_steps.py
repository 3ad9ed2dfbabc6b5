"""The steps of an all_reduce as data: who sends which chunk to whom, and what each rank then holds.

Sources: Patarasuk, Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations, J. Parallel
Distrib. Comput. 69(2), 2009 (ring); Thakur, Rabenseifner, Gropp, Optimization of collective communication
operations in MPICH, Int. J. High Perform. Comput. Appl. 19(1), 2005 (the others).
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

__all__ = [
    "Message",
    "Steps",
    "halving_doubling_steps",
    "recorded_steps",
    "recursive_doubling_steps",
    "ring_all_reduce_steps",
    "tree_all_reduce_steps",
]


class Message(NamedTuple):
    """`chunks` (their numbers) of a vector on the way from rank `source` to rank `destination`.

    `verb`, what the destination does: "add" them to its own, "copy" them over; "send" if that is not known.
    """

    source: int
    destination: int
    chunks: tuple
    n_bytes: int
    verb: str = "add"


class Steps:
    """The steps of an algorithm: `messages[k]` are those of step k + 1; all of a step travel at once.

    `states[k][rank][chunk]` is, after k steps, a Counter: how often the values of each rank are in the chunk
    that `rank` holds. A complete sum has each rank exactly once. Of recorded messages (`recorded_steps`) it
    is known from whom a rank has heard, no more. `layout`, for figures: "circle", "tree" or "line".
    Raises ValueError for a message from or to a rank that there is not.
    """

    def __init__(self, title, n_ranks, n_chunks, messages, layout="circle", kind="computed"):
        self.title, self.n_ranks, self.n_chunks = title, n_ranks, n_chunks
        self.messages = [[Message(*message) for message in step] for step in messages]
        self.layout, self.kind = layout, kind
        for message in (message for step in self.messages for message in step):
            if not (0 <= message.source < n_ranks and 0 <= message.destination < n_ranks):
                raise ValueError(f"{message} is not between ranks 0 to {n_ranks - 1}.")
        self.states = _states(n_ranks, n_chunks, self.messages)

    def __len__(self):
        return len(self.messages)

    def link_bytes(self, steps=None):
        """Return the bytes that went from a rank to another in the first `steps` (in all): (a, b) → bytes."""
        sent = Counter()
        for message in (message for step in self.messages[:steps] for message in step):
            sent[message.source, message.destination] += message.n_bytes
        return dict(sorted(sent.items()))

    def bytes_sent(self, steps=None):
        """Return the bytes that each rank sent in the first `steps` (in all): a list, one number a rank."""
        links = self.link_bytes(steps)
        return [sum(n for (a, _), n in links.items() if a == rank) for rank in range(self.n_ranks)]

    def complete(self, steps=None):
        """Return whether every rank holds the whole sum of each chunk after `steps` (in all)."""
        whole = Counter(range(self.n_ranks))
        return all(chunk == whole for held in self.states[-1 if steps is None else steps] for chunk in held)

    @property
    def n_messages(self):
        return sum(map(len, self.messages))

    @property
    def n_bytes(self):
        """All bytes sent, by all ranks."""
        return sum(self.bytes_sent())

    def __repr__(self):
        return (
            f"{self.title}: {self.n_ranks} ranks, {len(self)} steps, {self.n_messages} messages, "
            f"{self.n_bytes:,} bytes in all, at most {max(self.bytes_sent()):,} from one rank"
        )


def _states(n_ranks, n_chunks, messages):
    states = [[[Counter([rank]) for _ in range(n_chunks)] for rank in range(n_ranks)]]
    for step in messages:
        before, after = states[-1], [list(held) for held in states[-1]]
        for message in step:
            for chunk in message.chunks:
                arrived, mine = before[message.source][chunk], after[message.destination][chunk]
                # What a recorded message did at its destination is not known: | keeps each rank once.
                new = {"add": mine + arrived, "copy": arrived, "send": mine | arrived}[message.verb]
                after[message.destination][chunk] = new
        states.append(after)
    return states


# ---------------------------------------------------------------------------------------- the algorithms


def ring_all_reduce_steps(n, n_bytes):
    """Ring: n−1 steps of reduce_scatter, then n−1 of all_gather; every rank sends to the next one.

    2(n−1) steps of n messages; each rank sends 2(n−1)/n · `n_bytes`, the least there can be.
    Source: Patarasuk, Yuan 2009, section 4.
    """
    sizes = _chunk_bytes(_at_least_one(n), n_bytes)

    def step(first, verb):
        chunks = [(rank + first) % n for rank in range(n)]
        return [Message(r, (r + 1) % n, (c,), sizes[c], verb) for r, c in enumerate(chunks)]

    messages = [step(-k, "add") for k in range(n - 1)] + [step(1 - k, "copy") for k in range(n - 1)]
    return Steps("Ring all_reduce", n, n, messages)


def tree_all_reduce_steps(n, n_bytes):
    """Binomial tree: reduce to rank 0, then broadcast from it; a message is the whole vector.

    2⌈log₂ n⌉ steps and 2(n−1) messages in all; rank 0 sends ⌈log₂ n⌉ · `n_bytes`. Any n.
    Source: Thakur, Rabenseifner, Gropp 2005 (binomial trees of reduce and broadcast).
    """
    distances = [1 << bit for bit in range((_at_least_one(n) - 1).bit_length())]
    up = [[(r, r - d) for r in range(d, n, 2 * d)] for d in distances]
    down = [[(b, a) for a, b in step] for step in reversed(up)]
    messages = [
        [Message(a, b, (0,), n_bytes, verb) for a, b in step]
        for verb, steps in (("add", up), ("copy", down))
        for step in steps
    ]
    return Steps("Tree all_reduce", n, 1, messages, layout="tree")


def recursive_doubling_steps(n, n_bytes):
    """Recursive doubling: pairs at distance 1, 2, 4, … exchange all that they have.

    log₂ n steps of n messages; each rank sends log₂(n) · `n_bytes`. n must be a power of two, or ValueError.
    Source: Thakur, Rabenseifner, Gropp 2005.
    """
    distances = _powers(n, "recursive_doubling_steps")
    messages = [[Message(r, r ^ d, (0,), n_bytes) for r in range(n)] for d in distances]
    return Steps("Recursive doubling", n, 1, messages, layout="line")


def halving_doubling_steps(n, n_bytes):
    """Rabenseifner: reduce_scatter by recursive halving, then all_gather by recursive doubling.

    Pairs at distance n/2, …, 2, 1 exchange a half, a quarter, … of the vector, then the same way back.
    2 log₂ n steps of n messages; each rank sends 2(n−1)/n · `n_bytes`. n a power of two, or ValueError.
    Source: Thakur, Rabenseifner, Gropp 2005.
    """
    sizes, distances = _chunk_bytes(_at_least_one(n), n_bytes), _powers(n, "halving_doubling_steps")

    def step(distance, verb):
        """Rank r works on the `distance` chunks around r; its partner on those around r ^ distance."""
        messages = []
        for r in range(n):
            owner = r ^ distance if verb == "add" else r
            first = owner // distance * distance
            chunks = tuple(range(first, first + distance))
            messages.append(Message(r, r ^ distance, chunks, sum(sizes[c] for c in chunks), verb))
        return messages

    messages = [step(d, "add") for d in reversed(distances)] + [step(d, "copy") for d in distances]
    return Steps("Halving and doubling", n, n, messages, layout="line")


def _at_least_one(n):
    if n < 1:
        raise ValueError(f"{n} ranks: there must be one at least.")
    return n


def _powers(n, name):
    """1, 2, 4, … up to n/2."""
    if n < 1 or n & (n - 1):
        raise ValueError(
            f"{name}: {n} ranks, but this algorithm pairs ranks at distance 1, 2, 4, …: take a power of two, "
            "or the ring or the tree, which work for any number."
        )
    return [1 << bit for bit in range(n.bit_length() - 1)]


def _chunk_bytes(n, n_bytes):
    """Bytes of n chunks, as equal as they can be; the first ones take what is left over."""
    return [n_bytes // n + (chunk < n_bytes % n) for chunk in range(n)]


# ----------------------------------------------------------------------------------- what ranks really did


def recorded_steps(rows, title="What the ranks sent", n_ranks=None, layout="circle", kind="measured here"):
    """Return the `Steps` of recorded messages: rows of (step, source, destination, n_bytes[, chunk[, verb]]).

    A row is a tuple, or a dict with these names. Steps count from any number; one without a message is left
    out. Without `chunk`, the number of the chunk sent, a rank is one chunk, and its state says from whom it
    has heard, directly or not. So it is, for a chunk, without `verb`: "add" or "copy", what the destination
    did. Raises ValueError for rows that say too little.
    """
    names = ("step", "source", "destination", "n_bytes", "chunk", "verb")
    rows = [row if isinstance(row, Mapping) else dict(zip(names, row, strict=False)) for row in rows]
    if not rows or any(name not in row for row in rows for name in names[:4]):
        raise ValueError(f"no rows, or one that says too little: each needs {', '.join(names[:4])}.")
    chunks = {row.get("chunk") for row in rows}
    if None in chunks and len(chunks) > 1:
        raise ValueError("some rows say their chunk and some do not: give it in all, or in none.")
    steps = {step: [] for step in sorted({row["step"] for row in rows})}
    for row in rows:
        ends, chunk = (int(row["source"]), int(row["destination"])), (int(row.get("chunk") or 0),)
        steps[row["step"]].append(Message(*ends, chunk, int(row["n_bytes"]), row.get("verb") or "send"))
    messages = [message for step in steps.values() for message in step]
    n_ranks = n_ranks or 1 + max(max(m.source, m.destination) for m in messages)
    n_chunks = 1 + max(m.chunks[0] for m in messages)
    return Steps(title, n_ranks, n_chunks, steps.values(), layout, kind)
