"""Pairs of one page, URLs, srcsets, rights and encodings: pure functions."""

from __future__ import annotations

import dataclasses
import re
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.candidates import urls
from pipeline.candidates.encoding import decode
from pipeline.candidates.found import REASONS, Lost, Pair
from pipeline.candidates.page import Context, language_tag, read_page
from pipeline.candidates.rights import header_marks, meta_marks, robots_marks
from pipeline.candidates.srcset import image_url, parse_srcset
from pipeline.candidates.urls import UrlError, absolute_url

PAGE = "http://site.test/dir/page.html"


def pairs(html: str, **context: object) -> list[Pair]:
    found = read_page(html, Context(**{"url": PAGE, "origin": "o", **context}))  # type: ignore[arg-type]
    return [f for f in found if isinstance(f, Pair)]


def losses(html: str, **context: object) -> list[Lost]:
    found = read_page(html, Context(**{"url": PAGE, "origin": "o", **context}))  # type: ignore[arg-type]
    return [f for f in found if isinstance(f, Lost)]


def test_every_kind_of_text_is_found_once() -> None:
    html = """<figure><img src="a.png" alt=" A  red
      apple " title="A red apple" aria-label="fruit">
      <figcaption>An <b>apple</b>&nbsp;&amp; a pear<br>below</figcaption></figure>
      <div class="thumbinner"><a><img src="b.png" alt="pear"></a>
      <div class="thumbcaption">A pear<sup>1</sup></div></div>"""
    assert [(p.text_source, p.text) for p in pairs(html)] == [
        ("alt", "A red apple"),
        ("aria-label", "fruit"),
        ("figcaption", "An apple & a pear below"),
        ("alt", "pear"),
        ("caption", "A pear1"),
    ]


def test_urls_are_resolved_against_base_and_page() -> None:
    images = '<img src="../x y.png" alt=a><img src="//cdn.test/b.png#top" alt=b><img src="/c.png?q=ä" alt=c>'
    assert [p.url for p in pairs(images)] == [
        "http://site.test/x%20y.png",
        "http://cdn.test/b.png",
        "http://site.test/c.png?q=%C3%A4",
    ]
    based = f'<base href="https://other.test/deep/">{images}'
    assert next(p.url for p in pairs(based)) == "https://other.test/x%20y.png"
    assert [p.url for p in pairs('<base href="/deep/"><img src=i.png alt=a>')] == [
        "http://site.test/deep/i.png"
    ]


def test_lazy_images_and_srcsets() -> None:
    blank = "data:image/gif;base64,R0lGOD"
    html = f"""<img src="{blank}" data-src="lazy.png" alt=a>
      <img src="s.png" srcset="s.png 320w, m.png 1100w, l.png 4000w" alt=b>
      <picture><source type="image/avif" srcset="x.avif 2000w"><source srcset="big.webp 900w, small.webp 90w">
      <img src="fallback.png" alt=c></picture>
      <img src="one.png" srcset="one.png 1x, two.png 2x" alt=d><img src="{blank}" alt=e>"""
    assert [p.url.rsplit("/", 1)[1] for p in pairs(html)] == ["lazy.png", "m.png", "big.webp", "two.png"]
    assert [(lost.reason, lost.id) for lost in losses(html)] == [("blocked_scheme", blank)]


def test_losses_have_reasons() -> None:
    html = (
        "<img src=a.png><img src='' alt=x><img src='file:///etc/passwd' alt=x><img src='http://[bad' alt=x>"
        f"<img src=b.png alt=b><img src=b.png alt=b><img src=c.png alt='{'long ' * 9}'>"
    )
    reasons = [lost.reason for lost in losses(html, max_text_chars=20)]
    assert reasons == ["no_text", "bad_url", "blocked_scheme", "bad_url", "repeated_on_page", "text_too_long"]
    assert set(reasons) <= set(REASONS)


def test_relative_image_on_a_page_without_url() -> None:
    html = "<img src=a.png alt=a><img src=http://x.test/b.png alt=b>"
    assert [p.url for p in pairs(html, url=None)] == ["http://x.test/b.png"]
    assert [lost.reason for lost in losses(html, url=None)] == ["relative_url"]


@pytest.mark.parametrize(
    ("head", "mark"),
    [
        ('<meta name="robots" content="NoAI, follow">', "meta robots: noai"),
        (
            '<meta name="ROBOTS" content="max-image-preview: large, noimageindex">',
            "meta robots: noimageindex",
        ),
        ('<meta name="tdm-reservation" content="1">', "meta tdm-reservation: 1"),
        ('<meta name="ccbot" content="none">', "meta ccbot: none"),
    ],
)
def test_pages_that_opt_out_are_dropped_or_marked(head: str, mark: str) -> None:
    html = f"<head>{head}</head><img src=a.png alt=a>"
    assert [(lost.reason, lost.id, lost.detail) for lost in losses(html)] == [
        ("page_opted_out", "http://site.test/dir/a.png", mark)
    ]
    assert [p.rights for p in pairs(html, keep_opted_out=True)] == [(mark,)]


def test_directives_for_other_bots_are_not_ours() -> None:
    assert robots_marks("x-robots-tag", "otherbot: noindex, noai") == []
    assert robots_marks("x-robots-tag", "otherbot: noindex, robots: noai") == ["x-robots-tag: noai"]
    assert robots_marks("x-robots-tag", "unavailable_after: 25 Jun 2030, noindex") == [
        "x-robots-tag: noindex"
    ]
    assert meta_marks([("googlebot", "noindex"), ("robots", "index, follow"), ("tdm-reservation", "0")]) == []
    assert header_marks([("X-Robots-Tag", "noml"), ("TDM-Reservation", " 1 "), ("Server", "none")]) == [
        "x-robots-tag: noml",
        "tdm-reservation: 1",
    ]


def test_page_language() -> None:
    html = '<html lang="en_GB"><meta http-equiv="content-language" content="de"><img src=a alt=a>'
    assert pairs(html, language="fr")[0].page_language == "en-gb"
    assert pairs("<img src=a alt=a>", language="fr, de")[0].page_language == "fr"
    assert pairs("<img src=a alt=a>")[0].page_language is None
    assert language_tag("{{ lang }}", "PT-br") == "pt-br"


def test_deep_nesting_takes_bounded_time() -> None:
    started = time.process_time()
    assert [lost.reason for lost in losses("<div>" * 200_000 + "<img src=a alt=a>")] == ["too_nested"]
    many_images = "<p><img src=a alt=a><br>" * 20_000
    assert len(pairs(many_images)) == 1
    assert time.process_time() - started < 30  # 200,000 levels would take minutes


@given(st.text(max_size=200))
def test_any_page_is_read(text: str) -> None:
    html = f"<img src=a.png alt='x'>{text}<img src={text!r} alt={text!r} srcset={text!r}>"
    for found in read_page(html, Context(url=PAGE, origin="o")):
        if isinstance(found, Pair):
            assert found.url.startswith(("http://", "https://"))
            assert found.text == " ".join(found.text.split())
            found.url.encode()
        else:
            assert found.reason in REASONS


@given(st.text(max_size=100))
def test_absolute_urls_stay_as_they_are(path: str) -> None:
    try:
        url = absolute_url("http://x.test/" + path, PAGE)
    except UrlError:
        assume(False)
    assert absolute_url(url, None) == url


@given(
    st.from_regex(urls._CLEAN, fullmatch=True).filter(lambda url: len(url) < 500),
    st.sampled_from([None, PAGE]),
)
def test_the_short_way_for_clean_urls_changes_none(url: str, base: str | None) -> None:
    found = absolute_url(url, base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(urls, "_CLEAN", re.compile("(?!)"))
        assert absolute_url(url, base) == found == url


def test_srcset_with_commas_and_nonsense() -> None:
    assert parse_srcset("a,b.png 1x, c.png 2.5x") == [("a,b.png", 1.0, "x"), ("c.png", 2.5, "x")]
    assert parse_srcset("a.png 1.2.3x") == []
    assert parse_srcset("plain.png") == [("plain.png", 1.0, "x")]
    assert image_url({"src": None}) is None


@pytest.mark.parametrize(
    ("data", "charset", "text"),
    [
        ("café".encode(), None, "café"),
        ("café".encode("cp1252"), None, "café"),
        ("café".encode("cp1252"), "utf-8", "café"),
        ("café".encode(), "iso-8859-1", "café"),
        ("\ufeffcafé".encode("utf-16-le"), "utf-8", "café"),
        (b'<meta charset="windows-1251">' + "яблоко".encode("cp1251"), None, "яблоко"),
        ("りんご".encode("shift_jis"), "Shift_JIS", "りんご"),
        ("苹果".encode("gb18030"), "gb2312", "苹果"),
        (b"plain", "no-such-charset", "plain"),
        (b"plain", "rot13", "plain"),
    ],
)
def test_encodings(data: bytes, charset: str | None, text: str) -> None:
    assert decode(data, charset).endswith(text)


@given(st.binary(max_size=300), st.sampled_from([None, "utf-8", "gb2312", "utf-16", "idna", "zip", "x" * 50]))
def test_any_bytes_decode(data: bytes, charset: str | None) -> None:
    decode(data, charset).encode(errors="surrogatepass")


@pytest.mark.parametrize(
    ("html", "nearest"),
    [
        ("<div><p><img src=a.jpg></p> A red  fox <b>in</b> snow</div>", "A red fox in snow"),
        ("<div>far</div><p>near<img src=a.jpg></p>", "near"),
        ("<div>further <p><img src=a.jpg><script>var x</script><style>p{}</style></p></div>", "further"),
        (f"<div>{'long ' * 50}<p><img src=a.jpg></p></div>", None),
        ("<img src=a.jpg> the body's own text", None),
        (f"<div>{'<i></i>' * 600}late <img src=a.jpg></div>", None),
        ("<p><img src=a.jpg></p>", None),
    ],
)
def test_the_nearest_text_is_taken_when_asked(html: str, nearest: str | None) -> None:
    context = Context(url="http://a.example/", origin="o", nearest_chars=200)
    found = [(p.text_source, p.text) for p in read_page(html, context) if isinstance(p, Pair)]
    assert found == ([] if nearest is None else [("nearest", nearest)])
    plain = dataclasses.replace(context, nearest_chars=0)
    assert [type(p) for p in read_page(html, plain)] == [Lost]


def test_a_nearest_text_that_is_the_alt_comes_once() -> None:
    context = Context(url="http://a.example/", origin="o", nearest_chars=200)
    found = list(read_page('<p><img src=a.jpg alt="a fox">a fox</p>', context))
    assert [(p.text_source, p.text) for p in found if isinstance(p, Pair)] == [("alt", "a fox")]
