"""Which names this server answers to, and whose pages may use it.

A page of attacker.example whose name suddenly points to 127.0.0.1 (DNS rebinding) reaches a server on this
machine with matching Host and Origin. Without a key the Host header must therefore be a name that belongs to
this server: an address, localhost, the name it listens on, or one of ``--allowed-host``. With a key such a
page gets nowhere, and any name will do.

A page of another site must not use the server either: its Origin must be the Host, or what a proxy in front
says the Host was, or one of the allowed names; browsers also say "same-origin" themselves, which stays true
behind a proxy that tells nothing.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

_PUBLIC = frozenset(("/v2/health/live", "/v2/health/ready"))


@dataclass(frozen=True)
class Hosts:
    """The rules of one server.

    Attributes:
        any_name: the Host header is not looked at; a key protects the server.
        names: further names that are accepted, in small letters without port; ``*`` accepts all.
        proxy_headers: believe X-Forwarded-Host; only a proxy may reach the server then.
    """

    any_name: bool = True
    names: frozenset[str] = frozenset()
    proxy_headers: bool = False

    def accept_host(self, path: str, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the Host header names this server. Probes of health may call it as they like."""
        host = headers.get(b"host")
        if self.any_name or host is None or path in _PUBLIC:
            return True
        return self._own(host)

    def accept_origin(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a POST comes from no page, or from a page of this server."""
        origin = headers.get(b"origin")
        if origin is None:
            return True
        site = origin.partition(b"://")[2]
        if site and site == headers.get(b"host"):
            return True
        if self.proxy_headers and site and site == headers.get(b"x-forwarded-host"):
            return True
        named = bool(self.names) and bool(site) and _name_of(site) in self.names
        return named or headers.get(b"sec-fetch-site") == b"same-origin"

    @functools.lru_cache(256)  # noqa: B019 - one or two of these live as long as the process
    def _own(self, host: bytes) -> bool:
        name = _name_of(host)
        if "*" in self.names or name in self.names or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _name_of(host: bytes) -> str:
    """``Name:8000``, ``[::1]:8000`` -> the name or address alone, in small letters."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].rstrip(".")
