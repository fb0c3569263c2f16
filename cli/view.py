"""`peerd status` for people: the same rows as plain text, or as a rich picture on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cli.text import UNKNOWN, clean, count, figure, percent, size, span, times
from peer.status import BudgetStatus, DeviceStatus, LinkStatus, MemberStatus, SessionStatus

if TYPE_CHECKING:
    from rich.console import Group

Row = Sequence[str]
_STATE_STYLE = {"training": "green", "waiting": "yellow", "alone": "yellow", "failed": "red"}
_LINK_STYLE = {
    "alive": "green",
    "ok": "green",
    "suspect": "yellow",
    "late": "yellow",
    "dead": "red",
    "blocked": "red",
}
_LINK_HEAD = (
    "",
    "peer",
    "state",
    "address",
    "sent",
    "received",
    "parcels",
    "bits",
    "heard",
    "behind",
    "apart",
    "rtt",
)
# where the terminal is narrow
_LEFT_OUT_FIRST = ("address", "behind", "rtt", "parcels", "bits", "apart", "heard")
_IF_KNOWN = ("behind", "apart", "bits")  # columns that are there only with something in them
_MOST_NAMED = 12  # members without a link that are named in a line; guess
_INDENT = 4
_ARROWS = {"out": "→", "in": "←"}


def headline(status: DeviceStatus) -> str:
    """Which device this is."""
    memory = f", {status.rss_mb:.0f} MB" if status.rss_mb is not None else ""
    return (
        f"{clean(status.device or UNKNOWN)}  {clean(status.peer)}  peerd {clean(status.version or UNKNOWN)}, "
        f"up {span(status.uptime_s)}{memory}"
    )


def session_lines(session: SessionStatus) -> list[str]:
    """What a session is, how well it does, and what that costs."""
    metrics = "".join(f", {clean(name)} {figure(value)}" for name, value in session.metrics.items())
    about = (
        f"{clean(session.task or UNKNOWN)} by {clean(session.algorithm or UNKNOWN)} on "
        f"{clean(session.topology or UNKNOWN)}, every {count(session.local_steps, 'local step')}"
    )
    progress = f"round {figure(session.round)}, loss {figure(session.loss)}{metrics}"
    less = f" ({times(session.reduction)} less than dense)" if session.reduction is not None else ""
    weight = f", weight {session.weight:.3g}" if session.weight is not None else ""
    if weight and session.mean_weight is not None:
        weight += f" (mean {session.mean_weight:.3g})"
    cost = (
        f"{count(session.members, 'member')}{weight}, sent {size(session.bytes_sent)}{less}, "
        f"received {size(session.bytes_received)}"
    )
    age = session.checkpoint_age_s
    kept = f"checkpoint {span(age)} old" if age is not None else "no checkpoint"
    where = f" on {clean(session.computes_on)}" if session.computes_on else ""
    pace = f"step {span(session.step_s)}{where}, round {span(session.round_s)}, {kept}"
    apart = [_consensus_line(session)] if session.consensus_distance is not None else []
    spent = [_budget_line(session.budget)] if session.budget is not None else []
    alone = [f"{count(session.rounds_alone, 'round')} closed alone"] if session.rounds_alone else []
    slowed = [manners_line(session)] if session.pace_reason else []
    return [about, *slowed, progress, cost, pace, *apart, *spent, *alone]


def manners_line(session: SessionStatus) -> str:
    """Why this device trains less than it could, how much it does, and until when."""
    until = f", until {clean(session.pace_until)}" if session.pace_until else ""
    share = session.pace_share
    held = "" if share is None or share == 1 else "paused: " if not share else f"{share:.0%} of the time: "
    return f"{held}{clean(session.pace_reason or UNKNOWN)}{until}"


def _consensus_line(session: SessionStatus) -> str:
    """How far apart the models are: a part of one's norm is what says something."""
    part = (
        f", {percent(session.consensus_relative)} of the norm"
        if session.consensus_relative is not None
        else ""
    )
    return f"consensus distance {figure(session.consensus_distance)}{part} (by sketches, give or take 9 %)"


def _budget_line(budget: BudgetStatus) -> str:
    """What is spent of a budget, and what a day would take."""
    held = f", {count(budget.rounds_held_back, 'round')} held back" if budget.rounds_held_back else ""
    return (
        f"budget {size(budget.bytes_per_min)} per minute, spent {size(budget.spent_last_min)} in the last "
        f"one, {size(budget.forecast_day)} a day at this rate{held}"
    )


def link_table(session: SessionStatus) -> list[Row]:
    """The head, and one row per directed link; without the columns of which nothing is known."""
    apart = {member.peer: member.distance_relative for member in session.peers}
    rows = [list(row) for row in (_LINK_HEAD, *link_rows(session.links, apart))]
    empty = [
        at
        for at, name in enumerate(_LINK_HEAD)
        if name in _IF_KNOWN and all(row[at] == UNKNOWN for row in rows[1:])
    ]
    return [[cell for at, cell in enumerate(row) if at not in empty] for row in rows]


def others_line(session: SessionStatus) -> str:
    """The members that no link is open to, with what is known of them; "" without any."""
    linked = {link.peer for link in session.links}
    others = [member for member in session.peers if member.peer not in linked]
    shown = [_other(member) for member in others[:_MOST_NAMED]]
    more = f", and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
    return f"without a link now: {', '.join(shown)}{more}" if others else ""


def _other(member: MemberStatus) -> str:
    known = [] if member.state == "alive" else [clean(member.state)]
    if member.distance_relative is not None:
        known.append(f"{percent(member.distance_relative)} apart")
    name = clean(member.device or member.peer[:10])
    return f"{name} ({', '.join(known)})" if known else name


def link_rows(links: Sequence[LinkStatus], apart: Mapping[str, float | None] | None = None) -> list[Row]:
    """One row per directed link, under `_LINK_HEAD`. apart: how far each peer's model is, as a part of the
    norm of this device's."""
    far = apart or {}
    bearers = Counter(device for device, _ in {(link.device, link.peer) for link in links})
    return [
        (
            _ARROWS.get(link.direction, "?"),
            _called(link, alone=bearers[link.device] < 2),
            clean((link.verdict or link.state) if link.state == "alive" else link.state),
            clean(link.address or UNKNOWN),
            size(link.bytes_sent),
            size(link.bytes_received),
            figure(link.parcels) + (f" ({link.unacked} out)" if link.unacked else ""),
            figure(link.bits_per_parameter),
            f"{span(link.last_heard_s)} ago" if link.last_heard_s is not None else UNKNOWN,
            count(link.behind, "round") if link.behind is not None else UNKNOWN,
            percent(far.get(link.peer)),
            f"{link.rtt_ms:.0f} ms" if link.rtt_ms is not None else UNKNOWN,
        )
        for link in sorted(links, key=lambda link: (link.direction != "out", link.device or "", link.peer))
    ]


def _called(link: LinkStatus, *, alone: bool) -> str:
    """The device's name; with the beginning of its id where another one has that name, too."""
    if not link.device:
        return clean(link.peer[:10])
    return clean(link.device) if alone else f"{clean(link.device)} {clean(link.peer[:8])}"


def columns(rows: Sequence[Row]) -> list[str]:
    """The rows with aligned columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def narrowed(rows: Sequence[Row], width: int) -> list[Row]:
    """The rows, the head first, with as many columns as `width` has room for."""
    kept = [list(row) for row in rows]
    for name in _LEFT_OUT_FIRST:
        if max(len(line) for line in columns(kept)) <= width:
            break
        if name not in kept[0]:
            continue
        index = kept[0].index(name)
        kept = [row[:index] + row[index + 1 :] for row in kept]
    return list(kept)


def plain(status: DeviceStatus) -> str:
    """The whole status as text without colors; sentences that want something done come first."""
    lines = [f"! {clean(sentence)}" for sentence in status.health]
    lines.append(headline(status))
    for session in status.sessions:
        lines += ["", f"{clean(session.name)}: {clean(session.state)}"]
        lines += [f"  {line}" for line in session_lines(session)]
        if session.links:
            lines += [f"    {line}" for line in columns(link_table(session))]
        if others := others_line(session):
            lines.append(f"    {others}")
    if not status.sessions:
        lines.append("no sessions; 'peerd create NAME' makes one, 'peerd join NAME' joins one")
    return "\n".join(lines)


def rich_view(status: DeviceStatus, width: int) -> Group:
    """The whole status for a terminal of so many columns. Foreign words are Text, never markup."""
    from rich.console import Group, RenderableType
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    if status.health:
        parts.append(
            Panel(Text("\n".join(clean(sentence) for sentence in status.health)), border_style="yellow")
        )
    parts.append(Text(headline(status), style="dim"))
    for session in status.sessions:
        title = Text(f"\n{clean(session.name)}  ", style="bold")
        title.append(clean(session.state), style=_STATE_STYLE.get(session.state, ""))
        parts += [title, Text("\n".join(f"  {line}" for line in session_lines(session)))]
        if session.links:
            table = Table(box=None, pad_edge=False, header_style="dim")
            head, *rows = narrowed(link_table(session), width - _INDENT)
            for name in head:
                left = name in ("", "peer", "state", "address")
                table.add_column(name, justify="left" if left else "right", no_wrap=True)
            for row in rows:
                cells = [Text(cell) for cell in row]
                cells[2].stylize(_LINK_STYLE.get(row[2], "dim"))
                table.add_row(*cells)
            parts.append(Padding(table, (0, 0, 0, _INDENT)))
        if others := others_line(session):
            parts.append(Padding(Text(others), (0, 0, 0, _INDENT)))
    if not status.sessions:
        parts.append(Text("no sessions; 'peerd create NAME' makes one, 'peerd join NAME' joins one"))
    return Group(*parts)
