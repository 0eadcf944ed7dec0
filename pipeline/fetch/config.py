"""What ``wit fetch`` can be told. Image options carry img2dataset's names, so that its users know them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal

from pipeline.core.config import input_path, input_paths, unhashed

ResizeMode = Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"]
Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos"]
Engine = Literal["native", "img2dataset"]


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Configuration of ``[fetch]``.

    The CLIP paper says nothing on how its images were downloaded; the defaults are those of a careful crawler.

    Attributes:
        pairs: Folder of ``pairs/1``.
        engine: What decodes and resizes: our own code, or img2dataset's (its extra must be installed).
        allow_address: Networks (CIDR) that may be fetched from although they are not global, on any port.
        contact: Address or page at which a site's owner finds us; part of the User-Agent.
        also_obey: Robots of other crawlers whose rules and header opt-outs bind us too where a site names them.
        connect_timeout_s: Longest wait for a connection and its TLS handshake.
        read_timeout_s: Longest silence of a server.
        deadline_s: Longest time for one request, whatever the server does.
        min_rate_bytes_s: Bytes a second below which an answer is given up, on average since its first byte; 0 for none.
        min_rate_grace_s: Seconds from an answer's first byte before its rate counts.
        keep_alive_s: Longest rest of a connection before it is used again for the same host; 0 keeps none.
        dns_concurrency: Names looked up at a time in one group of hosts.
        dns_abort_share: The run stops if more than this share of hosts cannot be looked up for now: the resolver is
            the problem, not the hosts. 1 never stops.
        max_body_bytes: Longest body; checked while it streams.
        max_redirects: Redirects followed for one URL.
        retries: Further attempts after a failure that may pass (timeouts, 429, 5xx).
        backoff_base_s: First back-off; doubles with each attempt, with full jitter.
        backoff_cap_s: Longest back-off of our own.
        retry_after_cap_s: A server that asks for a longer pause is left alone for the rest of the run.
        crawl_delay_cap_s: A robots.txt that asks for a longer gap closes its host for this run.
        breaker_failures: Failures in a row after which a host is left alone for the rest of the run.
        host_concurrency: Requests in flight at one host.
        host_gap_s: Least time between the starts of two requests to one host.
        host_gap_cap_s: The gap doubles with each 429 or 503, up to this, and shrinks again with successes.
        max_per_host: URLs of one host asked for in one run; 0 for all. The rest is left for another run.
        group_budget_s: Time for one group of hosts; what has not started by then is left for another run. 0 for
            no limit.
        tdmrep: Read the ``/.well-known/tdmrep.json`` of each site and heed its reservations.
        host_groups: Groups of hosts that workers take one at a time; 0 chooses from Beam's options.
        active_hosts: Hosts of a group that take turns; the next ones come as these are done.
        fetch_threads: Requests in flight in one group of hosts; their bodies take at most so many times
            ``max_body_bytes`` of memory.
        image_size: Pixels of the side that ``resize_mode`` names.
        resize_mode: ``keep_ratio`` makes the shortest side ``image_size`` long, ``keep_ratio_largest`` the longest;
            ``center_crop`` and ``border`` (white) make squares; ``no`` keeps the size.
        resize_only_if_bigger: Never enlarge.
        upscale_interpolation: Filter for enlarging.
        downscale_interpolation: Filter for shrinking; ``area`` also decodes large JPEGs at a half or less.
        encode_quality: JPEG quality of stored images. Colour is kept at full resolution: at 92 a file is as long as
            one of quality 95 with half of it, and nearer to the picture.
        min_image_size: Least length of the shortest side, in pixels.
        max_aspect_ratio: Most that the long side may be of the short one.
        max_image_area: Most pixels, read from the header before anything is decoded.
        rows_per_shard: Pairs (not images) per shard.
        bytes_per_shard: Cut shards so that they have about so many bytes instead; 0 counts pairs.
        drop_duplicates: Pairs that are not kept: ``image`` drops all but the first whose image has the same bytes,
            ``pair`` those whose caption is the same too. Duplicates are marked in any case.
        top_up: Replace dead links by the same queries' next candidates, from the reserve of ``wit select``.
        reuse: Folders of ``wit fetch`` or img2dataset whose images need not be fetched again.
        retry: Ask again for what failed in a way that may pass, in a finished folder or in one that
            ``--max-bad-fraction`` stopped at its end.
        decode_processes: Images decoded at a time, each in a process of its own, in one worker.
        decode_memory_mb: Most memory that one image may take to decode.
        decode_timeout_s: Most processor time that one image may take to decode.
        deny_hashes: File of SHA-256 sums, one a line; an image with such a sum is not stored.
        drop_reserved_images: Leave out images whose metadata reserves them from data mining or machine learning
            (IPTC, C2PA, TDM). They are recorded as ``rights`` in any case.
        image_scorer: ``package.module:function`` that takes a list of JPEG files and returns a score for each;
            the scores are stored.
        max_image_score: Images that score higher are left out.
    """

    pairs: str | None = input_path()
    engine: Engine = "native"
    allow_address: tuple[str, ...] = ()
    contact: str = ""
    also_obey: tuple[str, ...] = ("img2dataset", "CCBot")
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 10.0
    deadline_s: float = 30.0
    min_rate_bytes_s: int = 1_000
    min_rate_grace_s: float = 5.0
    keep_alive_s: float = unhashed(15.0)
    dns_concurrency: int = unhashed(16)
    dns_abort_share: float = unhashed(0.2)
    max_body_bytes: int = 10 * 2**20
    max_redirects: int = 5
    retries: int = 2
    backoff_base_s: float = 1.0
    backoff_cap_s: float = 60.0
    retry_after_cap_s: float = 120.0
    crawl_delay_cap_s: float = 60.0
    breaker_failures: int = 10
    host_concurrency: int = unhashed(2)
    host_gap_s: float = unhashed(1.0)
    host_gap_cap_s: float = unhashed(30.0)
    max_per_host: int = 0
    group_budget_s: float = unhashed(0.0)
    tdmrep: bool = True
    host_groups: int = unhashed(0)
    active_hosts: int = unhashed(1_000)
    fetch_threads: int = unhashed(64)
    image_size: int = 256
    resize_mode: ResizeMode = "keep_ratio"
    resize_only_if_bigger: bool = True
    upscale_interpolation: Interpolation = "lanczos"
    downscale_interpolation: Interpolation = "area"
    encode_quality: int = 92
    min_image_size: int = 32
    max_aspect_ratio: float = 20.0
    max_image_area: int = 50_000_000
    rows_per_shard: int = 10_000
    bytes_per_shard: int = 0
    drop_duplicates: Literal["none", "pair", "image"] = "none"
    top_up: bool = False
    reuse: tuple[str, ...] = input_paths()
    retry: bool = unhashed(False)
    decode_processes: int = unhashed(2)
    decode_memory_mb: int = 1024
    decode_timeout_s: float = 30.0
    deny_hashes: str | None = input_path()
    drop_reserved_images: bool = True
    image_scorer: str = ""
    max_image_score: float = 0.5

    def __post_init__(self) -> None:
        for network in self.allow_address:
            try:
                ipaddress.ip_network(network, strict=False)
            except ValueError:
                raise ValueError(
                    f"allow_address holds {network!r}: give networks as 127.0.0.0/8 or ::1"
                ) from None
        if any(ord(c) < 32 or ord(c) > 126 for c in self.contact):
            raise ValueError(f"contact is {self.contact!r}: give a plain ASCII address or URL")
        for name in (
            "connect_timeout_s", "read_timeout_s", "deadline_s", "max_body_bytes", "backoff_base_s",
            "backoff_cap_s", "breaker_failures", "dns_concurrency", "host_concurrency", "active_hosts",
            "fetch_threads", "image_size", "max_image_area", "rows_per_shard",
            "decode_processes", "decode_memory_mb", "decode_timeout_s",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give a number above 0")
        for name in (
            "max_redirects", "retries", "retry_after_cap_s", "crawl_delay_cap_s", "host_gap_s", "host_groups",
            "min_image_size", "min_rate_bytes_s", "min_rate_grace_s", "keep_alive_s", "dns_abort_share",
            "host_gap_cap_s", "max_per_host", "group_budget_s", "bytes_per_shard",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give 0 or more")
        if not 1 <= self.encode_quality <= 100:
            raise ValueError(f"encode_quality is {self.encode_quality}: give 1 to 100")
        if not self.max_aspect_ratio >= 1:
            raise ValueError(f"max_aspect_ratio is {self.max_aspect_ratio}: give 1 or more")
