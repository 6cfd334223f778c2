"""The metrics of a real search in Prometheus, and whether the dashboard and the alerts query metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from support import prometheus

from dreamprvr_ray.runtime import metrics
from dreamprvr_ray.search.layout import read_epochs
from dreamprvr_ray.training.reporter import EpochResult

Command = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "cluster" / "grafana" / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
GPU_PANELS = {"GPU memory of tensors", "GPU utilization", "GPU memory"}  # titles
GPU_METRICS = {
    "ray_node_gpus_utilization",
    "ray_node_gram_used",
    "ray_node_gram_available",
    "ray_dreamprvr_trial_gpu_bytes",
}
TINY = {
    "model.hidden_size": 16,
    "model.heads": 4,
    "model.branches": 1,
    "model.diffusion_steps": 1,
    "training.batch_videos": 8,
}

FIRST_EPOCH = EpochResult.from_dict({"epoch": 1, "SumR": 50.0, "best_SumR": 50.0, "best_epoch": 1})
TAGS = {"loss": "part", "recall": "rank", "collection_sumr": "collection"}

needs_prometheus = pytest.mark.skipif(prometheus.missing() is not None, reason=str(prometheus.missing()))


@dataclass(frozen=True)
class RecordedSearch:
    """A search that has ended, and the Prometheus that scraped it."""

    out: Path
    prometheus: prometheus.Prometheus
    started: float
    ended: float

    def series(self, query: str) -> list[dict[str, Any]]:
        return self.prometheus.query_range(fill_in(query), self.started, self.ended)


def fill_in(query: str) -> str:
    """Return a query of the dashboard as Grafana would send it."""
    for name, value in {"experiment": "out", "trial": "trial_000", "__range": "10m"}.items():
        query = query.replace(f"${name}", value)
    assert "$" not in query, query
    return query


def metrics_in(query: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", query))


def exported() -> set[str]:
    """Return the names of all gauges as Ray exports them."""
    names: set[str] = set()

    class Named:
        def __init__(self, name: str, *rest: object) -> None:
            names.add(f"ray_{name}" + ("_total" if type(self) is NamedCounter else ""))

        def set_default_tags(self, tags: Mapping[str, str]) -> None:
            pass

    class NamedCounter(Named):
        pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.metrics, "Gauge", Named)
        patch.setattr(metrics.metrics, "Counter", NamedCounter)
        metrics.Gauges("any")
    return names


@pytest.fixture(scope="module")
def search(
    demo_shards: Path, other_shards: Path, command: Command, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RecordedSearch]:
    """Run one trial of two workers on two collections, on a Ray with its own directory."""
    folder = tmp_path_factory.mktemp("metrics")
    space = TINY | {"training.epochs": 10, "training.patience": 10, "model.registers": {"int": [0, 4]}}
    values = {
        "config": "demo",
        "shards": [str(demo_shards), str(other_shards)],
        "out": str(folder / "out"),
        "trials": 1,
        "trial": {"workers": 2},
        "final": None,
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(values | {"space": space}))
    ray_folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short, because it holds Ray's sockets
    environment = {"RAY_TMPDIR": str(ray_folder), "RAY_metrics_report_interval_ms": "1000"}
    try:
        with (
            prometheus.running(folder, ray_folder / "ray" / PROMETHEUS_SERVICE_DISCOVERY_FILE) as server,
            pytest.MonkeyPatch.context() as patch,
        ):
            for name, value in environment.items():
                patch.setenv(name, value)
            started = time.time()
            done = command("tune", "--space", folder / "space.yaml")
            assert done.returncode == 0, done.stderr
            yield RecordedSearch(folder / "out", server, started, time.time())
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)


@needs_prometheus
def test_the_files_are_valid_and_each_alert_fires_when_it_should() -> None:
    for words in (
        ("check", "config", "prometheus.yml"),
        ("test", "rules", str(Path(__file__).with_name("alerts_test.yml"))),
    ):
        done = subprocess.run(["promtool", *words], cwd=prometheus.FILES, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    cases = yaml.safe_load(Path(__file__).with_name("alerts_test.yml").read_text())["tests"]
    checks = [
        (check["alertname"], bool(check.get("exp_alerts"))) for test in cases for check in test["alert_rule_test"]
    ]
    rules = yaml.safe_load((prometheus.FILES / "alerts.yml").read_text())["groups"][0]["rules"]
    assert {(rule["alert"], fires) for rule in rules for fires in (True, False)} == set(checks)
    config = yaml.safe_load((prometheus.FILES / "prometheus.yml").read_text())
    assert config["scrape_configs"][0]["file_sd_configs"][0]["files"] == [
        f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"
    ]


@needs_prometheus
@pytest.mark.parametrize("panel", PANELS, ids=[f"{panel['id']}-{panel['title']}" for panel in PANELS])
def test_every_panel_has_data(search: RecordedSearch, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        series = search.series(target["expr"])
        assert bool(series) != (panel["title"] in GPU_PANELS), target["expr"]
        legend = re.findall(r"{{(\w+)}}", target["legendFormat"])
        assert all(line["metric"].get(label) for line in series for label in legend), (legend, series[0]["metric"])


@needs_prometheus
def test_the_panels_show_what_the_search_reported(search: RecordedSearch) -> None:
    epochs = read_epochs(search.out / "runs" / "trial_000")
    shown = {f"loss {name.removeprefix('loss/')}": name for name in epochs[0] if name.startswith("loss/")}
    shown |= {f"recall {rank}": f"R@{rank}" for rank in (1, 5, 10, 100)} | {
        "sumr ": "SumR",
        "collection_sumr demo": "SumR/demo",
        "collection_sumr other": "SumR/other",
        "epoch ": "epoch",
        "epoch_seconds ": "seconds",
    }
    for metric, key in shown.items():
        name, part = metric.split(" ")
        series = search.series(f"ray_dreamprvr_trial_{name}" + (f'{{{TAGS[name]}="{part}"}}' if part else ""))
        assert len(series) == 1
        # A subset: Ray ends with the last trial, perhaps before Prometheus has scraped the last values.
        assert {float(value) for _, value in series[0]["values"]} <= {float(epoch[key]) for epoch in epochs}


@needs_prometheus
def test_the_variables_have_values(search: RecordedSearch) -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "experiment", "trial"] and variables["datasource"]["query"] == "prometheus"
    values = {}
    for name in ("experiment", "trial"):
        series, label = re.fullmatch(
            r"label_values\((.+), (\w+)\)", fill_in(variables[name]["query"]["query"])
        ).groups()  # type: ignore[union-attr]
        values[name] = search.prometheus.get(
            f"label/{label}/values", **{"match[]": series, "start": search.started, "end": search.ended}
        )
    assert values == {"experiment": ["out"], "trial": ["trial_000"]}


@needs_prometheus
def test_the_alert_rules_query_metrics_that_exist(search: RecordedSearch) -> None:
    [group] = search.prometheus.get("rules")["groups"]
    for rule in group["rules"]:
        assert rule["health"] == "ok", rule
        search.series(rule["query"])
        for metric in metrics_in(rule["query"]) - GPU_METRICS:
            assert search.series(metric), metric


def test_every_gauge_is_on_the_dashboard_and_in_the_document() -> None:
    plotted = {metric for panel in PANELS for target in panel["targets"] for metric in metrics_in(target["expr"])}
    assert exported() <= plotted
    document = (ROOT / "docs" / "metrics.md").read_text()
    assert not [metric for metric in exported() if f"`{metric}" not in document]


def test_panels_do_not_overlap_and_have_units() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    occupied: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & occupied and place["x"] + place["w"] <= 24, panel["title"]
        occupied |= cells
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)


Calls = list[tuple[str, float, dict[str, str]]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Record what gauges are set to: name, value and tags."""
    calls: Calls = []

    class Gauge:
        def __init__(self, name: str, *rest: object) -> None:
            self.name = name

        def set_default_tags(self, tags: Mapping[str, str]) -> None:
            pass

        def set(self, value: float, tags: Mapping[str, str] | None = None) -> None:
            calls.append((self.name, value, dict(tags or {})))

        def inc(self) -> None:
            pass

    monkeypatch.setattr(metrics.metrics, "Gauge", Gauge)
    monkeypatch.setattr(metrics.metrics, "Counter", Gauge)
    monkeypatch.setattr(metrics, "REFRESH_SECONDS", 0.01)
    return calls


def test_the_val_of_each_collection_has_a_gauge(calls: Calls) -> None:
    gauges, name = metrics.Gauges("search"), "dreamprvr_trial_collection_sumr"
    gauges.record_epoch("a", FIRST_EPOCH)
    assert name not in {gauge for gauge, _, _ in calls}  # a single collection has `trial_sumr` only
    gauges.record_epoch("b", replace(FIRST_EPOCH, collections={"qvh": 60.0, "charades": 40.0}))
    assert [(value, tags) for gauge, value, tags in calls if gauge == name] == [
        (60.0, {"trial": "b", "collection": "qvh"}),
        (40.0, {"trial": "b", "collection": "charades"}),
    ]


def test_gauges_are_set_repeatedly_until_their_training_ends(calls: Calls) -> None:
    """Ray drops a gauge that is not set again."""
    running, epoch = "dreamprvr_trial_running", "dreamprvr_trial_epoch"

    def count(gauge: str, trial: str, value: float) -> int:
        return calls.count((gauge, value, {"trial": trial}))

    def is_repeated(gauge: str, trial: str) -> bool:
        before = count(gauge, trial, 1)
        time.sleep(0.1)
        return count(gauge, trial, 1) > before + 1

    with metrics.Gauges("search") as gauges:
        gauges.record_epoch("a", FIRST_EPOCH)
        gauges.record_epoch("b", FIRST_EPOCH)
        assert is_repeated(epoch, "a") and is_repeated(running, "a")
        gauges.mark_ended("a")
        assert count(running, "a", 0) == 1
        assert not is_repeated(epoch, "a") and not is_repeated(running, "a") and is_repeated(epoch, "b")
    assert calls[-2:] == [(running, 0, {"trial": "b"}), ("dreamprvr_driver_running", 0, {})]
    assert not is_repeated(epoch, "b")
    calls.clear()
    with pytest.raises(ValueError), metrics.Gauges("search"):
        raise ValueError
    assert {(name, value) for name, value, _ in calls} == {("dreamprvr_driver_running", 1)}  # as after a kill
