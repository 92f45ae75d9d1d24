"""Forms and zips: what is too much is refused before it is read."""

from __future__ import annotations

import io
import struct
import zipfile

import pytest

from smash_base.errors import InvalidInputError
from smash_export.server.uploads import Upload, uploaded

MOST = 4
END_BYTES = 22


def refusal(body: bytes, content_type: str) -> str:
    with pytest.raises(InvalidInputError) as caught:
        uploaded(body, content_type, MOST, 2**20)
    return str(caught.value)


def zip_of(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, name.encode())
    return stream.getvalue()


def with_zip64_record(archive: bytes, directory: bytes) -> bytes:
    """The archive with another directory, which only the records of ZIP64 tell of."""
    end = archive[-END_BYTES:]
    place = struct.unpack_from("<I", end, 16)[0]
    files, count = archive[:place], directory.count(b"PK\x01\x02")
    record = struct.pack(
        "<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), len(files)
    )
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(files) + len(directory), 1)
    return files + directory + record + locator + end


def test_a_zip_with_records_of_zip64_is_read() -> None:
    archive = zip_of("a.png", "b.png")
    size, place = struct.unpack_from("<II", archive[-END_BYTES:], 12)
    found, batch = uploaded(with_zip64_record(archive, archive[place : place + size]), "", MOST, 2**20)
    assert (found, batch) == ([Upload("a.png", b"a.png"), Upload("b.png", b"b.png")], True)


def test_a_long_directory_is_not_read_wherever_it_is_claimed() -> None:
    archive = zip_of(".hidden")
    size, place = struct.unpack_from("<II", archive[-END_BYTES:], 12)
    many = archive[place : place + size] * 20_000  # hidden files are left out, however many they are
    assert "directory of the zip is too long" in refusal(with_zip64_record(archive, many), "")


@pytest.mark.parametrize(
    ("file", "words"),
    [('; filename="a"', f"too many files in one request; expected at most {MOST}"), ("", "fields")],
)
def test_a_form_is_read_no_further_than_its_first_part_too_many(file: str, words: str) -> None:
    part = f'--b\r\nContent-Disposition: form-data; name="f"{file}\r\n\r\nx\r\n'
    what_follows = "--b\r\nno header\r\n\r\n--b--\r\n"
    assert words in refusal((part * 100 + what_follows).encode(), "multipart/form-data; boundary=b")
