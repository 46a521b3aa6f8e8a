"""Who may ask: whoever names this machine rightly, asks from this server's own page, and has the token, if there is one.

Listening on localhost keeps other machines out, but not other people's pages in a browser on this one. Such a page can point its
own name at 127.0.0.1, or post to localhost outright; its host or its origin gives it away. An origin is scheme, name and port
together: a page of another port of localhost is another program's.
"""

import re
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from hmac import compare_digest
from ipaddress import ip_address
from typing import Any, NamedTuple

from numllama.errors import shown

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
HOST = re.compile(rf"({NAME.pattern}|\[[0-9a-f:.]+\])(?::(\d{{1,5}}))?")
PORTS = {"http": 80, "https": 443}
TOKEN = re.compile(r"[A-Za-z0-9._~-]{1,200}")  # stands in an address, a header and a cookie as it is


class Refused(NamedTuple):
    """Why a request is not answered."""

    status: int
    sentence: str


class Origin(NamedTuple):
    """Where a page comes from."""

    scheme: str
    host: str
    port: int


class Access:
    """Says of each request whether it may be made.

    Parameters
    ----------
    hosts : iterable of str
        The names that this server may be asked for by, besides the address that a request arrives at.
    token : str, optional
        What everybody has to show.
    """

    def __init__(self, hosts: Iterable[str] = LOCAL, token: str | None = None) -> None:
        self.hosts, self.token = frozenset(hosts), token

    def refused(self, scope: Mapping[str, Any]) -> Refused | None:
        """Why a request is refused, or None."""
        hosts, origins = _values(scope, "host"), _values(scope, "origin")
        if len(hosts) != 1 or len(origins) > 1:
            return Refused(400, "a request needs one Host, and at most one Origin")
        own = _origin(f"{scope.get('scheme', 'http')}://{hosts[0]}")
        name = own.host.strip("[]") if own else ""
        if not (name in self.hosts or _arrived_at(name, scope)):
            known = ", ".join(sorted(self.hosts))
            return Refused(403, f"this server is asked for as {known}, not as {shown(hosts[0])}; --allow-host adds a name")
        if origins and _origin(origins[0]) != own:
            return Refused(403, f"a page of {shown(origins[0])} may not use this server")
        if self.token is not None and not any(self._is_token(word) for word in self._shown(scope)):
            return Refused(
                401, "this server asks for its token, which `numllama serve` has printed: as bearer, or by its page's link"
            )
        return None

    def cookie(self, scope: Mapping[str, Any]) -> str | None:
        """The cookie for a browser that follows the link with the token in it."""
        query = scope.get("query_string", b"").decode("latin-1")
        if self.token is None or scope["method"] != "GET" or scope["path"] != "/" or not query.startswith("token="):
            return None
        if not self._is_token(query.removeprefix("token=")):
            return None
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        return f"{_cookie_name(scope)}={self.token}; Path=/; HttpOnly; SameSite=Lax{secure}"

    def _is_token(self, word: str) -> bool:
        return compare_digest(word.encode("latin-1", "replace"), self.token.encode("ascii"))

    def _shown(self, scope: Mapping[str, Any]) -> list[str]:
        """All that a request shows as token."""
        bearers = [value.split(" ", 1) for value in _values(scope, "authorization")]
        cookies = [part.strip().split("=", 1) for value in _values(scope, "cookie") for part in value.split(";")]
        return [
            *(words[1].strip() for words in bearers if len(words) == 2 and words[0].lower() == "bearer"),
            *(words[1] for words in cookies if len(words) == 2 and words[0] == _cookie_name(scope)),
        ]


def names_of(host: str, also: Sequence[str] = ()) -> frozenset[str]:
    """The names of a server that listens on `host`.

    Parameters
    ----------
    host : str
        A name or an address.
    also : sequence of str
        Others that lead here: of a proxy, of another machine whose port is forwarded.

    Raises
    ------
    ValueError
        For what is no name.
    """
    known = [host.lower(), *LOCAL]
    if host not in LOCAL:
        known.append(socket.gethostname().lower())
    for name in also:
        if not NAME.fullmatch(name.lower()) and not _is_address(name):
            raise ValueError(f"allow_host is {shown(name)}, but must be a name such as box.example, without scheme and port")
    return frozenset([*known, *(name.lower() for name in also)])


def token_of(given: str | bool) -> str | None:
    """The token that was chosen, a new one for True, or none.

    Raises
    ------
    ValueError
        For what cannot stand in an address, a header and a cookie.
    """
    if isinstance(given, bool):
        return secrets.token_urlsafe(24) if given else None
    if not TOKEN.fullmatch(given):
        raise ValueError("token must be 1 to 200 letters, digits or any of - . _ ~")
    return given


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    return ip_address(address.partition("%")[0]).is_loopback


def _values(scope: Mapping[str, Any], name: str) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.decode("latin-1").lower() == name]


def _origin(text: str) -> Origin | None:
    scheme, _, rest = text.lower().partition("://")
    host = HOST.fullmatch(rest)
    return Origin(scheme, host[1], int(host[2] or PORTS.get(scheme, 0))) if host else None


def _arrived_at(name: str, scope: Mapping[str, Any]) -> bool:
    """Whether `name` is the very address that a request arrived at."""
    server = scope.get("server")
    return _is_address(name) and bool(server) and _is_address(server[0]) and _plain(name) == _plain(server[0])


def _is_address(text: str) -> bool:
    try:
        ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _plain(text: str) -> Any:
    address = ip_address(text.partition("%")[0])  # what follows % is an interface
    return getattr(address, "ipv4_mapped", None) or address


def _cookie_name(scope: Mapping[str, Any]) -> str:
    """With the port: cookies are the host's, and two servers may run on it."""
    return f"numllama-{(scope.get('server') or ('', 0))[1]}"
