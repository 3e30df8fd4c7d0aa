"""Made-up reports: a full one with every kind of row, and the edge cases."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compressor.report.files import read_report
from compressor.report.html import render_comparison, render_html
from compressor.report.schema import (
    Accuracy,
    Change,
    ChangedExample,
    Check,
    Comparison,
    DeviceFacts,
    Group,
    ModelFacts,
    OnDevice,
    Perplexity,
    Report,
    Row,
    Step,
    Verdict,
)
from targets.environment import Environment
from targets.measurement import Measurement, Round, Speedup, speedup
from targets.writing import Writing

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
NO_GPU = (
    "the bundle was built, but this machine has no NVIDIA GPU: "
    "cudaGetDeviceCount found none (driver not loaded);\n"
    "copy the bundle to a machine with an RTX GPU (SM75, 80, 86, 89, 120 or 121) and run "
    "`compressor bench`"
)
REFUSED = (
    "TensorRT-RTX does not run these nodes: /encoder/layer.0/attention/DynamicQuantizeLinear, "
    "/encoder/layer.0/attention/MatMulInteger, /encoder/layer.1/attention/DynamicQuantizeLinear "
    "and 34 more; use precision int8 instead of int8-dynamic"
)
UNAVAILABLE = (
    "needs the library openvino, which is not installed: pip install 'compressor[openvino]'"
)
FAILED = "the process died with SIGKILL while it loaded the bundle: out of memory?"
HOSTILE = '<img src=x onerror="alert(1)">|`a`*b*'


def make_measurement(
    median_ms: float,
    *,
    size_bytes: int,
    seed: int,
    batch_size: int = 1,
    sequence_length: int = 128,
    noise: float = 0.03,
    others_cpus: float = 0.05,
) -> Measurement:
    rng = np.random.default_rng(seed)
    rounds = []
    for _ in range(9):
        scale = median_ms * (1 + noise * rng.standard_normal() / 3)
        runs = scale * (1 + np.abs(rng.standard_normal(30)) * noise * 2 + rng.random(30) * 0.02)
        runs[rng.integers(30)] *= 1.4
        run_ns = tuple(int(value * 1e6) for value in runs)
        rounds.append(
            Round(
                run_ns=run_ns,
                cpu_ns=int(sum(run_ns) * 1.9),
                others_cpus=others_cpus,
                load_average=2.1 + 0.1 * float(rng.random()),
            )
        )
    return Measurement(
        rounds=tuple(rounds),
        threads=2,
        batch_size=batch_size,
        sequence_length=sequence_length,
        num_cpus=4,
        load_time_ms=410 + 40 * seed,
        peak_memory_bytes=180_000_000 + size_bytes,
        size_bytes=size_bytes,
    )


def make_checks(unmet: tuple[str, ...]) -> tuple[Check, ...]:
    """What a row misses, after one limit that it keeps."""
    kept = Check(
        limit="max_size_mb", wanted=99, found=5, met=True, text="is 5.00 MB, allowed 99 MB"
    )
    return (
        kept,
        *(
            Check(limit="min_speedup", wanted=3, found=2, met=False, shortfall=0.3, text=text)
            for text in unmet
        ),
    )


def make_accuracy(value: float, num_rows: int) -> Accuracy:
    half = 1.96 * (value * (1 - value) / num_rows) ** 0.5
    return Accuracy(value=value, low=value - half, high=min(1, value + half), num_rows=num_rows)


def make_comparison(drop: float, agreement: float) -> Comparison:
    return Comparison(
        drop_points=drop,
        low_points=drop - 0.7,
        high_points=drop + 0.8,
        p_value=0.04 if drop > 0.8 else 0.62,
        agreement=agreement,
        reference_accuracy=0.943,
        metrics={
            "accuracy": make_change(drop, 0.7),
            "macro_f1": make_change(drop + 0.9, 1.1),
        },
        groups=(
            make_group(None, "ABBR", 9, 11.1, -12.0),
            make_group(None, "NUM", 113, 4.4, 0.9),
            make_group(None, HOSTILE, 138, 0.0, -2.1),
            make_group("source", HOSTILE, 300, drop, drop - 1.2),
            make_group("source", "web", 700, drop, drop - 0.9),
        ),
        max_probability_difference=0.413,
        calibration_error=0.0312,
        reference_calibration_error=0.0187,
    )


def make_change(drop: float, half: float) -> Change:
    return Change(
        value=0.93 - drop / 100,
        reference=0.93,
        drop_points=drop,
        low_points=drop - half,
        high_points=drop + half,
    )


def make_group(column: str | None, value: str, num_rows: int, drop: float, low: float) -> Group:
    return Group(
        column=column,
        value=value,
        num_rows=num_rows,
        accuracy=0.9 - drop / 100,
        reference=0.9,
        drop_points=drop,
        low_points=low,
        high_points=2 * drop - low,
    )


CHANGED = (
    ChangedExample(
        index=12, text=f"How far is it from Denver to Aspen {HOSTILE}?", label="NUM",
        before="NUM", after="LOC", confidence_before=0.71, confidence_after=0.64,
    ),
    ChangedExample(
        index=77, text=None, label="ABBR", before="DESC", after="ENTY",
        confidence_before=0.51, confidence_after=0.42,
    ),
)  # fmt: skip


class RowMaker:
    """Builds rows against their baselines, as a run would."""

    def __init__(
        self, *, noise: float = 0.03, others_cpus: float = 0.05, pace: float = 1.0
    ) -> None:
        self.rows: list[Row] = []
        self._pace = pace
        self._noise = noise
        self._others_cpus = others_cpus
        self._eager: Measurement | None = None
        self._baselines: dict[str, tuple[Measurement, int]] = {}

    def measured(
        self,
        variant: str,
        target: str,
        precision: str,
        *,
        ms: float,
        test: float,
        size: int,
        kind: str = "candidate",
        unmet: tuple[str, ...] = (),
        chosen: bool = False,
        notes: tuple[str, ...] = (),
    ) -> None:
        seed = len(self.rows)
        ms *= self._pace
        options = {"noise": self._noise, "others_cpus": self._others_cpus, "size_bytes": size}
        one = make_measurement(ms, seed=seed, **options)
        latency = {
            "1x128": one,
            "8x128": make_measurement(ms * 7.1, seed=seed + 100, batch_size=8, **options),
            "1x32": make_measurement(ms * 0.3, seed=seed + 200, sequence_length=32, **options),
        }
        if kind == "reference":
            self._eager = one
        if kind == "baseline" and (
            target not in self._baselines or one.median_ms < self._baselines[target][0].median_ms
        ):
            self._baselines[target] = (one, self._baselines.get(target, (one, size))[1])
        baseline = self._baselines.get(target)
        validation = test + 0.004
        self.rows.append(
            Row(
                variant=variant,
                kind=kind,
                target=target,
                device=None,
                precision=precision,
                status="measured",
                bundle=None if kind == "reference" else f"bundles/{variant}-{target}",
                size_bytes=size,
                validation=make_accuracy(validation, 500),
                test=make_accuracy(test, 1000),
                validation_comparison=make_comparison((0.947 - validation) * 100, 0.97),
                test_comparison=make_comparison((0.943 - test) * 100, 0.96),
                latency=latency,
                speedup=speedup(baseline[0], one) if baseline and kind == "candidate" else None,
                speedup_eager=speedup(self._eager, one) if self._eager else None,
                size_ratio=baseline[1] / size if baseline else None,
                checks=make_checks(unmet),
                chosen=chosen,
                changed=CHANGED if chosen else (),
                notes=notes,
            )
        )

    def absent(
        self, variant: str, target: str, precision: str, status: str, reason: str, **more: object
    ) -> None:
        self.rows.append(
            Row(
                variant=variant,
                kind="candidate" if variant != "original" else "baseline",
                target=target,
                device=None,
                precision=precision,
                status=status,
                reason=reason,
                **more,
            )
        )


def make_rows(maker: RowMaker) -> tuple[Row, ...]:
    measured, absent = maker.measured, maker.absent
    measured("original", "pytorch", "fp32", ms=16.3, test=0.943, size=90_900_000, kind="reference")
    measured(
        "original", "onnxruntime", "fp32", ms=8.5, test=0.943, size=91_200_000, kind="baseline"
    )
    measured("original", "openvino", "fp32", ms=7.9, test=0.943, size=91_100_000, kind="baseline")
    measured("original", "openvino", "bf16", ms=4.1, test=0.942, size=45_800_000, kind="baseline")
    absent("original", "tensorrt-rtx", "fp32", "built", NO_GPU, size_bytes=92_400_000)
    measured(
        "int8-only",
        "onnxruntime",
        "int8-dynamic",
        ms=4.12,
        test=0.943,
        size=23_100_000,
        unmet=("speed-up 2.06x, at least 3x wanted (31% short)",),
    )
    measured(
        "int8-only", "openvino", "int8", ms=2.5, test=0.943, size=23_400_000,
        unmet=("speed-up 1.64x, at least 3x wanted (45% short)",),
    )  # fmt: skip
    absent("int8-only", "tensorrt-rtx", "int8-dynamic", "refused", REFUSED)
    measured(
        "half-width", "onnxruntime", "int8-dynamic", ms=2.7, test=0.938, size=12_600_000,
        chosen=True,
    )  # fmt: skip
    measured(
        "half-width", "openvino", "int8", ms=1.3, test=0.933, size=12_700_000,
        notes=("the classifier head was left in float: its int8 error was 14 times the median",),
    )  # fmt: skip
    absent("half-width", "tensorrt-rtx", "int8", "built", NO_GPU, size_bytes=13_100_000)
    measured(
        "quarter-width-long-distillation", "openvino", "int8", ms=0.96, test=0.929, size=8_900_000,
        chosen=True,
    )  # fmt: skip
    measured(
        HOSTILE,
        "openvino",
        "int8",
        ms=0.54,
        test=0.906,
        size=5_100_000,
        unmet=(
            "accuracy drop 3.7 points, at most 1.5 wanted (2.2 points over)",
            "agreement 91.0%, at least 95.0% wanted",
        ),
    )
    absent(HOSTILE, "onnxruntime", "int8-dynamic", "failed", FAILED)
    absent("quarter-width-long-distillation", "coreml", "fp16", "unavailable", UNAVAILABLE)
    return tuple(maker.rows)


def make_history(num_steps: int, *, low: float, high: float, seed: int) -> tuple[dict, ...]:
    rng = np.random.default_rng(seed)
    entries = []
    for index in range(1, num_steps + 1):
        done = index / num_steps
        entry = {
            "step": float(index * 10),
            "epoch": done * 4,
            "loss": float(0.12 + 1.8 * np.exp(-4 * done) + 0.05 * rng.standard_normal()),
            "learning_rate": 5e-5 * (1 - done),
        }
        if index % (num_steps // 4) == 0:
            entry["validation_accuracy"] = float(high - (high - low) * np.exp(-3 * done))
        entries.append(entry)
    return tuple(entries)


def make_step(key: str, pass_name: str, **more: object) -> Step:
    values = {
        "settings": {},
        "cached": False,
        "duration_s": 12.0,
        "num_parameters": None,
        "size_bytes": 90_900_000,
        "architecture": None,
        "metrics": {},
        "notes": (),
        "history": (),
    }
    return Step(key=key, pass_name=pass_name, **(values | more))


def make_steps() -> dict[str, tuple[Step, ...]]:
    export = make_step("e0", "Export", duration_s=14.2, settings={"opset": 20})
    prune = make_step(
        "p1", "Prune", duration_s=41.5, num_parameters=17_400_000, size_bytes=69_600_000,
        architecture="bert 6 layers, 6 heads, ffn 768", settings={"heads": 0.5, "ffn": 0.5},
        metrics={"validation_accuracy": 0.871, "heads_removed": 36.0},
        notes=("widths were rounded up to multiples of 8",),
    )  # fmt: skip
    distill = make_step(
        "d2", "Distill", duration_s=131.0, num_parameters=17_400_000, size_bytes=69_600_000,
        architecture="bert 6 layers, 6 heads, ffn 768", settings={"epochs": 4, "temperature": 2.0},
        metrics={"validation_accuracy": 0.941},
        history=make_history(40, low=0.87, high=0.943, seed=1),
    )  # fmt: skip
    longer = make_step(
        "d3", "Distill", duration_s=262.0, num_parameters=14_100_000, size_bytes=56_400_000,
        settings={"epochs": 24, "temperature": 4.0}, metrics={"validation_accuracy": 0.934},
        history=make_history(80, low=0.80, high=0.936, seed=2),
    )  # fmt: skip
    trim = make_step(
        "t1", "TrimVocabulary", duration_s=3.1, num_parameters=9_800_000, size_bytes=39_200_000,
        metrics={"tokens_kept": 8192.0, "validation_accuracy": 0.941},
    )  # fmt: skip
    quantize = make_step(
        "q4", "Quantize", duration_s=22.7, size_bytes=12_600_000,
        metrics={"max_relative_error": 0.0123}, notes=("the classifier head was left in float",),
    )  # fmt: skip
    reused = distill.model_copy(update={"cached": True})
    return {
        "original": (export,),
        "int8-only": (export, quantize.model_copy(update={"key": "q1", "size_bytes": 23_100_000})),
        "half-width": (
            prune, distill, trim, export.model_copy(update={"size_bytes": 39_500_000}), quantize,
        ),
        "quarter-width-long-distillation": (
            prune.model_copy(update={"cached": True}), reused, longer,
            export.model_copy(update={"size_bytes": 56_700_000}), quantize,
        ),
        HOSTILE: (prune.model_copy(update={"pass_name": "<script>x</script>"}), quantize),
    }  # fmt: skip


def make_report(**changes: object) -> Report:
    report = Report(
        name="trec-questions",
        created="2026-03-14T15:09:26Z",
        duration_s=734.2,
        seed=17,
        recipe={
            "model": "checkpoints/minilm-trec",
            "data": {"train": "train.csv", "test": "test.csv", "text": "question"},
            "variants": {
                "half-width": [
                    {"prune": {"heads": 0.5, "ffn": 0.5}},
                    {"distill": {"epochs": 4, "temperature": 2.0, "note": "<b>```bold```</b>"}},
                    {"quantize": {"precision": "int8"}},
                ]
            },
            "targets": ["onnxruntime", "openvino", "tensorrt-rtx"],
        },
        budget={"min_speedup": 3.0, "max_drop_points": 1.5, "max_size_bytes": None},
        model=ModelFacts(
            name="minilm-trec",
            sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            architecture="bert 6 layers, hidden 384, 12 heads, ffn 1536",
            num_parameters=22_700_000,
            size_bytes=90_900_000,
        ),
        data={
            "rows": {"train": 3881, "validation": 500, "test": 1000},
            "labels": ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"],
            "sha256": "ab" * 32,
        },
        environment=Environment(
            cpu="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            cpu_features=("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"),
            num_cpus=4,
            memory_bytes=16_800_000_000,
            system="Linux 6.1.0 x86_64",
            python="3.11.9",
            libraries={
                "compressor": "0.1.0",
                "numpy": "2.3.1",
                "onnxruntime": "1.32.0",
                "openvino": "2026.4.1",
                "torch": "2.13.0",
                "transformers": "5.23.0",
            },
            load_average=2.2,
        ),
        primary_shape="1x128",
        rows=make_rows(RowMaker()),
        steps=make_steps(),
        verdict=Verdict(
            met=True,
            exit_code=0,
            lines=(
                "onnxruntime: half-width met the budget: 3.15x (at least 3x), drop 0.5 points "
                "(at most 1.5)",
                "openvino: quarter-width-long-distillation met the budget: 4.27x, drop 1.4 points",
                "tensorrt-rtx: 2 bundles were built but could not run on this machine",
            ),
            noisy=False,
        ),
    )
    return report.model_copy(update=changes)


def make_noisy_report() -> Report:
    rows = make_rows(RowMaker(noise=0.25, others_cpus=3.4))
    return make_report(
        rows=rows,
        verdict=Verdict(
            met=False,
            exit_code=5,
            lines=(
                "openvino: the fastest candidate is 4.2x (2.1 to 6.0), at least 5x wanted",
                "try: a narrower student, or longer distillation",
            ),
            noisy=True,
        ),
    )


def make_unmeasured_report() -> Report:
    rows = tuple(
        row.model_copy(update={"bundle": None})
        for row in make_report().rows
        if row.status != "measured"
    )
    verdict = Verdict(met=False, exit_code=6, lines=("nothing could be measured",), noisy=False)
    return make_report(rows=rows, steps={}, verdict=verdict)


def put_on_device(row: Row, pace: float) -> Row:
    """The row with what the board ``pi`` found of it."""
    if row.kind == "reference" or row.target != "onnxruntime" or row.status != "measured":
        return row
    times = make_measurement(row.latency["1x128"].median_ms * pace, size_bytes=1, seed=7)
    return row.model_copy(update={"devices": {"pi": OnDevice(latency={"1x128": times})}})


def make_several_reports() -> tuple[Report, ...]:
    """Two of one recipe and machine, the second with a board; another recipe, machine and data."""
    first = make_report()
    board = first.environment.model_copy(update={"cpu": "Cortex-A76", "cpu_features": ("asimddp",)})
    second = make_report(
        created="2026-03-15T08:00:00+01:00",
        rows=tuple(put_on_device(row, 8) for row in make_rows(RowMaker(pace=0.9))),
        devices={
            "pi": DeviceFacts(address="ssh://me@pi", environment=board),
            "gone": DeviceFacts(address="ssh://me@gone", reason="no route to host"),
        },
    )
    other = first.environment.model_copy(update={"cpu": f"AMD EPYC {HOSTILE}"})
    third = make_report(
        name=HOSTILE,
        created="yesterday",
        environment=other,
        primary_shape="8x128",
        data={"sha256": "cd" * 32},
        model=first.model.model_copy(update={"sha256": "e" * 64}),
        rows=make_rows(RowMaker(pace=2)),
    )
    return first, second, third


@pytest.fixture(scope="session")
def several_reports() -> tuple[Report, ...]:
    return make_several_reports()


@pytest.fixture(scope="session")
def unmeasured_reports() -> tuple[Report, ...]:
    return make_unmeasured_report(), make_unmeasured_report()


@pytest.fixture(scope="session")
def report() -> Report:
    return make_report()


@pytest.fixture(scope="session")
def noisy_report() -> Report:
    return make_noisy_report()


@pytest.fixture(scope="session")
def unmeasured_report() -> Report:
    return make_unmeasured_report()


@pytest.fixture(scope="session")
def single_row_report() -> Report:
    full = make_report()
    return make_report(rows=(full.rows[0],), steps={"original": full.steps["original"]})


@pytest.fixture(scope="session")
def published_report() -> Report:
    """Its reasons name nodes, which are longer than any column."""
    return read_report(RESULTS / "trec6_minilm_balanced_avx2.json")


@pytest.fixture(scope="session")
def hostile_name() -> str:
    return HOSTILE


PAGES = (
    "report",
    "noisy_report",
    "unmeasured_report",
    "single_row_report",
    "writing_report",
    "several_reports",
    "unmeasured_reports",
)
"""The fixtures that are shown on a page of each kind."""


@pytest.fixture(scope="session")
def page_of(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """The page of a fixture that is a report, or several; each is rendered once."""

    @functools.cache
    def render(name: str) -> str:
        found = request.getfixturevalue(name)
        return render_comparison(found) if isinstance(found, tuple) else render_html(found)

    return render


@pytest.fixture(scope="session")
def written_report() -> Report:
    """A report of a language model: its rows have a perplexity beside that of the untouched one."""
    report = make_report()

    def with_perplexity(row: Row, value: float) -> Row:
        rise = 100 * (value / 48 - 1)
        found = Perplexity(
            value=value, low=value - 1, high=value + 1, reference=48.0, rise=rise,
            rise_low=rise - 1, rise_high=rise + 1,
        )  # fmt: skip
        compared = row.test_comparison
        if compared is None or row.kind == "reference":
            return row.model_copy(update={"test_comparison": None})
        changed = compared.model_copy(update={"perplexity": found})
        return row.model_copy(update={"test_comparison": changed})

    rows = tuple(with_perplexity(row, 48 + number) for number, row in enumerate(report.rows))
    return report.model_copy(update={"rows": rows})


@pytest.fixture(scope="session")
def writing_report(written_report: Report) -> Report:
    """The same of a model with a state: its rows have the tokens that they wrote a second."""

    def with_writing(row: Row, token_ms: float) -> Row:
        if row.status != "measured":
            return row
        times = tuple(int(1e6 * each) for each in (8 * token_ms, token_ms, token_ms))
        rounds = (Round(run_ns=times, cpu_ns=1),) * 9
        found = Writing(threads=2, num_cpus=4, prompt_tokens=128, num_tokens=3, rounds=rounds)
        ratio = Speedup(
            ratio=40 / token_ms, low=0.9 * 40 / token_ms, high=44 / token_ms, num_rounds=9
        )
        return row.model_copy(update={"writing": found, "writing_speedup": ratio})

    rows = tuple(
        with_writing(row, 40 / (1 + number)) for number, row in enumerate(written_report.rows)
    )
    return written_report.model_copy(update={"rows": rows})
