"""The table of hostile servers, by what they are hostile with."""

from __future__ import annotations

import socket

from tests.fetch.hostile_servers import (
    CAP,
    HTTPS,
    PICTURE,
    Case,
    answer,
    drip,
    endless,
    head,
    raw,
    reserve,
    reset_after,
    robots,
    to,
)


def bodies() -> list[Case]:
    chunked = head("Transfer-Encoding: chunked")
    both = head("Transfer-Encoding: chunked", "Content-Length: 9") + b"3\r\nabc\r\n0\r\n\r\n"
    zipped = head("Transfer-Encoding: gzip, chunked") + b"3\r\nabc\r\n0\r\n\r\n"
    five = head("Content-Length: 5") + b"xxxxx"
    cases = [
        Case("announces more than it sends", "truncated", raw(head("Content-Length: 9000") + PICTURE)),
        Case("announces a body and sends none", "truncated", raw(head("Content-Length: 9000"))),
        Case("sends nothing and says so", "empty_body", answer(body=b"")),
        Case("sends nothing and closes", "empty_body", raw(head())),
        Case(
            "announces ten gigabytes", "body_too_large", raw(head("Content-Length: 10000000000"), stay=True)
        ),
        Case(
            "announces one byte too much",
            "body_too_large",
            raw(head(f"Content-Length: {CAP + 1}"), stay=True),
        ),
        Case("sends one byte too much", "body_too_large", raw(head() + bytes(CAP + 1))),
        Case("sends exactly what is allowed", None, answer(body=bytes(CAP))),
        Case("never ends", "body_too_large", endless(head(), bytes(8192))),
        Case("never ends in lines", "body_too_large", endless(head(), b"\r\n" * 4096)),
        Case("never ends in chunks", "body_too_large", endless(chunked, b"1000\r\n" + bytes(4096) + b"\r\n")),
        Case("never ends in chunks of one byte", "body_too_large", endless(chunked, b"1\r\nx\r\n" * 1000)),
        Case(
            "chunk of all the memory", "body_too_large", endless(chunked + b"F" * 16 + b"\r\n", bytes(8192))
        ),
        Case("chunk of negative size", "body_too_large", endless(chunked + b"-5\r\n", bytes(8192))),
        Case("chunk size is no number", "truncated", raw(chunked + b"zz\r\nabc\r\n")),
        Case("chunk size is missing", "truncated", raw(chunked + b"\r\n\r\n\r\n")),
        Case("chunk is cut off", "truncated", raw(chunked + b"100\r\nxxx")),
        Case("chunks without an end", "truncated", raw(chunked + b"3\r\nxxx\r\n")),
        Case("chunks of nothing", "empty_body", raw(chunked + b"0\r\n\r\n")),
        Case("chunk line without an end", "bad_response", endless(chunked, b"1" * 8192)),
        Case("chunk extension without an end", "bad_response", endless(chunked + b"5;", b"x" * 8192)),
        Case("trailers without an end", "body_too_large", endless(chunked + b"0\r\n", b"X: y\r\n" * 1000)),
        Case("not chunked although it says so", "truncated", raw(chunked + PICTURE)),
        Case(
            "chunked and a length",
            None,
            raw(both),
        ),
        Case("two lengths", "bad_response", raw(head("Content-Length: 5", "Content-Length: 9") + b"x" * 9)),
        Case("the same length twice", None, raw(head("Content-Length: 5", "Content-Length: 5") + b"x" * 5)),
        Case("a list of lengths", None, raw(head("Content-Length: 5, 5") + b"x" * 5)),
        Case("a negative length", None, raw(head("Content-Length: -5") + b"x" * 9)),
        Case("a length in words", None, raw(head("Content-Length: many") + b"x" * 9)),
        Case("a length in hexadecimal", None, raw(head("Content-Length: 0x10") + b"x" * 16)),
        Case("a length of 5000 digits", None, raw(head("Content-Length: " + "9" * 5000) + b"x" * 9)),
        Case(
            "a second answer behind the first",
            None,
            raw(five + head("Content-Length: 4") + b"evil"),
        ),
        Case("a length and half of it again", None, raw(head("Content-Length: 5") + b"x" * 8, stay=True)),
        Case("a page instead of a picture", None, answer("Content-Type: text/html", body=b"<html>")),
        Case(
            "stops before the last byte", "read_timeout", raw(head("Content-Length: 5") + b"xxxx", stay=True)
        ),
        Case(
            "stops in the middle",
            "read_timeout",
            raw(head("Content-Length: 90000") + bytes(50_000), stay=True),
        ),
        Case("stops in the middle of a chunk", "read_timeout", raw(chunked + b"100\r\nxxx", stay=True)),
        Case("stops before the last chunk", "read_timeout", raw(chunked + b"3\r\nxxx\r\n", stay=True)),
        Case("says no length and does not close", "read_timeout", raw(head() + PICTURE, stay=True)),
        Case("drips its body", "too_slow", drip(head("Content-Length: 9000"), b"x")),
        Case("drips a body without length", "too_slow", drip(head(), b"x")),
        Case("drips chunks", "too_slow", drip(chunked, b"1\r\nx\r\n")),
        Case("drips a chunk size", "too_slow", drip(chunked, b"1")),
        Case("drips trailers", "too_slow", drip(chunked + b"0\r\n", b"X: y\r\n")),
        Case("fast at first then drips", "too_slow", drip(head("Content-Length: 90000") + bytes(500), b"x")),
        Case(
            "just fast enough for ever", "deadline", drip(head("Content-Length: 99999"), bytes(1_200), 0.01)
        ),
        Case(
            "just fast enough in chunks", "deadline", drip(chunked, b"4b0\r\n" + bytes(1_200) + b"\r\n", 0.01)
        ),
        Case(
            "resets in the middle of the body",
            "truncated",
            reset_after(head("Content-Length: 9000") + bytes(500)),
        ),
        Case("resets in the middle of a chunk", "truncated", reset_after(chunked + b"100\r\nxxx")),
    ]
    codings = (
        "gzip",
        "GZIP",
        "x-gzip",
        "deflate",
        "br",
        "zstd",
        "compress",
        "gzip, gzip",
        "identity, gzip",
        "unheard-of",
    )
    cases += [
        Case(
            f"sends {c.replace(', ', ' and ')} unasked {i}", "encoded_body", answer(f"Content-Encoding: {c}")
        )
        for i, c in enumerate(codings)
    ]
    cases += [
        Case(
            "transfers gzip",
            "encoded_body",
            raw(zipped),
        ),
        Case("gzip without an end", "encoded_body", endless(head("Content-Encoding: gzip"), bytes(8192))),
        Case("says identity", None, answer("Content-Encoding: identity")),
        Case("says aws-chunked", None, answer("Content-Encoding: aws-chunked")),
    ]
    return cases


def heads() -> list[Case]:
    ok = head("Content-Length: 3") + b"abc"
    never = "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT"
    statuses = {
        "empty_body": ("204 No", "205 Reset"),
        "bad_response": ("101 Switch", "102 Processing", "199 What", "300 Many", "304 Same", "305 Proxy", "306 Gone",
            "600 Six", "999 Denied", "000 Zero", "099 Low", "20 Short", "2000 Long", "OK 200", "-200 Minus", ""),
        "http_4xx": ("400 Bad", "401 Who", "402 Pay", "403 No", "404 None", "407 Proxy",
            "410 Gone", "416 Range", "418 Teapot", "451 Law", "499 Closed"),
        "http_5xx": ("500 Oops", "501 Not", "502 Bad", "503 Busy", "504 Slow", "520 Odd", "599 Last"),
        "http_429": ("429 Too many",),
    }  # fmt: skip
    cases = [
        Case(
            f"answers {status.partition(' ')[0] or 'nothing'}" + f" {i}",
            reason,
            answer(status=status, body=b""),
        )
        for reason, found in statuses.items()
        for i, status in enumerate(found)
    ]
    cases += [
        Case("answers 206 unasked", None, answer(status="206 Part")),
        Case("one interim answer", None, raw(b"HTTP/1.1 100 Continue\r\n\r\n" + ok)),
        Case("interim answers without an end", "bad_response", endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100)),
        Case("interim answers that drip", "too_slow", drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.1)),
        Case("ten thousand fields", "bad_response", answer(*(f"X-{i}: y" for i in range(10_000)))),
        Case("as many fields as allowed", None, answer(*(f"X-{i}: y" for i in range(98)))),
        Case("a field of 200 kB", "bad_response", answer("X: " + "y" * 200_000)),
        Case("sixty fields of 2 kB", "bad_response", answer(*(f"X-{i}: " + "y" * 2_000 for i in range(60)))),
        Case("a field without an end", "bad_response", endless(head()[:-2] + b"X: ", b"y" * 8192)),
        Case("a field name without an end", "bad_response", endless(head()[:-2], b"y" * 8192)),
        Case("fields without an end", "bad_response", endless(head()[:-2], b"X: y\r\n" * 1000)),
        Case("a folded field without an end", "bad_response", endless(head()[:-2] + b"X: y\r\n", b" y\r\n" * 1000)),
        Case("a status line without an end", "bad_response", endless(b"HTTP/1.1 200 ", b"y" * 8192)),
        Case("empty lines without an end", "bad_response", endless(b"", b"\r\n" * 1000)),
        Case("zeros without an end", "bad_response", endless(b"", bytes(8192))),
        Case("drips its status line", "too_slow", drip(b"", b"H")),
        Case("drips its fields", "too_slow", drip(head()[:-2], b"X: y\r\n", 0.1)),
        Case("drips one field", "too_slow", drip(head()[:-2] + b"X: ", b"y")),
        Case("fields just fast enough", "deadline", drip(head()[:-2] + b"X: ", b"y" * 700, 0.01)),
        Case("says nothing", "read_timeout", raw(stay=True)),
        Case("stops in its status line", "read_timeout", raw(b"HTTP/1.1 2", stay=True)),
        Case("stops in its fields", "read_timeout", raw(head()[:-2] + b"X", stay=True)),
        Case("stops after its fields", "read_timeout", raw(head("Content-Length: 9"), stay=True)),
        Case("closes at once", "truncated", raw()),
        Case("closes in its status line", "bad_response", raw(b"HTT")),
        Case("closes in its fields", "empty_body", raw(head()[:-2] + b"X-A")),
        Case("resets at once", "truncated", reset_after(b"")),
        Case("resets in its fields", "truncated", reset_after(head()[:-2])),
        Case("speaks SSH", "bad_response", raw(b"SSH-2.0-OpenSSH_9.2\r\n", stay=True)),
        Case("speaks SMTP", "bad_response", raw(b"220 mail.test ESMTP\r\n", stay=True)),
        Case("speaks FTP", "bad_response", raw(b"220-Welcome\r\n220 \r\n", stay=True)),
        Case("speaks ICY", "bad_response", raw(b"ICY 200 OK\r\n\r\n", stay=True)),
        Case("speaks RTSP", "bad_response", raw(b"RTSP/1.0 200 OK\r\n\r\n", stay=True)),
        Case("speaks HTTP 2", "bad_response", raw(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18) + b"\n")),
        Case("says HTTP 2", "bad_response", raw(b"HTTP/2.0 200 OK\r\n\r\n", stay=True)),
        Case("says HTTP 0.9", None, raw(b"HTTP/0.9 200 OK\r\n\r\nabc")),
        Case("speaks HTTP 0.9", "bad_response", raw(b"<html>hello</html>\n")),
        Case("speaks TLS in clear", "bad_response", raw(b"\x15\x03\x01\x00\x02\x02\x46\n")),
        Case("speaks HTTP 1.0", None, raw(b"HTTP/1.0 200 OK\r\n\r\nabc")),
        Case("ends lines with a line feed", None, raw(b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc")),
        Case("fields of binary", None, raw(head("Content-Length: 3", "X: \x00\x01\xff\x7f") + b"abc")),
        Case("a type of 30 kB with controls", None, answer("Content-Type: image/\x1b[31m" + "j" * 30_000)),
        Case("a tag with a tab and a zero", None, answer('ETag: "\t\x00x"', "Last-Modified: \x07never")),
        Case("a line that is no field", None, raw(b"HTTP/1.1 200 OK\r\nnothing\r\n\r\nabc")),
        Case("a date to come back that is none", "http_5xx", answer("Retry-After: soon", status="503 Busy")),
        Case("a pause of ages", "host_backoff", answer("Retry-After: " + "9" * 400, status="503 Busy")),
        Case("a pause until the year 9999", "host_backoff", answer(never, status="429 Busy")),
        Case("a pause that is negative", "http_429", answer("Retry-After: -5", status="429 Busy")),
        Case("cookies and a redirect by page", None, answer("Set-Cookie: a=b", "Refresh: 0; url=http://127.0.0.9/")),
    ]  # fmt: skip
    return cases


def places() -> list[Case]:
    """Redirects, addresses, names, ports, TLS."""
    blocked = {
        "private": ("10.0.0.1", "172.16.0.1", "192.168.1.1"), "link-local": ("169.254.169.254",),
        "other loopback": ("127.0.0.9",), "shared": ("100.64.0.1",), "unspecified": ("0.0.0.0",),
        "multicast": ("224.0.0.1",), "broadcast": ("255.255.255.255",), "reserved": ("240.0.0.1",),
        "benchmark": ("198.18.0.1",), "documentation": ("192.0.2.1", "2001:db8::1"), "loopback six": ("::1",),
        "any six": ("::",), "unique local": ("fd00::1",), "link-local six": ("fe80::1", "fe80::1%lo"),
        "site-local six": ("fec0::1",), "mapped": ("::ffff:127.0.0.9", "::ffff:169.254.169.254"),
        "compatible": ("::127.0.0.9",), "NAT64": ("64:ff9b::7f00:9", "64:ff9b:1::a00:1"),
        "6to4": ("2002:7f00:9::",), "Teredo": ("2001:0:0:0:0:0:80ff:fff6",), "multicast six": ("ff02::1",),
        "no address": (), "no address at all": ("nonsense", ""),
        "a thousand": tuple(f"10.0.{i // 250}.{i % 250}" for i in range(1000)),
    }  # fmt: skip
    cases = [Case(f"resolves to {kind}", "blocked_address", addresses=a) for kind, a in blocked.items()]
    literals = (
        "2130706441", "0x7f000009", "0177.0.0.9", "127.9", "[::ffff:7f00:9]",
        "[::ffff:127.0.0.9]", "169.254.169.254", "127.0.0.9", "0",
    )  # fmt: skip
    cases += [
        Case(f"literal {i}", "blocked_address", url=f"http://{literal}:{{port}}/{{host}}.jpg")
        for i, literal in enumerate(literals)
    ]
    cases += [
        Case("two addresses the first dead", None, answer(), addresses=("127.0.0.6", "127.0.0.1")),
        Case("two addresses the first private", None, answer(), addresses=("10.0.0.1", "127.0.0.1")),
        Case("is not there", "connect_refused", addresses=("127.0.0.6",)),
        Case("is not there a hundred times", "connect_refused", addresses=("127.0.0.6",) * 100),
        Case("does not accept", "connect_timeout", url="http://{host}:{full}/p.jpg"),
        Case("accepts and is silent", "robots_unreachable", url="http://{host}:{silent}/p.jpg"),
        Case("accepts and closes", "robots_unreachable", url="http://{host}:{closes}/p.jpg"),
        Case("accepts and resets", "robots_unreachable", url="http://{host}:{resets}/p.jpg"),
        Case("has no name", "dns_nxdomain", error=socket.gaierror(socket.EAI_NONAME, "no")),
        Case("has a name tomorrow", "dns_temp", error=socket.gaierror(socket.EAI_AGAIN, "later")),
        Case("breaks the resolver", "dns_temp", error=OSError("broken")),
        Case("breaks the name", "dns_temp", error=UnicodeError("label too long")),
        Case("hangs in the resolver", "dns_temp", hangs=True),
        Case("port of SSH", "blocked_port", url="http://{host}:22/", addresses=("8.8.8.8",)),
        Case("port of mail", "blocked_port", url="http://{host}:25/", addresses=("8.8.8.8",)),
        Case("port of redis", "blocked_port", url="https://{host}:6379/", addresses=("2606:4700::1",)),
        Case("TLS and good", None, answer(), url=HTTPS),
        Case("TLS under another name", "tls_error", url="https://other.invalid:{tls}/p.jpg"),
        Case("TLS with an old certificate", "tls_error", url="https://{host}:{expired}/p.jpg"),
        Case("TLS that signed itself", "tls_error", url="https://{host}:{selfsigned}/p.jpg"),
        Case("TLS that is not", "connect_timeout", url="https://{host}:{port}/p.jpg"),
        Case("TLS that is silent", "connect_timeout", url="https://{host}:{silent}/p.jpg"),
        Case("TLS that closes", "tls_error", url="https://{host}:{closes}/p.jpg"),
        Case("TLS that resets", "tls_error", url="https://{host}:{resets}/p.jpg"),
        Case("TLS that speaks SSH", "tls_error", url="https://{host}:{ssh}/p.jpg"),
        Case("TLS that drips its handshake", "connect_timeout", url="https://{host}:{drips}/p.jpg"),
        Case("TLS that floods its handshake", "tls_error", url="https://{host}:{floods}/p.jpg"),
        Case("TLS with a cut body", "truncated", raw(head("Content-Length: 9000") + b"x"), url=HTTPS),
        Case("TLS with a dripping body", "too_slow", drip(head("Content-Length: 9000"), b"x"), url=HTTPS),
        Case("TLS without an end", "body_too_large", endless(head(), bytes(8192)), url=HTTPS),
        Case("TLS with a reset body", "truncated", reset_after(head("Content-Length: 9000") + b"x"), url=HTTPS),
        Case("clear on the port of TLS", "robots_unreachable", url="http://{host}:{tls}/p.jpg"),
    ]  # fmt: skip
    on = head("Location: http://good-3.site.test:{port}/a.jpg", status="302 F")
    on_slowly = head("Location: http://good-3.site.test:{port}/b.jpg", "Content-Length: 99", status="302 F")
    bad = {
        "a private address": "http://10.0.0.1/", "the metadata address": "http://169.254.169.254/latest/",
        "a mapped address": "http://[::ffff:127.0.0.9]/", "one number": "http://2130706441/",
        "another loopback": "http://127.0.0.9:{port}/", "a file": "file:///etc/passwd",
        "data": "data:image/png;base64,AAAA",
        "FTP": "ftp://127.0.0.1/x", "gopher": "gopher://127.0.0.1:6379/_x", "a script": "javascript:alert(1)",
        "nowhere": "", "credentials": "http://me:secret@127.0.0.1:{port}/", "half an address": "http://[::1",
        "a port too high": "http://127.0.0.1:99999/", "a long URL": "/" + "a" * 9000, "a name of a private": "http://resolves-to-private.site.test/",
        "a zero byte": "http://127.0.0.1:{port}/\x00", "a backslash": "http:\\\\127.0.0.9\\x\x7f",
    }  # fmt: skip
    cases += [Case(f"sends on to {what}", "redirect_blocked", to(place)) for what, place in bad.items()]
    cases += [
        Case("sends on without saying where", "redirect_blocked", answer(status="302 Found", body=b"")),
        Case("sends on to itself", "too_many_redirects", to("/picture.jpg")),
        Case("sends on for ever", "too_many_redirects", to("/more")),
        Case("sends on to its own page", "too_many_redirects", to("?x=1", "301 Moved")),
        Case("sends on to a good one", None, to("http://good-0.site.test:{port}/sent-on.jpg", "308 Moved")),
        Case("sends on by scheme only", None, to("//good-1.site.test:{port}/sent-on.jpg", "303 See")),
        Case("sends on to TLS that is not", "connect_timeout", to("https://good-1.site.test:{port}/x", "307 Moved")),
        Case("sends on to TLS that is", None, to("https://good-1.site.test:{tls}/x.jpg", "301 Moved")),
        Case("sends on to no name", "dns_nxdomain", to("http://has-no-name.site.test/x")),
        Case("sends on to nobody", "connect_refused", to("http://is-not-there.site.test:{port}/x")),
        Case("sends on to silence", "robots_unreachable", to("http://good-2.site.test:{silent}/x")),
        Case("sends on with a body without end", None, endless(on, bytes(8192))),
        Case("sends on with a body that drips", None, drip(on_slowly, b"x")),
        Case("sends on in raw UTF-8", None, to("http://good-3.site.test:{port}/\xc3\xbc.jpg")),
    ]  # fmt: skip
    return cases


def wishes() -> list[Case]:
    """Opt-outs, robots.txt and tdmrep.json, meant and malicious."""
    tags = (
        "noai", "noimageai", "noindex", "noimageindex", "none", "noml", "NOAI", "nofollow, noai", "webimagetext: noai",
        "img2dataset: noindex", "CCBot: none", "*: noml", "otherbot: all, webimagetext: noai",
        "unavailable_after: 25 Jun 2010 15:00:00 PST", "unavailable_after: Friday, 25-Jun-10 15:00:00 UTC",
        "unavailable_after: 2010-06-25", "webimagetext: unavailable_after: 2010-06-25T00:00:00Z",
        "max-snippet: 5, noai",
    )  # fmt: skip
    cases = [
        Case(f"opts out {i}", "optout_header", answer(f"X-Robots-Tag: {tag}")) for i, tag in enumerate(tags)
    ]
    fine = (
        "otherbot: noai",
        "all",
        "unavailable_after: 2999-01-01",
        "unavailable_after: never",
        "nofollow, noarchive",
    )
    cases += [
        Case(f"does not opt out {i}", None, answer(f"X-Robots-Tag: {tag}")) for i, tag in enumerate(fine)
    ]
    whole = reserve(("/", 1))
    files = {
        "garbage": b"\xff\x00{", "a number": b"1", "deep": b"[" * 100_000,
        "a page": b"<html>", "huge numbers": b"[" + b"9" * 9000 + b"]",
        "other places": b'[{"location": "/private/*", "tdm-reservation": 1}]',
        "wrong types": b'[{"location": 5, "tdm-reservation": 1}, 7, null, {"location": "/", "tdm-reservation": true}]',
        "many stars": b'[{"location": "/' + b"*a" * 50 + b'", "tdm-reservation": 1}]',
    }  # fmt: skip
    cases += [
        Case(f"tdmrep with {what}", None, answer(), tdm=answer(body=text)) for what, text in files.items()
    ]
    groups = robots("".join(f"User-agent: a{i}\nDisallow: /\n" for i in range(3_000)))
    rules = robots("User-agent: *\n" + "".join(f"Disallow: /*{i}$\n" for i in range(4_000)))
    stars = robots("User-agent: *\nDisallow: /" + "*p" * 5_000 + "$")
    page = answer("Content-Type: text/html", body=b"<html>Disallow: /</html>")
    another = robots("User-agent: img2dataset\nDisallow: /")
    hour, ever = robots("User-agent: *\nCrawl-delay: 3600"), robots("User-agent: *\nCrawl-delay: 1e300")
    nonsense = robots("User-agent: *\nCrawl-delay: nan\nRequest-rate: 1/0")
    private = to("http://10.0.0.1/robots.txt")
    slow = drip(head("Content-Length: 999"), b"#")
    cases += [
        Case("opts out in the second field", "optout_header", answer("X-Robots-Tag: all", "X-Robots-Tag: noai")),
        Case("reserves by header", "optout_tdm", answer("tdm-reservation: 1", "tdm-policy: http://127.0.0.9/")),
        Case("reserves training by header", "optout_header", answer("Content-Usage: search=y, train-ai=n")),
        Case("reserves training by robots", "optout_tdm", answer(), robots("Content-Signal: ai-train=no")),
        Case("reserves by tdmrep", "optout_tdm", answer(), tdm=whole),
        Case("reserves pictures by tdmrep", "optout_tdm", answer(), tdm=reserve(("*.jpg$", 1))),
        Case("reserves and lifts by header", None, answer("TDM-Reservation: 0"), tdm=whole),
        Case("reserves and the picture never ends", "optout_tdm", endless(head(), bytes(8192)), tdm=whole),
        Case("reserves and lifts by tdmrep", None, answer(), tdm=reserve(("/pic*.jpg$", 0), ("/", 1))),
        Case("tdmrep without an end", None, answer(), tdm=endless(head(), b" " * 8192)),
        Case("tdmrep that drips", None, answer(), tdm=slow, meets="too_slow"),
        Case("tdmrep that is silent", None, answer(), tdm=raw(stay=True), meets="read_timeout"),
        Case("tdmrep that resets", None, answer(), tdm=reset_after(b"")),
        Case("tdmrep that fails", None, answer(), tdm=answer(status="500 No")),
        Case("tdmrep that sends on to a private address", None, answer(), tdm=to("http://10.0.0.1/")),
        Case("robots that forbids", "robots_disallow", answer(), robots("User-agent: *\nDisallow: /")),
        Case("robots that forbids another downloader", "robots_disallow", answer(), another),
        Case("robots without an end", None, answer(), endless(head(), b"# nothing\n" * 800)),
        Case("robots without an end and no lines", None, answer(), endless(head(), b"x" * 8192)),
        Case("robots of many groups", None, answer(), groups),
        Case("robots of many rules", None, answer(), rules),
        Case("robots of many stars", None, answer(), stars),
        Case("robots of zeros", None, answer(), answer(body=bytes(90_000))),
        Case("robots that is a page", None, answer(), page),
        Case("robots that drips", "robots_unreachable", answer(), slow, meets="too_slow"),
        Case("robots that is silent", "robots_unreachable", answer(), raw(stay=True), meets="read_timeout"),
        Case("robots that resets", "robots_unreachable", answer(), reset_after(b"")),
        Case("robots that fails", "robots_unreachable", answer(), answer(status="500 No")),
        Case("robots that is busy", "robots_unreachable", answer(), answer(status="429 No")),
        Case("robots that is compressed", "robots_unreachable", answer(), answer("Content-Encoding: gzip")),
        Case("robots cut off", "robots_unreachable", answer(), raw(head("Content-Length: 999") + b"User-agent: *")),
        Case("robots that sends on for ever", None, answer(), to("/robots.txt")),
        Case("robots that sends on to a private address", "robots_unreachable", answer(), private),
        Case("robots that sends on to a file", "robots_unreachable", answer(), to("file:///etc/passwd")),
        Case("robots that wants an hour between", "host_backoff", answer(), hour),
        Case("robots that wants for ever between", "host_backoff", answer(), ever),
        Case("robots that wants nonsense between", None, answer(), nonsense),
    ]  # fmt: skip
    return cases


FAMILIES: dict[str, list[Case]] = {
    "bodies": bodies(),
    "heads": heads(),
    "places": places(),
    "wishes": wishes(),
}
