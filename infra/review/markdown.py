"""Write a review as Markdown, for a comment of a pull request.

A pull request may come from a stranger, so quoted texts are escaped: they never become markup.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from infra.estimate.parts import rounded
from infra.review.access import readable
from infra.review.steps import Op
from infra.review.values import UNKNOWN, differences, shown
from infra.review.verdict import Level, Price, Review
from infra.sizing.ranges import Range

MOST_CHARACTERS = 65_000  # GitHub accepts 65,536
MOST_LINES = 30  # of a list or table
SIGNS: dict[Op, str] = {"create": "+", "update": "~", "replace": "-/+", "delete": "-", "import": "="}
VERBS: dict[Op, str] = {
    "create": "created",
    "update": "changed",
    "replace": "replaced",
    "delete": "deleted",
    "import": "imported",
}
MARK = "<!-- gpt2-training review -->"  # a workflow finds its comment by this


def render(reviews: Sequence[Review], hide: Mapping[str, str] | None = None) -> str:
    """Return the whole comment, the worst stack first. `hide` maps texts that must not be seen to replacements."""
    ordered = sorted(reviews, key=lambda review: (-review.level, review.stack))
    quiet = [review for review in ordered if review.level == Level.CLEAN and not _notes(review)]
    if len(quiet) == len(ordered):
        text = f"**No changes**: {_stacks(quiet)}.\n"
        return f"{text}\n{MARK}\n"
    # Everything but the full diffs.
    masks = hide or {}
    changed = [review for review in ordered if review not in quiet]
    heads = [_masked("\n".join(_head(review)), masks) for review in changed]
    diffs = [_masked("\n".join(_diff(review)), masks) for review in changed]
    tail = [MARK, ""]
    if quiet:
        tail = [f"No changes: {_stacks(quiet)}.", "", *tail]
    # Divide the remaining characters among the full diffs.
    room = MOST_CHARACTERS - sum(map(len, heads)) - sum(map(len, tail)) - 400 * len(changed)
    parts = []
    for i, (review, head, diff) in enumerate(zip(changed, heads, diffs, strict=True)):
        folded = _folded(review, diff, max(0, room // (len(changed) - i)))
        room -= len(folded)
        parts += [head, folded]
    text = "\n".join([*parts, *tail])
    return text if len(text) <= MOST_CHARACTERS else _cut(text, tail)


def _masked(text: str, masks: Mapping[str, str]) -> str:
    for secret in sorted(masks, key=len, reverse=True):
        text = text.replace(secret, masks[secret])
    return text


def _stacks(reviews: Iterable[Review]) -> str:
    return ", ".join(f"{review.stack}{' (offline)' if review.offline else ''}" for review in reviews)


def _notes(review: Review) -> bool:
    return bool(review.policies or review.preview.warnings)


def _head(review: Review) -> Iterator[str]:
    """Yield the lines of a review without its full diff."""
    # The first line.
    first, *others = [text(line) for line in review.headline]
    change = "" if review.gone else _change(review.prices)
    yield f"**{review.stack}: {first}**" + "".join(f"; {line}" for line in others) + change + "."
    yield ""
    if review.gone:
        if review.prices[0] is not None:
            yield f"By the list price its machines cost {_hourly(review.prices[0])} an hour."
            yield ""
        return
    if review.preview.errors:
        yield from _list("Also", [code(line) for line in review.preview.errors[1:]])
        return
    # How many resources change.
    counts = [f"{sign} {review.counts.get(op, 0)} {VERBS[op]}" for op, sign in SIGNS.items()]
    counts = [line for line in counts if not line.startswith("= 0")]
    yield f"`{'`, `'.join(counts)}`; {review.counts.get('same', 0)} stay as they are."
    if review.offline:
        yield f"**Offline** ({text(review.offline)}): the program's two versions are compared, not what really exists."
    yield ""
    # Sections, each only if it has lines.
    data = [f"**Lost**: {code(line)}" for line in review.data.lost]
    data += [f"`pulumi up` fails: {code(line)}" for line in review.data.blocked]
    data += [f"Left behind: {code(line)} stays, is billed, and no stack manages it" for line in review.data.left]
    data += [f"Less protected: {code(line)}" for line in review.data.loosened]
    yield from _list("Data", data)
    yield from _list("The run", _run(review))
    yield from _access(review)
    policies = [
        f"{'**fails**' if violation.mandatory else 'advice'}: {code(violation.rule)}: {text(violation.message)}"
        + (f" ({code(violation.resource)})" if violation.resource else "")
        for violation in review.policies
    ]
    yield from _list("Policies", policies)
    yield from _prices(review.prices)
    rows = [(code(change.key), code(change.before), code(change.after)) for change in review.settings]
    yield from _table("Settings", ("key", "before", "after"), rows)
    yield from _list("The program says", [text(line) for line in review.preview.warnings])


def _run(review: Review) -> Iterator[str]:
    if review.run is not None:
        yield " ".join(text(line) for line in review.run.sentences)
    for role in review.machines:
        if role.changed:
            kinds = " → ".join(code(kind) for kind in dict.fromkeys(role.kind) if kind)
            counts = " → ".join(str(count) for count in dict.fromkeys(role.count))
            yield f"{role.role}: {counts} x {kinds}{', all of them replaced' if role.ended and role.count[1] else ''}"


def _access(review: Review) -> Iterator[str]:
    changes = review.access
    lines = [f"**Open to everybody**: {code(line)}" for line in changes.exposed]
    for verb, grants in (("gets", changes.given), ("loses", changes.taken)):
        lines += [
            f"{code(grant.member)} {verb} {code(grant.role)} on {code(grant.where)}"
            + (f" where {code(readable(grant.condition))}" if grant.condition else "")
            for grant in grants
        ]
    yield from _list("Access", [*lines, *map(code, (*changes.settings, *changes.followed))])


# Money. -------------------------------------------------------------------------------------------------------------


def _prices(prices: tuple[Price | None, Price | None]) -> Iterator[str]:
    before, after = prices
    if before is None and after is None:
        return
    rows = [("all machines, an hour", *(_hourly(price) for price in prices))]
    if any(price and price.hours for price in prices):
        rows.append(("a whole run, hours", *(_range(price.hours) if price else "–" for price in prices)))
        rows.append(("a whole run", *(_whole(price) for price in prices)))
    if rows[0][1] == rows[0][2] == "$0.00":
        rows = [row for row in rows if "$" not in row[1]]
    yield from _table("Cost", ("by the list price", "before", "after"), rows)
    if after is not None:
        yield from _list("", [text(note) for note in after.notes if before is None or note not in before.notes])


def _change(prices: tuple[Price | None, Price | None]) -> str:
    """Return how the cost of an hour changes, for the first line."""
    before, after = (_hourly(price) for price in prices)
    if before == after or not any(price and price.hourly.usd for price in prices):
        return ""
    if prices[0] is None:
        return f"; {after} an hour"
    return f"; {before} → {after} an hour"


def _hourly(price: Price | None) -> str:
    if price is None:
        return "–"
    if not price.hourly.usd and not price.hourly.exact:
        return "unknown"
    return f"{'' if price.hourly.exact else 'at least '}${price.hourly.usd:,.2f}"


def _whole(price: Price | None) -> str:
    if price is None:
        return "–"
    if price.cost is None:
        return "unknown"
    return f"{'at least ' if price.at_least else ''}{_range(price.cost, '${:,.2f}')}"


def _range(value: Range | None, form: str = "{:,g}") -> str:
    """Return a range as text, rounded to two digits: an estimate is not more exact."""
    if value is None:
        return "unknown"
    low, high = (form.format(rounded(number)) for number in (value.low, value.high))
    return low if low == high else f"{low} to {high}"


# The full diff. -----------------------------------------------------------------------------------------------------


def _diff(review: Review) -> Iterator[str]:
    """Yield a line for each resource, and one for each input that differs."""
    for step in sorted(review.steps, key=lambda step: (not step.real, step.type, step.name)):
        guessed = " (or replaced: unknown to this review)" if step.guessed else ""
        sign = "=" if review.gone else SIGNS.get(step.op, "~")
        yield _line(f"{sign:3} {step.type} {step.name}{guessed}")
        if step.before is None or step.after is None:
            continue
        changes = differences(step.before.inputs, step.after.inputs)
        known_changes = [change for change in changes if change.new != UNKNOWN]
        for change in known_changes or changes:
            replaces = " (replaces)" if change.path in step.because else ""
            yield _line(f"      {change.path}: {shown(change.old)} → {shown(change.new)}{replaces}")
        if not changes and step.because:
            yield _line(f"      follows from what is replaced: {', '.join(step.because)}")


def _line(line: str) -> str:
    return re.sub(r"[\r\n\x00-\x1f`]", "'", line)


def _folded(review: Review, diff: str, room: int) -> str:
    """Return the full diff as a folded block, cut to about `room` characters."""
    if not diff:
        return ""
    lines, line_count, size = diff.split("\n"), 0, 0
    while line_count < len(lines) and size + len(lines[line_count]) + 1 <= room:
        size += len(lines[line_count]) + 1
        line_count += 1
    note = ""
    if line_count < len(lines):
        note = (
            f"\n**Cut**: a comment may have 65,536 characters, so {line_count} of {len(lines)} lines are here;"
            f" `pulumi preview --diff --stack {review.stack}` shows all.\n"
        )
    body = "\n".join(lines[:line_count])
    count = sum(step.real for step in review.steps)
    heading = "What stays" if review.gone else "All changes"
    title = f"<summary>{heading}: {count} resource{'' if count == 1 else 's'}</summary>"
    return f"<details>{title}\n\n```text\n{body}\n```\n{note}\n</details>\n"


def _cut(text_: str, tail: list[str]) -> str:
    """Return the first lines of a comment that is too long even without full diffs."""
    end = "\n".join(["", "**Cut**: a comment may have 65,536 characters; ask for one stack at a time.", *tail])
    shortened = text_[: MOST_CHARACTERS - len(end)].rpartition("\n")[0]
    fence = "\n```\n</details>" if shortened.count("```") % 2 else ""
    return f"{shortened}{fence}\n{end}"


# Markdown. ----------------------------------------------------------------------------------------------------------


def code(value: str) -> str:
    """Return a text as a code span, in which it cannot be Markdown or HTML and cannot mention a person."""
    return "`" + re.sub(r"\s+", " ", value.replace("`", "'")).strip() + "`"


def text(line: str) -> str:
    """Return a line in which, except for code spans, nothing is Markdown or HTML or mentions a person."""
    parts = re.sub(r"\s+", " ", line).split("`")
    if len(parts) % 2 == 0:
        parts = ["'".join(parts)]
    plain = [re.sub(r"([\\*\[\]<>#~])", r"\\\1", part).replace("@", "@\u200b") for part in parts[::2]]
    spans = [f"`{part}`" for part in parts[1::2]]
    return "".join(part for pair in zip(plain, [*spans, ""], strict=True) for part in pair)


def _list(title: str, lines: Iterable[str]) -> Iterator[str]:
    items = list(lines)
    if not items:
        return
    if title:
        yield from [f"#### {title}", ""]
    yield from (f"- {line}" for line in items[:MOST_LINES])
    if len(items) > MOST_LINES:
        yield f"- … and {len(items) - MOST_LINES} more"
    yield ""


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if not rows:
        return
    yield from [f"#### {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows[:MOST_LINES])
    yield from (f"| {' | '.join(row)} |" for row in cells)
    if len(rows) > MOST_LINES:
        yield f"| … and {len(rows) - MOST_LINES} more |" + " |" * (len(head) - 1)
    yield ""
