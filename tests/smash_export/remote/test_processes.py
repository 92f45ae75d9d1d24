"""Programs that talk to a device, when they do not end as they should."""

from __future__ import annotations

import pytest

from smash_export.remote import processes
from smash_export.remote.device import DeviceError


def test_an_answer_without_end_is_refused_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MAX_ANSWER_BYTES", 2**20)
    with pytest.raises(DeviceError, match=r"pi answers with too much; expected at most 1 MiB"):
        processes.listen(["cat", "/dev/zero"], 20, name="pi")
    assert processes.listen(["head", "-c", "1048576", "/dev/zero"], 20, name="pi").code == 0
