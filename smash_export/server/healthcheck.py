"""``python -m smash_export.server.healthcheck [PORT]``: whether the server here is ready, for containers.

HTTP or HTTPS, whichever is spoken there; the certificate is for the clients outside and is not checked. Exit
code 0 when ready, 1 when not. The port: the argument, or SMASH_EXPORT_SERVE_PORT, or 8000.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys

_SECONDS = 2.0


def is_ready(port: int) -> bool:
    """Ask ``/v2/health/ready``."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for connection in (
        http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS),
        http.client.HTTPSConnection("127.0.0.1", port, timeout=_SECONDS, context=context),
    ):
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            continue
        finally:
            connection.close()
    return False


if __name__ == "__main__":
    text = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SMASH_EXPORT_SERVE_PORT", "8000")
    sys.exit(0 if text.isdecimal() and is_ready(int(text)) else 1)
