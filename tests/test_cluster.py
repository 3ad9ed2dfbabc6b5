"""`fidle_utils.cluster` without a Slurm: profiles, batch scripts, who am I, states in plain words."""

import subprocess
import sys
from importlib.resources import files

import pytest
from IPython.core.error import UsageError
from IPython.testing.globalipapp import get_ipython

from fidle_utils import cluster
from fidle_utils.cluster import slurm
from fidle_utils.cluster.profiles import seconds
from fidle_utils.cluster.status import Status, clock
from fidle_utils.ranks import Ranks
from fidle_utils.ranks.magics import RanksMagics
from fidle_utils.ranks.placement import Placement
from fidle_utils.reference import table

LAUNCHER = files("fidle_utils.cluster").joinpath("launcher.py").read_text()


def batch(**asked):
    return cluster.Batch.of("train.py", **asked)


def directives(made):
    """The #SBATCH lines as Slurm reads them."""
    lines = [line for line in made.text.splitlines() if line.startswith("#SBATCH")]
    words = [line.split("#")[1].split()[1].removeprefix("--").partition("=") for line in lines]
    return {name: value for name, _, value in words}


# Profiles


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("jean-zay-v100-16g", "V100 quad, 16 GB"),
        ("jean-zay-v100-32g", "V100 quad, 32 GB"),
        ("jean-zay-v100-octo", "V100 octo, 32 GB"),
        ("jean-zay-a100", "A100 octo"),
        ("jean-zay-h100", "H100 quad"),
    ],
)
def test_the_nodes_of_jean_zay_are_those_of_the_published_table(name, row):
    profile = cluster.profile(name)
    (node,) = table("jeanzay_nodes", node=row)
    assert (profile.gpus_per_node, profile.cpus_per_node) == (node["gpus_per_node"], node["cores"])
    assert profile.cpus_per_task == node["cpus_per_task"] == node["cores"] // node["gpus_per_node"]
    asked = {"-C": "constraint", "--partition": "partition"}
    option, _, value = node["slurm"].replace("=", " ").partition(" ")
    assert profile.sbatch == {"hint": "nomultithread", asked[option]: value}
    assert profile.confidence.get("cpus_per_task", "read") == node["confidence_cpus_per_task"]


def test_every_value_of_jean_zay_has_a_source():
    for name, profile in cluster.profiles().items():
        if name.startswith("jean-zay"):
            assert {"nodes", "cpus_per_task", "account_suffix", "qos", "modules"} <= set(profile.sources), (
                name
            )
            assert set(profile.confidence) <= set(profile.sources)
            assert set(profile.confidence.values()) <= {"read", "quoted"}


def test_a_name_is_completed_where_only_one_fits():
    assert cluster.profile("h100") == cluster.profile("jean-zay-h100")
    assert cluster.profile("v100").name == "jean-zay-v100"
    with pytest.raises(cluster.ClusterError, match="no profile 'p100': choose one of generic-cpu, "):
        cluster.profile("p100")


def test_a_site_adds_its_own(tmp_path, monkeypatch):
    path = tmp_path / "site.toml"
    path.write_text(
        """
        [our-l40]
        like = "generic-gpu"
        title = "our nodes of two L40"
        gpus_per_node = 2
        commands = ["conda activate torch"]
        [our-l40.sbatch]
        partition = "gpu"
        mem = "60G"
        [jean-zay-h100]
        like = "jean-zay-a100"
        modules = ["ours"]
        """
    )
    monkeypatch.setenv("FIDLE_PROFILES", str(path))
    made = batch(profile="l40", world_size=4)
    asked = directives(made)
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gres"]) == ("2", "2", "gpu:2")
    assert asked["partition"] == "gpu" and asked["mem"] == "60G" and asked["cpus-per-task"] == "4"
    assert "\nconda activate torch\n" in made.text and "    python -u train.py" in made.text
    assert cluster.profile("h100").modules == ["ours"] and cluster.profile("h100").gpus_per_node == 8
    path.write_text("[x]\nlike = 'y'")
    with pytest.raises(cluster.ClusterError, match="profile x is like 'y', which is no other profile"):
        cluster.profiles()
    path.write_text("[x]\ngpu = 4")
    with pytest.raises(cluster.ClusterError, match="profile x: nobody knows what 'gpu' is"):
        cluster.profiles()
    path.unlink()
    with pytest.raises(cluster.ClusterError, match="FIDLE_PROFILES names .*site.toml, which cannot be read"):
        cluster.profiles()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("02:00:00", 7200),
        ("100:00:00", 360_000),
        ("1-12", 129_600),
        ("1-12:30", 131_400),
        ("4-04:00:00", 360_000),
    ],
)
def test_times_are_read_as_slurm_reads_them(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "ten", "1h", "-5", "1:2:3:4", "UNLIMITED"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="is no time for Slurm"):
        seconds(text)


# Batch scripts


def test_two_nodes_of_h100():
    asked = directives(batch(profile="h100", nodes=2, account="abc", qos="dev", time="00:30:00"))
    assert asked == {
        "job-name": "train",
        "nodes": "2",
        "ntasks-per-node": "4",
        "gres": "gpu:4",
        "cpus-per-task": "24",
        "hint": "nomultithread",
        "constraint": "h100",
        "account": "abc@h100",
        "qos": "qos_gpu_h100-dev",
        "time": "00:30:00",
        "output": "train-%j.out",
    }


def test_the_lines_of_a_script_come_in_the_order_that_jean_zay_needs():
    text = batch(profile="a100").text
    purge, arch, torch = (text.index(word) for word in ("module purge", "load arch/a100", "load pytorch-gpu"))
    assert text.startswith("#!/bin/bash\n") and text.rindex("#SBATCH") < purge < arch < torch < text.index(
        "srun "
    )
    assert text.index("scontrol show hostnames") < text.index("srun ")


def test_every_script_is_bash(tmp_path):
    for name in cluster.profiles():
        for launcher in ("srun", "torchrun"):
            script = tmp_path / "it's mine, 100 %.py"
            text = cluster.Batch.of(script, profile=name, launcher=launcher).text
            done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
            assert done.returncode == 0 and not done.stderr, (name, launcher, done.stderr)


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        (dict(), (1, 1)),
        (dict(world_size=4), (1, 4)),
        (dict(world_size=4, nodes=2), (2, 2)),
        (dict(nodes=2), (2, 1)),
        (dict(nodes=2, ntasks_per_node=3), (2, 3)),
        (dict(world_size=6, ntasks_per_node=2), (3, 2)),
        (dict(profile="h100"), (1, 4)),
        (dict(profile="a100", nodes=3), (3, 8)),
        (dict(profile="h100", world_size=8), (2, 4)),
        (dict(profile="h100", world_size=2), (1, 2)),
        (dict(profile="h100", world_size=6), (2, 3)),
        (dict(profile="h100", world_size=4, nodes=2), (2, 2)),
    ],
)
def test_ranks_are_spread_over_nodes(asked, shape):
    made = batch(**asked)
    assert (made.nodes, made.ntasks_per_node) == shape and made.world_size == shape[0] * shape[1]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (dict(world_size=4, nodes=3), "4 ranks do not fill 3 nodes evenly: ask for 6 ranks"),
        (dict(nodes=0), "nodes is 0: one is the least"),
        (dict(profile="h100", world_size=7), "7 ranks do not fill 2 nodes evenly: ask for 8 ranks"),
        (dict(profile="h100", ntasks_per_node=8), "8 ranks on a node that has 4 GPUs.*take 2 nodes"),
        (dict(profile="h100", cpus_per_task=25), "4 tasks of 25 cores are 100: a node has 96"),
        (dict(profile="h100", qos="long"), "no QoS 'long': choose one of qos_gpu_h100-dev, "),
        (dict(profile="v100", qos="dev", time="03:00:00"), "03:00:00 is more than .*; qos_gpu-t3 allows it"),
        (dict(profile="v100", qos="dev", nodes=9), "36 GPUs are more than the 32 of qos_gpu-dev$"),
        (
            dict(profile="h100", qos="dev", nodes=9),
            "36 GPUs are more .* of qos_gpu_h100-dev, as users report",
        ),
        (dict(time="soon"), "soon is no time for Slurm"),
        (dict(launcher="mpirun"), "srun or torchrun"),
    ],
)
def test_what_the_profile_knows_to_be_impossible_is_refused_at_once(asked, words):
    with pytest.raises(cluster.ClusterError, match=words):
        batch(**asked)


def test_accounts_and_notes(monkeypatch):
    monkeypatch.delenv("SBATCH_ACCOUNT", raising=False)
    assert batch(profile="a100", account="abc@v100").account == "abc@v100"
    assert batch(account="abc").account == "abc"
    assert batch(profile="h100").notes == ("No account is named: if Slurm asks for one, it is PROJECT@h100.",)
    assert batch(profile="h100", account="abc", world_size=4, nodes=2).notes == (
        "2 of the 4 GPUs of each node are used; whole nodes are counted.",
    )
    assert batch(nodes=2).notes == ()


def test_any_option_of_sbatch_goes_through():
    text = batch(mail_type="END", exclusive=True, requeue=None).text
    assert "\n#SBATCH --mail-type=END\n" in text and "\n#SBATCH --exclusive\n" in text
    assert "requeue" not in text


def test_the_package_travels_only_where_it_is_missing(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("from fidle_utils.measure import track")
    assert "export PYTHONPATH=" in cluster.Batch.of(path, profile="h100").text
    assert "PYTHONPATH" not in cluster.Batch.of(path).text  # the Python that runs here has it
    path.write_text("import torch")
    assert "PYTHONPATH" not in cluster.Batch.of(path, profile="h100").text


# Who am I?


def who_am_i(**environment):
    code = f"{LAUNCHER}\nprint([env[n] for n in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE')])"
    code += "\nprint(env['MASTER_ADDR'], env['MASTER_PORT'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers, where = done.stdout.splitlines()
    return [int(number) for number in eval(numbers)], where


TORCHRUN = dict(RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", LOCAL_WORLD_SIZE="4")
SRUN = dict(
    SLURM_PROCID="3",
    SLURM_STEP_NUM_TASKS="7",
    SLURM_LOCALID="1",
    SLURM_JOB_ID="31234",
    SLURM_STEP_NUM_NODES="3",
)
MEET = dict(MASTER_ADDR="jz0", MASTER_PORT="1234")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, [0, 1, 0, 1]),
        (TORCHRUN | MEET, [5, 8, 1, 4]),
        (SRUN | MEET | dict(SLURM_STEP_TASKS_PER_NODE="2(x2),3"), [3, 7, 1, 3]),
        (SRUN | MEET | dict(SLURM_STEP_TASKS_PER_NODE="7"), [3, 7, 1, 7]),
        (SRUN | MEET | dict(SLURM_STEP_TASKS_PER_NODE="9,10"), [3, 7, 1, 10]),
        # torchrun, started by srun
        (SRUN | TORCHRUN | MEET | dict(SLURM_STEP_TASKS_PER_NODE="1(x3)"), [5, 8, 1, 4]),
        # a batch script of four tasks, without srun
        (dict(SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NTASKS="4", SLURM_JOB_ID="7"), [0, 1, 0, 1]),
    ],
)
def test_the_first_lines_of_a_script_know_who_started_it(environment, expected):
    numbers, where = who_am_i(**environment)
    assert numbers == expected
    assert where == ("jz0 1234" if "MASTER_ADDR" in environment else "localhost 0")


def test_a_script_alone_is_one_rank(tmp_path):
    ranks = Ranks()
    entry = ranks.history.cell("print(rank, world_size, dist.get_world_size(), device)", None)
    entry.failed = False
    (tmp_path / "train.py").write_text(ranks.history.script(4)[0])
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env=slurm.clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:3] == ["0", "1", "1"]


# States and errors


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            dict(JobState="PENDING", Reason="Priority"),
            "PENDING: jobs of higher priority come first (Priority)",
        ),
        (dict(JobState="PENDING", Reason="SomethingNew"), "PENDING: SomethingNew (SomethingNew)"),
        (
            dict(JobState="RUNNING", NodeList="jz[0-1]", RunTime="00:01:05", TimeLimit="02:00:00"),
            "RUNNING on jz[0-1] for 1:05 min of 2:00:00 h",
        ),
        (dict(JobState="COMPLETED", NodeList="jz0", RunTime="00:00:09"), "COMPLETED on jz0 in 9 s"),
        (dict(JobState="FAILED", ExitCode="3:0"), "FAILED after 0 s with exit code 3"),
        (
            dict(JobState="FAILED", ExitCode="0:9", RunTime="1-00:00:00"),
            "FAILED after 24:00:00 h with signal 9",
        ),
        (dict(JobState="OUT_OF_MEMORY", NodeList="jz0"), "OUT_OF_MEMORY on jz0"),
        (dict(JobState="PENDING", Reason="BeginTime", Restarts="2"), "put back into the queue 2 times"),
        (dict(JobState="RUNNING", TimeLimit="UNLIMITED", RunTime="0"), "RUNNING for 0 s of 0 s"),
        (None, "forgotten by Slurm"),
    ],
)
def test_a_state_is_one_sentence(said, words):
    assert words in str(Status.of(said))


def test_clock():
    assert [clock(s) for s in (0, 59, 60, 3599, 3600, 360_000)] == [
        *("0 s", "59 s", "1:00 min", "59:59 min", "1:00:00 h", "100:00:00 h")
    ]


def test_without_slurm_one_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "train.py").write_text("pass")
    with pytest.raises(cluster.ClusterError, match="There is no Slurm here: sbatch was not found") as missing:
        cluster.submit(tmp_path / "train.py")
    assert "make slurm" in str(missing.value) and "torchrun" in str(missing.value)
    assert not (tmp_path / "train.slurm").exists()
    with pytest.raises(cluster.ClusterError, match="%ranks export other.py"):
        cluster.submit(tmp_path / "other.py")
    with pytest.raises(cluster.ClusterError, match="not the folder of a job"):
        cluster.attach(tmp_path)


def test_words_of_slurm_that_nobody_knows_are_passed_on():
    assert slurm.in_plain_words("sbatch: error: The moon is full\n") == "Slurm refused: The moon is full"
    said = "srun: error: fetch_config: DNS SRV lookup failed\nsrun: fatal: no configuration source"
    assert "belongs to no cluster" in slurm.in_plain_words(said)


def test_a_job_inherits_nothing_that_is_true_of_the_notebook_only(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "RANKS_DEVICE", "JPY_PARENT_PID", "SLURM_NTASKS", "MPLBACKEND"):
        monkeypatch.setenv(name, "1")
    for name in ("SLURM_CONF", "SBATCH_ACCOUNT", "RANKING", "MASTER_KEY"):
        monkeypatch.setenv(name, "kept")
    kept = slurm.clean_environment()
    assert not {"RANK", "MASTER_ADDR", "RANKS_DEVICE", "JPY_PARENT_PID", "SLURM_NTASKS", "MPLBACKEND"} & set(
        kept
    )
    assert {"SLURM_CONF", "SBATCH_ACCOUNT", "RANKING", "MASTER_KEY", "PATH"} <= set(kept)


# The magic


@pytest.fixture
def magic(tmp_path, monkeypatch):
    """`%ranks`, as if one cell had run on four ranks of the CPU."""
    monkeypatch.chdir(tmp_path)
    ranks = Ranks()
    ranks._options = Placement(4, ("cpu",) * 4, "gloo", 2, "", {})
    ranks._links = [None] * 4
    ranks.history.cell("print(rank)", None).failed = False
    yield RanksMagics(get_ipython(), ranks).magic
    ranks._links = []


def test_export_for_slurm_writes_both_files(magic, tmp_path, capsys):
    magic("export train.py --slurm h100 --account abc --qos dev --time 00:20:00")
    text = (tmp_path / "train.slurm").read_text()
    assert "print(rank)" in (tmp_path / "train.py").read_text()
    assert "--ntasks-per-node=4 " in text and "--account=abc@h100\n" in text and "--time=00:20:00 " in text
    assert capsys.readouterr().out.splitlines() == [
        "train.py: 1 cell",
        "torchrun --nproc-per-node 4 train.py",
        "train.slurm: 1 × 4 ranks, Jean Zay, nodes of four H100",
        "sbatch train.slurm",
    ]


def test_any_option_of_slurm_asks_for_a_batch_script(magic, tmp_path):
    magic("export mine.py")
    assert not (tmp_path / "mine.slurm").exists()
    magic("export mine.py --nodes 2")
    text = (tmp_path / "mine.slurm").read_text()
    assert (
        "--nodes=2\n" in text and "--ntasks-per-node=2 " in text and "--cpus-per-task=2 " in text
    )  # threads


def test_wrong_options_are_answered_in_one_line(magic):
    for line in ("export train.py --nodes none", "submit --launcher mpirun", "export a.py b.py"):
        with pytest.raises(UsageError, match="FILE"):
            magic(line)
    with pytest.raises(cluster.ClusterError, match="choose one of"):
        magic("export train.py --slurm p100")
    with pytest.raises(UsageError, match="Did you mean %ranks submit"):
        magic("submitt")
