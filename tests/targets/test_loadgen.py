"""Real LoadGen runs: each query is answered once and rightly, and the logs are read as written."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

import targets.loadgen
from targets import Arrays, Session, Signature, TensorSpec
from targets.errors import MissingLibraryError, TargetError, WorkerError
from targets.evaluation_pack import EvaluationPack
from targets.feeds import FeedsSpec
from targets.load_result import LoadResult, read_logs
from targets.load_scenario import SCENARIOS, LoadSettings, Scenario
from targets.loadgen import LOGGED_ANSWERS, _Samples, run_load
from targets.preprocessing import TextPreprocessing
from targets.worker_client import Worker

MakeBundle = Callable[..., Path]

SERVICE_S = 0.001
ROWS = [[7 * row + column + 1 for column in range(1 + row % 6)] for row in range(24)]
SETTINGS: dict[Scenario, dict[str, Any]] = {
    "single-stream": {},
    "multi-stream": {"samples_per_query": 5, "max_batch": 5},
    "offline": {"max_batch": 16},
    "server": {"qps": 400.0, "p99_ms": 50.0, "max_batch": 4},
}
SIGNATURE = Signature(
    inputs=tuple(
        TensorSpec(name=name, dtype="int64", shape=("batch", "sequence"))
        for name in ("input_ids", "attention_mask")
    ),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),),
)


class Recorder(Session):
    """Adds up token ids in a known time, and notes when it ran and on which samples."""

    def __init__(self, fails_at: int | None = None, service_s: float = SERVICE_S) -> None:
        super().__init__(SIGNATURE)
        self.runs: list[tuple[float, tuple[int, ...]]] = []
        self.fails_at, self.service_s = fails_at, service_s

    def _run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Arrays:
        ids = np.asarray(feeds["input_ids"], dtype=np.int64)
        self.runs.append((time.time(), tuple(int(first) for first in ids[:, 0])))
        if len(self.runs) == self.fails_at:
            raise TargetError("the device is gone")
        time.sleep(self.service_s)
        total = (ids * np.asarray(feeds["attention_mask"], dtype=np.int64)).sum(axis=1)
        return {"logits": np.stack([total, -total], axis=1).astype(np.float32)}

    def since(self, logs: Path) -> list[tuple[int, ...]]:
        """The first token of each sample of the runs that LoadGen asked for."""
        begin = datetime.strptime(detail(logs)["power_begin"], "%m-%d-%Y %H:%M:%S.%f")
        return [first for at, first in self.runs if at >= begin.timestamp()]


def detail(logs: Path) -> dict[str, Any]:
    lines = (logs / "mlperf_log_detail.txt").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line.partition(" ")[2]) for line in lines]
    return {entry["key"]: entry["value"] for entry in entries}


def pack() -> EvaluationPack:
    return EvaluationPack.from_rows(
        {"input_ids": ROWS},
        [0] * len(ROWS),
        preprocessing=TextPreprocessing(max_length=512, pad_token_id=99),
    )


def run(session: Session, logs: Path, scenario: Scenario, **options: Any) -> LoadResult:
    logs.mkdir(exist_ok=True)
    asked = {"duration_s": 1.0, **SETTINGS[scenario], **options}
    return run_load(session, pack(), LoadSettings(scenario=scenario, **asked), logs, threads=1)


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.loadgen, "PACE_S", 0.1)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Scenario], tuple[LoadResult, Recorder, Path]]:
    """Each scenario, run once."""
    found: dict[Scenario, tuple[LoadResult, Recorder, Path]] = {}

    def once(scenario: Scenario) -> tuple[LoadResult, Recorder, Path]:
        if scenario not in found:
            recorder, logs = Recorder(), tmp_path_factory.mktemp(scenario)
            found[scenario] = run(recorder, logs, scenario), recorder, logs
        return found[scenario]

    return once


Finished = Callable[[Scenario], tuple[LoadResult, Recorder, Path]]
every_scenario = pytest.mark.parametrize("scenario", list(SCENARIOS))


@every_scenario
def test_every_sample_that_was_asked_for_is_run_once(
    finished: Finished, scenario: Scenario
) -> None:
    result, recorder, logs = finished(scenario)
    assert result.num_samples == sum(len(samples) for samples in recorder.since(logs))
    assert result.num_samples == result.num_queries * detail(logs)["effective_samples_per_query"]


@every_scenario
def test_every_answer_is_what_the_session_gives_for_that_sample(
    finished: Finished, scenario: Scenario
) -> None:
    result, _, logs = finished(scenario)
    answers = json.loads((logs / "mlperf_log_accuracy.json").read_text(encoding="utf-8"))
    assert len(answers) >= min(LOGGED_ANSWERS, result.num_samples) / 4
    for answer in answers:
        total = sum(ROWS[answer["qsl_idx"]])
        found = np.frombuffer(bytes.fromhex(answer["data"]), dtype=np.float32)
        assert found.tolist() == [total, -total]


@every_scenario
def test_percentiles_are_ordered_and_none_is_below_the_service_time(
    finished: Finished, scenario: Scenario
) -> None:
    latency = finished(scenario)[0].latency
    ordered = [latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.p999_ms]
    assert ordered == sorted(ordered)
    assert latency.p50_ms >= SERVICE_S * 1e3
    assert latency.mean_ms >= SERVICE_S * 1e3


@every_scenario
def test_a_run_is_as_long_as_was_asked_for(finished: Finished, scenario: Scenario) -> None:
    result = finished(scenario)[0]
    assert result.duration_s >= result.settings.duration_s - 0.01
    assert result.machine.peak_memory_bytes > 1e7
    assert result.machine.cpus > 0


@every_scenario
def test_the_summary_that_loadgen_writes_says_the_same(
    finished: Finished, scenario: Scenario
) -> None:
    result, _, logs = finished(scenario)
    lines = (logs / "mlperf_log_summary.txt").read_text(encoding="utf-8").splitlines()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    assert told["Scenario"] == SCENARIOS[scenario].loadgen
    assert told["Result is"] == ("VALID" if result.valid else "INVALID")
    assert float(told["99.00 percentile latency (ns)"]) / 1e6 == result.latency.p99_ms
    assert float(told["50.00 percentile latency (ns)"]) / 1e6 == result.latency.p50_ms
    assert float(told["Mean latency (ns)"]) / 1e6 == result.latency.mean_ms
    assert all(int(told[name]) == seed for name, seed in result.seeds.items())


@every_scenario
def test_a_result_survives_a_round_trip_through_json(
    finished: Finished, scenario: Scenario
) -> None:
    result = finished(scenario)[0]
    assert LoadResult.model_validate_json(result.model_dump_json()) == result


def test_single_stream_runs_one_sample_at_a_time(finished: Finished) -> None:
    result, recorder, logs = finished("single-stream")
    assert {len(samples) for samples in recorder.since(logs)} == {1}
    assert result.samples_per_s <= 1 / SERVICE_S
    assert (result.scheduled_qps, result.num_late) == (None, None)


def test_a_multi_stream_query_holds_neighbouring_samples(finished: Finished) -> None:
    _, recorder, logs = finished("multi-stream")
    loaded = [ROWS[index][0] for index in detail(logs)["loaded_qsl_set"]]
    for samples in recorder.since(logs):
        at = loaded.index(samples[0])
        assert list(samples) == loaded[at : at + 5]


def test_a_multi_stream_query_may_take_several_runs_of_the_model(tmp_path: Path) -> None:
    recorder = Recorder()
    result = run(recorder, tmp_path, "multi-stream", max_batch=2, duration_s=0.3)
    sizes = [len(samples) for samples in recorder.since(tmp_path)]
    assert sizes == [2, 2, 1] * result.num_queries
    assert result.latency.p50_ms >= 3 * SERVICE_S * 1e3


def test_offline_throughput_is_samples_by_duration(finished: Finished) -> None:
    result, recorder, logs = finished("offline")
    assert result.num_queries == 1
    assert result.samples_per_s == pytest.approx(result.num_samples / result.duration_s, rel=0.02)
    assert {len(samples) for samples in recorder.since(logs)[:-1]} == {16}


def test_no_more_samples_are_ready_than_there_is_to_be_memory_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoadGen draws from those; the longest, of 6 tokens, takes 96 bytes."""
    samples = _Samples(pack(), SIGNATURE)
    assert samples.num_ready == len(ROWS)
    monkeypatch.setattr(targets.loadgen, "MOST_BYTES", 96 * 5 + 10)
    assert samples.num_ready == 5
    session = Recorder()
    run(session, tmp_path, "single-stream")
    assert len({first for run in session.since(tmp_path) for first in run}) == 5
    monkeypatch.setattr(targets.loadgen, "MOST_BYTES", 1)
    assert samples.num_ready == 1


def test_server_batches_what_is_waiting_and_no_more(tmp_path: Path) -> None:
    together, alone = Recorder(service_s=0.004), Recorder(service_s=0.002)
    run(together, tmp_path / "together", "server", max_batch=4, qps=400.0)
    run(alone, tmp_path / "alone", "server", max_batch=1)
    sizes = {len(samples) for samples in together.since(tmp_path / "together")}
    assert sizes == {1, 2, 3, 4}
    assert {len(samples) for samples in alone.since(tmp_path / "alone")} == {1}


def test_server_arrivals_repeat_with_the_seed_and_only_with_it(tmp_path: Path) -> None:
    orders, rates = [], []
    for number, seed in enumerate((3, 3, 4)):
        recorder, logs = Recorder(service_s=0.0), tmp_path / str(number)
        result = run(recorder, logs, "server", qps=1000.0, seed=seed)
        orders.append([first for samples in recorder.since(logs) for first in samples])
        rates.append((result.num_queries, result.scheduled_qps))
    assert orders[0] == orders[1] != orders[2]
    assert rates[0] == rates[1] != rates[2]
    assert rates[0][1] == pytest.approx(1000, rel=0.15)


def test_a_rate_far_above_what_is_served_ends_early_and_says_so(tmp_path: Path) -> None:
    recorder = Recorder()
    result = run(recorder, tmp_path, "server", qps=20_000.0, p99_ms=5.0, max_batch=1)
    assert not result.valid
    assert not result.bound_kept
    assert result.num_queries < 0.1 * 20_000
    assert f"{result.num_late} of {result.num_queries} queries took longer" in result.reasons[0]
    assert "outstanding" in result.reasons[1]
    assert result.num_samples == sum(len(samples) for samples in recorder.since(tmp_path))


def test_too_few_queries_are_not_valid_and_say_so(tmp_path: Path) -> None:
    result = run(Recorder(), tmp_path, "multi-stream", duration_s=0.1)
    assert not result.valid
    assert result.reasons == (
        f"{result.num_queries} queries are too few to be 99% sure of the percentile; "
        "a longer run may tell",
    )


@every_scenario
def test_what_a_session_raises_comes_out_after_loadgen_has_ended(
    tmp_path: Path, scenario: Scenario
) -> None:
    calm = Recorder()
    run(calm, tmp_path / "calm", scenario, duration_s=0.2)
    warm_up = len(calm.runs) - len(calm.since(tmp_path / "calm"))
    with pytest.raises(TargetError, match="the device is gone"):
        run(Recorder(fails_at=2 * warm_up + 5), tmp_path / "bad", scenario)


def test_random_tokens_are_as_long_as_asked_and_never_padding() -> None:
    made = EvaluationPack.synthetic(
        FeedsSpec(
            lengths=(4, 9),
            num_ids=5,
            preprocessing=TextPreprocessing(max_length=512, pad_token_id=2),
        )
    )
    assert made.lengths.tolist() == [4, 9]
    assert len(made.inputs["input_ids"]) == 13
    assert not (made.inputs["input_ids"] == 2).any()


# In a worker


def test_a_worker_runs_a_scenario_on_its_bundle(make_bundle: MakeBundle, tmp_path: Path) -> None:
    pack().save(tmp_path / "pack.safetensors")
    settings = LoadSettings(scenario="single-stream", duration_s=0.3)
    with Worker(threads=2) as worker:
        worker.open(make_bundle(delay_ms=1))
        result = worker.run_load(tmp_path / "pack.safetensors", settings, tmp_path / "a" / "logs")
    assert (result.settings, result.threads) == (settings, 2)
    assert result.latency.p50_ms >= 1
    assert detail(tmp_path / "a" / "logs")["result_query_count"] == result.num_queries


@pytest.mark.parametrize(("fault", "words"), [("crash@150", "SIGSEGV"), ("python@150", "KeyError")])
def test_a_failure_under_load_is_told_as_any_other(
    make_bundle: MakeBundle, tmp_path: Path, fault: str, words: str
) -> None:
    pack().save(tmp_path / "pack.safetensors")
    settings = LoadSettings(scenario="server", duration_s=1.0, qps=500.0, p99_ms=50.0)
    with Worker() as worker:
        worker.open(make_bundle(fault=fault, delay_ms=5))
        with pytest.raises(WorkerError, match=words):
            worker.run_load(tmp_path / "pack.safetensors", settings, tmp_path / "logs")


# Errors


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(MissingLibraryError, match="mlcommons-loadgen") as caught:
        run(Recorder(), tmp_path, "offline")
    assert caught.value.fix == "pip install 'compressor[loadgen]'"


@pytest.mark.parametrize(
    ("text", "given"),
    [
        (None, "FileNotFoundError"),
        ("", "KeyError: 'result_query_count'"),
        (":::MLLOG {", "JSONDecodeError"),
    ],
)
def test_an_incomplete_log_is_named(
    finished: Finished, tmp_path: Path, text: str | None, given: str
) -> None:
    result = finished("single-stream")[0]
    path = tmp_path / "mlperf_log_detail.txt"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(TargetError, match="LoadGen left no complete log") as caught:
        read_logs(tmp_path, result.settings, threads=1, machine=result.machine)
    assert caught.value.where == str(path)
    assert given in str(caught.value.given)


def test_an_error_that_loadgen_logs_makes_a_run_invalid(finished: Finished, tmp_path: Path) -> None:
    result, _, logs = finished("single-stream")
    entry = {"key": "error_runtime", "value": "it broke", "metadata": {"is_error": True}}
    text = (logs / "mlperf_log_detail.txt").read_text(encoding="utf-8")
    (tmp_path / "mlperf_log_detail.txt").write_text(f"{text}:::MLLOG {json.dumps(entry)}\n")
    again = read_logs(tmp_path, result.settings, threads=1, machine=result.machine)
    assert result.valid
    assert not again.valid
    assert again.reasons == ("LoadGen: it broke",)


# Settings


def test_a_run_with_a_bound_is_long_beside_it_and_has_enough_queries() -> None:
    settings = LoadSettings(scenario="server", duration_s=1, qps=50, p99_ms=200)
    assert settings.run_s == pytest.approx(6.8)
    assert settings.expected_s == pytest.approx(20)
    assert settings.max_outstanding > 50 * 0.2 + 0.01 * 1000
    assert LoadSettings(scenario="offline", duration_s=1).run_s == 1


def test_the_three_seeds_of_loadgen_differ() -> None:
    assert len(set(LoadSettings(scenario="offline", seed=7).seeds.values())) == 3


@pytest.mark.parametrize(
    ("scenario", "option"),
    [("offline", "p99_ms"), ("single-stream", "max_batch"), ("server", "samples_per_query")],
)
def test_an_option_without_effect_is_refused(scenario: Scenario, option: str) -> None:
    with pytest.raises(ValidationError, match=f"{option} has no effect on the scenario {scenario}"):
        LoadSettings.model_validate({"scenario": scenario, option: 3})
