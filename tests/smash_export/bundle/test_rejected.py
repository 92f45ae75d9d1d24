"""Files that compile refused are listed with their reasons; damaged reports hide nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from smash_export.bundle.bundle import Bundle
from smash_export.bundle.rejected import rejected_files


def test_rejected_files_are_listed_with_their_reasons(tmp_path: Path) -> None:
    reports = {
        "targets/mnn/fp16.rejected": json.dumps({"problems": ["a", "b" * 5000]}),
        "targets/openvino/int8.rejected": "{",
        "targets/openvino/fp32": json.dumps({"problems": []}),
    }
    for folder, text in reports.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "report.json").write_text(text)
    bundle = cast(Bundle, SimpleNamespace(path=tmp_path))
    first, second = rejected_files(bundle)
    assert (first.name, first.problems[0], len(first.problems[1])) == ("mnn:fp16", "a", 1000)
    assert (second.name, second.problems) == ("openvino:int8", ("its report.json cannot be read",))
    assert rejected_files(bundle, "openvino", "int8") == [second]
    assert rejected_files(bundle, "ncnn") == []
