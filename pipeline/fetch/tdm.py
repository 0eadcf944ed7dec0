"""tdmrep.json: what a site reserves from text and data mining (TDM Reservation Protocol, EU directive 2019/790 Art. 4).

Read once per authority, after its robots.txt. A file that is missing or cannot be read reserves nothing, and the
``TDM-Reservation`` header of a single answer comes before the file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import unquote

from pipeline.fetch.client import Answer, Client
from pipeline.fetch.policy import Target, parse_url

_MAX_RULES = 1_000


@dataclass(frozen=True)
class Reservations:
    """What one authority reserves.

    Attributes:
        rules: Location patterns with whether they reserve, in the file's order.
    """

    rules: tuple[tuple[str, bool], ...] = ()

    @cached_property
    def _compiled(self) -> list[tuple[re.Pattern[str], bool]]:
        return [(_pattern(location), reserved) for location, reserved in self.rules]

    def reserve(self, target: Target) -> bool:
        """Whether a URL of this authority is reserved; the first rule that matches decides."""
        path = unquote(target.path)
        return next((reserved for pattern, reserved in self._compiled if pattern.match(path)), False)


def _pattern(location: str) -> re.Pattern[str]:
    """A location as in robots.txt: a beginning of the path, ``*`` for any characters, ``$`` for the end."""
    end = location.endswith("$")
    parts = re.sub(r"\*+", "*", location.removesuffix("$")).split("*")
    # Possessive: a hostile file with many stars must not cost more than one pass for each.
    literal = [re.escape(unquote(part)) for part in parts]
    body = literal[0] + "".join(rf"(?>.*?{part})" for part in literal[1:-1])
    if len(literal) > 1:
        body += f".*{literal[-1]}" if end else rf".*?{literal[-1]}"
    return re.compile(body + (r"\Z" if end else ""), re.DOTALL)


def parse(text: str) -> Reservations:
    """Reads a tdmrep.json; what is not a rule is passed over."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return Reservations()
    rules = []
    for rule in (found if isinstance(found, list) else [found])[:_MAX_RULES]:
        if not isinstance(rule, dict):
            continue
        location, reservation = rule.get("location"), rule.get("tdm-reservation")
        if isinstance(location, str) and location and str(reservation) in ("0", "1"):
            rules.append((location if location[0] in "/*" else f"/{location}", str(reservation) == "1"))
    return Reservations(tuple(rules))


def address_of(target: Target) -> Target:
    """The tdmrep.json that speaks for a URL."""
    found = parse_url(f"{target.authority}/.well-known/tdmrep.json")
    assert isinstance(found, Target)  # its parts come from a parsed URL
    return found


def read(client: Client, target: Target) -> tuple[Answer, Reservations]:
    """Fetches the tdmrep.json that speaks for a URL; one request, redirects not followed."""
    answer = client.get(address_of(target), robots=True)
    return answer, parse(answer.body.decode("utf-8", errors="replace"))
