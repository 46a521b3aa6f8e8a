"""Access control: a request must name this server correctly, come from its own page, and show the token if one is set.

Listening on localhost keeps other machines out, but not other websites that are open in a browser on this machine. Such a site
can point its own name at 127.0.0.1, or post to localhost directly; the Host or Origin header gives it away. An origin is scheme,
name and port together: a page on another port of localhost belongs to another program.
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
TOKEN = re.compile(r"[A-Za-z0-9._~-]{1,200}")  # needs no escaping in a URL, a header or a cookie


class Refusal(NamedTuple):
    """HTTP status and message for a request that is not allowed."""

    status: int
    message: str


class Origin(NamedTuple):
    """The origin of a page."""

    scheme: str
    host: str
    port: int


class Access:
    """Decides which requests are allowed.

    Parameters
    ----------
    hosts : iterable of str
        Names of this server. The address that a request arrives at is always one.
    token : str, optional
        Token that every request must show.
    """

    def __init__(self, hosts: Iterable[str] = LOCAL, token: str | None = None) -> None:
        self.hosts, self.token = frozenset(hosts), token

    def refusal(self, scope: Mapping[str, Any]) -> Refusal | None:
        """Why a request is refused, or None if it is allowed."""
        hosts, origins = _values(scope, "host"), _values(scope, "origin")
        if len(hosts) != 1 or len(origins) > 1:
            return Refusal(400, "a request needs exactly one Host and at most one Origin")
        own = _origin(f"{scope.get('scheme', 'http')}://{hosts[0]}")
        name = own.host.strip("[]") if own else ""
        if not (name in self.hosts or _arrived_at(name, scope)):
            known = ", ".join(sorted(self.hosts))
            return Refusal(403, f"this server answers to {known}, not to {shown(hosts[0])}; --allow-host adds a name")
        if origins and _origin(origins[0]) != own:
            return Refusal(403, f"pages from {shown(origins[0])} may not use this server")
        if self.token is not None and not any(_equal(word, self.token) for word in _tokens(scope)):
            return Refusal(
                401, "this server requires the token that `numllama serve` printed: send it as bearer, or open the printed link"
            )
        return None

    def cookie(self, scope: Mapping[str, Any]) -> str | None:
        """The cookie for a browser that opens the link with the token."""
        query = scope.get("query_string", b"").decode("latin-1")
        if self.token is None or scope["method"] != "GET" or scope["path"] != "/" or not query.startswith("token="):
            return None
        if not _equal(query.removeprefix("token="), self.token):
            return None
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        return f"{_cookie_name(scope)}={self.token}; Path=/; HttpOnly; SameSite=Lax{secure}"


def host_names(host: str, also: Sequence[str] = ()) -> frozenset[str]:
    """The names of a server that listens on `host`.

    Parameters
    ----------
    host : str
        A name or an address.
    also : sequence of str
        Further names that lead here, such as a proxy's.

    Raises
    ------
    ValueError
        For an invalid name.
    """
    known = [host.lower(), *LOCAL]
    if host not in LOCAL:
        known.append(socket.gethostname().lower())
    for name in also:
        if not NAME.fullmatch(name.lower()) and not _is_address(name):
            raise ValueError(f"allow_host is {shown(name)}, but must be a name such as box.example, without scheme and port")
    return frozenset([*known, *(name.lower() for name in also)])


def resolve_token(given: str | bool) -> str | None:
    """The given token, a new random one for True, None for False.

    Raises
    ------
    ValueError
        For characters that a URL, a header or a cookie would have to escape.
    """
    if isinstance(given, bool):
        return secrets.token_urlsafe(24) if given else None
    if not TOKEN.fullmatch(given):
        raise ValueError("token must be 1 to 200 letters, digits or any of - . _ ~")
    return given


def is_loopback(address: str) -> bool:
    """Whether an address can be reached from this machine only."""
    return ip_address(address.partition("%")[0]).is_loopback


def _equal(word: str, token: str) -> bool:
    """Compare in constant time."""
    return compare_digest(word.encode("latin-1", "replace"), token.encode("ascii"))


def _tokens(scope: Mapping[str, Any]) -> list[str]:
    """All tokens that a request shows, as bearer or as cookie."""
    bearers = [value.split(" ", 1) for value in _values(scope, "authorization")]
    cookies = [part.strip().split("=", 1) for value in _values(scope, "cookie") for part in value.split(";")]
    return [
        *(words[1].strip() for words in bearers if len(words) == 2 and words[0].lower() == "bearer"),
        *(words[1] for words in cookies if len(words) == 2 and words[0] == _cookie_name(scope)),
    ]


def _values(scope: Mapping[str, Any], name: str) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.decode("latin-1").lower() == name]


def _origin(text: str) -> Origin | None:
    scheme, _, rest = text.lower().partition("://")
    host = HOST.fullmatch(rest)
    return Origin(scheme, host[1], int(host[2] or PORTS.get(scheme, 0))) if host else None


def _arrived_at(name: str, scope: Mapping[str, Any]) -> bool:
    """Whether `name` is the address that a request arrived at."""
    server = scope.get("server")
    return _is_address(name) and bool(server) and _is_address(server[0]) and _plain(name) == _plain(server[0])


def _is_address(text: str) -> bool:
    try:
        ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _plain(text: str) -> Any:
    address = ip_address(text.partition("%")[0])  # the part after % names an interface
    return getattr(address, "ipv4_mapped", None) or address


def _cookie_name(scope: Mapping[str, Any]) -> str:
    """With the port, because the servers of one host share their cookies."""
    return f"numllama-{(scope.get('server') or ('', 0))[1]}"
