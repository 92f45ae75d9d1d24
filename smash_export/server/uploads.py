"""Image files in a request: the body itself, the files of a form, or a zip of them.

Of a zip no more than a short directory is read before its files are known, whatever it claims, and each file
is read no further than the limit of a whole body. A form is read no further than its first part too many.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Any, NamedTuple

from python_multipart import create_form_parser
from python_multipart.exceptions import FormParserError

from smash_base.errors import InvalidInputError
from smash_export.server.protocol import TooLargeError

_ZIP = b"PK\x03\x04"
_DIRECTORY_BYTES = 2**18  # of a zip: more than a thousand names
_END_BYTES = 2**17  # for looking for the end of a directory: at most 64 KiB of comment follow it
_FIELDS = 64  # of a form, which are not looked at
_KINDS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MAX_NAME = 200


class _Directory(io.BytesIO):
    """A zip of which a bounded part is read while its directory is looked for and read. ZIP64 has a second
    record of where and how large that is: what is read is counted, not what one of the two claims."""

    left: int | None = _DIRECTORY_BYTES + _END_BYTES

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.left is not None:
            self.left -= len(data)
            if self.left < 0:
                raise InvalidInputError("the directory of the zip is too long", expected="few files")
        return data


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
    fields = 0

    def on_file(file: Any) -> None:
        if len(found) == most:
            raise _too_many(most)
        file.file_object.seek(0)
        name = (file.file_name or b"").decode(errors="replace")[-_MAX_NAME:]
        found.append(Upload(name, file.file_object.read()))
        file.close()

    def on_field(field: Any) -> None:
        nonlocal fields
        fields += 1
        if fields > _FIELDS:
            raise InvalidInputError("too many fields in the form", expected=f"at most {_FIELDS}")

    headers = {"Content-Type": content_type.encode("latin-1")}
    try:
        # In memory whatever the size: the body is in memory already and its size is limited.
        parser = create_form_parser(
            headers, on_field, on_file, config={"MAX_MEMORY_FILE_SIZE": len(body) + 1}
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise InvalidInputError("the form cannot be read", received=error) from None
    if not found:
        raise InvalidInputError("the form holds no file", expected="one image file or several")
    return found


def _files_of_zip(data: bytes, most: int, limit: int) -> list[Upload]:
    found: list[Upload] = []
    stream = _Directory(data)
    try:
        with zipfile.ZipFile(stream) as archive:
            stream.left = None
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
                with archive.open(entry) as file:
                    content = file.read(limit + 1)
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
