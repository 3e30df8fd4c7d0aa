from __future__ import annotations

import pytest

from compressor.report.schema import Report


def test_a_row_is_found_by_what_it_is(report: Report) -> None:
    for row in report.rows:
        named = {"kind": row.kind, "target": row.target, "variant": row.variant}
        assert report.row(**named, precision=row.precision) is row
    assert report.row() is report.rows[0]
    with pytest.raises(LookupError, match=r"no row has .*'nowhere'.* original on onnxruntime"):
        report.row(target="nowhere")
