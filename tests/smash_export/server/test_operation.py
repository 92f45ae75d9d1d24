"""What the files in packaging/ say is true of the real server: behind a real nginx, and in Kubernetes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smash_export.cli.serve import command
from tests.smash_export.server.client_requests import png

PACKAGING = Path(__file__).resolve().parents[3] / "packaging"
SITE = "www.example.org"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def nginx(text: str, folder: Path) -> Iterator[None]:
    """nginx with one file of configuration, until the end of the block."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        pytest.skip("needs Debian's package nginx")
    places = "\n".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""  # else its workers may not read the folder
    whole = folder / "nginx.conf"
    whole.write_text(
        f"{user} daemon off; pid {folder}/pid; worker_processes 1; error_log {folder}/error.log;\n"
        f"events {{ worker_connections 256; }}\nhttp {{ access_log off;\n{places}\n{text}\n}}\n"
    )
    process = subprocess.Popen([program, "-c", str(whole), "-p", str(folder)], stderr=subprocess.PIPE)
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def ask(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    deadline = time.monotonic() + 10
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request(method, path, body, {"Host": SITE, **(headers or {})})
            break
        except ConnectionRefusedError:  # nginx is not there yet
            assert time.monotonic() < deadline
            time.sleep(0.02)
    with contextlib.closing(connection):
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def test_behind_a_plain_proxy_pass_the_page_may_ask(server: Any, tmp_path: Path, digits_images: Any) -> None:
    """nginx's default sends its own name for the server as Host: browsers say that it is their site's."""
    front = free_port()
    text = (
        f"server {{ listen 127.0.0.1:{front}; location / {{ proxy_pass http://127.0.0.1:{server.port}; }} }}"
    )
    image = png(digits_images[0][0][:, :, 0])
    with nginx(text, tmp_path):
        assert ask(front, "GET", "/")[0] == 200
        own = {"Origin": f"http://{SITE}", "Sec-Fetch-Site": "same-origin"}
        assert ask(front, "POST", "/v1/predict", image, own)[0] == 200
        other = {"Origin": "http://attacker.example", "Sec-Fetch-Site": "cross-site"}
        assert ask(front, "POST", "/v1/predict", image, other)[0] == 403


def test_the_shipped_configuration_of_nginx(
    digits_bundle: Path, tmp_path: Path, start: Any, tensor: np.ndarray, make_body: Any
) -> None:
    text = (PACKAGING / "nginx.conf").read_text()
    (options,) = re.findall(r"smash-export serve digits-bundle (.+)", text)
    front, grpc_front = free_port(), free_port()
    with start(f"digits={digits_bundle}", *options.split()) as server:
        for written, real in (
            ("server 127.0.0.1:8000;", f"server 127.0.0.1:{server.port};"),
            ("server 127.0.0.1:8001;", f"server {server.addresses['grpc']};"),
            ("listen 80;", f"listen 127.0.0.1:{front};"),
            ("listen 8443 http2;", f"listen 127.0.0.1:{grpc_front} http2;"),
        ):
            assert written in text
            text = text.replace(written, real)
        with nginx(text, tmp_path):
            status, headers, page = ask(front, "GET", "/digits/")
            assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
            for path in re.findall(r'(?:href|src)="(static/[^"]+)"', page.decode()):
                assert ask(front, "GET", f"/digits/{path}")[0] == 200
            status, headers, _ = ask(front, "GET", "/digits")
            assert status == 301  # nginx's own
            assert re.fullmatch(rf"http://{SITE}(:\d+)?/digits/", headers["location"])
            description = json.loads(ask(front, "GET", "/digits/openapi.json")[2])
            assert description["servers"] == [{"url": "/digits"}]
            body, extra = make_body(tensor[:1])
            own = {**extra, "Origin": f"http://{SITE}"}
            assert ask(front, "POST", "/digits/v2/models/digits/infer", body, own)[0] == 200
            for origin in ("http://attacker.example", f"http://{SITE}.attacker.example"):
                other = {**extra, "Origin": origin}
                assert ask(front, "POST", "/digits/v2/models/digits/infer", body, other)[0] == 403
            grpc_is_passed_on(grpc_front)


def grpc_is_passed_on(port: int) -> None:
    grpc = pytest.importorskip("grpc")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=10, wait_for_ready=True) == b"\x08\x01"


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    documents = list(yaml.safe_load_all((PACKAGING / "kubernetes.yaml").read_text()))
    return {document["kind"]: document for document in documents}


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    (only,) = manifest["Deployment"]["spec"]["template"]["spec"]["containers"]
    return dict(only)


def test_kubernetes_arguments_are_those_of_serve(manifest: dict[str, Any]) -> None:
    dockerfile = (PACKAGING.parent / "Dockerfile").read_text()
    (entry,) = re.findall(r"^ENTRYPOINT (\[.+\])$", dockerfile, re.MULTILINE)
    program, name, *fixed = json.loads(entry)
    assert (program, name) == ("smash-export", "serve")
    context = command.make_context("serve", [*fixed, *container(manifest)["args"]])
    ports = {port["name"]: port["containerPort"] for port in container(manifest)["ports"]}
    assert ports == {"http": context.params["port"], "grpc": context.params["grpc_port"]}
    grace = manifest["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > context.params["drain_delay"] + context.params["drain_timeout"]
    (path,) = [name.partition("=")[2] for name in context.params["bundles"]]
    mounts = {mount["mountPath"] for mount in container(manifest)["volumeMounts"]}
    assert path in mounts
    targets = [port["targetPort"] for port in manifest["Service"]["spec"]["ports"]]
    assert set(targets) == set(ports)
    probe = container(manifest)["readinessProbe"]
    unready = probe["periodSeconds"] * probe["failureThreshold"]
    assert context.params["drain_delay"] > unready  # requests are taken until no balancer sends any more


def test_kubernetes_probes_are_answered(manifest: dict[str, Any], server: Any) -> None:
    probes = [
        container(manifest)[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")
    ]
    for probe in probes:
        assert probe["port"] == "http"
        assert server.call("GET", probe["path"], headers={"Host": "10.0.0.7:8000"})[0] == 200


def test_kubernetes_reads_the_key_that_serve_reads(
    manifest: dict[str, Any], digits_bundle: Path, start: Any
) -> None:
    (variable,) = container(manifest)["env"]
    with start(
        f"digits={digits_bundle}",
        "--no-grpc",
        "--drain-delay",
        "0",
        environment={variable["name"]: "12345678"},
    ) as server:
        assert server.call("GET", "/v2")[0] == 401
        assert server.call("GET", "/v2", headers={"X-API-Key": "12345678"})[0] == 200


def test_prometheus_as_documented_reads_the_metrics_of_kubernetes_pods(
    manifest: dict[str, Any], digits_bundle: Path, start: Any
) -> None:
    pod = manifest["Deployment"]["spec"]["template"]["metadata"]
    assert "annotations" not in pod, "they carry no key"
    (job,) = documented_prometheus()["scrape_configs"]
    (variable,) = container(manifest)["env"]
    authorization = job["authorization"]
    secret = variable["valueFrom"]["secretKeyRef"]
    assert authorization["credentials_file"] == f"/etc/{secret['name']}/{secret['key']}"
    kept = {rule["source_labels"][0]: rule["regex"] for rule in job["relabel_configs"]}
    assert kept["__meta_kubernetes_pod_label_app"] == pod["labels"]["app"]
    ports = [port["name"] for port in container(manifest)["ports"]]
    assert kept["__meta_kubernetes_pod_container_port_name"] in ports
    address = {"Host": "10.0.0.7:8000"}
    options = (f"digits={digits_bundle}", "--no-grpc", "--drain-delay", "0")
    with start(*options, environment={variable["name"]: "12345678"}) as server:
        assert server.call("GET", "/metrics", headers=address)[0] == 401
        headers = {**address, "Authorization": f"{authorization['type']} 12345678"}
        status, _, text = server.call("GET", "/metrics", headers=headers)
        assert (status, b"smash_export_" in text) == (200, True)


def documented_prometheus() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    text = (PACKAGING.parent / "docs/how-to/operate.md").read_text()
    (block,) = re.findall(r"```yaml\n(scrape_configs:.*?)```", text, re.DOTALL)
    return dict(yaml.safe_load(block))


def test_the_systemd_unit_finds_the_bundle_where_its_instructions_put_it(
    digits_bundle: Path, tmp_path: Path
) -> None:
    unit = (PACKAGING / "smash-export.service").read_text()
    (line,) = re.findall(r"^#   (.*cp -r .+)$", unit, re.MULTILINE)
    (bundle,) = re.findall(r"^ExecStart=\S+ serve model=(\S+)$", unit, re.MULTILINE)
    (tmp_path / "digits-bundle").symlink_to(digits_bundle)
    (tmp_path / "var/lib").mkdir(parents=True)
    command_line = line.replace(" /var/lib/", f" {tmp_path}/var/lib/").replace("cp -r", "cp -rH")
    subprocess.run(["sh", "-ec", command_line], cwd=tmp_path, check=True)
    assert (tmp_path / bundle.lstrip("/") / "manifest.json").is_file()


def test_systemd_takes_every_line_of_the_unit(tmp_path: Path) -> None:
    systemd = shutil.which("systemd-analyze")
    if systemd is None:
        pytest.skip("needs systemd-analyze")
    unit = (PACKAGING / "smash-export.service").read_text()
    (program,) = re.findall(r"^ExecStart=(\S+)", unit, re.MULTILINE)
    there = Path(sys.executable).with_name("smash-export")
    (tmp_path / "smash-export.service").write_text(unit.replace(program, str(there)))
    checked = subprocess.run(
        [systemd, "verify", "--man=no", tmp_path / "smash-export.service"], capture_output=True, text=True
    )
    ours = [line for line in checked.stderr.splitlines() if "smash-export" in line]
    assert not ours  # it says nothing of what it knows; units of the machine are its own matter


def test_memory_of_kubernetes_holds_all_bodies(manifest: dict[str, Any]) -> None:
    from smash_export.server.middleware import RequestLimits

    limit = container(manifest)["resources"]["limits"]["memory"]
    assert limit == "1Gi"
    assert RequestLimits().all_bodies_bytes <= 2**30 // 2
