"""Where a bundle comes from: its bill of materials, the hashes in its manifest, its signature."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from compressor.bom import bill_of_materials
from compressor.passes.export import Export
from compressor.passes.prune import Prune
from compressor.passes.quantize import Quantize
from compressor.passes.trim_vocabulary import TrimVocabulary
from compressor.publishing import _read_files, applied_passes, recipe_hash
from compressor.recipe import Recipe, load_recipe
from compressor.report.files import read_report
from compressor.serving.base import version_notes
from compressor.training.settings import DistillSettings
from targets.bundle import BOM, Bundle, hash_file
from targets.environment import library_versions
from targets.signing import verify_signature

NAMES = ("int8-onnxruntime", "fp32-openvino", "int8-tensorrt_rtx", "fp32-pytorch")
"""One of each kind; that of TensorRT-RTX did not run here."""


@pytest.fixture(params=NAMES)
def bundle(request, finished) -> Bundle:
    return Bundle.open(finished.output / "bundles" / request.param)


def read_bom(bundle: Bundle) -> Any:
    return json.loads(bundle.path(BOM).read_text(encoding="utf-8"))


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a document."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, dict | list):
            yield from walk(each)


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# Bill of materials


def test_the_bill_of_materials_is_valid_cyclonedx_1_6(bundle):
    text = bundle.path(BOM).read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    broken = text.replace('"machine-learning-model"', '"machine"', 1)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(broken) is not None


def test_every_reference_in_it_leads_to_one_place(bundle):
    document = read_bom(bundle)
    names = [each["bom-ref"] for each in walk(document) if "bom-ref" in each]
    assert len(set(names)) == len(names)
    used = {each["ref"] for each in walk(document) if "ref" in each}
    used |= {name for each in document["dependencies"] for name in each["dependsOn"]}
    assert used <= set(names)
    assert {"model", "checkpoint", "data"} <= used


def test_it_tells_what_the_bundle_is_made_of(bundle, home):
    document, manifest = read_bom(bundle), bundle.manifest
    model = document["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["name"] == f"model-{manifest.name}-{manifest.target}"

    def hashes(component):
        return {
            each["name"]: each["hashes"][0]["content"] for each in component.get("components", ())
        }

    listed = hashes(model)
    assert listed == {name: hash_file(bundle.path(name)) for name in manifest.files if name != BOM}
    assert listed.keys() == {*contents(bundle.folder)} - {BOM, "manifest.json"}
    (base,) = model["pedigree"]["ancestors"]
    read = [path for path in (home / "model").iterdir() if path.suffix in (".json", ".safetensors")]
    assert hashes(base) == {path.name: hash_file(path) for path in read}
    data = document["components"][0]
    assert hashes(data) == {
        split: hash_file(home / f"{split}.csv") for split in ("train", "validation", "test")
    }
    runtime = {each["name"]: each["version"] for each in document["components"][1:]}
    lowered, predicts = (manifest.provenance[name] for name in ("libraries", "predict_libraries"))
    assert runtime == {**lowered, **predicts}
    assert predicts == {name: importlib.metadata.version(name) for name in ("numpy", "tokenizers")}
    (formula,) = document["formulation"]
    (workflow,) = formula["workflows"]
    assert [step["name"] for step in workflow["steps"]] == [
        each["pass"] for each in manifest.provenance["passes"]
    ]
    built = {each["name"]: each["version"] for each in formula["components"]}
    assert built == manifest.provenance["build_libraries"]


def test_its_model_card_tells_the_task_and_the_accuracy_but_no_time(bundle):
    card = read_bom(bundle)["metadata"]["component"]["modelCard"]
    parameters = card["modelParameters"]
    assert parameters["task"] == "text-classification"
    assert parameters["inputs"][0]["format"].startswith("input_ids: int64(batch")
    assert parameters["outputs"][0]["format"].startswith("logits: float32(")
    assert (
        "1 layer" in parameters["modelArchitecture"]
        or "2 layers" in parameters["modelArchitecture"]
    )
    assert card["properties"] == [
        {"name": "compressor:labels", "value": json.dumps(list(bundle.manifest.labels))}
    ]
    accuracy = bundle.manifest.measured.accuracy
    if accuracy is None:
        assert "quantitativeAnalysis" not in card
    else:
        (metric,) = card["quantitativeAnalysis"]["performanceMetrics"]
        assert float(metric["value"]) == accuracy.value
        assert float(metric["confidenceInterval"]["upperBound"]) == accuracy.high
    text = bundle.path(BOM).read_text(encoding="utf-8")
    assert "timestamp" not in text
    assert "serialNumber" not in text


def test_equal_manifests_give_equal_bytes_whatever_was_timed(bundle):
    text = bundle.path(BOM).read_text(encoding="utf-8")
    architecture = read_bom(bundle)["metadata"]["component"]["modelCard"]["modelParameters"]
    measured = bundle.manifest.measured.model_copy(update={"latency": None, "machine": "other"})
    other = bundle.manifest.model_copy(update={"measured": measured, "tuning": None})
    found = bill_of_materials(other, architecture=architecture["modelArchitecture"])
    assert found == text


def test_it_counts_neither_for_the_identity_nor_for_the_size(bundle, tmp_path):
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "copy"))
    (folder / BOM).write_text("{}")
    other = Bundle.create(folder, bundle.manifest)
    assert (other.identity, other.size_bytes) == (bundle.identity, bundle.size_bytes)


# Origin


def test_the_manifest_tells_checkpoint_data_recipe_and_libraries(bundle, finished, home):
    origin = bundle.manifest.provenance
    assert origin["checkpoint"]["files"]["model.safetensors"] == hash_file(
        home / "model" / "model.safetensors"
    )
    assert origin["data"]["files"] == {
        split: hash_file(home / f"{split}.csv") for split in ("train", "validation", "test")
    }
    assert origin["recipe"]["sha256"] == recipe_hash(load_recipe(str(home / "recipe.yaml")))
    libraries = origin["build_libraries"]
    assert {"torch", "transformers", "torch-pruning"} <= libraries.keys()
    assert libraries == library_versions(libraries)
    # As docs/bundle.md says, from the report alone.
    recipe = read_report(finished.output).recipe
    for name in ("model", "output", "devices", "budget"):
        del recipe[name]
    for split in ("train", "validation", "test"):
        del recipe["data"][split]
    text = json.dumps(recipe, sort_keys=True)
    assert origin["recipe"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_the_hash_of_a_recipe_is_that_of_all_but_paths_and_budget(home):
    source = str(home / "recipe.yaml")
    before = recipe_hash(load_recipe(source))
    for same in (
        "output=elsewhere",
        "data.test=validation.csv",
        "devices=devices.yaml",
        "budget.max_accuracy_drop=9",
    ):
        assert recipe_hash(load_recipe(source, overrides=[same])) == before
    for change in ("seed=1", "passes.1.ratio=0.25", "benchmark.rounds=3", "name=x"):
        assert recipe_hash(load_recipe(source, overrides=[change])) != before


def test_where_the_files_of_a_pass_lie_is_no_part_of_what_it_does(home, tmp_path):
    def recipe(folder: str) -> Recipe:
        passes = f"passes=[{{pass: distill, unlabeled: {folder}/texts.txt}}, export]"
        return load_recipe(str(home / "recipe.yaml"), overrides=[passes])

    one, other = recipe(str(tmp_path / "one")), recipe(str(tmp_path / "other"))
    assert recipe_hash(one) == recipe_hash(other)
    assert recipe_hash(one) != recipe_hash(
        load_recipe(str(home / "recipe.yaml"), overrides=["passes=[distill, export]"])
    )
    assert one.passes[0].portable_settings() == other.passes[0].portable_settings()
    assert one.passes[0].portable_settings()["unlabeled"] == "texts.txt"
    assert one.passes[0].settings()["unlabeled"] == str(tmp_path / "one" / "texts.txt")
    gradual = Prune(ratio=0.5, steps=2, recovery=DistillSettings(unlabeled=tmp_path / "b.txt"))
    assert gradual.portable_settings()["recovery"]["unlabeled"] == "b.txt"
    assert {**gradual.portable_settings(), "recovery": 0} == {**gradual.settings(), "recovery": 0}


def test_the_files_of_a_pass_stand_in_the_manifest(home, tmp_path):
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    passes = f"passes=[{{pass: distill, unlabeled: {tmp_path}/texts.txt}}, export]"
    recipe = load_recipe(str(home / "recipe.yaml"), overrides=[passes])
    [variant, *_] = recipe.chains
    first, *others = map(_read_files, recipe.chains[variant])
    assert first == {"texts.txt": hash_file(tmp_path / "texts.txt")}
    assert not any(others)
    both = TrimVocabulary(extra_text=(tmp_path / "texts.txt", tmp_path / "more" / "texts.txt"))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "texts.txt").write_text("three\n")
    assert set(_read_files(both)) == {"texts.txt", "more/texts.txt"}


def test_a_bundle_of_a_torch_target_names_no_pass_in_onnx_form():
    chain = (TrimVocabulary(), Export(), Quantize())
    assert applied_passes(chain, "torch") == chain[:1]
    assert applied_passes(chain, "onnx") == chain
    assert applied_passes((), "torch") == ()


def test_what_is_no_distribution_is_in_no_bill_of_materials(bundle):
    manifest = bundle.manifest
    more = {"gpu": "NVIDIA H200, 9.0", "source of my_targets": "0" * 64}
    origin = {**manifest.provenance, "libraries": {**manifest.provenance["libraries"], **more}}
    changed = manifest.model_copy(update={"provenance": origin})
    assert bill_of_materials(changed, architecture="a") == bill_of_materials(
        manifest, architecture="a"
    )
    assert version_notes(changed) == version_notes(manifest)


def test_the_hash_of_the_recipe_is_no_part_of_the_identity(bundle):
    origin = bundle.manifest.provenance
    for recipe, same in (({"sha256": "0" * 64}, True), ({"seed": 9}, False)):
        changed = {**origin, "recipe": {**origin["recipe"], **recipe}}
        manifest = bundle.manifest.model_copy(update={"provenance": changed})
        assert (Bundle(bundle.folder, manifest).identity == bundle.identity) == same


def test_a_bundle_knows_its_checkpoint(finished, home, tmp_path, compressor):
    bundle = finished.output / "bundles" / "int8-onnxruntime"
    outcome = compressor("verify", bundle, "--checkpoint", home / "model")
    assert outcome.code == 0, outcome.err
    assert f"made from {home / 'model'}" in outcome.out
    other = Path(shutil.copytree(home / "model", tmp_path / "model"))

    def refused(*told: str) -> None:
        outcome = compressor("verify", bundle, "--checkpoint", other)
        assert outcome.code == 3
        for text in told:
            assert text in outcome.err

    content = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused("was not made from this checkpoint", f"{other / 'model.safetensors'}", "; recorded ")
    (other / "model.safetensors").unlink()
    refused("no such file; recorded sha256")
    (other / "model.safetensors").write_bytes(content)
    (other / "more.safetensors").touch()
    refused(f"{other / 'more.safetensors'}", "a file that the checkpoint did not have")
    shutil.rmtree(other)
    refused("the checkpoint does not exist")


def test_a_bundle_of_another_maker_does_not_tell_its_checkpoint(
    finished, home, tmp_path, compressor
):
    folder = tmp_path / "copy"
    shutil.copytree(finished.output / "bundles" / "int8-onnxruntime", folder)
    Bundle.create(folder, Bundle.open(folder).manifest.model_copy(update={"provenance": {}}))
    outcome = compressor("verify", folder, "--checkpoint", home / "model")
    assert outcome.code == 6
    assert "the bundle does not record the files of its checkpoint" in outcome.err


# Signed bundles


def test_a_signed_bundle_goes_through_every_command(finished, keys, tmp_path, compressor):
    private, public = keys
    folder = tmp_path / "int8"
    shutil.copytree(finished.output / "bundles" / "int8-onnxruntime", folder)
    answer = compressor("predict", folder, "--text", "who cat").out
    unsigned = compressor("verify", folder, "--key", public)
    assert unsigned.code == 6
    assert "the bundle is not signed" in unsigned.err

    outcome = compressor("sign", folder, "--key", private)
    assert outcome.code == 0, outcome.err
    archive = tmp_path / "int8.tar.zst"
    assert compressor("pack", folder, archive).code == 0
    for path in (folder, archive):
        checked = compressor("verify", path, "--key", public)
        assert checked.code == 0, checked.err
        assert "intact, signed with the key " in checked.out
        assert "a signature that was not checked (--key)" in compressor("verify", path).out
    assert compressor("predict", archive, "--text", "who cat").out == answer

    refused = compressor("sign", archive, "--key", private)
    assert refused.code == 6
    assert "an archive cannot be signed" in refused.err
    assert "sign the folder, then pack it" in refused.err

    (folder / "extra").touch()
    other = compressor("verify", folder)
    assert other.code == 6
    assert "the folder holds files that its manifest does not name" in other.err
    assert f"where: {folder}" in other.err
    assert "given: 'extra'" in other.err
    changed = compressor("verify", folder, "--key", public)
    assert changed.code == 6
    assert "a file was added after the bundle was signed" in changed.err
    assert f"where: {folder / 'extra'}" in changed.err


def test_the_same_run_gives_the_same_bytes_and_keeps_signatures(
    finished, home, keys, tmp_path, compressor
):
    output = tmp_path / "out"
    shutil.copytree(finished.output / "bundles", output / "bundles")
    names = sorted(path.name for path in (output / "bundles").iterdir())
    assert len(names) == 8
    signed = output / "bundles" / "int8-onnxruntime"
    assert compressor("sign", signed, "--key", keys[0]).code == 0
    arguments = ("run", home / "recipe.yaml", "--output", output, "--store", finished.store)
    outcome = compressor(*arguments)
    assert outcome.code == 0, outcome.err
    assert "was signed" not in outcome.out
    for name in names:
        found = contents(output / "bundles" / name)
        found.pop("model.sig", None)
        assert found == contents(finished.output / "bundles" / name)
    verify_signature(Bundle.open(signed), keys[1])

    outcome = compressor(*arguments, "--set", "bundle.evaluation_data=false")
    assert outcome.code == 0, outcome.err
    told = " ".join(outcome.out.split())
    assert f"warning: {signed} was signed; it has changed, so it is not signed any more" in told
    assert told.count("was signed") == 1
    assert not Bundle.open(signed).is_signed
