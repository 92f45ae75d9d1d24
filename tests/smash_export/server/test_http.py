"""HTTP as people and programs send it: image files, limits, keys, TLS, wrong requests."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smash_export.bundle.bundle import Bundle
from smash_export.compiling.compile import compile_bundle
from smash_export.server.healthcheck import is_ready
from tests.smash_export.server.client_requests import png


@pytest.fixture(scope="module")
def digit(digits_images: tuple[np.ndarray, np.ndarray]) -> bytes:
    return png(digits_images[0][0][:, :, 0])


def test_an_image_file_is_answered_with_labels(
    server: Any, digit: bytes, digits_images: tuple[np.ndarray, np.ndarray]
) -> None:
    status, headers, body = server.call("POST", "/v1/predict?model=digits&top_k=3", digit)
    answer = json.loads(body)
    assert status == 200
    assert answer["predictions"][0]["label"] == str(digits_images[1][0])
    assert len(answer["predictions"]) == 3
    assert answer["predictions"][0]["probability"] > 0.5
    assert answer["doubtful"] is False
    assert (answer["model"], answer["version"], answer["target"]) == ("digits", "2", "onnxruntime")
    assert set(answer["milliseconds"]) == {"decode", "queue", "run", "total"}
    assert answer["request_id"] == headers["x-request-id"]


def test_an_answer_says_when_the_image_is_perhaps_of_no_class(server: Any) -> None:
    random = np.random.default_rng(0)
    answers = []
    for _ in range(20):
        noise = png(random.integers(0, 256, (8, 8), dtype=np.uint8))
        answers.append(json.loads(server.call("POST", "/v1/predict?model=digits", noise)[2]))
    assert all((a["predictions"][0]["probability"] < 0.5) == a["doubtful"] for a in answers)
    assert {a["doubtful"] for a in answers} == {True, False}


def test_a_form_and_a_jpeg_of_another_size_do_as_well(server: Any, digit: bytes) -> None:
    form = (
        b'--X\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
        b'--X\r\nContent-Disposition: form-data; name="file"; filename="d.png"\r\n\r\n'
        + digit
        + b"\r\n--X--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=X"}
    plain = json.loads(server.call("POST", "/v1/predict", digit)[2])
    status, _, body = server.call("POST", "/v1/predict", form, headers)
    assert status == 200, body
    assert json.loads(body)["predictions"] == plain["predictions"]
    stream = io.BytesIO()
    Image.open(io.BytesIO(digit)).resize((640, 480)).convert("RGB").save(stream, "JPEG")
    assert server.call("POST", "/v1/predict", stream.getvalue())[0] == 200


def test_grey_of_16_bits_is_answered_as_that_of_8(
    server: Any, digits_images: tuple[np.ndarray, np.ndarray]
) -> None:
    pixels = digits_images[0][0][:, :, 0]
    plain, deep = (
        json.loads(server.call("POST", "/v1/predict", png(image))[2])["predictions"]
        for image in (pixels, pixels.astype(np.uint16) * 257)
    )
    assert deep == plain
    status, _, text = server.call("POST", "/v1/predict", png(pixels.astype(np.uint16) * 4))
    assert (status, "all but black" in json.loads(text)["error"]) == (400, True)


@pytest.mark.parametrize("number", ["8", "-1", "00009", "0" * 5000, "x", "\u0663"])
def test_an_example_that_is_not_there_is_said(server: Any, number: str) -> None:
    place = "/v1/models/digits/versions/1/examples/"
    assert server.call("GET", place + "7")[2].startswith(b"\x89PNG")
    status, _, text = server.call("GET", place + urllib.parse.quote(number))
    assert (status, json.loads(text)["error"]) == (404, "there are 8 examples, from 0")


def form_of(files: dict[str, bytes]) -> bytes:
    parts = [
        b'--X\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n%s\r\n'
        % (name.encode(), data)
        for name, data in files.items()
    ]
    return b"".join(parts) + b"--X--\r\n"


def zip_of(files: dict[str, bytes], **options: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["form", "zip", "zip in a form"])
def test_several_files_are_answered_in_their_order(server: Any, digits_images: Any, form: str) -> None:
    files = {f"{number}.png": png(digits_images[0][number][:, :, 0]) for number in range(5)}
    files["3.png"] = b"no image"
    if form != "form":
        packed = zip_of({"digits/": b"", "__MACOSX/x": b"", **{f"digits/{n}": d for n, d in files.items()}})
        body, headers = packed, {"Content-Type": "application/zip"}
    if form != "zip":
        body = form_of(files if form == "form" else {"all.zip": packed})
        headers = {"Content-Type": "multipart/form-data; boundary=X"}
    status, _, text = server.call("POST", "/v1/predict?top_k=2", body, headers)
    answer = json.loads(text)
    assert status == 200, answer
    names = [row["file"].rpartition("/")[2] for row in answer["results"]]
    assert names == list(files)
    for number, row in enumerate(answer["results"]):
        if number == 3:
            assert "not an image" in row["error"]
            continue
        assert row["predictions"][0]["label"] == str(digits_images[1][number])
        assert len(row["predictions"]) == 2
        single = json.loads(server.call("POST", "/v1/predict?top_k=2", files[f"{number}.png"])[2])
        assert row["predictions"][0]["probability"] == pytest.approx(
            single["predictions"][0]["probability"], abs=1e-5
        )


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (zip_of({}) + b"x", 400, "not an image"),  # an empty zip begins otherwise
        (zip_of({"a/": b""}), 400, "holds no file"),
        (zip_of({"a.png": b"x", "b.png": b"y"}), 400, "none of 2 files"),
        (zip_of({f"{n}.png": b"" for n in range(300)}), 400, "at most 256"),
        (zip_of({"a.png": bytes(40 * 2**20)}), 413, "too large together"),
        (zip_of({"a.png": b"x"})[:-10], 400, "zip cannot be read"),
        (zip_of({"a.png": b"some bytes"}).replace(b"some bytes", b"other byte"), 400, ""),
    ],
)
def test_a_zip_that_is_no_batch_of_images_is_refused(
    server: Any, body: bytes, status: int, words: str
) -> None:
    got, _, text = server.call("POST", "/v1/predict", body)
    assert got == status, text
    assert words in json.loads(text)["error"]


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 2.5 thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (50_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    data = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "words"),
    [
        ("/v1/predict", b"not an image", {}, 400, "not an image this program reads"),
        ("/v1/predict", b"", {}, 400, "empty"),
        ("/v1/predict", bomb(), {}, 400, "too many pixels"),
        ("/v1/predict?top_k=0", b"x", {}, 400, "top_k; expected 1 to 1000"),
        ("/v1/predict?top_k=%00", b"x", {}, 400, "top_k"),
        ("/v1/predict?model=nothing", b"x", {}, 404, "no model 'nothing' is served here; expected digits"),
        ("/v1/predict?model=digits&version=7", b"x", {}, 404, "version 7"),
        ("/v1/predict", b"x", {"Content-Type": "multipart/form-data"}, 400, "form"),
        ("/v1/predict", b"x", {"Content-Type": "multipart/form-data; boundary=X"}, 400, "form"),
        ("/v1/predict", b"x", {"Content-Encoding": "br"}, 415, "expected gzip, deflate or nothing"),
        ("/v1/predict", b"x", {"Content-Encoding": "gzip"}, 400, "the body is not gzip"),
        (
            "/v1/predict",
            gzip.compress(b"x" * 99, mtime=0)[:-9],
            {"Content-Encoding": "gzip"},
            400,
            "less than the whole",
        ),
        ("/v1/predict", gzip.compress(b"x", mtime=0) * 2, {"Content-Encoding": "gzip"}, 400, "after its end"),
        ("/v1/predict", b"x", {"Origin": "http://elsewhere.example"}, 403, "other sites"),
        ("/v2/models/digits/infer", b"{}", {}, 400, "inputs"),
        ("/v2/models/digits/versions/0/infer", b"{}", {}, 404, "version 0"),
        ("/v2/models/%2e%2e%2f/infer", b"{}", {}, 404, ""),
        ("/v2/repository/models/nothing/load", b"", {}, 404, "no model"),
        ("/v2/repository/models/other/load", b'{"parameters":{"config":"{}"}}', {}, 400, "no parameters"),
        ("/v2/nothing", b"", {}, 404, "Not Found"),
        ("/v2", b"", {}, 405, "Method Not Allowed"),
    ],
)
def test_wrong_requests_get_a_sentence(
    server: Any, path: str, body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    got, answered, text = server.call("POST", path, body, headers)
    assert (got, answered["content-type"]) == (status, "application/json")
    assert words in json.loads(text)["error"]


def test_a_form_that_cannot_be_read_is_no_error_of_the_server(server: Any) -> None:
    time.sleep(1.1)  # of refusals so many are logged in a second
    assert server.call("POST", "/v1/predict", b"x", {"Content-Type": "multipart/form-data"})[0] == 400
    assert server.call("GET", "/after-that")[0] == 404
    server.wait_for_log("/after-that")
    assert not [line for line in server.log if json.loads(line)["message"] == "No boundary given"]


def test_request_ids_are_echoed_or_made(server: Any) -> None:
    assert server.call("GET", "/v2", headers={"X-Request-ID": "abc-1"})[1]["x-request-id"] == "abc-1"
    made = server.call("GET", "/v2", headers={"X-Request-ID": "a b\tc"})[1]["x-request-id"]
    assert made != "a b\tc"
    deadline = time.monotonic() + 10
    while not (lines := [json.loads(line) for line in server.log if "find-me" in line]):
        assert time.monotonic() < deadline
        # Again, as lines of refused requests are limited to some in a second, of all tests before.
        server.call("GET", "/v2/models/none", headers={"X-Request-ID": "find-me"})
        time.sleep(0.5)
    assert (lines[0]["status"], lines[0]["path"], lines[0]["message"]) == (404, "/v2/models/none", "request")


def test_metrics_count_requests_batches_and_times(server: Any, tensor: np.ndarray, make_body: Any) -> None:
    def read() -> dict[str, float]:
        text = server.call("GET", "/metrics")[2].decode()
        rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in rows}

    before = read()
    body, headers = make_body(tensor)
    assert server.call("POST", "/v2/models/digits/versions/1/infer", body, headers)[0] == 200
    after = read()
    labels = '{model="digits",version="1"}'
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown[f"smash_export_images_total{labels}"] == 16
    assert grown[f"smash_export_run_seconds_count{labels}"] == 1
    assert grown[f"smash_export_queue_seconds_count{labels}"] == 1
    assert grown[f"smash_export_batch_images_sum{labels}"] == 16
    route = "/v2/models/{model}/versions/{version}/infer"
    assert grown[f'smash_export_requests_total{{code="200",protocol="http",route="{route}"}}'] == 1
    assert after[f"smash_export_queue_images{labels}"] == 0


def test_what_other_clients_send_is_taken(server: Any, tensor: np.ndarray, make_body: Any) -> None:
    """Null for optional fields (pydantic clients), an empty list of outputs, Triton's raw body, a filter."""
    path = "/v2/models/digits/infer"
    entry = {"name": "input", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": tensor[0].ravel().tolist()}
    plain = server.json("POST", path, {"inputs": [entry]})
    assert plain[0] == 200
    for more in ({"id": None}, {"outputs": []}, {"outputs": None, "parameters": None}):
        assert server.json("POST", path, {"inputs": [entry], **more}) == plain
    nested = {**entry, "data": tensor[:1].tolist()}
    assert server.json("POST", path, {"inputs": [nested]}) == plain
    headers = {"Inference-Header-Content-Length": "0"}
    status, _, text = server.call("POST", path, tensor[:1].tobytes(), headers)
    assert (status, json.loads(text)["outputs"]) == (200, plain[1]["outputs"])
    status, _, text = server.call("POST", path, tensor[:1].tobytes()[:-1], headers)
    assert status == 400
    assert "256 bytes" in json.loads(text)["error"]
    text = json.dumps({"inputs": [entry]}).encode()
    status, _, answer = server.call("POST", path, text, {"Content-Encoding": "Identity"})
    assert (status, json.loads(answer)) == plain
    rows = server.json("POST", "/v2/repository/index", {"ready": True})[1]
    assert {row["state"] for row in rows} == {"READY"}
    assert server.json("POST", "/v2/repository/index", {"ready": 1})[0] == 400
    assert server.call("GET", "/v2/")[0] == 200  # answered, not redirected to a scheme of our own


@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", 31), ("deflate", 15), ("deflate", -15)])
def test_a_compressed_body_is_what_it_was(
    server: Any, tensor: np.ndarray, make_body: Any, digit: bytes, encoding: str, wbits: int
) -> None:
    def squeezed(body: bytes) -> bytes:
        writer = zlib.compressobj(wbits=wbits)
        return writer.compress(body) + writer.flush()

    path = "/v2/models/digits/infer"
    body, headers = make_body(tensor)
    _, _, plain = server.call("POST", path, body, headers)
    headers["Content-Encoding"] = encoding
    assert server.call("POST", path, squeezed(body), headers)[2] == plain
    one = server.call("POST", "/v1/predict", digit)[2]
    other = server.call("POST", "/v1/predict", squeezed(digit), {"Content-Encoding": encoding})[2]
    assert json.loads(other)["predictions"] == json.loads(one)["predictions"]


@pytest.mark.parametrize("way", ["short", "usual"])
def test_a_long_answer_is_compressed_for_who_takes_that(
    server: Any, tensor: np.ndarray, make_body: Any, way: str
) -> None:
    path = "/v2/models/digits/infer" + ("" if way == "short" else "?usual")
    body, headers = make_body(np.concatenate([tensor] * 8))
    _, plain_headers, plain = server.call("POST", path, body, headers)
    assert "content-encoding" not in plain_headers
    for accept, encoding in (("gzip, deflate", "gzip"), ("br, deflate;q=0.5, gzip", "deflate")):
        status, got, text = server.call("POST", path, body, {**headers, "Accept-Encoding": accept})
        assert (status, got["content-encoding"]) == (200, encoding)
        assert zlib.decompress(text, 47) == plain
        assert len(text) < len(plain)
    for accept in ("br", "gzip;q=0, deflate;q=0.000", ""):
        _, got, text = server.call("POST", path, body, {**headers, "Accept-Encoding": accept})
        assert ("content-encoding" not in got, text) == (True, plain)
    body, headers = make_body(tensor[:1])  # too short to be worth it
    assert (
        "content-encoding" not in server.call("POST", path, body, {**headers, "Accept-Encoding": "gzip"})[1]
    )


def test_versions_are_chosen_and_the_newest_is_the_default(
    server: Any, tensor: np.ndarray, make_body: Any
) -> None:
    body, headers = make_body(tensor[:1])
    for path, version in (("digits", "2"), ("digits/versions/1", "1"), ("other", "1")):
        status, _, text = server.call("POST", f"/v2/models/{path}/infer", body, headers)
        assert (status, json.loads(text)["model_version"]) == (200, version)


@pytest.fixture(scope="module")
def strict(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory, start: Any) -> Any:
    """A server with small limits and a key."""
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_text("correct horse\n")
    options = [
        "--max-body",
        "0.01",
        "--max-pixels",
        "900",
        "--body-timeout",
        "0.5",
        "--api-key-file",
        str(key),
    ]
    with start(f"digits={digits_bundle}", *options, "--drain-delay", "0") as server:
        yield server


KEY = {"Authorization": "Bearer correct horse"}


def test_without_the_key_only_health_and_the_page_answer(strict: Any) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/", "/static/page.js", "/openapi.json"):
        assert strict.call("GET", path)[0] == 200
    for path in ("/v2", "/metrics", "/v1/models", "/v2/models/digits"):
        status, headers, body = strict.call("GET", path, headers={"X-API-Key": "wrong"})
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert "API key" in json.loads(body)["error"]
        assert strict.call("GET", path, headers=KEY)[0] == 200
    assert strict.call("GET", "/v2", headers={"X-API-Key": "correct horse"})[0] == 200


def test_grpc_asks_for_the_key_too(strict: Any) -> None:
    grpc = pytest.importorskip("tritonclient.grpc")
    utils = pytest.importorskip("tritonclient.utils")
    with grpc.InferenceServerClient(strict.addresses["grpc"]) as client:
        assert client.is_server_live()
        with pytest.raises(utils.InferenceServerException, match="API key"):
            client.get_model_metadata("digits")
        assert client.get_model_metadata("digits", headers={"x-api-key": "correct horse"}).name == "digits"


def test_a_large_body_is_refused_by_its_claim_and_by_its_bytes(strict: Any) -> None:
    assert strict.call("POST", "/v1/predict", bytes(20_000), KEY)[0] == 413
    connection = http.client.HTTPConnection(strict.host, strict.port, timeout=10)
    with contextlib.closing(connection):
        chunks = (bytes(1000) for _ in range(20))
        with contextlib.suppress(BrokenPipeError):  # refused, and closed, before all of it was sent
            connection.request("POST", "/v1/predict", chunks, KEY, encode_chunked=True)
        answer = connection.getresponse()
        assert answer.status == 413
        assert "at most" in json.loads(answer.read())["error"]
    status, _, body = strict.call("POST", "/v1/predict", b"x", {**KEY, "Content-Length": "2000000000"})
    assert status == 413, body


def test_pictures_of_too_many_pixels_are_refused(strict: Any) -> None:
    for side, status in ((30, 200), (31, 400)):
        body = png(np.zeros((side, side), np.uint8))
        got, _, text = strict.call("POST", "/v1/predict", body, KEY)
        assert (got, "too many pixels" in text.decode()) == (status, status == 400)


def test_a_slow_body_is_refused_while_others_are_answered(strict: Any) -> None:
    with socket.create_connection((strict.host, strict.port), timeout=10) as slow:
        slow.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer correct horse\r\n"
            b"Content-Length: 5000\r\n\r\nabc"
        )
        started = time.perf_counter()
        assert strict.call("GET", "/v2/health/live")[0] == 200
        answer = slow.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408")
        assert 0.3 < time.perf_counter() - started < 5
        assert b"onnection: close" in answer


INFER = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nX-API-Key: correct horse\r\n"


@pytest.mark.parametrize("start_of_body", [b"", b"Content-Length: 5000\r\n\r\nabc"])
def test_headers_or_a_tensor_sent_too_slowly_are_refused(strict: Any, start_of_body: bytes) -> None:
    with socket.create_connection((strict.host, strict.port), timeout=10) as slow:
        started = time.perf_counter()
        slow.sendall(INFER + start_of_body)
        answer = slow.recv(65536)
        assert 0.3 < time.perf_counter() - started < 5
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"connection: close" in answer
        assert b"body came" in answer if start_of_body else b"headers came" in answer
        assert slow.recv(100) == b""


def test_dripping_headers_win_no_time_and_silence_is_closed(strict: Any) -> None:
    with socket.create_connection((strict.host, strict.port), timeout=10) as slow:
        started = time.perf_counter()
        with contextlib.suppress(OSError):
            for letter in INFER * 3:
                slow.sendall(bytes([letter]))
                time.sleep(0.05)
                if time.perf_counter() - started > 5:
                    break
        assert time.perf_counter() - started < 5
    with socket.create_connection((strict.host, strict.port), timeout=10) as silent:
        assert silent.recv(100) == b""


def test_the_short_way_of_an_inference_answers_as_the_usual_one(
    server: Any, tensor: np.ndarray, make_body: Any
) -> None:
    """A chunked body goes through the application, one of a known length does not."""
    body, headers = make_body(tensor[:2])
    length = int(headers["Inference-Header-Content-Length"])
    binary = json.loads(body[:length])
    binary["parameters"] = {"binary_data_output": True}
    text = json.dumps(binary).encode()
    for path, sent, extra in (
        ("digits", body, headers),
        ("digits/versions/1", text + body[length:], {"Inference-Header-Content-Length": str(len(text))}),
        ("digits", body[:-4], headers),
        ("digits", body, {"Inference-Header-Content-Length": "99999"}),
        ("digits", b"{}", {}),
        ("digits/versions/3", body, headers),
        ("nothing", body, headers),
        ("digits", body, {**headers, "Origin": "http://elsewhere.example"}),
    ):
        answers = []
        for chunked in (False, True):
            connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
            with contextlib.closing(connection):
                given = {**extra, "X-Request-ID": "same"}
                data = iter([sent[:50], sent[50:]]) if chunked else sent
                connection.request("POST", f"/v2/models/{path}/infer", data, given, encode_chunked=chunked)
                answer = connection.getresponse()
                answers.append((answer.status, sorted(answer.getheaders()), answer.read()))
        assert answers[0] == answers[1], path


def test_a_head_that_came_before_hides_no_difference(
    server: Any, tensor: np.ndarray, logits: np.ndarray, make_body: Any
) -> None:
    """Requests with the same head, and what is nearly the same: cut in two, sent ahead, refused, renamed."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    with contextlib.closing(connection):

        def ask(number: int, *pieces: int, path: str = "digits", **extra: str) -> tuple[int, Any, str | None]:
            body, headers = make_body(tensor[number : number + 1])
            connection.putrequest("POST", f"/v2/models/{path}/infer")
            for name, text in {**headers, **extra, "Content-Length": str(len(body))}.items():
                connection.putheader(name.replace("_", "-"), text)
            connection.endheaders(body[: pieces[0]] if pieces else body)
            if pieces:
                time.sleep(0.05)
                connection.send(body[pieces[0] :])
            answer = connection.getresponse()
            found = json.loads(answer.read())
            return answer.status, found, answer.getheader("X-Request-ID")

        identities = set()
        for number in range(8):
            pieces = (40,) if number % 3 == 2 else ()
            status, found, identity = ask(number, *pieces)
            assert status == 200
            assert np.allclose(found["outputs"][0]["data"], logits[number], atol=1e-4)
            identities.add(identity)
        assert len(identities) == 8
        assert [ask(0, X_Request_ID=name)[2] for name in ("mine", "yours")] == ["mine", "yours"]
        for _ in range(2):
            assert ask(0, path="nothing")[0] == 404
            assert ask(0, Origin="http://elsewhere.example")[0] == 403
            assert ask(0)[0] == 200
        body, headers = make_body(tensor[:1])
        text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = "POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\n"
        head += f"{text}Content-Length: {len(body)}\r\n"
    whole = head.encode() + b"\r\n" + body
    broken = head.encode() + b"\r\n" + body[:-4] + b"\x00\x00\xc0\x7f"  # NaN
    with socket.create_connection((server.host, server.port), timeout=10) as raw:
        for data, statuses in ((whole, [200]), (whole, [200]), (broken, [400]), (whole * 3, [200] * 3)):
            raw.sendall(data)
            got = b""
            while got.count(b"HTTP/1.1 ") < len(statuses) or not got.endswith(b"}"):
                got += raw.recv(65536)
            assert [int(part[:3]) for part in got.split(b"HTTP/1.1 ")[1:]] == statuses


def test_a_key_is_asked_for_whatever_came_before(strict: Any, tensor: np.ndarray, make_body: Any) -> None:
    body, headers = make_body(tensor[:1])
    for key, status in ((KEY, 200), ({}, 401), (KEY, 200), ({"Authorization": "Bearer wrong"}, 401)) * 2:
        assert strict.call("POST", "/v2/models/digits/infer", body, {**headers, **key})[0] == status


def test_requests_sent_ahead_are_answered_in_order(server: Any, tensor: np.ndarray, make_body: Any) -> None:
    def whole(path: str, number: int) -> bytes:
        body, headers = make_body(tensor[number : number + 1])
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: n{number}\r\n"
        head += "".join(f"{name}: {text}\r\n" for name, text in headers.items())
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    live = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nX-Request-ID: live\r\n\r\n"
    path = "/v2/models/digits/infer"
    data = whole(path, 0) + whole(path, 1) + live + whole("/v2/models/nothing/infer", 2) + whole(path, 3)
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall(data)
        got = b""
        while got.count(b"x-request-id") < 5 or b"n3" not in got or not got.endswith(b"}"):
            got += connection.recv(65536)
    order = [got.index(b"x-request-id: " + name) for name in (b"n0", b"n1", b"live", b"n2", b"n3")]
    assert order == sorted(order)
    assert got.count(b"HTTP/1.1 200") == 4
    assert got.count(b"HTTP/1.1 404") == 1


def test_an_answer_that_takes_too_long_is_given_up(
    digits_bundle: Path, start: Any, tensor: np.ndarray, make_body: Any
) -> None:
    """The queue waits ten seconds for company that does not come."""
    options = ["--queue-delay", "10000", "--max-batch", "8", "--answer-timeout", "0.3", "--drain-delay", "0"]
    body, headers = make_body(tensor[:1])
    with start(f"digits={digits_bundle}", *options) as server:
        for chunked in (False, True):
            started = time.perf_counter()
            connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
            with contextlib.closing(connection):
                data = iter([body]) if chunked else body
                connection.request("POST", "/v2/models/digits/infer", data, headers, encode_chunked=chunked)
                answer = connection.getresponse()
                assert (answer.status, answer.getheader("Retry-After")) == (503, "1")
                assert "no answer in time" in json.loads(answer.read())["error"]
            assert 0.2 < time.perf_counter() - started < 5
        grpc = pytest.importorskip("tritonclient.grpc")
        utils = pytest.importorskip("tritonclient.utils")
        given = grpc.InferInput("input", [1, *tensor.shape[1:]], "FP32")
        given.set_data_from_numpy(tensor[:1])
        address, no_answer = server.addresses["grpc"], "no answer in time"
        with (
            grpc.InferenceServerClient(address) as client,
            pytest.raises(utils.InferenceServerException, match=no_answer),
        ):
            client.infer("digits", [given])
        whole, whole_headers = make_body(tensor[:8])  # a full batch waits for nobody
        assert server.call("POST", "/v2/models/digits/infer", whole, whole_headers)[0] == 200


def test_files_that_take_too_long_to_decode_are_given_up(digits_bundle: Path, start: Any) -> None:
    """Hundreds of large pictures in one request hold up one thread until the time is over, and no longer."""
    large = png(np.random.default_rng(0).integers(0, 256, (2000, 2000), dtype=np.uint8))
    body = zip_of({f"{number}.png": large for number in range(60)})
    with start(f"digits={digits_bundle}", "--answer-timeout", "0.3", "--max-body", "512") as server:
        started = time.perf_counter()
        status, headers, answer = server.call("POST", "/v1/predict", body)
        assert (status, headers.get("retry-after")) == (503, "1"), answer
        assert "no answer in time" in json.loads(answer)["error"]
        assert time.perf_counter() - started < 5
        one = png(np.zeros((8, 8), np.uint8))
        assert server.call("POST", "/v1/predict", one)[0] == 200


def test_all_targets_serves_every_compiled_file(
    digits_bundle_copy: Path, start: Any, tensor: np.ndarray, make_body: Any
) -> None:
    pytest.importorskip("openvino")
    compile_bundle(Bundle.open(digits_bundle_copy), "openvino")
    body, headers = make_body(tensor[:1])
    options = ["--all-targets", "--no-grpc", "--drain-delay", "0"]
    with start(f"digits={digits_bundle_copy}", *options) as server:
        rows = server.json("GET", "/v1/models")[1]["models"]
        served = {row["name"]: (row["target"], row["precision"], row["group"]) for row in rows}
        assert served["digits.openvino-fp32"] == ("openvino", "fp32", "digits")
        assert "digits" in served
        answers = []
        for name in ("digits", "digits.openvino-fp32"):
            status, _, text = server.call("POST", f"/v2/models/{name}/infer", body, headers)
            assert status == 200
            answers.append(json.loads(text)["outputs"][0]["data"])
        assert np.allclose(answers[0], answers[1], atol=1e-4)
        batching = rows[0]["batching"]
        assert 1 <= batching["max_batch"] <= 32
        assert batching["images_per_second"]["1"] > 0


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_not_http_harms_nobody(server: Any, data: bytes) -> None:
    address = (server.host, server.port)
    with socket.create_connection(address, timeout=2) as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.recv(1000)
    assert server.call("GET", "/v2/health/live")[0] == 200


def test_tls_encrypts_both_protocols(digits_bundle: Path, certificate: tuple[Path, Path], start: Any) -> None:
    chain, key = certificate
    files = ["--tls-certificate", str(chain), "--tls-key", str(key)]
    with start(f"digits={digits_bundle}", *files, "--drain-delay", "0") as server:
        assert server.addresses["http"].startswith("https://")
        context = ssl.create_default_context(cafile=str(chain))
        connection = http.client.HTTPSConnection(server.host, server.port, context=context, timeout=10)
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().status == 200
        connection.close()
        grpc = pytest.importorskip("tritonclient.grpc")
        assert is_ready(server.port)
        address = server.addresses["grpc"]
        with grpc.InferenceServerClient(address, ssl=True, root_certificates=str(chain)) as client:
            assert client.is_server_ready()


def run_serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "smash_export.cli", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_what_cannot_be_served_is_one_line_and_its_exit_code(digits_bundle: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        results = {
            "port": run_serve(str(digits_bundle), "--port", port),
            "grpc port": run_serve(str(digits_bundle), "--port", "0", "--grpc-port", port),
        }
    for result in results.values():
        assert result.returncode == 2
        assert f"port {port} of 127.0.0.1 cannot be used" in result.stderr.splitlines()[-1]
        assert "--" in result.stderr
    for host in ("203.0.113.7", "no-such-host.invalid"):
        elsewhere = run_serve(str(digits_bundle), "--host", host, "--port", "0", "--no-grpc")
        assert elsewhere.returncode == 2
        assert "--host 127.0.0.1" in elsewhere.stderr.splitlines()[-1]
    nothing = run_serve(str(tmp_path / "nothing"), "--port", "0", "--no-grpc")
    assert nothing.returncode == 6
    assert "is not a bundle" in nothing.stderr.splitlines()[-1]


def test_many_clients_leave_no_thread_or_connection_behind(
    server: Any, tensor: np.ndarray, make_body: Any
) -> None:
    body, headers = make_body(tensor[:1])
    before = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))

    def client() -> None:
        for _ in range(10):
            assert server.call("POST", "/v2/models/digits/infer", body, headers)[0] == 200

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(0.2)
    assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) <= before + 2
