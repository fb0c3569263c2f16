"""The tables of docs/measured.md, and one of README.md, made of what results/*.json hold.

    PYTHONPATH=bench python -P bench/measured.py

writes them into the pages anew, between the comments that name them; the words around stay. What was to be
reached is here, in exchange.py, frontier.py and heterogeneity.py. tests/test_docs_figures.py holds the pages
to the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import exchange
import frontier
import heterogeneity
from kept import LIBRARIES, RESULTS, read
from rehearsals import COSTS, costs

ROOT = Path(__file__).parent.parent
PAGE, README = ROOT / "docs/measured.md", ROOT / "README.md"
FIGURES = (
    "exchange", "bare_grpc", "coding", "cuda", "liveness", "wire", "point", "frontier", "heterogeneity",
    "rehearsal", "measured_on",
)  # fmt: skip
BLOCK = re.compile(r"(?s)(<!-- figures: (\S+) -->\n).*?(<!-- end -->)")

COPIES_GOALS = {"1M": 20.0}  # of the model in memory, to encode and decode; of larger ones COPIES_GOAL
COPIES_GOAL = 10.0
FASTER_GOAL = 5.0  # times, than with torch.topk
INDEX_GOAL = 0.03  # over the bound, of random sets; of real ones below it
VALUES_GOAL = -0.10  # under the entropy of frequencies, with a link's memory
WIRE_GOAL = 0.02  # between rehearsed and real
PROBE_GOAL_S = 0.5  # as peer/mesh/probing.py: who has not answered by then is not waited for

Results = dict[str, Any]
Table = list[tuple[str, ...]]


def results() -> Results:
    return {name: read(RESULTS / f"{name}.json") for name in FIGURES}


# --- met and missed ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """A goal, and what was found instead or beyond."""

    what: str
    found: str
    goal: str
    met: bool


def verdicts(found: Results) -> Iterator[Verdict]:
    yield from _of_exchange(found["exchange"])
    yield from _of_coding(found["coding"])
    busy = found["liveness"]["busy"]["p99"]
    yield Verdict(
        "99 of 100 probes are answered while whole models are sent",
        f"within {1000 * busy:.1f} ms", f"{1000 * PROBE_GOAL_S:.0f} ms", busy <= PROBE_GOAL_S,
    )  # fmt: skip
    for rows, what in (("wire", "rounds 20 to 120"), ("point", "a frontier's point, whole sessions")):
        apart = max(abs(row["apart"]) for row in found[rows])
        yield Verdict(
            f"message bytes as rehearsed and between daemons, {what}",
            f"{100 * apart:.2f} % apart at the most", f"{100 * WIRE_GOAL:.0f} %", apart <= WIRE_GOAL,
        )  # fmt: skip
    yield from _of_frontier(found["frontier"])
    yield from _of_unlike_data(found["heterogeneity"])


def _of_exchange(rows: list[dict[str, Any]]) -> Iterator[Verdict]:
    pairs = [row["bytes_per_model"] for row in rows if row["peers"] == 2]
    yield Verdict(
        "bytes of an exchange between 2 daemons, of those of the models",
        f"{max(pairs):.3f}", f"{exchange.BYTES_GOAL:g}", max(pairs) <= exchange.BYTES_GOAL,
    )  # fmt: skip
    for case, group in groupby(rows, key=lambda row: (row["params"], row["peers"], row["algorithm"])):
        both = list(group)
        cores = " and ".join(str(row["cores"]) for row in both)
        how = f", {case[2]}" if case[1] > 2 else ""  # between two there is one way
        what = f"exchange of {_millions(case[0])} between {case[1]} daemons{how}, {cores} cores"
        goals = [exchange.goal_s(row) for row in both]
        if None not in goals:
            theirs = _and(row["hivemind_seconds"] for row in both)
            yield Verdict(
                f"{what}, s",
                f"{_and(row['seconds'] for row in both)} (hivemind {theirs})",
                _seconds(goals[0]) if len(set(goals)) == 1 else f"half of hivemind's: {_and(goals)}",
                all(row["seconds"] <= goal for row, goal in zip(both, goals, strict=True)),
            )
        yield Verdict(
            f"{what}, MB of memory",
            " and ".join(f"{row['memory_mb']:.0f}" for row in both),
            f"{both[0]['memory_goal_mb']:.0f}",
            all(row["memory_mb"] <= row["memory_goal_mb"] for row in both),
        )
        bound = exchange.bound_mb(both[0])
        if bound is None:
            continue
        yield Verdict(
            f"{what}, MB of memory, by a message out, one from each neighbor and 64 MB",
            " and ".join(f"{row['memory_mb']:.0f}" for row in both),
            f"{bound:.0f}",
            all(row["memory_mb"] <= bound for row in both),
        )


def _of_coding(found: dict[str, list[dict[str, Any]]]) -> Iterator[Verdict]:
    for row in found["speed"]:
        goal = _copies_goal(row)
        as_it_is = (row["copies"], row["faster_than_torch"])
        both = {"not made dense": as_it_is, "and make it dense": _made_dense(row)}
        for how, (copies, faster) in both.items():
            coded = f"encode and decode the top 1 % of {row['model']}, {how}"
            yield Verdict(f"{coded}, in copies of the model", f"{copies:.1f}", f"{goal:g}", copies <= goal)
            met = faster >= FASTER_GOAL
            yield Verdict(f"{coded}, against torch.topk", f"{faster:.1f}x faster", f"{FASTER_GOAL:g}x", met)
    sets = {kind: [r["over"] for r in found["indices"] if _is_random(r) is kind] for kind in (True, False)}
    yield Verdict(
        "bits for an index, random sets, over the bound",
        _range(sets[True]), _percent(INDEX_GOAL, 0), max(sets[True]) <= INDEX_GOAL,
    )  # fmt: skip
    yield Verdict("the same, sets of real changes", _range(sets[False]), "below 0 %", max(sets[False]) < 0)
    real = [row for row in found["values"] if not _is_random(row)]
    for task, rows in groupby(real, key=lambda row: row["task"]):
        over = [row["over"] for row in rows]
        yield Verdict(
            f"bits for a value of {task}, over the entropy",
            _range(over), f"{_percent(VALUES_GOAL, 0)} or less", max(over) <= VALUES_GOAL,
        )  # fmt: skip


def _of_frontier(known: dict[str, Any]) -> Iterator[Verdict]:
    """Where a goal is missed, with the highest ratio that holds."""
    every = compared_rows(known)
    for row, found in every:
        if not row.name.startswith("iid ") or not row.name.endswith(" goal"):
            continue  # for unlike data as near to dense as can be
        met = found.ratio >= row.goal and found.holds
        holding = [other for near, other in every if near.against == row.against and other.holds]
        told = [found, *([] if met else sorted(holding, key=lambda one: -one.ratio)[:1])]
        yield Verdict(
            f"points the worst device loses at so many times fewer bytes, {', '.join(_kind(row))} steps",
            "; ".join(f"{frontier.with_error(one.worst)} at {one.ratio:,.0f}" for one in told),
            f"{frontier.MOST_LOST:.1f} at {row.goal:,.0f}",
            met,
        )


def _of_unlike_data(known: dict[str, Any]) -> Iterator[Verdict]:
    for case, row in heterogeneity.rows(known["rows"]):
        lost = heterogeneity.lost(row)
        yield Verdict(
            f"points the mean device loses from alpha 10 to 0.01, {case.name}",
            f"{lost:.1f}", f"{case.goal:g} or {'less' if case.below else 'more, to compare with'}",
            lost <= case.goal if case.below else lost >= case.goal,
        )  # fmt: skip


def compared_rows(known: dict[str, Any]) -> list[tuple[frontier.Row, frontier.Compared]]:
    pairs = ((row, frontier.compared(row, known)) for row in frontier.rows().values())
    return [(row, found) for row, found in pairs if found is not None]


# --- tables -----------------------------------------------------------------------------------------------


def short(found: Results, met: bool) -> Table:
    told = [(one.what, one.found, one.goal) for one in verdicts(found) if one.met is met]
    return [("what", "measured", "goal"), *told]


def seconds(found: Results) -> Table:
    heads = ("parameters", "daemons", "algorithm", "cores", "s", "goal", "", "hivemind s", "raw copy s")
    return [
        (*heads, "CPU s", "hivemind CPU s", "raw copy CPU s"),
        *(
            (
                *_case(row), _seconds(row["seconds"]), _seconds(exchange.goal_s(row)),
                word_for(row["seconds"], exchange.goal_s(row)), _seconds(row["hivemind_seconds"]),
                _seconds(row["raw_seconds"]),
                *(_seconds(row[f"{whose}cpu_seconds"]) for whose in ("", "hivemind_", "raw_")),
            )
            for row in found["exchange"]
        ),
    ]  # fmt: skip


def memory(found: Results) -> Table:
    heads = (
        "parameters",
        "daemons",
        "algorithm",
        "cores",
        "bytes / models",
        "MB sent",
        "hivemind MB sent",
        "raw copy MB sent",
    )
    parts = ("script", "daemon", "payloads")
    return [
        (*heads, "memory MB", "goal", "", "bound", "", *parts, "hivemind memory MB"),
        *(
            (
                *_case(row), f"{row['bytes_per_model']:.4f}",
                *(_whole(row[f"{whose}bytes"], 1e6) for whose in ("", "hivemind_", "raw_")),
                f"{row['memory_mb']:.0f}", f"{row['memory_goal_mb']:.0f}",
                word_for(row["memory_mb"], row["memory_goal_mb"]),
                _whole(exchange.bound_mb(row)), word_for(row["memory_mb"], exchange.bound_mb(row)),
                *(f"{row[f'memory_of_{part}_mb']:.0f}" for part in parts), _whole(row["hivemind_memory_mb"]),
            )
            for row in found["exchange"]
        ),
    ]  # fmt: skip


def ratios(found: Results) -> Table:
    return exchange.ratios(found["exchange"])


def bare_grpc(found: Results) -> Table:
    """Beside what the same exchange took."""
    ours = {_case(row): row for row in found["exchange"]}
    made: Table = [
        (
            "parameters",
            "daemons",
            "algorithm",
            "cores",
            "s",
            "CPU s",
            "of an exchange's s",
            "CPU s",
            "ratio of s",
            "of CPU s",
        )
    ]
    for row in found["bare_grpc"]:
        whole = ours[_case(row)]
        both = [_seconds(one[what]) for one in (row, whole) for what in ("seconds", "cpu_seconds")]
        over = [f"{whole[what] / row[what]:.1f}" for what in ("seconds", "cpu_seconds")]
        made.append((*_case(row), *both, *over))
    return made


def speed(found: Results) -> Table:
    heads = ("model", "copy ms", "encode ms", "decode ms", "copies", "goal", "", "torch.topk takes", "goal")
    made: Table = [(*heads, "")]
    for row in found["coding"]["speed"]:
        faster, goal = row["faster_than_torch"], _copies_goal(row)
        made.append((
            row["model"], *(f"{row[f'{what}_ms']:.2f}" for what in ("copy", "encode", "decode")),
            f"{row['copies']:.1f}", f"{goal:g}", word_for(row["copies"], goal),
            f"{faster:.1f}x", f"{FASTER_GOAL:g}x", word_for(-faster, -FASTER_GOAL),
        ))  # fmt: skip
    return made


def dense(found: Results) -> Table:
    """The same with the vector made dense at the end, by either."""
    made: Table = [("model", "dense ms", "copies", "of the goal", "torch.topk takes", "of the goal")]
    for row in found["coding"]["speed"]:
        copies, faster = _made_dense(row)
        made.append((
            row["model"], f"{row['dense_ms']:.2f}", f"{copies:.1f}", word_for(copies, _copies_goal(row)),
            f"{faster:.1f}x", word_for(-faster, -FASTER_GOAL),
        ))  # fmt: skip
    return made


def indices(found: Results) -> Table:
    made: Table = [("set", "parameters", "share", "bound", "bits", "over", "goal", "")]
    for row in found["coding"]["indices"]:
        random, over = _is_random(row), row["over"]
        made.append((
            row["set"], f"{row['parameters']:,}", f"{100 * row['share']:g} %", f"{row['bound']:.2f}",
            f"{row['bits']:.2f}", _percent(over), _percent(INDEX_GOAL, 0) if random else "below 0 %",
            word_for(over, INDEX_GOAL if random else 0.0),
        ))  # fmt: skip
    return made


def values(found: Results) -> Table:
    heads = ("task", "parameters", "budget", "entropy", "with memory", "over", "goal", "", "without", "over")
    return [
        heads,
        *(
            (
                row["task"], f"{row['parameters']:,}", f"{row['budget']:g}", f"{row['entropy']:.3f}",
                f"{row['with_memory']:.3f}", _percent(row["over"]),
                *_values_goal(row),
                f"{row['without']:.3f}", _percent(row["over_without"]),
            )
            for row in found["coding"]["values"]
        ),
    ]  # fmt: skip


def compressions(found: Results) -> Table:
    return [
        ("`--compression`", "bits per parameter", "lost"),
        *(
            (f"`{row['compression']}`", three_digits(row["bits"]), two_digits(row["lost"]))
            for row in found["coding"]["compressions"]
        ),
    ]


def cuda_choosing(found: Results) -> Table:
    heads = ("model", "ties", "CPU ms", "torch.topk ms", "its time to ours")
    made: Table = [(*heads, "CUDA ms", "torch.topk ms", "its time to ours", "the same entries")]
    for row in found["cuda"]["choosing"]:
        cells = [
            (*(f"{row[f'{where}{what}_ms']:.2f}" for what in ("", "_topk")), f"{row[f'{where}_ratio']:.1f}x")
            for where in ("cpu", "cuda")
        ]
        ties, same = ("yes" if row[what] else "no" for what in ("ties", "same"))
        made.append((row["model"], ties, *cells[0], *cells[1], same))
    return made


def cuda_messages(found: Results) -> Table:
    heads = ("model", "`--compression`", "on CUDA ms", "copied first, ms", "of it the copy", "slower")
    made: Table = [(*heads, "copy again, ms")]
    for row in found["cuda"]["messages"]:
        times = [f"{row[f'{what}_ms']:.1f}" for what in ("cuda", "copied", "copy")]
        made.append((
            row["model"], f"`{row['compression']}`", *times, f"{row['ratio']:.1f}x",
            f"{row['copy_again_ms']:.1f}",
        ))  # fmt: skip
    return made


def liveness(found: Results) -> Table:
    row = found["liveness"]
    quantiles = {"median": "p50", "99 of 100 within": "p99"}
    times = {what: [row[when][at] for when in ("idle", "busy")] for what, at in quantiles.items()}
    times["longest"] = [row["worst"][when] for when in ("idle", "busy")]
    made: Table = [("round trip, ms", "idle", "while models are sent", "ratio")]
    for what, (idle, busy) in times.items():
        made.append((what, f"{1000 * idle:.1f}", f"{1000 * busy:.1f}", f"{busy / idle:.1f}"))
    made.append(("probes", *(str(row["probes"][when]) for when in ("idle", "busy")), ""))
    return made


def wire(found: Results) -> Table:
    return [
        ("case", "rehearsed", "messages", "apart", "goal", "", "interface", "of messages"),
        *(
            (
                row["case"], *(f"{row[what]:,.0f}" for what in ("rehearsed", "messages")),
                _percent(row["apart"], 2), f"{100 * WIRE_GOAL:.0f} %", word_for(abs(row["apart"]), WIRE_GOAL),
                f"{row['interface']:,.0f}", f"{row['interface'] / row['messages']:.2f}x",
            )
            for row in found["wire"]
        ),
    ]  # fmt: skip


def point(found: Results) -> Table:
    heads = ("seed", "rehearsed", "messages", "apart", "goal", "", "interface", "of messages", "fewer bytes")
    made: Table = [(*heads, "dense", "rehearsed", "between daemons")]
    for row in found["point"]:
        accuracies = (("dense_worst",), ("rehearsed_mean", "rehearsed_worst"), ("mean", "worst"))
        made.append((
            str(row["seed"]), *(f"{row[what]:,.0f}" for what in ("rehearsed", "messages")),
            _percent(row["apart"], 2), f"{100 * WIRE_GOAL:.0f} %", word_for(abs(row["apart"]), WIRE_GOAL),
            f"{row['interface']:,.0f}", f"{row['interface'] / row['messages']:.2f}x",
            f"{row['dense'] / row['messages']:.0f}x",
            *(", ".join(f"{100 * row[what]:.2f}" for what in which) for which in accuracies),
        ))  # fmt: skip
    return made


def accuracy(found: Results) -> Table:
    heads = ("data", "graph", "steps", "setting", "fewer bytes", "mean", "worst", "mean lost", "worst lost")
    made: Table = [(*heads, f"worst loses {frontier.MOST_LOST:.1f} at most")]
    known = found["frontier"]
    pairs = {row.name: beside for row, beside in compared_rows(known)}
    for row in frontier.rows().values():
        if row.name in known:
            seeds, beside = known[row.name]["seeds"], pairs.get(row.name)
            if frontier.has_diverged(seeds):
                setting = f"`{known[row.name]['setting']}`"
                made.append((*_kind(row), setting, "–", "diverged", "diverged", "–", "–", "missed"))
                continue
            ratio = f"{beside.ratio:,.0f}x" if beside else "–" if row.against else "1x"
            made.append((
                *_kind(row), f"`{known[row.name]['setting']}`", ratio,
                *(f"{frontier.percent(seeds, what):.2f}" for what in ("mean", "worst")),
                *((frontier.with_error(beside.mean), frontier.with_error(beside.worst),
                   "holds" if beside.holds else "missed") if beside else ("–", "–", "–")),
            ))  # fmt: skip
    return made


def unlike_data(found: Results) -> Table:
    return [
        ("algorithm, graph, rate", *(f"alpha {alpha}" for alpha in heterogeneity.ALPHAS), "points lost"),
        *(
            (case.name, *map(heterogeneity.cell, row), f"{heterogeneity.lost(row):.1f}")
            for case, row in heterogeneity.rows(found["heterogeneity"]["rows"])
        ),
    ]


def rehearsing(found: Results) -> Table:
    return [COSTS, *map(costs, found["rehearsal"]["rows"])]


def measured_on(found: Results) -> Table:
    """When, of which commit and on what, for files that say so."""
    head = ("figures", "day", "commit", "machine", "Python", *LIBRARIES)
    rows = [
        (f"`{name}`", *(where[key] for key in ("day", "commit", "machine", "python", *LIBRARIES)))
        for name, where in sorted(found["measured_on"].items())
    ]
    return [head, *rows]


TABLES: dict[str, Callable[[Results], Table]] = {
    "met": lambda found: short(found, True),
    "missed": lambda found: short(found, False),
    "seconds": seconds,
    "ratios": ratios,
    "memory": memory,
    "bare-grpc": bare_grpc,
    "speed": speed,
    "dense": dense,
    "indices": indices,
    "values": values,
    "compressions": compressions,
    "cuda-choosing": cuda_choosing,
    "cuda-messages": cuda_messages,
    "liveness": liveness,
    "wire": wire,
    "point": point,
    "frontier": accuracy,
    "heterogeneity": unlike_data,
    "rehearsal": rehearsing,
    "measured-on": measured_on,
}


# --- words ------------------------------------------------------------------------------------------------


def _case(row: dict[str, Any]) -> tuple[str, str, str, str]:
    return _millions(row["params"]), str(row["peers"]), row["algorithm"], str(row["cores"])


def _millions(params: int) -> str:
    return f"{params / 1e6:g}M"


def _seconds(value: float | None) -> str:
    """Three digits, and not more than four places."""
    return "–" if value is None else f"{value:.4f}".rstrip("0") if value < 0.1 else f"{value:.2f}"


def _whole(value: float | None, unit: float = 1.0) -> str:
    return "–" if value is None else f"{value / unit:.0f}"


def three_digits(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def two_digits(value: float) -> str:
    """Without an exponent; three near 1."""
    if value >= 0.1 or not value:
        return "0" if not value else f"{value:.3f}" if value > 0.95 else f"{value:.2f}"
    return f"{float(f'{value:.2g}'):f}".rstrip("0")


def _and(values: Iterable[float | None]) -> str:
    return " and ".join(map(_seconds, values))


def _percent(value: float, places: int = 1) -> str:
    return f"{round(100 * value, places) + 0.0:+.{places}f} %"  # no zero below zero


def _range(over: Sequence[float]) -> str:
    return f"{_percent(min(over))} to {_percent(max(over))}"


def word_for(found: float, goal: float | None) -> str:
    """Of a figure that is to be at most so much."""
    return "–" if goal is None else "met" if found <= goal else "missed"


def _copies_goal(row: dict[str, Any]) -> float:
    return COPIES_GOALS.get(row["model"], COPIES_GOAL)


def _is_random(row: dict[str, Any]) -> bool:
    return str(row.get("set", row.get("task"))).startswith("random")


def _values_goal(row: dict[str, Any]) -> tuple[str, str]:
    """Of random sets there was none."""
    if _is_random(row):
        return "", ""
    return _percent(VALUES_GOAL, 0), word_for(row["over"], VALUES_GOAL)


def _made_dense(row: dict[str, Any]) -> tuple[float, float]:
    """Copies of the model, and how often it goes into the time with torch.topk, where either ends with a
    vector of the whole model."""
    ours = row["encode_ms"] + row["decode_ms"] + row["dense_ms"]
    return ours / row["copy_ms"], 1 + (row["torch_topk_ms"] - row["top_k_ms"]) / ours


def _kind(row: frontier.Row) -> tuple[str, str, str]:
    """Data, graph, steps."""
    data, graph, steps, *_ = row.name.split()
    return data, graph, f"{int(steps):,}"


# --- the page ---------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    head, *rows = table
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


def filled(page: str, found: Results) -> str:
    """The page with its tables as the files have them. Raises KeyError for a name that no table has."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{markdown(TABLES[m[2]](found))}\n{m[3]}", page)


if __name__ == "__main__":
    for page in (PAGE, README):
        page.write_text(filled(page.read_text(encoding="utf-8"), results()), encoding="utf-8")
