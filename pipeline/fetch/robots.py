"""robots.txt (RFC 9309), read once per authority before anything else is asked of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protego import Protego

from pipeline.fetch.client import Answer
from pipeline.fetch.policy import TRANSIENT, Refusal, Target, own_token, parse_url, redirect, refuses_training

MAX_REDIRECTS = 5
_AGENT_LINE = re.compile(r"^[ \t]*user-agent[ \t]*:[ \t]*([^\s#]+)", re.IGNORECASE | re.MULTILINE)
_FIELD_LINE = re.compile(r"^[ \t]*([a-z-]+)[ \t]*:([^#\r\n]*)", re.IGNORECASE | re.MULTILINE)
# Nothing was asked of the site: its URLs fail for the same reason that its robots.txt did.
_NO_CONNECTION = frozenset(
    {
        "blocked_address", "blocked_port", "dns_nxdomain", "dns_temp", "connect_refused", "connect_timeout",
        "tls_error",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Robots:
    """What one authority allows us.

    Attributes:
        rules: Parsed file; ``None`` allows everything, unless ``closed`` says why nothing is allowed.
        agents: Names whose rules bind us.
        crawl_delay_s: Gap that the file asks for.
        reservation: What the file says of training, if it reserves it.
        closed: Why nothing of this authority may be fetched.
    """

    rules: Any = None
    agents: tuple[str, ...] = ()
    crawl_delay_s: float = 0.0
    reservation: str | None = None
    closed: Refusal | None = None

    def refusal(self, target: Target) -> Refusal | None:
        """Why a URL of this authority may not be fetched; ``None`` if it may."""
        if self.closed is not None or self.rules is None:
            return self.closed
        for agent in self.agents:
            if not self.rules.can_fetch(target.url, agent):
                return Refusal("robots_disallow", agent)
        return None if self.reservation is None else Refusal("optout_tdm", f"robots.txt {self.reservation}")


def parse(text: str, also_obey: Sequence[str]) -> Robots:
    """Reads a robots.txt.

    A file that names us is obeyed as it stands. In any other, the rules for everybody bind us, and those for
    the robots in ``also_obey`` that it names: who shuts out another downloader of training images means us too.
    """
    rules = Protego.parse(text)
    named = {name.lower() for name in _AGENT_LINE.findall(text)}
    agents = [own_token()]
    if own_token() not in named:
        agents += [a for a in also_obey if a.lower() in named]
    delays = []
    for agent in agents:
        delays.append(rules.crawl_delay(agent) or 0.0)
        rate = rules.request_rate(agent)
        if rate is not None and rate.requests:
            delays.append(rate.seconds / rate.requests)
    groups = agents if own_token() in named else [*agents, "*"]
    return Robots(
        rules=rules, agents=tuple(agents), crawl_delay_s=max(delays), reservation=_reservation(text, groups)
    )


def _reservation(text: str, agents: Sequence[str]) -> str | None:
    """What the groups of these agents say of training as a whole; a rule for one path only is passed over."""
    names, group, heads = {agent.lower() for agent in agents}, set[str](), False
    for found in _FIELD_LINE.finditer(text):
        field, value = found.group(1).lower(), found.group(2).strip()
        if field == "user-agent":
            group = group if heads else set()
            group.add(value.lower())
            heads = True
            continue
        heads = False
        if field in ("content-signal", "content-usage") and (not group or group & names):
            reservation = refuses_training(value)
            if reservation is not None:
                return reservation
    return None


def address_of(target: Target) -> Target:
    """The robots.txt that speaks for a URL."""
    found = parse_url(f"{target.authority}/robots.txt")
    assert isinstance(found, Target)  # its parts come from a parsed URL
    return found


def judge(answer: Answer, place: Target, hops: int, also_obey: Sequence[str]) -> Robots | Target:
    """What an answer to a request for a robots.txt means: 4xx allows, 5xx and silence forbid.

    Args:
        answer: What came of it.
        place: The URL that was asked for.
        hops: Redirects that led there.
        also_obey: See :func:`parse`.

    Returns:
        What the file says, or the place that it redirects to.
    """
    if not answer.is_redirect:
        return _verdict(answer, also_obey, redirected=hops > 0)
    found = redirect(place, answer.location)
    if isinstance(found, Refusal):
        return Robots(closed=Refusal("robots_unreachable", "redirect_blocked"))
    return found if hops < MAX_REDIRECTS else Robots()  # RFC 9309 §2.3.1.2: the file counts as unavailable


def _verdict(answer: Answer, also_obey: Sequence[str], *, redirected: bool) -> Robots:
    refusal = answer.refusal
    if refusal is None:
        return parse(answer.body.decode("utf-8", errors="replace"), also_obey)
    if refusal.reason in ("http_4xx", "empty_body"):
        return Robots()
    if refusal.reason in _NO_CONNECTION and not redirected:
        return Robots(closed=refusal)
    detail = refusal.detail if refusal.reason.startswith("http_") else refusal.reason
    return Robots(closed=Refusal("robots_unreachable", detail))


def is_retryable(answer: Answer) -> bool:
    """Whether another attempt at a robots.txt may end better."""
    return answer.refusal is not None and answer.refusal.reason in TRANSIENT
