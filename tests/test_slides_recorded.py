"""The slides' records are of the lessons as they are, and say what the slides say of them."""

import importlib.util
import json
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks" / "recorded" / "slides"
spec = importlib.util.spec_from_file_location("record_slides", FOLDER / "record_slides.py")
record_slides = importlib.util.module_from_spec(spec)
spec.loader.exec_module(record_slides)


def values(number):
    return json.loads((FOLDER / f"{number}.json").read_text())["values"]


@pytest.mark.parametrize("number", record_slides.KEPT)
def test_a_record_names_its_machine_and_holds_what_the_script_keeps(number):
    record = json.loads((FOLDER / f"{number}.json").read_text())
    assert record["machine"] and record["date"] and record["command"].endswith(number)
    assert {"python", "torch", "deepspeed"} < set(record["versions"])
    wanted = [name for kept in record_slides.KEPT[number].values() for name in kept]
    assert list(record["values"]) == wanted


@pytest.mark.parametrize("number", record_slides.KEPT)
def test_the_sections_that_are_recorded_exist_and_have_code(number):
    (path,) = (ROOT / "notebooks" / "py").glob(f"{number}_*.py")
    for heading in record_slides.KEPT[number]:
        assert record_slides.section(jupytext.read(path), heading), heading


def test_data_parallelism_is_one_process_and_its_messages_cost_time():
    found = values("04")
    assert found["far"] < 1e-7 and found["shared"] == pytest.approx(found["alone"], abs=1e-5)
    for distances in zip(*found["drift"]["A"][1:], strict=True):
        assert distances == pytest.approx([ranks[0] for ranks in found["drift"]["A"][1:]], rel=1e-5)
    assert (
        min(ranks[-1] for ranks in found["drift"]["B"][1:])
        > 1
        > max(max(r) for r in found["drift"]["C"]) * 1e6
    )
    assert found["buckets"][0][0] == 42 and found["buckets"][0][1] > 4 * found["buckets"][-1][1]
    for rank in range(4):
        mine = [row for row in found["step"] if row[0] == rank]
        first = min(start for _, kind, _, start, *_ in mine if kind == "communication")
        assert first < max(end for _, kind, _, _, end, _ in mine if kind == "backward")


def test_a_cut_model_waits_and_sends_what_the_slides_say():
    found = values("05")
    assert 0.15 < sum(found["busy"]) / 4 < 0.3
    assert found["mlp"] == [{"65536": 1}] * 2 and found["S"] == 131_072
    assert found["gpt"] == [{"131072": 5, "2048": 3}, {"131072": 5}]
    assert found["sent"][0] == found["sent"][1] and found["loss"][1] / found["loss"][0] == 32
    kept = [f"{100 * n / found['kept']['one process']:.0f}" for n in found["kept"].values()]
    assert kept == ["100", "48", "37"]
    assert f"{kept[1]} % → **{kept[2]} %**" in (ROOT / "slides" / "05_model_parallelism.md").read_text()


def test_stale_weights_are_three_updates_old_on_the_first_rank_and_hurt_large_steps():
    assert values("06")["age"] == [3, 2, 1, 0]
    small, large = values("06")["losses"].values()
    mean = {name: sum(losses[20:]) / len(losses[20:]) for name, losses in large.items()}
    assert mean["fresh weights"] < mean["PipeDream, stashed"] < mean["4 times as deep"]
    assert [round(sum(small[name][20:]) / 108, 2) for name in list(small)[:2]] == [0.75, 0.78]


def test_deepspeed_clips_by_default_and_its_stage_2_sends_three_times_the_gradients():
    found = values("09")
    far = {
        name: max(abs(a - b) for a, b in zip(found["alone"], found[name], strict=True))
        for name in ("by default", "without clipping")
    }
    assert far["by default"] > 0.01 and far["without clipping"] < 1e-6
    curves = found["curves"]
    assert all(curves[stage] == pytest.approx(curves["0"], abs=1e-6) for stage in "123")
    assert found["sent"]["stage 2"] == pytest.approx(3, abs=0.01)
    assert found["sent"]["stage 2, no multi-rank all_reduce"] == pytest.approx(2, abs=0.01)
    assert found["held"]["stage 3"]["parameters"] / found["n_parameters"] == 2.5
    assert found["known"]["feedback"][-1] < 0.1 < 1 < found["known"]["no feedback"][-1]


def test_the_four_patients_show_their_signs_and_the_killed_run_ends_where_the_other_does():
    found = values("10")
    waited = [sum(row["waited_ms"] for row in rows) for rows in found["logs"]["patient A"]]
    assert min(waited) == waited[0]
    assert min(map(len, found["logs"]["patient B"])) == len(found["logs"]["patient B"][2])
    assert len({rows[-1]["weights"] for rows in found["logs"]["patient C"][:3]}) == 1
    assert found["logs"]["patient C"][3][-1]["weights"] != found["logs"]["patient C"][0][-1]["weights"]
    first, second = found["attempts"]
    assert (first[-1][0], second[0][0]) == (17, 15)
    assert second[-1] == pytest.approx(found["reference"][-1], abs=1e-5)
    assert found["resumed"]["weight"] < 1e-7
