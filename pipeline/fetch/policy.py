"""What may be fetched, from where, and what a server's answer allows: pure rules, each with its reason.

The network code in ``client`` asks these functions and decides nothing itself.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urljoin, urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

DOWNLOAD_REASONS = (
    "bad_url", "blocked_scheme", "blocked_port", "blocked_address", "robots_disallow", "robots_unreachable",
    "optout_header", "optout_tdm", "optout_meta", "host_quota", "host_backoff", "deferred", "dns_nxdomain",
    "dns_temp", "connect_refused", "connect_timeout", "tls_error", "too_many_redirects", "redirect_blocked",
    "bad_response", "http_4xx", "http_429", "http_5xx", "read_timeout", "deadline", "too_slow", "encoded_body",
    "body_too_large", "truncated", "empty_body", "internal_error",
)  # fmt: skip
IMAGE_REASONS = (
    "not_image", "unsupported_format", "decode_error", "too_many_pixels", "too_small", "aspect_ratio",
    "rights_flag", "blocklisted_hash", "image_scored",
)  # fmt: skip
# Given to pairs whose image was, or could be, fetched.
PAIR_REASONS = ("duplicate", "takedown")
REASONS = (*DOWNLOAD_REASONS, *IMAGE_REASONS, *PAIR_REASONS)
# Failures that may pass within seconds: asked again in the same run.
TRANSIENT = frozenset(
    {
        "dns_temp", "connect_refused", "connect_timeout", "http_429", "http_5xx", "read_timeout", "deadline",
        "truncated",
    }
)  # fmt: skip
# What a later run asks for again; everything else is final.
RETRYABLE = TRANSIENT | {
    "too_slow", "host_quota", "host_backoff", "deferred", "robots_unreachable", "internal_error",
}  # fmt: skip
# What `--max-bad-fraction` is about: a network or disk in trouble, and bodies that are broken. What sites and the
# policy of this run answer, and links that are dead, as many are on the web, are none of it.
DAMAGE = (RETRYABLE - {"host_quota", "deferred", "http_429"}) | {
    "bad_response", "encoded_body", "empty_body", "decode_error",
}  # fmt: skip
# Failures that say that the host, not the one URL, is in trouble: they count for the circuit breaker.
HOST_FAILURES = (TRANSIENT | {"too_slow"}) - {"truncated"}

OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none", "noml"})
_VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
# Not codings at all, but sent as such beside plain bodies.
_PLAIN_CODINGS = frozenset({"", "identity", "none", "binary", "utf-8", "aws-chunked"})
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\.?", re.ASCII)
_MAX_URL = 8_192
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")


@dataclass(frozen=True)
class Refusal:
    """Why something is not fetched, or why an answer is not taken.

    Attributes:
        reason: One of :data:`REASONS`.
        detail: For people; the same for equal input.
    """

    reason: str
    detail: str | None = None


class RefusedError(Exception):
    """A :class:`Refusal` on its way out of the network code."""

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(reason)
        self.refusal = Refusal(reason, detail)


@dataclass(frozen=True, order=True)
class Target:
    """A URL that may be asked for: parsed, in canonical form.

    Attributes:
        url: Canonical form: lower-case scheme and host, no default port, no fragment, ASCII only.
        scheme: ``http`` or ``https``.
        host: Name or literal address, without brackets.
        port: Number.
        path: Path and query as sent.
    """

    url: str
    scheme: str
    host: str
    port: int
    path: str

    @property
    def netloc(self) -> str:
        """Host and port as they stand in URLs and in the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def authority(self) -> str:
        """Scheme, host and port: what one robots.txt speaks for."""
        return f"{self.scheme}://{self.netloc}"


def parse_url(url: str) -> Target | Refusal:
    """Reads a URL as found on a page."""
    url = url.strip()
    if len(url) > _MAX_URL:
        return Refusal("bad_url", "longer than 8,192 characters")
    if any(ord(c) < 32 or ord(c) == 127 for c in url):
        return Refusal("bad_url", "control character")
    try:
        parts = urlsplit(url)
        port = parts.port
        name = parts.hostname or ""
    except ValueError as error:
        return Refusal("bad_url", str(error))
    scheme = parts.scheme.lower()
    if scheme not in _PORTS:
        return Refusal("blocked_scheme" if scheme else "bad_url", scheme or "no scheme")
    if "@" in parts.netloc:
        return Refusal("bad_url", "credentials in the URL")
    host = _ascii_host(name)
    if host is None:
        return Refusal("bad_url", "host name")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._", errors="replace")
    if not path.startswith("/"):
        path = f"/{path}"
    if parts.query:
        path += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]|", errors="replace")
    target = Target("", scheme, host, port if port is not None else _PORTS[scheme], path)
    return Target(target.authority + path, scheme, host, target.port, path)


def _ascii_host(name: str) -> str | None:
    if ":" in name:
        try:
            return str(ipaddress.IPv6Address(name))
        except ValueError:
            return None
    try:
        host = name.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return None
    return host if len(host) <= 253 and _HOST.fullmatch(host) and ".." not in host else None


def redirect(target: Target, location: str | None) -> Target | Refusal:
    """Where an answer sends us on to; the new URL passes the same rules as the first."""
    if not location:
        return Refusal("redirect_blocked", "no Location")
    try:
        # Servers send raw UTF-8 here; header fields arrive decoded as Latin-1.
        text = location.encode("latin-1", errors="replace").decode("utf-8", errors="replace")
        found = parse_url(urljoin(target.url, text.strip()))
    except ValueError:
        return Refusal("redirect_blocked", "bad_url")
    if isinstance(found, Refusal):
        return Refusal("redirect_blocked", f"{found.reason} {found.detail or ''}".strip())
    return found


def networks(cidrs: Iterable[str]) -> tuple[Network, ...]:
    """Parses the networks that the user allows."""
    return tuple(ipaddress.ip_network(c, strict=False) for c in cidrs)


def is_allowed(address: str, allowed: Sequence[Network]) -> bool:
    """Whether the user allows this address by name, whatever kind it is."""
    parsed = _plain_address(address)
    return parsed is not None and any(parsed in network for network in allowed)


def is_global(address: str) -> bool:
    """Whether an address is one of the public Internet, also when it hides inside another one."""
    parsed = _plain_address(address)
    if parsed is None:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.sixtofour or (parsed.teredo or (None, None))[1]
        if inner is None and any(parsed in network for network in _NAT64):
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return is_global(str(inner))
        if parsed not in _GLOBAL_V6:
            return False
    return parsed.is_global and not (parsed.is_multicast or parsed.is_reserved or parsed.is_unspecified)


def _plain_address(address: str) -> Address | None:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed


def choose_addresses(
    target: Target, resolved: Sequence[str], allowed: Sequence[Network]
) -> tuple[str, ...] | Refusal:
    """The addresses of a host that a connection may go to, in the resolver's order."""
    by_user = [a for a in resolved if is_allowed(a, allowed)]
    if by_user:
        return tuple(by_user)
    public = [a for a in resolved if is_global(a)]
    if not public:
        return Refusal("blocked_address", ", ".join(sorted(set(resolved))[:4]))
    if target.port not in _PORTS.values():
        return Refusal("blocked_port", str(target.port))
    return tuple(public)


def user_agent(version: str, contact: str) -> str:
    """Who we say we are: our name, our version, how to reach the person who runs it."""
    return f"{own_token()}/{version}" + (f" (+{contact})" if contact else "")


def own_token() -> str:
    """Our name in robots.txt and X-Robots-Tag."""
    return "webimagetext"


def header_opt_out(
    robots_tags: Iterable[str],
    tdm_reservation: str | None,
    agents: Iterable[str],
    now: datetime | None = None,
) -> Refusal | None:
    """Whether an answer's headers ask not to be used for machine learning or indexing.

    Args:
        robots_tags: Values of all ``X-Robots-Tag`` fields; a directive may be scoped to a bot (``bot: noai``).
        tdm_reservation: Value of ``TDM-Reservation``.
        agents: Names that we answer to.
        now: The time that ``unavailable_after`` is held against; by default the present.
    """
    names = {a.lower() for a in agents}
    for value in robots_tags:
        applies, tokens = True, value.lower().split(",")
        for i, token in enumerate(tokens):
            scope, colon, rest = token.partition(":")
            if colon and scope.strip() not in _VALUED:
                applies, token = scope.strip() in names or scope.strip() == "*", rest
            if applies and token.strip() in OPT_OUTS:
                return Refusal("optout_header", token.strip())
            if applies and _is_past(token, tokens[i + 1 : i + 2], now or datetime.now(UTC)):
                return Refusal("optout_header", "unavailable_after")
    if tdm_reservation is not None and tdm_reservation.strip() == "1":
        return Refusal("optout_tdm", "tdm-reservation: 1")
    return None


def _is_past(token: str, following: Sequence[str], now: datetime) -> bool:
    """Whether a directive says that the time to show its picture is over."""
    name, _, date = token.partition(":")
    if name.strip() != "unavailable_after":
        return False
    # A date that begins with its day of the week has a comma of its own.
    for text in (date, ",".join([date, *following])):
        when = _moment(text.strip())
        if when is not None:
            return when < now
    return False


def _moment(text: str) -> datetime | None:
    """A date as RFC 822 or ISO 8601 write it; without a zone it is UTC."""
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            when = read(text.upper())
        except (ValueError, OverflowError):
            continue
        return when if when.tzinfo else when.replace(tzinfo=UTC)
    return None


def refuses_training(value: str) -> str | None:
    """The part of a ``Content-Signal`` or ``Content-Usage`` value that reserves training; ``None`` if there is none.

    Sources: contentsignals.org (``ai-train=no``) and the IETF's draft-ietf-aipref-vocab (``train-ai=n``).
    """
    for token in value.lower().split(","):
        key, _, answer = (part.strip() for part in token.partition("="))
        if key in ("ai-train", "train-ai") and answer in ("no", "n"):
            return f"{key}={answer}"
    return None


def refused_framing(
    lengths: Iterable[str], transfer_encoding: str | None, content_encoding: str | None
) -> Refusal | None:
    """The reason of a body whose length is disputed, or that is compressed and could grow to any size.

    Args:
        lengths: Values of all ``Content-Length`` fields.
        transfer_encoding: Value of ``Transfer-Encoding``.
        content_encoding: Value of ``Content-Encoding``; nobody asked for any.
    """
    if len({value.strip() for value in lengths}) > 1:
        return Refusal("bad_response", "several lengths")
    codings = {token.strip() for token in (content_encoding or "").lower().split(",")} - _PLAIN_CODINGS
    if (transfer_encoding or "chunked").strip().lower() not in ("chunked", "identity"):
        codings.add((transfer_encoding or "").strip().lower())
    return Refusal("encoded_body", ", ".join(sorted(codings))[:40]) if codings else None


def within_quota(
    targets: Iterable[Target], most: int, spent: Mapping[str, int] | None = None
) -> tuple[list[Target], list[Target]]:
    """Splits URLs into the first ``most`` of each host, in the order given, and the rest.

    Args:
        targets: URLs.
        most: URLs of a host; 0 sets no limit.
        spent: What a host has used up before, by its name: a run that goes on chooses as if it had never stopped.
    """
    counts = Counter(spent or {})
    taken: list[Target] = []
    over: list[Target] = []
    for target in targets:
        counts[target.host] += 1
        (taken if not most or counts[target.host] <= most else over).append(target)
    return taken, over


def refused_status(status: int) -> Refusal | None:
    """The reason of an answer that is neither a success nor a redirect."""
    if 200 <= status < 300:
        return None
    if status == 429:
        return Refusal("http_429", "429")
    if 400 <= status < 500:
        return Refusal("http_4xx", str(status))
    if 500 <= status < 600:
        return Refusal("http_5xx", str(status))
    return Refusal("bad_response", f"status {status}")


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a ``Retry-After`` field asks for, as a number or as a date."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value.strip())
    when = _moment(value.strip())
    return None if when is None else max(0.0, (when - (now or datetime.now(UTC))).total_seconds())


def backoff_s(url: str, attempt: int, *, base_s: float, cap_s: float) -> float:
    """Exponential back-off with full jitter; the jitter is a keyed hash, so equal runs pause alike.

    Args:
        url: What failed.
        attempt: Failures so far, from 1.
        base_s: Most to wait after the first failure.
        cap_s: Most to wait after any.
    """
    digest = hashlib.blake2b(f"{attempt} {url}".encode(), digest_size=8, key=b"wit fetch backoff").digest()
    share = int.from_bytes(digest, "big") / 2**64
    return share * min(cap_s, base_s * 2.0 ** min(attempt - 1, 30))
