"""Energy is what the counters of whole processors grew by, wherever they begin anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from targets.energy import Counter, EnergyMeter, energy_between


def write_zone(root: Path, name: str, microjoules: int, limit: int | None = 1_000_000) -> None:
    zone = root / name
    zone.mkdir(exist_ok=True)
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    if limit is not None:
        (zone / "max_energy_range_uj").write_text(f"{limit}\n")


def test_packages_are_added_up_and_the_zones_inside_of_them_are_not(tmp_path: Path) -> None:
    write_zone(tmp_path, "intel-rapl:0", 100_000)
    write_zone(tmp_path, "intel-rapl:0:0", 70_000)  # the cores of package 0
    write_zone(tmp_path, "intel-rapl:1", 500_000)
    meter = EnergyMeter(tmp_path)
    assert meter.sources == ("intel-rapl:0", "intel-rapl:1")
    before = meter.take()
    write_zone(tmp_path, "intel-rapl:0", 250_000)
    write_zone(tmp_path, "intel-rapl:0:0", 900_000)
    write_zone(tmp_path, "intel-rapl:1", 530_000)
    assert energy_between(before, meter.take()) == pytest.approx(0.18)


def test_the_platform_is_not_counted_beside_its_packages(tmp_path: Path) -> None:
    for number, name in enumerate(("package-0", "psys", "package-1")):
        write_zone(tmp_path, f"intel-rapl:{number}", 100_000)
        (tmp_path / f"intel-rapl:{number}" / "name").write_text(f"{name}\n")
    assert EnergyMeter(tmp_path).sources == ("intel-rapl:0", "intel-rapl:2")


def test_a_counter_may_begin_anew(tmp_path: Path) -> None:
    write_zone(tmp_path, "intel-rapl:0", 990_000)
    meter = EnergyMeter(tmp_path)
    before = meter.take()
    write_zone(tmp_path, "intel-rapl:0", 40_000)
    assert energy_between(before, meter.take()) == pytest.approx(0.05)


def test_no_counter_is_no_energy_rather_than_none_taken(tmp_path: Path) -> None:
    meter = EnergyMeter(tmp_path)
    assert meter.sources == ()
    assert energy_between(meter.take(), meter.take()) is None


def test_a_counter_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0").mkdir()
    write_zone(tmp_path, "intel-rapl:1", 0)
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("not a number")
    assert EnergyMeter(tmp_path).sources == ()


def test_a_counter_that_vanishes_leaves_no_figure() -> None:
    before = {"a": Counter(1.0), "b": Counter(2.0)}
    assert energy_between(before, {"a": Counter(3.0)}) is None
