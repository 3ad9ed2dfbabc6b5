"""A node's drawing and the bars of transfer times say what their tables say."""

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest
from figure_helpers import whole

from fidle_utils import plots
from fidle_utils.reference import table

NODES = {row["gpu"]: row for row in table("jeanzay_links")}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def node(gpu):
    return plots.plot_node(NODES[gpu], table("gpu_specs", gpu=gpu)[0])


def rows(*kinds):
    seconds = {"computed": 0.28, "published": (2.5, 7.5), "measured here": 12}
    return [{"link": f"link {i}", "kind": kind, "seconds": seconds[kind]} for i, kind in enumerate(kinds)]


@pytest.mark.parametrize("gpu", NODES)
@pytest.mark.parametrize("large", [False, True])
def test_a_node_shows_its_gpus_and_every_speed(gpu, large):
    with plots.presentation(large):
        said = whole(node(gpu).figure)
    row, spec = NODES[gpu], table("gpu_specs", gpu=gpu)[0]
    assert f"GPU {row['gpus_per_node'] - 1}" in said and f"GPU {row['gpus_per_node']}" not in said
    assert f"{spec['gpu_link_gb_per_second']:g} GB/s for one GPU" in said
    assert f"{spec['pcie_gb_per_second']:g} GB/s each" in said
    total = row["network_links"] * row["network_gb_per_second"]
    assert f"= {total:g} GB/s to other nodes" in said
    assert said.count("published ·") == 1


def test_only_the_v100_node_says_that_its_sources_disagree():
    assert ["IDRIS draws 2" in whole(node(gpu).figure).replace("\n", " ") for gpu in NODES] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("gpu", NODES)
def test_links_agree_with_the_specifications_and_the_nodes(gpu):
    row, spec = NODES[gpu], table("gpu_specs", gpu=gpu)[0]
    direct = row["gpu_to_gpu"] == "every pair wired"
    neighbours = row["gpus_per_node"] - 1 if direct else 1
    assert row["pair_gb_per_second"] * neighbours == spec["gpu_link_gb_per_second"]
    assert any(each["gpus_per_node"] == row["gpus_per_node"] for each in table("jeanzay_nodes", gpu=gpu))


def test_transfer_times_are_bars_that_end_at_their_seconds():
    ax = plots.plot_transfer_times(rows("computed", "published", "measured here"), 14e9)
    said = whole(ax.figure)
    ends = [patch.get_x() + patch.get_width() for patch in ax.patches]
    assert ends == pytest.approx([0.28, 7.5, 12])
    assert "280 ms" in said and "2.5 to 7.5 s, published" in said and "12 s, measured here" in said
    assert [bool(patch.get_hatch()) for patch in ax.patches] == [False, True, True]
    assert "scaled up" in said and "14 GB over one link" in said


def test_without_a_measurement_the_note_does_not_speak_of_one():
    assert "scaled up" not in whole(plots.plot_transfer_times(rows("computed"), 14e9).figure)
