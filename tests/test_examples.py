"""The action and the examples: their published schemas know every key, and their scripts run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
REPORT = ROOT / "benchmarks" / "results" / "trec6_minilm_balanced.json"
SCHEMAS = {
    "action.yml": ("vendor.github-actions",),
    "examples/github/release.yml": ("vendor.github-workflows",),
    "examples/gitlab/release-gate.gitlab-ci.yml": (
        "vendor.gitlab-ci", "--data-transform", "gitlab-ci",
    ),
}  # fmt: skip


def bash(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a CI server does: stops at the first error, has the commands of this venv."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env=os.environ | {"PATH": path, "COLUMNS": "200"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_schema_knows_every_key(name: str) -> None:
    schema, *options = SCHEMAS[name]
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *options,
         str(ROOT / name)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


# GitHub


def run_action(folder: Path, **inputs: str) -> tuple[subprocess.CompletedProcess[str], str, str]:
    """Run the gate step of the action: the process, its outputs and the summary of the job."""
    action: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
    [step] = [each for each in action["runs"]["steps"] if each.get("id") == "gate"]
    variables = {}
    for name, expression in step["env"].items():
        [key] = re.findall(r"inputs\.([a-z-]+) ", expression)
        variables[name] = inputs.pop(key.replace("-", "_"), action["inputs"][key].get("default"))
    assert not inputs
    files = {name: folder / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for path in files.values():
        path.write_text("")
    variables |= {name: str(path) for name, path in files.items()}
    done = bash(step["run"], folder, **variables)
    return done, *(path.read_text() for path in files.values())


def test_the_action_gates_and_tells_what_to_ship(tmp_path: Path) -> None:
    done, outputs, summary = run_action(tmp_path, report=str(REPORT), against="none/report.json")
    assert done.returncode == 0, done.stderr
    lines = outputs.splitlines()
    assert lines[0] == "outcome=pass"
    assert lines[2:-1] == ["bundles/int8-onnxruntime"]
    assert lines[1] == f"ships<<{lines[-1]}"
    assert summary.startswith("## ✅ Release gate passed")
    assert (tmp_path / "gate.xml").is_file()


def test_the_action_takes_every_input(tmp_path: Path) -> None:
    (tmp_path / "my budget.yaml").write_text("max_accuracy_drop: 1\n")
    done, outputs, summary = run_action(
        tmp_path, report=str(REPORT), budget="my budget.yaml",
        limits="max_latency_ms=0.1\n\nmin_speedup=9", against=str(REPORT),
        allow="machine data", even_if_noisy="true", junit="j.xml", result="r.json",
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert outputs.startswith("outcome=fail\n")
    for words in ("allowed 0.1 ms", "wanted 9x", "Against the last release"):
        assert words in summary
    assert json.loads((tmp_path / "r.json").read_text())["ships"] == []
    assert (tmp_path / "j.xml").is_file()


def test_an_input_is_never_a_command(tmp_path: Path) -> None:
    attack = "x; touch $(touch pwned) `touch pwned`"
    done, *_ = run_action(tmp_path, report=attack, limits=attack, against=attack, budget=attack)
    assert done.returncode == 3
    assert not (tmp_path / "pwned").exists()


# GitLab and Jenkins


@pytest.mark.parametrize(("budget", "code"), [("", 0), ("min_speedup: 9\n", 5)])
def test_the_gitlab_job_runs(tmp_path: Path, budget: str, code: int) -> None:
    job = yaml.safe_load((EXAMPLES / "gitlab/release-gate.gitlab-ci.yml").read_text())
    template = job[".release-gate"]
    variables = template["variables"] | {"REPORT": str(REPORT)}
    if budget:
        (tmp_path / "budget.yaml").write_text(budget)
        variables["BUDGET"] = "budget.yaml"
    done = bash("\n".join(template["script"]), tmp_path, **variables)
    assert done.returncode == code, done.stderr
    kept = {*template["artifacts"]["paths"], template["artifacts"]["reports"]["junit"]}
    assert kept == {path.name for path in tmp_path.iterdir()} - {"budget.yaml"}


@pytest.mark.parametrize("has_last", [False, True])
def test_the_jenkins_stage_runs(tmp_path: Path, has_last: bool) -> None:
    text = (EXAMPLES / "jenkins/Jenkinsfile").read_text()
    [script] = re.findall(r"script: '''(.*?)'''", text, re.DOTALL)
    for name in ("compressed", "last-release")[: 1 + has_last]:
        (tmp_path / name).mkdir()
        shutil.copyfile(REPORT, tmp_path / name / "report.json")
    done = bash(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("last release" in done.stdout) is has_last
    for name in ("gate.xml", "gate.md", "gate.json"):
        assert name in text
        assert (tmp_path / name).is_file()
    assert text.count("{") == text.count("}")
