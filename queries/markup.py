"""The steps from wikitext to running text, compiled, over a text's code points.

Each step goes over the text once, whatever its nesting. It either finds spans that are to be cut out, or moves what
stays to the front and returns the text's new length. What each does, its docstring says as a regular expression;
tests hold it to that.
"""

from __future__ import annotations

import numpy as np

from pipeline.core.alphabet import compiled

# Links nest only in file captions, and captions hold no captions: few rounds are enough for what people write.
_LINK_ROUNDS = 5
_LONGEST_TAG, _LONGEST_URL, _LONGEST_BLANK, _LONGEST_MARGIN = 2000, 2000, 20, 10

_SLASH, _LESS, _MORE, _COLON, _BAR, _BANG = map(ord, "/<>:|!")
_OPEN, _SHUT, _CURL, _UNCURL = map(ord, "[]{}")
_LINE, _TAB, _BLANK, _QUOTE, _LOW, _DASH, _STAR, _HASH = map(ord, "\n\t '_-*#")
_UPPER_A, _UPPER_Z, _LOWER_A, _LOWER_Z, _H, _T, _P, _S = map(ord, "AZazhtps")
_TEMPLATE, _TABLE = 0, 1


@compiled
def scrub(
    text: np.ndarray, word: np.ndarray, space: np.ndarray, folded: np.ndarray, hidden: np.ndarray,
    blocks: np.ndarray, prefixes: np.ndarray,
) -> int:  # fmt: skip
    """Leaves the running text at the front and returns its length.

    Args:
        text: uint32[n], code points; overwritten.
        word: bool[0x110000], see :class:`pipeline.core.alphabet.Alphabet`, as ``space`` and ``folded``.
        space: bool[0x110000].
        folded: uint32[0x110000].
        hidden: Names of elements whose content is no text, uint32[names, longest + 1], folded, filled with zeros.
        blocks: Names of elements that end a line, as ``hidden``.
        prefixes: Names of namespaces whose links show no text, as ``hidden``.
    """
    length = _without_comments(text, len(text))
    starts, ends = np.empty(length // 2 + 2, np.int64), np.empty(length // 2 + 2, np.int64)
    length = _cut(
        text, length, starts, ends, _hidden_elements(text, length, word, folded, hidden, starts, ends)
    )
    length = _cut(text, length, starts, ends, _balanced(text, length, starts, ends))
    length = _without_external(text, length, space)
    length = _without_urls(text, length, space)
    for _ in range(_LINK_ROUNDS):
        length, more = _with_labels(text, _without_files(text, length, folded, prefixes))
        if not more:
            break
    length = _with_breaks(text, length, word, folded, blocks)
    length = _without_tags(text, length)
    return _without_quotes(text, _without_magic(text, length))


@compiled
def _without_comments(text: np.ndarray, length: int) -> int:
    """``<!--.*?-->``; one that never ends is text."""
    place, kept = 0, 0
    more = True  # whether a comment may still end: looking for its end again and again would be quadratic
    while place < length:
        if (
            more and text[place] == _LESS and place + 3 < length and text[place + 1] == _BANG
            and text[place + 2] == _DASH and text[place + 3] == _DASH
        ):  # fmt: skip
            end = place + 4
            while end + 2 < length and not (
                text[end] == _DASH and text[end + 1] == _DASH and text[end + 2] == _MORE
            ):
                end += 1
            if end + 2 < length:
                place = end + 3
                continue
            more = False
        text[kept] = text[place]
        kept += 1
        place += 1
    return kept


@compiled
def _cut(text: np.ndarray, length: int, starts: np.ndarray, ends: np.ndarray, spans: int) -> int:
    """Removes spans, which are in order and apart."""
    if not spans:
        return length
    kept = starts[0]
    for span in range(spans):
        last = starts[span + 1] if span + 1 < spans else length
        for place in range(ends[span], last):
            text[kept] = text[place]
            kept += 1
    return kept


@compiled
def _tag(
    text: np.ndarray, length: int, place: int, word: np.ndarray, folded: np.ndarray, names: np.ndarray
) -> tuple[int, int, bool]:
    """``</?(names)\\b[^<>]{0,2000}>`` at a "<": the name's number or -1, the end, whether it closes."""
    begin = place + 1
    closing = begin < length and text[begin] == _SLASH
    if closing:
        begin += 1
    end = begin
    while end < length and word[text[end]]:
        end += 1
    name = -1
    for row in range(len(names)):
        i = 0
        while i < end - begin and names[row, i] != 0 and names[row, i] == folded[text[begin + i]]:
            i += 1
        if i == end - begin and i > 0 and names[row, i] == 0:
            name = row
    attributes = end
    while end < length and end - attributes <= _LONGEST_TAG and text[end] != _LESS and text[end] != _MORE:
        end += 1
    if name < 0 or end >= length or text[end] != _MORE or end - attributes > _LONGEST_TAG:
        return -1, place + 1, False
    return name, end + 1, closing


@compiled
def _hidden_elements(
    text: np.ndarray, length: int, word: np.ndarray, folded: np.ndarray, names: np.ndarray, starts: np.ndarray,
    ends: np.ndarray,
) -> int:  # fmt: skip
    """Spans of elements whose content is not text; an element that is never closed loses its tag alone."""
    spans = 0
    opened, opened_start, opened_end = -1, 0, 0
    place = 0
    while place < length:
        if text[place] != _LESS:
            place += 1
            continue
        name, end, closing = _tag(text, length, place, word, folded, names)
        if name < 0:
            place = end
            continue
        start, cut_end = -1, end
        alone = not closing and text[end - 2] == _SLASH  # <ref name="x"/>
        if opened < 0:
            if alone or closing:
                start = place
            else:
                opened, opened_start, opened_end = name, place, end
        elif name == opened and not alone:
            start = opened_start
            if closing:
                opened = -1
            else:
                cut_end = opened_end
                opened_start, opened_end = place, end
        if start >= 0:
            starts[spans], ends[spans] = start, cut_end
            spans += 1
        place = end
    if opened >= 0:
        starts[spans], ends[spans] = opened_start, opened_end
        spans += 1
    return spans


@compiled
def _balanced(text: np.ndarray, length: int, starts: np.ndarray, ends: np.ndarray) -> int:
    """Spans of balanced templates and tables, outermost ones only, in order."""
    kinds, places = np.empty(length // 2 + 2, np.int8), np.empty(length // 2 + 2, np.int64)
    still_open = np.zeros(2, np.int64)
    depth, spans, place = 0, 0, 0
    while place < length:
        sign = text[place]
        end = place + 1
        kind, opens, closes = _TEMPLATE, 0, 0
        if sign in (_CURL, _UNCURL):
            while end < length and text[end] == sign:
                end += 1
            # {{{parameter}}} opens once; {{{{ opens two templates.
            if sign == _UNCURL:
                closes = (end - place) // 2
            elif end - place > 1:
                opens = (end - place) // 2
            elif end < length and text[end] == _BAR:
                end += 1
                kind, opens = _TABLE, int(_begins_table(text, place))
        elif sign == _LINE:
            after = _skip(text, length, end, _LONGEST_BLANK, _BLANK, _TAB)
            if _ends_table(text, length, after):
                end = after + 2
                kind, closes = _TABLE, 1
        for _ in range(opens):
            kinds[depth], places[depth] = kind, place
            depth += 1
            still_open[kind] += 1
        for _ in range(closes):
            if not still_open[kind]:
                break
            # Unclosed openings above it go too.
            depth -= 1
            while kinds[depth] != kind:
                still_open[kinds[depth]] -= 1
                depth -= 1
            still_open[kind] -= 1
            while spans and starts[spans - 1] >= places[depth]:
                spans -= 1
            starts[spans], ends[spans] = places[depth], end
            spans += 1
        place = end
    return spans


@compiled
def _begins_table(text: np.ndarray, place: int) -> bool:
    """A table opens at the start of a line, behind indentation or list marks at most."""
    return place == 0 or text[place - 1] in (_LINE, _BLANK, _COLON, _STAR, _HASH)


@compiled
def _ends_table(text: np.ndarray, length: int, place: int) -> bool:
    """``|}``, but not ``|}}``: that closes a template's last, empty parameter."""
    if place + 1 >= length or text[place] != _BAR or text[place + 1] != _UNCURL:
        return False
    return place + 2 >= length or text[place + 2] != _UNCURL


@compiled
def _skip(text: np.ndarray, length: int, place: int, most: int, one: int, other: int) -> int:
    end = place
    while end < length and end - place < most and (text[end] == one or text[end] == other):
        end += 1
    return end


@compiled
def _is_letter(point: int) -> bool:
    return _UPPER_A <= point <= _UPPER_Z or _LOWER_A <= point <= _LOWER_Z


@compiled
def _without_external(text: np.ndarray, length: int, space: np.ndarray) -> int:
    """``\\[(?:[a-z]{2,10}:)?//[^\\s\\[\\]]{1,2000}[ \\t]{0,20}``: what stands before an external link's label."""
    place, kept = 0, 0
    while place < length:
        if text[place] == _OPEN:
            begin = place + 1
            end = begin
            while end < length and end - begin <= _LONGEST_MARGIN and _is_letter(text[end]):
                end += 1
            if 2 <= end - begin <= _LONGEST_MARGIN and end < length and text[end] == _COLON:
                begin = end + 1
            if begin + 1 < length and text[begin] == _SLASH and text[begin + 1] == _SLASH:
                begin += 2
                end = begin
                while (
                    end < length and end - begin < _LONGEST_URL and not space[text[end]]
                    and text[end] != _OPEN and text[end] != _SHUT
                ):  # fmt: skip
                    end += 1
                if end > begin:
                    place = _skip(text, length, end, _LONGEST_BLANK, _BLANK, _TAB)
                    continue
        text[kept] = text[place]
        kept += 1
        place += 1
    return kept


@compiled
def _without_urls(text: np.ndarray, length: int, space: np.ndarray) -> int:
    """``https?://[^\\s\\[\\]<>|{}]+``."""
    place, kept = 0, 0
    while place < length:
        if (
            text[place] == _H and place + 7 < length and text[place + 1] == _T and text[place + 2] == _T
            and text[place + 3] == _P
        ):  # fmt: skip
            begin = place + 5 if text[place + 4] == _S else place + 4
            if (
                begin + 3 < length and text[begin] == _COLON and text[begin + 1] == _SLASH
                and text[begin + 2] == _SLASH
            ):  # fmt: skip
                end = begin = begin + 3
                while (
                    end < length and not space[text[end]]
                    and text[end] not in (_OPEN, _SHUT, _LESS, _MORE, _BAR, _CURL, _UNCURL)
                ):  # fmt: skip
                    end += 1
                if end > begin:
                    place = end
                    continue
        text[kept] = text[place]
        kept += 1
        place += 1
    return kept


@compiled
def _without_files(text: np.ndarray, length: int, folded: np.ndarray, prefixes: np.ndarray) -> int:
    """Links to files and categories, with what their captions have in single brackets."""
    place, kept = 0, 0
    while place < length:
        if text[place] == _OPEN and place + 1 < length and text[place + 1] == _OPEN:
            end = _behind_prefix(text, length, place + 2, folded, prefixes)
            end = _behind_caption(text, length, end) if end >= 0 else -1
            if end >= 0:
                place = end
                continue
        text[kept] = text[place]
        kept += 1
        place += 1
    return kept


@compiled
def _behind_prefix(
    text: np.ndarray, length: int, place: int, folded: np.ndarray, prefixes: np.ndarray
) -> int:
    """The place behind a namespace's name and its colon, or -1."""
    begin = _skip(text, length, place, _LONGEST_MARGIN, _BLANK, _LOW)
    for row in range(len(prefixes)):
        i = 0
        while prefixes[row, i] != 0 and begin + i < length and prefixes[row, i] == folded[text[begin + i]]:
            i += 1
        if prefixes[row, i] == 0:
            end = _skip(text, length, begin + i, _LONGEST_MARGIN, _BLANK, _LOW)
            if end < length and text[end] == _COLON:
                return end + 1
    return -1


@compiled
def _behind_caption(text: np.ndarray, length: int, place: int) -> int:
    """The place behind the "]]" that ends a link in which single brackets are closed, or -1."""
    while True:
        while place < length and text[place] != _OPEN and text[place] != _SHUT:
            place += 1
        if place + 1 >= length:
            return -1
        if text[place] == _SHUT:
            return place + 2 if text[place + 1] == _SHUT else -1
        place += 1
        while place < length and text[place] != _OPEN and text[place] != _SHUT:
            place += 1
        if place >= length or text[place] == _OPEN:
            return -1
        place += 1


@compiled
def _with_labels(text: np.ndarray, length: int) -> tuple[int, bool]:
    """``[[target|label]]`` or ``[[label]]`` without links inside: the label stays. And whether "[[" stays too."""
    place, kept = 0, 0
    more = False
    while place < length:
        if text[place] == _OPEN and place + 1 < length and text[place + 1] == _OPEN:
            begin = end = place + 2
            one_line = True
            while end < length and text[end] != _OPEN and text[end] != _SHUT:
                if text[end] == _BAR and one_line and begin == place + 2:
                    begin = end + 1
                    one_line = False
                elif text[end] == _LINE:
                    one_line = False
                end += 1
            if end + 1 < length and text[end] == _SHUT and text[end + 1] == _SHUT:
                for i in range(begin, end):
                    text[kept] = text[i]
                    kept += 1
                place = end + 2
                continue
        more |= text[place] == _OPEN and kept > 0 and text[kept - 1] == _OPEN
        text[kept] = text[place]
        kept += 1
        place += 1
    return kept, more


@compiled
def _with_breaks(
    text: np.ndarray, length: int, word: np.ndarray, folded: np.ndarray, names: np.ndarray
) -> int:
    """A line's end for each tag that makes one."""
    place, kept = 0, 0
    while place < length:
        sign, end = text[place], place + 1
        if sign == _LESS:
            name, end, _ = _tag(text, length, place, word, folded, names)
            if name >= 0:
                sign = np.uint32(_LINE)
        text[kept] = sign
        kept += 1
        place = end
    return kept


@compiled
def _without_tags(text: np.ndarray, length: int) -> int:
    """``</?[a-z][^<>]{0,2000}>``."""
    place, kept = 0, 0
    while place < length:
        if text[place] == _LESS and place + 1 < length:
            begin = place + 2 if text[place + 1] == _SLASH else place + 1
            if begin < length and _is_letter(text[begin]):
                begin += 1
                end = begin
                while (
                    end < length and end - begin <= _LONGEST_TAG and text[end] != _LESS and text[end] != _MORE
                ):
                    end += 1
                if end < length and text[end] == _MORE and end - begin <= _LONGEST_TAG:
                    place = end + 1
                    continue
        text[kept] = text[place]
        kept += 1
        place += 1
    return kept


@compiled
def _without_magic(text: np.ndarray, length: int) -> int:
    """``__[A-Z]{3,30}__``."""
    place, kept = 0, 0
    while place < length:
        if text[place] == _LOW and place + 1 < length and text[place + 1] == _LOW:
            begin = end = place + 2
            while end < length and end - begin <= 30 and _UPPER_A <= text[end] <= _UPPER_Z:
                end += 1
            if 3 <= end - begin <= 30 and end + 1 < length and text[end] == _LOW and text[end + 1] == _LOW:
                place = end + 2
                continue
        text[kept] = text[place]
        kept += 1
        place += 1
    return kept


@compiled
def _without_quotes(text: np.ndarray, length: int) -> int:
    """``''+``, the marks of bold and italic type."""
    place, kept = 0, 0
    while place < length:
        if text[place] == _QUOTE and place + 1 < length and text[place + 1] == _QUOTE:
            while place < length and text[place] == _QUOTE:
                place += 1
            continue
        text[kept] = text[place]
        kept += 1
        place += 1
    return kept
