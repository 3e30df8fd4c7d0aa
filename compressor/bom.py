"""The bill of materials of a bundle: CycloneDX 1.6, with the model as a machine-learning model.

It tells what the manifest tells, in the form that tools of a supply chain read: the same manifest
gives the same bytes, with no serial number and no time in them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from targets.bundle import BOM, Manifest
from targets.environment import distributions
from targets.signature import TensorSpec

__all__ = ["bill_of_materials"]

_MODEL, _CHECKPOINT, _DATA, _WORKFLOW = "model", "checkpoint", "data", "compression"
_Json = dict[str, Any]


def bill_of_materials(manifest: Manifest, *, architecture: str) -> str:
    """The content of ``bom.cdx.json``.

    Args:
        manifest: Of a bundle that a run publishes, with its files.
        architecture: Shape of the network, in words.
    """
    origin = manifest.provenance
    versions = {**origin["predict_libraries"], **distributions(origin["libraries"])}
    runtime = _libraries(versions, "runtime")
    builders = _libraries(origin["build_libraries"], "build")
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [_tool(origin["compressor"])]},
            "component": _model(manifest, architecture),
        },
        "components": [_data(origin["data"]), *runtime],
        "dependencies": [
            {"ref": _MODEL, "dependsOn": [_DATA, *(each["bom-ref"] for each in runtime)]},
        ],
        "formulation": [{"components": builders, "workflows": [_workflow(origin)]}],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _model(manifest: Manifest, architecture: str) -> _Json:
    checkpoint = manifest.provenance["checkpoint"]
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": f"{checkpoint['name']}-{manifest.name}-{manifest.target}",
        "version": manifest.provenance["model"][:12],
        "description": f"{manifest.task} in {manifest.precision} for {manifest.target}, "
        f"compressed from {checkpoint['name']}",
        "hashes": _sha256(manifest.files[manifest.model].sha256),
        "pedigree": {
            "ancestors": [
                {
                    "type": "machine-learning-model",
                    "bom-ref": _CHECKPOINT,
                    "name": checkpoint["name"],
                    "components": [
                        _file(_CHECKPOINT, name, sha256)
                        for name, sha256 in sorted(checkpoint["files"].items())
                    ],
                    "properties": _properties({"content-sha256": checkpoint["sha256"]}),
                }
            ]
        },
        "components": [
            _file(_MODEL, name, record.sha256)
            for name, record in sorted(manifest.files.items())
            if name != BOM
        ],
        "modelCard": _card(manifest, architecture),
        "properties": _properties(
            {
                "content-sha256": manifest.provenance["model"],
                "precision": manifest.precision,
                "target": manifest.target,
                "target-settings": manifest.target_settings,
            }
        ),
    }


def _card(manifest: Manifest, architecture: str) -> _Json:
    signature = manifest.signature
    limit = manifest.preprocessing.limit_note
    parameters = {
        "approach": {"type": "supervised"},
        "task": manifest.task,
        "modelArchitecture": architecture,
        "datasets": [{"ref": _DATA}],
        "inputs": [{"format": _format(each)} for each in signature.inputs],
        "outputs": [{"format": _format(each)} for each in signature.outputs],
    }
    card: _Json = {
        "modelParameters": parameters,
        "considerations": {
            "technicalLimitations": [
                *([limit] if limit else []),
                "The accuracy holds for data like the held-out split that it was measured on.",
            ]
        },
        "properties": _properties({"labels": list(manifest.labels)}),
    }
    accuracy = None if manifest.measured is None else manifest.measured.accuracy
    if accuracy is not None:
        card["quantitativeAnalysis"] = {
            "performanceMetrics": [
                {
                    "type": accuracy.measure,
                    "value": repr(accuracy.value),
                    "slice": f"the test split, {accuracy.counted}",
                    "confidenceInterval": {
                        "lowerBound": repr(accuracy.low),
                        "upperBound": repr(accuracy.high),
                    },
                }
            ]
        }
    return card


def _data(data: Mapping[str, Any]) -> _Json:
    return {
        "type": "data",
        "bom-ref": _DATA,
        "name": "data of the recipe",
        "components": [
            _file(_DATA, split, sha256) for split, sha256 in sorted(data["files"].items())
        ],
        "data": [
            {"type": "dataset", "bom-ref": f"{_DATA}:{split}", "name": split}
            for split in sorted(data["files"])
        ],
        "properties": _properties({"content-sha256": data["sha256"]}),
    }


def _workflow(origin: Mapping[str, Any]) -> _Json:
    recipe = origin["recipe"]
    return {
        "bom-ref": _WORKFLOW,
        "uid": recipe["sha256"],
        "name": recipe["name"],
        "description": "the passes of the recipe, in their order",
        "taskTypes": ["build"],
        "inputs": [{"resource": {"ref": _CHECKPOINT}}, {"resource": {"ref": _DATA}}],
        "outputs": [{"type": "artifact", "resource": {"ref": _MODEL}}],
        "steps": [
            {"name": step["pass"], "properties": _properties(step["settings"])}
            for step in origin["passes"]
        ],
        "properties": _properties({"recipe-sha256": recipe["sha256"], "seed": recipe["seed"]}),
    }


def _tool(version: str | None) -> _Json:
    tool = {"type": "application", "name": "compressor"}
    return tool if version is None else {**tool, "version": version}


def _libraries(versions: Mapping[str, str], role: str) -> list[_Json]:
    """Distributions as components."""
    return [
        {
            "type": "library",
            "bom-ref": f"{role}/{name}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{_normalized(name)}@{version.replace('+', '%2B')}",
        }
        for name, version in sorted(versions.items())
    ]


def _normalized(name: str) -> str:
    """A distribution as package URLs name it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _file(owner: str, name: str, sha256: str) -> _Json:
    return {
        "type": "file",
        "bom-ref": f"{owner}/{name}",
        "name": name,
        "hashes": _sha256(sha256),
    }


def _sha256(content: str) -> list[_Json]:
    return [{"alg": "SHA-256", "content": content}]


def _format(tensor: TensorSpec) -> str:
    return f"{tensor.name}: {tensor.dtype}({', '.join(map(str, tensor.shape))})"


def _properties(values: Mapping[str, Any]) -> list[_Json]:
    return [
        {
            "name": f"compressor:{name}",
            "value": value if isinstance(value, str) else json.dumps(value, sort_keys=True),
        }
        for name, value in values.items()
    ]
