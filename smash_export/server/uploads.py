"""Image files in a request: the body itself, the files of a form, or a zip of them.

What a zip claims is checked before anything is read: its directory is short, and each file is read no
further than the limit of a whole body.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from typing import Any, NamedTuple

from python_multipart import create_form_parser
from python_multipart.exceptions import FormParserError

from smash_base.errors import InvalidInputError
from smash_export.server.protocol import TooLargeError

_ZIP = b"PK\x03\x04"
_END = b"PK\x05\x06"
_END_BYTES = 22
_DIRECTORY_BYTES = 2**18  # of a zip: more than a thousand names
_KINDS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MAX_NAME = 200


class Upload(NamedTuple):
    """One file: its name, "" for a body without one, and its bytes."""

    name: str
    data: bytes


def uploaded(body: bytes, content_type: str, most: int, limit: int) -> tuple[list[Upload], bool]:
    """The files of a request, and whether they are a batch: several files of a form, or a zip.

    Args:
        body: the whole body.
        content_type: header of the request.
        most: files, at most.
        limit: bytes of what is in a zip, at most.

    Raises:
        InvalidInputError: no form, no zip, no file, or too many of them.
        TooLargeError: a zip that holds more than ``limit``.
    """
    found = [Upload("", body)]
    form = content_type.lower().startswith("multipart/form-data")
    if form:
        found = _files_of_form(body, content_type, most)
    if len(found) == 1 and found[0].data.startswith(_ZIP):
        return _files_of_zip(found[0].data, most, limit), True
    return found, len(found) > 1


def _files_of_form(body: bytes, content_type: str, most: int) -> list[Upload]:
    found: list[Upload] = []

    def on_file(file: Any) -> None:
        if len(found) <= most:
            file.file_object.seek(0)
            name = (file.file_name or b"").decode(errors="replace")[-_MAX_NAME:]
            found.append(Upload(name, file.file_object.read()))
        file.close()

    headers = {"Content-Type": content_type.encode("latin-1")}
    try:
        # In memory whatever the size: the body is in memory already and its size is limited.
        parser = create_form_parser(
            headers, lambda field: None, on_file, config={"MAX_MEMORY_FILE_SIZE": len(body) + 1}
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise InvalidInputError("the form cannot be read", received=error) from None
    if not found:
        raise InvalidInputError("the form holds no file", expected="one image file or several")
    if len(found) > most:
        raise _too_many(most)
    return found


def _files_of_zip(data: bytes, most: int, limit: int) -> list[Upload]:
    end = data.rfind(_END)
    if (
        end < 0
        or len(data) < end + _END_BYTES
        or struct.unpack_from("<I", data, end + 12)[0] > _DIRECTORY_BYTES
    ):
        raise InvalidInputError("the zip cannot be read", expected="a whole one, with few files")
    found: list[Upload] = []
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                parts = entry.filename.split("/")
                if entry.is_dir() or parts[0] == "__MACOSX" or parts[-1].startswith("."):
                    continue
                if len(found) == most:
                    raise _too_many(most)
                if entry.flag_bits & 1 or entry.compress_type not in _KINDS:
                    raise InvalidInputError(
                        f"{entry.filename[-_MAX_NAME:]} in the zip is packed in an unusual way",
                        expected="stored or deflated, not encrypted",
                    )
                with archive.open(entry) as stream:
                    content = stream.read(limit + 1)
                limit -= len(content)
                if limit < 0:
                    raise TooLargeError("the files in the zip are too large together")
                found.append(Upload(entry.filename[-_MAX_NAME:], content))
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise InvalidInputError("the zip cannot be read", received=error) from None
    if not found:
        raise InvalidInputError("the zip holds no file", expected="image files")
    return found


def _too_many(most: int) -> InvalidInputError:
    return InvalidInputError("too many files in one request", expected=f"at most {most}")
