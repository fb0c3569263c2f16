"""What the docs say was measured is what bench/results/ holds: docs/measured.md, whose tables are made of it,
and the figures that README, changelog and catalogue quote."""

from __future__ import annotations

import importlib
import json
import os
import re
import statistics
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from peer.mesh import probing

ROOT = Path(__file__).parents[1]
PRESETS = {  # rows of frontier.json
    "dense": "iid exponential 2048 dense preset",
    "balanced": "iid exponential 2048 further",
    "frugal": "iid exponential 4096 goal",
}
QUOTED = (
    *PRESETS.values(),
    "iid exponential 2048 three quarters",
    "iid exponential 2048 between",
    "iid exponential 2048 goal",
)
AGAIN = "regenerate it: PYTHONPATH=bench python -P bench/measured.py"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    monkeypatch.setenv(
        "OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1")
    )  # which it sets else, for good
    return importlib.import_module("measured")


@pytest.fixture
def found(measured: ModuleType) -> dict[str, Any]:
    return measured.results()


def text(name: str) -> str:
    """With one space for any white space."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def ratios(measured: ModuleType, found: dict[str, Any]) -> dict[str, str]:
    """Times fewer bytes of each preset, without a comma."""
    beside = {row.name: compared for row, compared in measured.compared_rows(found["frontier"])}
    return {preset: f"{beside[row].ratio:.0f}" for preset, row in PRESETS.items()}


def test_every_row_of_the_frontier_has_three_seeds_on_the_same_data(found: dict[str, Any]) -> None:
    asked = {
        name: [re.findall(r"--seed (\d+)", one["words"]) for one in row["seeds"]]
        for name, row in found["frontier"].items()
    }
    assert asked
    assert {name: seeds for name, seeds in asked.items() if seeds != [["0"], ["1"], ["2"]]} == {}


def test_figures_are_kept_with_the_commit_and_the_machine_they_are_of(
    measured: ModuleType, found: dict[str, Any], tmp_path: Path
) -> None:
    kept, file, beside = (
        importlib.import_module("kept"),
        tmp_path / "coding.json",
        tmp_path / "measured_on.json",
    )
    kept.keep(file, {"speed": 1, "values": 2}, ["speed", "values"])
    kept.keep(tmp_path / "wire.json", [3])
    assert json.loads(file.read_text()) == {"speed": 1, "values": 2}
    said = json.loads(beside.read_text())
    assert sorted(said) == ["coding, speed", "coding, values", "wire"]
    assert {one["commit"] for one in said.values()} == {kept.COMMIT}
    kept.keep(file, {"speed": 4})
    assert sorted(json.loads(beside.read_text())) == ["coding", "wire"], "all of it is new"
    assert {name.partition(",")[0] for name in found["measured_on"]} <= set(measured.FIGURES)


def test_a_commit_is_marked_where_code_was_changed_since(measured: ModuleType, tmp_path: Path) -> None:
    kept = importlib.import_module("kept")
    assert kept.commit(tmp_path) == kept.UNKNOWN, "no repository"

    def git(*words: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-C", str(tmp_path)]
        done = subprocess.run(["git", *own, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    for name in ("code.py", "page.md"):
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "--short=7", "HEAD")
    (tmp_path / "page.md").write_text("2")
    assert kept.commit(tmp_path) == head
    (tmp_path / "code.py").write_text("2")
    assert kept.commit(tmp_path) == f"{head}+"


def test_every_table_is_on_the_page_and_as_the_files_have_it(
    measured: ModuleType, found: dict[str, Any]
) -> None:
    page = measured.PAGE.read_text(encoding="utf-8")
    assert sorted(name for _, name, _ in measured.BLOCK.findall(page)) == sorted(measured.TABLES)
    assert measured.filled(page, found) == page, AGAIN


def test_the_readme_has_the_table_of_unlike_data_and_no_other(
    measured: ModuleType, found: dict[str, Any]
) -> None:
    page = measured.README.read_text(encoding="utf-8")
    assert [name for _, name, _ in measured.BLOCK.findall(page)] == ["heterogeneity"]
    assert measured.filled(page, found) == page, AGAIN


def test_the_table_of_unlike_data_has_its_figures_and_verdicts(
    measured: ModuleType, found: dict[str, Any]
) -> None:
    rows = found["heterogeneity"]["rows"]
    mean_of = [statistics.fmean(seed["mean"] for seed in row["seeds"]) for row in rows]
    table = measured.unlike_data(found)[1:]
    assert len(rows) == 2 * len(table)
    for at, (name, *cells, lost) in enumerate(table):
        for row, mean, cell in zip(rows[2 * at :], mean_of[2 * at :], cells, strict=False):
            assert all(word in row["words"] for word in re.findall(r"`([^`]*)`", name)), name
            averaged = statistics.fmean(seed["averaged_model"] for seed in row["seeds"])
            figures = [float(figure) for figure in re.findall(r"0\.\d+", cell)]
            worst = min(seed["worst"] for seed in row["seeds"])
            assert [figures[0], *figures[2:]] == pytest.approx([mean, worst, averaged], abs=6e-4)
        assert float(lost) == pytest.approx(100 * (mean_of[2 * at] - mean_of[2 * at + 1]), abs=0.06)
    verdicts = [one.met for one in measured.verdicts(found) if one.what.startswith("points the mean")]
    points = [100 * (mean_of[at] - mean_of[at + 1]) for at in range(0, len(rows), 2)]
    assert verdicts == [points[0] >= 10, *(lost <= 4 for lost in points[1:])]


def test_the_table_of_what_rehearsals_cost_has_its_figures(
    measured: ModuleType, found: dict[str, Any]
) -> None:
    rows, table = found["rehearsal"]["rows"], measured.rehearsing(found)[1:]
    assert [cells[0] for cells in table] == [row["what"] for row in rows]
    assert {"its data" in cells[0] for cells in table if cells[0].startswith("MLP")} == {True}
    assert [cells[1] for cells in table if "64 peers, sgp, 2000 rounds" in cells[0]] == ["128,000"]
    for cells, row in zip(table, rows, strict=True):
        bare, rehearsed, ratio, beyond, load = map(float, cells[2:])
        assert [bare, rehearsed] == pytest.approx([row["bare_s"], row["rehearsed_s"]], abs=0.006)
        assert ratio == pytest.approx(row["rehearsed_s"] / row["bare_s"], abs=0.006)
        took_s = row["bare_s"] + row["steps"] * beyond / 1000
        assert took_s == pytest.approx(row["rehearsed_s"], abs=row["steps"] * 6e-6)
        assert load == pytest.approx(row["load"], abs=0.06)


def test_unlike_data_was_rehearsed_as_it_says(found: dict[str, Any]) -> None:
    same = "--peers 16 --batch 16 --rounds 600 --local-steps 1 --momentum 0"
    for row in found["heterogeneity"]["rows"]:
        assert same in row["words"] and "--task fashion-mnist --option model=mlp" in row["words"]
        assert row["words"].endswith(f"--split dirichlet={row['alpha']}") and "schedule" not in row["words"]
        assert (row["metric"], [one["seed"] for one in row["seeds"]]) == ("accuracy", [0, 1, 2])


def test_cells_stand_under_their_heads(measured: ModuleType, found: dict[str, Any]) -> None:
    for name, make in measured.TABLES.items():
        head, *rows = make(found)
        assert rows and {len(row) for row in rows} == {len(head)}, name


def test_the_exchanges_table_has_its_figures_and_verdicts(
    measured: ModuleType, found: dict[str, Any]
) -> None:
    for cells, row in zip(measured.seconds(found)[1:], found["exchange"], strict=True):
        goal = 0.05 if row["params"] == 1_000_000 else row["hivemind_seconds"] / 2
        assert [float(cell) for cell in cells[4:6]] == pytest.approx([row["seconds"], goal], abs=0.005)
        assert cells[6] == ("met" if row["seconds"] <= goal else "missed")
    for cells, row in zip(measured.memory(found)[1:], found["exchange"], strict=True):
        most = 3 * 4 * row["params"] / 1e6 + 64
        assert [float(cell) for cell in cells[8:10]] == pytest.approx([row["memory_mb"], most], abs=0.5)
        assert cells[10] == ("met" if row["memory_mb"] <= most else "missed")
        sent = [row[f"{whose}bytes"] / 1e6 for whose in ("", "hivemind_", "raw_")]
        assert [float(cell) for cell in cells[5:8]] == pytest.approx(sent, abs=0.5)


def test_the_tables_of_a_gpu_have_their_figures(measured: ModuleType, found: dict[str, Any]) -> None:
    page, known = text("docs/measured.md"), found["cuda"]
    assert f"one {known['device']}, torch {known['torch']}," in page
    assert known["differing"] == [] and all(row["same"] for row in known["choosing"])
    assert all(f"`{words}`" in page for words in known["compared"])
    for cells, row in zip(measured.cuda_choosing(found)[1:], known["choosing"], strict=True):
        ratios = [float(cells[at].removesuffix("x")) for at in (4, 7)]
        assert ratios == pytest.approx(
            [row[f"{where}_topk_ms"] / row[f"{where}_ms"] for where in ("cpu", "cuda")], abs=0.06
        )
    for cells, row in zip(measured.cuda_messages(found)[1:], known["messages"], strict=True):
        assert float(cells[5].removesuffix("x")) == pytest.approx(row["copied_ms"] / row["cuda_ms"], abs=0.06)


def test_every_goal_is_told_as_met_or_as_missed(measured: ModuleType, found: dict[str, Any]) -> None:
    told = [measured.short(found, met)[1:] for met in (True, False)]
    assert sum(map(len, told)) == len(list(measured.verdicts(found)))
    assert not {what for what, *_ in told[0]} & {what for what, *_ in told[1]}
    assert all(measured.word_for(1.0, goal) == word for goal, word in ((1.0, "met"), (0.9, "missed")))


def test_a_sign_of_life_may_take_as_long_as_the_page_says(measured: ModuleType) -> None:
    assert measured.PROBE_GOAL_S == probing.ANSWER_S


def test_presets_save_what_is_said_of_them(measured: ModuleType, found: dict[str, Any]) -> None:
    dense, balanced, frugal = ratios(measured, found).values()
    frugal_, entries = f"{int(frugal):,}", text("peer/entries.py")
    assert f"save {dense}x, {balanced}x and {frugal_}x (" in text("README.md")
    assert f"{dense}, {balanced} and {frugal_} times fewer bytes" in text("CHANGELOG.md")
    assert f"that is {balanced} times less" in text("docs/how.md")
    for preset, ratio in (("dense", dense), ("balanced", balanced), ("frugal", frugal)):
        assert re.search(rf'"{preset}": Preset\([^)]*\), # {ratio}x', entries), preset


def test_the_readme_quotes_what_saving_bytes_costs(measured: ModuleType, found: dict[str, Any]) -> None:
    readme, rows = text("README.md"), measured.compared_rows(found["frontier"])
    quoted = [beside for row, beside in rows if row.name in QUOTED]
    assert len(quoted) == len(QUOTED)
    for beside in quoted:
        lost = re.escape(measured.frontier.with_error(beside.worst))
        assert re.search(rf"\b{beside.ratio:,.0f} times (fewer bytes cost )?{lost}", readme), beside.ratio


def test_the_readme_has_each_compression_as_measured(measured: ModuleType, found: dict[str, Any]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for line in readme.splitlines() if line.startswith("| `")]
    for row in found["coding"]["compressions"]:
        word = row["compression"].partition(",")[0]
        line = next(line for line in lines if f"`{word}`" in line.split("|")[1])
        bits, lost = measured.three_digits(row["bits"]), measured.two_digits(row["lost"])
        assert bits in line and (lost if row["lost"] else "nothing") in line, row
