"""Families whose layers are not known: quantized and lowered all the same, or told why not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BloomConfig,
    ConvBertConfig,
    DebertaV2Config,
    GPT2Config,
    ModernBertConfig,
    MPNetConfig,
)

from compressor.inspection import inspect_checkpoint
from compressor.report.files import read_report
from targets.checkpoint import load_module, save_module
from tests.compressor.conftest import Outcome
from tests.compressor.test_int8_recipe import QUICK

UNKNOWN = "the layers of this network ({}) are of an unknown kind"
SIZES = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4}
WIDE = {**SIZES, "intermediate_size": 64, "max_position_embeddings": 40}
FAMILIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "gpt2": lambda more: GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=40, **more),
    "bloom": lambda more: BloomConfig(hidden_size=32, n_layer=2, n_head=4, **more),
    "deberta-v2": lambda more: DebertaV2Config(**WIDE, **more),
    "mpnet": lambda more: MPNetConfig(**WIDE, **more | {"pad_token_id": 1}),
    # Its local layers see two tokens on either side, of texts of some more.
    "modernbert": lambda more: ModernBertConfig(
        **WIDE, local_attention=4, global_attn_every_n_layers=3, **more
    ),
    # Its layers have BERT's names, and convolutions beside the heads.
    "convbert": lambda more: ConvBertConfig(**WIDE, embedding_size=32, **more),
    "albert": lambda more: AlbertConfig(**WIDE, embedding_size=16, **more),
}


@pytest.fixture
def home(make_home: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The home of a classifier of texts, with a network of another family."""
    folder = tmp_path / "home"
    shutil.copytree(make_home("text"), folder)
    known = load_module(folder / "model", "text-classification").config
    config = FAMILIES[request.param](
        {
            "vocab_size": known.vocab_size,
            "pad_token_id": known.pad_token_id,
            "id2label": known.id2label,
            "label2id": known.label2id,
        }
    )
    save_module(AutoModelForSequenceClassification.from_config(config), folder / "model")
    return folder


def run(compressor: Callable[..., Outcome], recipe: str, home: Path) -> Outcome:
    return compressor(
        "run", recipe, "--model", home / "model", "--data", home, "--output", home / "out",
        "--store", home / "store", *QUICK, "--set", "benchmark.sequence_length=16",
    )  # fmt: skip


@pytest.mark.parametrize("home", FAMILIES, indirect=True)
def test_it_is_quantized_and_lowered_with_a_warning(
    home: Path, compressor: Callable[..., Outcome], request: pytest.FixtureRequest
) -> None:
    found = run(compressor, "int8", home)
    assert found.code in (0, 5), found.err + found.out
    report = read_report(home / "out")
    family = request.node.callspec.params["home"]
    assert UNKNOWN.format(family) in " ".join(found.err.split()) + " ".join(found.out.split())
    rows = {row.variant: row for row in report.rows if row.kind == "candidate"}
    [untouched] = [row for row in report.rows if row.kind == "baseline"]
    assert untouched.test is not None
    assert rows["fp32"].test == untouched.test
    for row in rows.values():
        assert row.status == "measured", row.reason


@pytest.mark.parametrize("home", FAMILIES, indirect=True)
def test_what_needs_its_layers_is_refused_before_anything_runs(
    home: Path, compressor: Callable[..., Outcome]
) -> None:
    found = run(compressor, "balanced", home)
    assert found.code == 3, found.err + found.out
    text = " ".join(found.err.split())
    assert "prune cannot be used on this model" in text
    assert "use the built-in recipe int8" in text
    assert "trim_vocabulary " not in found.out
    asked = inspect_checkpoint(home / "model")
    assert asked.passes["prune"]
    assert asked.passes["drop_layers"]
    assert asked.passes["quantize"] is None
