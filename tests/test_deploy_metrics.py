"""What deploy/ asks Prometheus for is what a daemon serves: the board's queries and the alerts' expressions
are parsed, and every metric and label in them is one of a scrape."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from daemon.test_metrics import FULL
from peer.daemon import metrics

DEPLOY = Path(__file__).parents[1] / "deploy"
BOARD = json.loads((DEPLOY / "grafana/peerd.json").read_text())
ALERTS = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
PROMETHEUS = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
OF_PROMETHEUS = {"up": {"job", "instance"}}  # a series of its own for each target
TARGET = {"job", "instance"}  # what it adds to what it scrapes


def scraped() -> dict[str, set[str]]:
    """Labels by the names of samples, of a device whose every figure is known."""
    body, _ = metrics.text(FULL, "")
    families = list(text_string_to_metric_families(body.decode()))
    assert all(family.samples for family in families if family.name.startswith("peerd_"))
    return {s.name: set(s.labels) | TARGET for family in families for s in family.samples} | OF_PROMETHEUS


KNOWN = scraped()


def queries() -> Iterator[tuple[str, str]]:
    """(where it stands, expression); the board's variables filled in as Grafana does."""
    for rule in (rule for group in ALERTS["groups"] for rule in group["rules"]):
        yield rule["alert"], rule["expr"]
    for panel in BOARD["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", filled(target["expr"])
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert asked is not None
            yield f"${variable['name']}", f"count by ({asked[2]}) ({filled(asked[1])})"


def filled(text: str) -> str:
    return re.sub(r"\$(instance|session)", ".+", text.replace("$__rate_interval", "1m"))


def selectors(expression: str) -> list[promql.VectorSelector]:
    """Every series that is read. Raises ValueError if it is no PromQL."""
    found: list[promql.VectorSelector] = []

    def note(node: Any) -> None:
        if isinstance(node, promql.VectorSelector):
            found.append(node)
        elif isinstance(node, promql.MatrixSelector):
            found.append(node.vector_selector)

    promql.walk(promql.parse(expression), pre_visit=note)
    return found


def grouped(expression: str) -> set[str]:
    """Labels that series are grouped or matched by."""
    lists = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", expression)
    return {label.strip() for inside in lists for label in inside.split(",")} - {""}


@pytest.mark.parametrize(("where", "expression"), [*queries()], ids=lambda text: text[:40])
def test_a_query_names_metrics_and_labels_that_exist(where: str, expression: str) -> None:
    read = selectors(expression)
    assert read, "a query reads something"
    for selector in read:
        assert selector.name in KNOWN, f"{where} asks for {selector.name}"
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert matched <= KNOWN[selector.name], f"{where}: {selector.name} has no {matched}"
    assert grouped(expression) <= set().union(*(KNOWN[selector.name] for selector in read))


def test_the_reference_lists_what_is_served() -> None:
    page = (DEPLOY.parent / "docs/reference/metrics.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| ([\w, ]*) \| (.*) \|$", page, re.MULTILINE)
    families = list(metrics.Snapshot(FULL).collect())
    assert listed == [(f.samples[0].name, ", ".join(f.samples[0].labels), f.documentation) for f in families]


@pytest.mark.parametrize("state", ["waiting", "training", "alone", "paused", "stopped", "failed"])
def test_the_board_shows_every_state(state: str) -> None:
    assert any(f'state="{state}"' in expression for _, expression in queries())


@pytest.mark.parametrize("figure", ["pace_ratio", "consensus_ratio", "mean_weight"])
def test_the_board_shows_what_a_status_is_read_for(figure: str) -> None:
    read = {selector.name for _, expression in queries() for selector in selectors(expression)}
    assert f"peerd_session_{figure}" in read


def test_texts_name_labels_that_exist() -> None:
    for rule in (rule for group in ALERTS["groups"] for rule in group["rules"]):
        said = re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values()))
        assert said
        for selector in selectors(rule["expr"])[:1]:
            assert set(said) <= KNOWN[selector.name], rule["alert"]
    for target in (target for panel in BOARD["panels"] for target in panel.get("targets", [])):
        known = set().union(*(KNOWN[selector.name] for selector in selectors(filled(target["expr"]))))
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= known, target


def test_every_alert_says_how_grave_it_is_and_what_to_do() -> None:
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_the_job_is_called_what_the_queries_ask_for() -> None:
    [scraping] = PROMETHEUS["scrape_configs"]
    assert PROMETHEUS["rule_files"] == ["alerts.yml"]
    jobs = {
        matcher.value
        for _, expression in queries()
        for selector in selectors(expression)
        for matcher in selector.matchers.matchers
        if matcher.name == "job"
    }
    assert jobs == {scraping["job_name"]}


def test_panels_stand_beside_each_other() -> None:
    """None on top of another, each with a number of its own."""
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
