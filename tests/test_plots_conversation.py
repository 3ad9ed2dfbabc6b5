"""The figures of lesson 03, read back: labels become colours, steps become panels, nothing is cut off."""

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_helpers import said_by
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from fidle_utils import plots
from fidle_utils.measure.alpha_beta import AlphaBeta
from fidle_utils.measure.film import Film, frames, steps_of
from fidle_utils.plots.conversation import _tint, contributors

MODEL = AlphaBeta(2e-4, 1e-9)
SAMPLES = {2**k: [MODEL.all_reduce(2, 2**k) * f for f in (0.9, 1, 1.4)] for k in range(10, 25)}


def films_of_a_swap():
    """Two ranks exchange their first values and add them; then copy each other's second."""
    films = []
    for rank in range(2):
        film = Film()
        one = {"source": rank, "destination": 1 - rank, "n_bytes": 8}
        mine, theirs = ([1, 2], [10, 20]) if rank == 0 else ([10, 20], [1, 2])
        film.snapshots = [mine, [11, mine[1]], [11, theirs[1]]]
        film.messages = [
            {**one, "values": [mine[0]], "first": 0},
            {**one, "values": [mine[1]], "first": 1},
        ]
        films.append(film)
    return films


BEFORE, AFTER = [[1, 2], [10, 20]], [[11, 22], [11, 22]]
FIGURES = {
    "collective": (lambda: plots.plot_collective(BEFORE, AFTER, "all_reduce"), "measured here"),
    "nothing on a rank": (lambda: plots.plot_collective(BEFORE, [[1, 20], None], "gather"), "–"),
    "halves": (lambda: plots.plot_buffers({"a": BEFORE, "b": [[11], [22]], "c": AFTER}, "halves"), "22"),
    "film": (lambda: plots.plot_film(films_of_a_swap(), "swap"), "step 2 · 8 bytes each"),
    "links": (lambda: plots.plot_links({"swap": films_of_a_swap()}, 16, node=1), "2 S between nodes"),
    "alpha-beta": (lambda: plots.plot_alpha_beta(SAMPLES, MODEL), "measured here"),
    "alpha-beta, predicted": (
        lambda: plots.plot_alpha_beta(SAMPLES, MODEL, predicted={3000: 5e-4}),
        "measured later, not fitted",
    ),
    "algorithms": (lambda: plots.plot_algorithms(MODEL, 8), "computed"),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_whole_and_says_what_it_shows(name, large):
    draw, expected = FIGURES[name]
    assert expected in said_by(draw, large)


def test_the_digits_of_a_value_name_its_ranks():
    assert contributors(1200) == [3, 2]
    assert contributors(4004) == [3, 0]
    assert contributors(20) == [1] and contributors(0) == []


def boxes(ax):
    """The corner and colour of each stripe, in the order drawn."""
    return [
        (patch.get_xy(), to_hex(patch.get_facecolor()))
        for patch in ax.patches
        if isinstance(patch, Rectangle) and patch.get_facecolor()[3] > 0
    ]


def test_a_box_has_a_stripe_for_each_rank_in_it_under_its_digit():
    stripes = boxes(plots.plot_collective([[1], [10]], [[11], None], "reduce"))
    blue, orange = to_hex(_tint(0)), to_hex(_tint(1))
    assert [color for _, color in stripes] == [blue, orange, orange, blue]  # "11": the ten of rank 1 is left
    assert stripes[2][0][0] < stripes[3][0][0]


def test_a_film_shows_the_buffers_after_each_message_and_frames_what_changed():
    ax = plots.plot_film(films_of_a_swap())
    numbers = [text.get_text() for text in ax.texts if text.get_text().isdigit()]
    assert numbers == ["1", "2", "10", "20", "11", "2", "11", "20", "11", "20", "11", "2"]
    thick = [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_linewidth() == 2]
    assert len(thick) == 4


def test_links_add_up_what_was_sent():
    ax = plots.plot_links({"swap": films_of_a_swap()}, n_bytes=16, node=1)[0]
    assert np.array_equal(ax.images[0].get_array(), [[0, 1], [1, 0]])


def test_the_fitted_curve_and_its_two_asymptotes_are_the_model():
    ax = plots.plot_alpha_beta(SAMPLES, MODEL)
    lines = {line.get_label(): line for line in ax.lines}
    sizes, seconds = lines["fitted: α and β together"].get_data()
    assert seconds[0] == pytest.approx(2 * MODEL.alpha + sizes[0] * MODEL.beta)
    assert lines["2 α alone"].get_ydata()[0] == pytest.approx(2 * MODEL.alpha)
    assert lines["bytes · β alone"].get_ydata()[-1] == pytest.approx(sizes[-1] * MODEL.beta)
    medians = ax.containers[0].lines[0].get_data()
    assert medians[1][0] == pytest.approx(MODEL.all_reduce(2, 1024))


def test_films_become_frames_and_steps():
    films = films_of_a_swap()
    shown = frames(films)
    assert [frame["buffers"] for frame in shown] == [BEFORE, [[11, 2], [11, 20]], [[11, 20], [11, 2]]]
    assert [len(frame["messages"]) for frame in shown] == [0, 2, 2]
    steps = steps_of(films, "swap")
    assert [[message.verb for message in step] for step in steps.messages] == [["add"] * 2, ["copy"] * 2]
    assert [[message.chunks for message in step] for step in steps.messages] == [[(0,)] * 2, [(1,)] * 2]
    assert steps.link_bytes() == {(0, 1): 16, (1, 0): 16}
    films[0].messages[0]["first"] = None  # another tensor was sent: its place is not known
    assert steps_of(films).n_chunks == 1
    films[0].messages.pop()
    with pytest.raises(ValueError, match="unequally"):
        frames(films)
