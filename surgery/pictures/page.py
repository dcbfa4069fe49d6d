"""The page of a report: one HTML file that needs nothing else, asks nothing of a network, and runs only its own script.

Its policy allows one script and one style, each by its hash, and nothing from anywhere; all text is escaped
(`texts.py`). The same facts give the same bytes: there is no time in it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from ..checks.check import Check
from ..checks.judgement import Verdict
from ..checks.proof import Proof
from ..checks.shard_map import ALL, Piece
from ..names import natural
from ..units import size
from ..version import __version__
from .gathered import Gathered
from .heat import heat_maps
from .measures import DARK, VIRIDIS, percent, short
from .tensor_rows import tensor_rows
from .texts import Places, data, lines, text

MOST = 4_800_000  # bytes of a page
SHARDS, NAMES = 400, 12  # that are drawn; that are named in a piece of one
SHOWN = 40  # rows of lists
_MARKS = {True: ("good", "✓", "ok"), False: ("bad", "✗", "failed"), None: ("open", "–", "not checked")}


def page_of(found: Gathered) -> str:
    """The page."""
    short_of = Places.of(found.paths)
    proof = _proof(found)
    verdicts = {one.name: one.verdict.value for one in proof.tensors} if proof is not None else {}
    sections, tips = _sections(found, short_of, verdicts)
    style, script = _asset("page.css") + _colours(), _asset("page.js")
    title = text(short_of.short(found.checkpoint.path))
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none';"
        " form-action 'none'"
    )
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{title}: surgery report</title>\n<style>{style}</style>\n</head>\n"
    )
    body = f'<body>\n<a class="skip" href="#main">To the report</a>\n{_header(found, short_of)}<main id="main">\n{sections}</main>\n'
    foot = f"<footer>Made by surgery {text(__version__)}, from the files themselves.</footer>\n<div id='tip' role='tooltip' hidden></div>\n"
    room = MOST - sum(len(part.encode()) for part in (head, body, foot, script, tips)) - 2000
    weight_map = found.checkpoint.weight_map
    rows = tensor_rows(found.checkpoint.tensors, weight_map, found.changes, verdicts, room)
    return (
        f'{head}{body}{foot}<script type="application/json" id="tips">{tips}</script>\n'
        f'<script type="application/json" id="rows">{data(rows)}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def _proof(found: Gathered) -> Proof | None:
    return found.verification.proof if found.verification is not None else None


def _asset(name: str) -> str:
    from importlib.resources import files

    return files(__package__).joinpath(name).read_text("utf-8")


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _colours() -> str:
    """A class for each colour of the scale."""
    return "".join(
        f".c{i}{{background:{colour};color:{'#fff' if i < DARK else '#000'}}}.f{i}{{fill:{colour}}}"
        for i, colour in enumerate(VIRIDIS)
    )


def _header(found: Gathered, places: Places) -> str:
    """What the checkpoint is, and what it is held against, at a glance."""
    seen, total = found.inspection, found.inspection.total
    kind = " · ".join(map(text, [*filter(None, [seen.model_type]), *seen.architectures[:2]])) or "checkpoint"
    facts = [
        (f"{total.parameters:,}", "parameters"),
        (f"{total.tensors:,}", "tensors"),
        (size(total.nbytes), f"in {_count(len(seen.shards), 'shard')}"),
        (", ".join(list(seen.dtypes)[:3]), "dtypes" if len(seen.dtypes) > 1 else "dtype"),
    ]
    if seen.quantization:
        facts.append((seen.quantization.method, "quantised"))
    shown = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for value, name in facts)
    against = [f"against its base <code>{text(places.short(found.base))}</code>"] if found.base else []
    against += [f"with the adapter <code>{text(places.short(one.path))}</code>" for one in found.adapters[:8]]
    line = f"<p class='against'>{', '.join(against)}</p>" if against else ""
    return (
        f"<header><p class='kind'>{kind}</p><h1>{text(places.short(found.checkpoint.path))}</h1>{line}"
        f"{_badge(found)}<dl class='facts'>{shown}</dl></header>\n"
    )


def _badge(found: Gathered) -> str:
    """The verdict in a word."""
    checked = found.verification
    if checked is None:
        return ""
    if not checked.ok:
        wrong = [check for check in checked.checks if check.ok is False]
        return f"<p class='badge bad'><span aria-hidden='true'>✗</span> {_count(len(wrong), 'check')} failed: {text(wrong[0].detail, 200)}</p>"
    if checked.proof is None:
        return "<p class='badge good'><span aria-hidden='true'>✓</span> headers, index and files agree</p>"
    return "<p class='badge good'><span aria-hidden='true'>✓</span> proved: the base with this merged into it, and nothing else</p>"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _sections(found: Gathered, places: Places, verdicts: dict[str, str]) -> tuple[str, str]:
    """All sections, and what is said of the cells of the map, as data."""
    parts, tips = [], list[list[str]]()
    if found.changes is not None:
        proof = _proof(found)
        wrong = {one.name for one in proof.wrong} if proof is not None else set[str]()
        maps, tips = heat_maps(found.changes, verdicts, wrong)
        parts.append(
            _section(
                "changed",
                "What changed, by layer and module" if found.base else "What merging would change",
                _summary(found) + maps,
            )
        )
    if found.verification is not None:
        parts.append(_section("verdict", "Verdict", _verdict(found, places)))
    parts.append(_section("shards", "Shards", _shards(found)))
    parts.append(_section("dtypes", "Dtypes and quantisation", _dtypes(found)))
    parts.append(_section("lineage", "Lineage", _lineage(found, places)))
    parts.append(_section("tensors", "Tensors", _TABLE))
    if found.inspection.notes:
        rows = "".join(f"<li>{text(places.short(note))}</li>" for note in found.inspection.notes[:SHOWN])
        parts.append(_section("notes", "Notes", f"<ul>{rows}</ul>"))
    return "".join(parts), data(tips)


def _section(key: str, title: str, content: str) -> str:
    return f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{text(title)}</h2>{content}</section>\n'


_TABLE = (
    "<noscript><p>The list of tensors needs JavaScript; what it shows lies in this file.</p></noscript>"
    '<div id="list" hidden><div class="tools"><label for="find">Find</label>'
    '<input id="find" type="search" placeholder="part of a name" autocomplete="off" spellcheck="false">'
    '<button type="button" id="copy">Copy as a table</button><span id="said" role="status"></span></div>'
    '<div class="scroll" tabindex="0" role="region" aria-label="Tensors"><table class="list"><thead><tr id="heads"></tr></thead>'
    '<tbody id="body"></tbody></table></div><button type="button" id="more" hidden></button></div>'
)


def _summary(found: Gathered) -> str:
    """The map in a sentence."""
    changes = found.changes
    assert changes is not None
    moved, apart = [one for one in changes.tensors if one.changed], bool(changes.only_before or changes.only_after)
    sizes = sorted(one.relative for one in moved if one.relative is not None)
    parts = [f"<b>{len(moved):,}</b> of {_count(len(changes.tensors), 'weight')}{' that both have' * apart} changed"]
    if sizes:
        parts.append(
            f"by <b>{text(short(sizes[len(sizes) // 2]))}</b> of their size in the median, {text(short(sizes[-1]))} at most"
        )
    spreads = [one.spread for one in moved if one.spread]
    if changes.merging and (meant := sum(one.meant or 0 for one in spreads)):
        erased = sum(one.erased or 0 for one in spreads) / meant
        parts.append(f"rounding erased <b>{text(percent(erased))}</b> of what was to change")
    return f"<p class='summary'>{'; '.join(parts)}.</p>"


def _verdict(found: Gathered, places: Places) -> str:
    checked = found.verification
    assert checked is not None
    rows = "".join(_check(check, places) for check in checked.checks)
    parts = [f"<ul class='checks'>{rows}</ul>"]
    if checked.proof is not None:
        counts = [(verdict, checked.proof.of(verdict)) for verdict in Verdict]
        cells = "".join(
            f"<tr><th scope='row'>{text(verdict.value)}</th><td>{len(those):,}</td>"
            f"<td>{sum(one.elements for one in those):,}</td><td>{sum(one.differing for one in those):,}</td></tr>"
            for verdict, those in counts
            if those
        )
        parts.append(
            "<div class='scroll'><table class='plain'><thead><tr><th scope='col'>verdict</th><th scope='col'>tensors</th>"
            f"<th scope='col'>elements</th><th scope='col'>differing</th></tr></thead><tbody>{cells}</tbody></table></div>"
        )
        if wrong := checked.proof.wrong:
            items = "".join(f"<li><code>{text(places.short(one))}</code></li>" for one in wrong[:SHOWN])
            more = f"<li>and {len(wrong) - SHOWN:,} more</li>" if len(wrong) > SHOWN else ""
            parts.append(f"<h3>What is wrong</h3><ul class='wrong'>{items}{more}</ul>")
    return "".join(parts)


def _check(check: Check, places: Places) -> str:
    kind, mark, word = _MARKS[check.ok]
    return (
        f"<li class='{kind}'><span class='mark' aria-hidden='true'>{mark}</span>"
        f"<span><b>{text(check.name)}</b> <span class='word'>{word}</span> {text(places.short(check.detail))}</span></li>"
    )


def _shards(found: Gathered) -> str:
    """A bar for each shard, by kind of tensor; and the same as a table."""
    shown = dict(list(found.shards.items())[:SHARDS])
    most = max((_bytes(pieces) for pieces in shown.values()), default=0) or 1
    kinds = [kind for kind in ALL if any(piece.kind == kind for pieces in found.shards.values() for piece in pieces)]
    named = max(2, min(NAMES, 20_000 // max(1, sum(map(len, shown.values())))))
    bars = "".join(_bar(shard, pieces, most, named) for shard, pieces in shown.items())
    legend = "".join(
        f"<li><svg viewBox='0 0 10 10' aria-hidden='true'><rect class='{_kind(kind)}' width='10' height='10'/></svg>{text(kind)}</li>"
        for kind in kinds
    )
    rest = (
        f"<p class='small'>and {_count(len(found.shards) - SHARDS, 'shard')} more</p>"
        if len(found.shards) > SHARDS
        else ""
    )
    long = " long" if len(shown) > 24 else ""
    scrolled = " tabindex='0' role='region' aria-label='Shards'" if long else ""
    return f"<ul class='kinds'>{legend}</ul><div class='bars{long}'{scrolled}>{bars}</div>{rest}{_shard_table(shown, kinds)}"


def _bytes(pieces: Sequence[Piece]) -> int:
    return sum(piece.nbytes for piece in pieces)


def _kind(kind: str) -> str:
    return f"k-{kind.lower()}"


def _bar(shard: str, pieces: Sequence[Piece], most: int, named: int) -> str:
    at, rects = 0.0, []
    for piece in pieces:
        wide = 1000 * piece.nbytes / most
        names = [*piece.names[:named], *([f"and {len(piece.names) - named} more"] if len(piece.names) > named else [])]
        tip = "&#10;".join(map(text, [f"{piece.kind}: {size(piece.nbytes)}", *map(_line, names)]))
        rects.append(
            f'<rect class="{_kind(piece.kind)}" x="{at:.2f}" width="{wide:.2f}" height="20" data-tip="{tip}"/>'
        )
        at += wide
    said = ", ".join(f"{piece.kind} {size(piece.nbytes)}" for piece in pieces)
    return (
        f'<div class="shard"><span class="name">{text(shard, 200)}</span>'
        f'<svg viewBox="0 0 1000 20" preserveAspectRatio="none" role="img" aria-label="{text(said)}">{"".join(rects)}</svg>'
        f'<span class="size">{size(_bytes(pieces))}</span></div>'
    )


def _line(name: str) -> str:
    """A name of a tensor, not longer than a line."""
    return name if len(name) <= 120 else f"{name[:120]}…"


def _shard_table(shards: dict[str, tuple[Piece, ...]], kinds: Sequence[str]) -> str:
    heads = "".join(f"<th scope='col'>{text(kind)}</th>" for kind in kinds)
    rows = []
    for shard, pieces in shards.items():
        held = {piece.kind: piece.nbytes for piece in pieces}
        cells = "".join(f"<td>{size(held[kind]) if kind in held else ''}</td>" for kind in kinds)
        rows.append(f"<tr><th scope='row'>{text(shard, 200)}</th>{cells}</tr>")
    return (
        "<details><summary>The same as a table</summary><div class='scroll'><table class='plain'><thead><tr>"
        f"<th scope='col'>shard</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _dtypes(found: Gathered) -> str:
    seen = found.inspection
    rows = [(name, held.tensors, held.parameters, held.nbytes) for name, held in seen.dtypes.items()]
    most = max((row[3] for row in rows), default=0) or 1
    cells = "".join(
        f"<tr><th scope='row'>{text(name)}</th><td>{tensors:,}</td><td>{parameters:,}</td><td>{size(nbytes)}</td>"
        f"<td class='drawn'><svg viewBox='0 0 100 10' preserveAspectRatio='none' aria-hidden='true'>"
        f"<rect class='ink' width='{100 * nbytes / most:.2f}' height='10'/></svg></td></tr>"
        for name, tensors, parameters, nbytes in sorted(rows, key=lambda row: (-row[3], natural(row[0])))
    )
    parts = [
        "<div class='scroll'><table class='plain'><thead><tr><th scope='col'>stored as</th><th scope='col'>tensors</th><th scope='col'>elements</th>"
        f"<th scope='col'>bytes</th><td></td></tr></thead><tbody>{cells}</tbody></table></div>"
    ]
    held = seen.quantization
    if held is None:
        return parts[0]
    schemes = "".join(
        f"<tr><th scope='row'>{text(one.scheme)}</th><td>{one.weights:,}</td><td>{one.parameters:,}</td><td>{size(one.nbytes)}</td></tr>"
        for one in held.schemes
    )
    parts.append(
        f"<h3>Quantised by {text(held.method)}</h3><div class='scroll'><table class='plain'><thead><tr><th scope='col'>scheme</th><th scope='col'>weights</th>"
        f"<th scope='col'>parameters</th><th scope='col'>bytes</th></tr></thead><tbody>{schemes}</tbody></table></div>"
    )
    return "".join(parts)


def _lineage(found: Gathered, places: Places) -> str:
    """What was done to it, oldest first, and how it is made again."""
    if not found.history:
        return "<p>No manifest of surgery says how it was made.</p>"
    steps = "".join(f"<li>{text(places.short(step))}</li>" for step in found.history[:SHOWN])
    parts = [f"<ol class='steps'>{steps}</ol>"]
    if found.made:
        inputs = "".join(
            f"<li>{text(one.get('role', ''))}: <code>{text(places.short(one.get('name', '')))}</code></li>"
            for one in list(found.made.get("inputs", ()))[:SHOWN]
        )
        parts.append(f"<p>Made by surgery {text(found.made.get('version', ''))} of:</p><ul>{inputs}</ul>")
    if found.recipe:
        parts.append(
            "<h3>Recipe</h3><p>By which <code>surgery run</code> makes it again.</p>"
            f"<pre tabindex='0'>{lines(found.recipe, 50_000)}</pre>"
        )
    return "".join(parts)
