"""The files that make the house agree with one another."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]


def project_files() -> list[Path]:
    """Every file that git tracks or would add."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone: nothing says which files belong to the project")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def pins(lines) -> dict[str, str]:
    """Canonical name → version of the lines that name a package; every one must be an exact pin."""
    pinned = {}
    for line in lines:
        line = line.split("#")[0].strip()
        if not line or line.startswith("-"):
            continue
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==" and "*" not in specifier.version, f"not an exact version: {line}"
        name = canonicalize_name(requirement.name)
        assert name not in pinned, f"{name} stands twice"
        pinned[name] = specifier.version
    return pinned


LOCK = pins((ROOT / "requirements.lock").read_text().splitlines())


def conda_pip_lines() -> list[str]:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    return next(entry["pip"] for entry in dependencies if isinstance(entry, dict))


def test_every_direct_dependency_is_pinned_within_its_range():
    for requirement in DIRECT:
        name = canonicalize_name(requirement.name)
        assert name in LOCK, f"{name} is missing from requirements.lock: run `make lock`"
        pinned = LOCK[name]
        assert requirement.specifier.contains(pinned), f"{name}=={pinned} is outside pyproject's range"


def test_environment_yml_names_the_same_pins():
    expected = {canonicalize_name(r.name): LOCK[canonicalize_name(r.name)] for r in DIRECT}
    stale = {f"{n}=={v}" for n, v in expected.items()} ^ {
        f"{n}=={v}" for n, v in pins(conda_pip_lines()).items()
    }
    assert not stale, f"environment.yml and requirements.lock differ in: {sorted(stale)}"
    # What it does not name, it holds to the lock all the same.
    assert "--constraint requirements.lock" in conda_pip_lines()


def test_the_lock_leaves_cuda_to_torch():
    assert not [name for name in LOCK if re.match("nvidia|cuda|triton", name)]
    # `pip install -e . --no-build-isolation` builds with the pinned one.
    assert "setuptools" in LOCK


def test_pins_rejects_what_is_not_exact():
    for line in ("torch>=2.13", "torch==2.*"):
        with pytest.raises(AssertionError, match="not an exact version"):
            pins([line])
    with pytest.raises(AssertionError, match="twice"):
        pins(["numpy==1.0", "NumPy==2.0"])


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]


def test_no_file_needs_what_a_clone_does_not_have():
    # Written in pieces, or this file would be the one that mentions them.
    elsewhere = re.compile(
        "|".join(
            [
                "[.]{2}/" + "shared",
                "/work/" + "shared",
                "file:" + "//" + "/opt",
                "--index" + "-url",
                "find" + "-links",
                "https?://[^ ]*/" + "simple",
            ]
        )
    )
    pytorch_index = "extra-index" + "-url https://download.pytorch.org/whl/cpu"
    found = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8").replace(pytorch_index, "")
        except UnicodeDecodeError:  # a picture
            continue
        found += [f"{path.relative_to(ROOT)}: {hit.group()}" for hit in elsewhere.finditer(text)]
    assert not found, found


def make_targets() -> set[str]:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.M)
    return set(phony.split())


def test_make_help_has_one_line_for_every_target():
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [re.match(r"  make (\w+) +(\S.*)$", line) for line in text.splitlines() if "make[" not in line]
    assert all(lines), text
    assert sorted(line[1] for line in lines) == sorted(make_targets())


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_commands_and_files_of_a_page_exist(page):
    text = (ROOT / page).read_text()
    commands = set(re.findall(r"(?:^|`|\s)make ([a-z]+)\b(?=[ `\n]*(?:$|`|#|[A-Z]+=))", text, flags=re.M))
    assert {"lab", "test"} <= commands
    assert commands <= make_targets(), commands - make_targets()
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), f"{page} links to {link}"


def test_ci_ends_with_the_readme_s_test_command():
    script = (ROOT / ".ci/run").read_text()
    assert script.strip().splitlines()[-1] == "make test"
    assert "set -euo pipefail" in script
    assert "make test" in (ROOT / "README.md").read_text()


def test_the_first_cell_of_a_notebook_imports_nothing_that_takes_seconds():
    """torch is imported while the learner reads on; pandas and matplotlib where they are used."""
    heavy = ("torch", "pandas", "matplotlib")
    code = f"import sys, fidle_utils, fidle_utils.measure; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
