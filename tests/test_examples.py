"""The action and the examples: their published schemas know every key, and their scripts run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import Keys, write_keys
from .targets.conftest import write_bundle

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
REPORT = ROOT / "benchmarks" / "results" / "trec6_minilm_balanced_avx2.json"
JENKINSFILE = EXAMPLES / "jenkins/Jenkinsfile"
FILES = {"model.bin": b"weights", "tokenizer.json": b"{}"}
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
    done, outputs, summary = run_action(tmp_path, report=str(REPORT))
    assert done.returncode == 0, done.stderr
    assert "last release" not in summary
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


def test_a_path_that_is_not_there_is_named_in_place_of_an_earlier_verdict(
    tmp_path: Path,
) -> None:
    for name in ("report", "budget", "against"):
        for left in ("gate.xml", "gate.json"):
            (tmp_path / left).write_text("earlier")
        paths = {"report": str(REPORT), name: "no/such-file"}
        done, outputs, summary = run_action(tmp_path, **paths)
        assert done.returncode in (3, 8), name
        assert "no/such-file" in done.stderr
        assert "outcome=error\n" in outputs
        for text in (
            summary,
            *((tmp_path / left).read_text() for left in ("gate.xml", "gate.json")),
        ):
            assert "no/such-file" in text
            assert "earlier" not in text


def test_an_input_is_never_a_command(tmp_path: Path) -> None:
    attack = "x; touch $(touch pwned) `touch pwned`"
    done, *_ = run_action(tmp_path, report=attack, limits=attack, against=attack, budget=attack)
    assert done.returncode == 3
    assert not (tmp_path / "pwned").exists()


def workflow_step(name: str) -> dict[str, Any]:
    workflow = yaml.safe_load((EXAMPLES / "github/release.yml").read_text())
    [step] = [each for each in workflow["jobs"]["release"]["steps"] if each.get("name") == name]
    return dict(step)


def write_command(folder: Path, name: str, script: str) -> str:
    """A command in the place of a real one; returns the PATH that finds it first."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\nset -eu\n{script}\n")
    (folder / name).chmod(0o755)
    venv = Path(sys.executable).parent
    return os.pathsep.join(map(str, (folder, venv, os.environ["PATH"])))


@pytest.mark.parametrize("tag", ["", "model-7"])
def test_the_workflow_fetches_the_last_release_if_there_is_one(tmp_path: Path, tag: str) -> None:
    script = f"""
if [ "$1 $2" = "release list" ]; then echo "{tag}"; exit; fi
[ "$1 $2 $3" = "release download {tag}" ]
while [ $# -gt 0 ]; do
    if [ "$1" = --dir ]; then mkdir "$2"; folder=$2; fi
    if [ "$1" = --pattern ]; then touch "$folder/$2"; fi
    shift
done"""
    path = write_command(tmp_path / "bin", "gh", script)
    step = workflow_step("Last release")
    done = bash(step["run"], tmp_path, PATH=path, GITHUB_OUTPUT="output")
    assert done.returncode == 0, done.stderr
    found = {each.name for each in tmp_path.glob("last-release/*")}
    assert found == ({"report.json", "predictions.safetensors"} if tag else set())
    output = tmp_path / "output"
    assert (output.read_text() if output.exists() else "") == ("report=last-release\n" * bool(tag))
    against = workflow_step("Gate")["with"]["against"]
    assert against == f"${{{{ steps.{step['id']}.outputs.report }}}}"


def test_the_workflow_stops_where_the_last_release_cannot_be_fetched(tmp_path: Path) -> None:
    path = write_command(tmp_path / "bin", "gh", "exit 1")
    done = bash(workflow_step("Last release")["run"], tmp_path, PATH=path, GITHUB_OUTPUT="output")
    assert done.returncode == 1


@pytest.mark.parametrize(("outcome", "code"), [("undecided", 0), ("fail", 1), ("", 1)])
def test_the_workflow_warns_of_noise_and_fails_else(
    tmp_path: Path, outcome: str, code: int
) -> None:
    assert workflow_step("Gate")["continue-on-error"] is True
    step = workflow_step("Verdict")
    assert step["if"] == "steps.gate.outputs.outcome != 'pass'"
    done = bash(step["run"], tmp_path, OUTCOME=outcome)
    assert done.returncode == code
    assert done.stdout.startswith("::warning") is (outcome == "undecided")


def test_the_workflow_signs_only_what_the_gate_ships(tmp_path: Path, keys: Keys) -> None:
    for name in ("good", "bad"):
        write_bundle(tmp_path / "compressed/bundles" / name, FILES)
    (tmp_path / "signing.pub").write_bytes(keys.public.read_bytes())
    step = workflow_step("Sign, pack and verify")
    assert step["env"]["SHIPS"] == "${{ steps.gate.outputs.ships }}"
    assert step["if"] == workflow_step("Release")["if"] == "steps.gate.outputs.outcome == 'pass'"
    done = bash(step["run"], tmp_path, KEY=keys.private.read_text(), SHIPS="bundles/good")
    assert done.returncode == 0, done.stderr
    assert [each.parent.name for each in tmp_path.rglob("model.sig")] == ["good"]
    assert [each.name for each in tmp_path.glob("release/*")] == ["good.tar.zst"]


# GitLab and Jenkins


def gitlab_template() -> dict[str, Any]:
    job = yaml.safe_load((EXAMPLES / "gitlab/release-gate.gitlab-ci.yml").read_text())
    return dict(job[".release-gate"])


def jenkins_script() -> str:
    [script] = re.findall(r"script: '''(.*?)'''", JENKINSFILE.read_text(), re.DOTALL)
    return str(script)


@pytest.mark.parametrize(("budget", "code"), [("", 0), ("min_speedup: 9\n", 5)])
def test_the_gitlab_job_runs(tmp_path: Path, budget: str, code: int) -> None:
    template = gitlab_template()
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
    for name in ("compressed", "last-release")[: 1 + has_last]:
        (tmp_path / name).mkdir()
        shutil.copyfile(REPORT, tmp_path / name / "report.json")
    done = bash(jenkins_script(), tmp_path, AGAINST="last-release" if has_last else "")
    assert done.returncode == 0, done.stderr
    assert ("last release" in done.stdout) is has_last
    text = JENKINSFILE.read_text()
    for name in ("gate.xml", "gate.md", "gate.json"):
        assert name in text
        assert (tmp_path / name).is_file()
    assert text.count("{") == text.count("}")
    assert "junit testResults: 'gate.xml', allowEmptyResults: true" in text


@pytest.mark.parametrize("server", ["gitlab", "jenkins"])
def test_a_workspace_that_is_used_again_shows_the_last_verdict_only(
    tmp_path: Path, server: str
) -> None:
    (tmp_path / "compressed").mkdir()
    shutil.copyfile(REPORT, tmp_path / "compressed/report.json")
    if server == "gitlab":
        script = "\n".join(gitlab_template()["script"])
        variables = gitlab_template()["variables"]
    else:
        script, variables = jenkins_script(), {"AGAINST": ""}
    for _ in range(2):
        done = bash(script, tmp_path, **variables)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "gate.md").read_text().count("Release gate passed") == 1
    done = bash(script, tmp_path, **variables | {"AGAINST": "no/such-folder"})
    assert done.returncode == 8
    assert "no/such-folder" in done.stderr
    for path in tmp_path.glob("gate.*"):
        text = path.read_text()
        assert "no/such-folder" in text
        assert "passed" not in text


# Plain shells


BUNDLES = ("int8-onnxruntime", "int8-openvino")


@dataclass
class Step:
    """The release step, with a run that gives bundles that are there already."""

    folder: Path
    keys: Keys

    @property
    def output(self) -> Path:
        return self.folder / "out put"

    def release(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Release what `prepared` holds; the arguments are those after the recipe and output."""
        real = Path(sys.executable).parent / "compressor"
        script = f"""
case "$1" in
    validate) ;;
    run) echo ran; mkdir -p "$4"; cp -r prepared/. "$4"; exit "${{RUN_CODE:-0}}" ;;
    verify) [ -z "${{DAMAGED:-}}" ] || exit 6; exec {real} "$@" ;;
    *) exec {real} "$@" ;;
esac"""
        path = write_command(self.folder / "bin", "compressor", script)
        given = arguments or self.keys
        command = ["bash", str(EXAMPLES / "release/release.sh"), "recipe.yaml", "out put"]
        return subprocess.run(
            [*command, *map(str, given)],
            cwd=self.folder, env=os.environ | {"PATH": path, "COLUMNS": "200"} | variables,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def prepare(self, **budget: object) -> None:
        """What the next run gives: a report with a budget."""
        document = json.loads(REPORT.read_text())
        given = {"max_accuracy_drop": 1, "min_size_ratio": 6, "require": "any"} | budget
        document["budget"] = given
        (self.folder / "prepared/report.json").write_text(json.dumps(document))

    def shipped(self) -> set[str]:
        """What a reader of the output takes for released."""
        found = [*self.output.rglob("*.tar.zst"), *self.output.rglob("model.sig")]
        return {path.relative_to(self.output).as_posix() for path in found}


@pytest.fixture
def step(tmp_path: Path, keys: Keys) -> Step:
    for name in BUNDLES:
        write_bundle(tmp_path / "prepared/bundles" / name, FILES)
    step = Step(tmp_path, keys)
    step.prepare()
    return step


def released(*names: str) -> set[str]:
    return {
        place
        for name in names
        for place in (f"release/{name}.tar.zst", f"bundles/{name}/model.sig")
    }


def test_a_release_holds_what_this_gate_ships_and_nothing_of_an_earlier_one(step: Step) -> None:
    done = step.release()
    assert done.returncode == 0, done.stderr
    assert step.shipped() == released(*BUNDLES)
    step.prepare(min_speedup=3)  # OpenVINO is slower
    done = step.release()
    assert done.returncode == 0, done.stderr
    assert step.shipped() == released("int8-onnxruntime")
    assert (step.output / "gate.md").read_text().count("Release gate passed") == 1


@pytest.mark.parametrize(
    ("limits", "variables", "code"),
    [
        ({"max_latency_ms": 0.1}, {"RUN_CODE": "5"}, 5),  # the gate
        ({}, {"DAMAGED": "yes"}, 6),  # the signature of an archive
        ({}, {"RUN_CODE": "4"}, 4),  # a pass
    ],
)
def test_a_release_that_fails_leaves_none(
    step: Step, limits: dict[str, object], variables: dict[str, str], code: int
) -> None:
    assert step.release().returncode == 0
    assert step.shipped()
    step.prepare(**limits)
    done = step.release(**variables)
    assert done.returncode == code, done.stderr
    assert step.shipped() == set()
    assert {path.name for path in step.output.iterdir()} <= {
        "bundles", "report.json", "gate.xml", "gate.md", "gate.json",
    }  # fmt: skip
    assert (step.output / "gate.md").exists() is (code != 4)


def test_arguments_that_cannot_be_used_are_told_before_anything_runs(
    step: Step, tmp_path: Path
) -> None:
    assert step.release().returncode == 0
    before = step.shipped()
    other = write_keys(tmp_path / "other")
    locked = write_keys(tmp_path / "locked", passphrase="open sesame")  # noqa: S106
    private, public = step.keys
    for given, code, words in (
        ([private], 2, "usage: "),
        ([private, public, REPORT, "more"], 2, "usage: "),
        (["absent.pem", public], 3, "absent.pem cannot be read as a private key"),
        ([public, public], 3, f"{public} cannot be read as a private key"),
        ([locked.private, locked.public], 3, "COMPRESSOR_KEY_PASSPHRASE"),
        ([private, "absent.pub"], 3, "absent.pub is not the public half"),
        ([private, other.public], 3, f"{other.public} is not the public half of {private}"),
        ([private, public, "absent.json"], 3, "does not exist: absent.json"),
    ):
        done = step.release(*given)
        assert done.returncode == code, given
        assert words in done.stderr
        assert "ran" not in done.stdout
    assert step.shipped() == before
    done = step.release(*locked, COMPRESSOR_KEY_PASSPHRASE="open sesame")  # noqa: S106
    assert done.returncode == 0, done.stderr
