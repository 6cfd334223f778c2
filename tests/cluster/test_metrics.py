"""What Prometheus sees of a real search, and whether the dashboard and the alerts ask for what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from support import prometheus

from dreamprvr_ray.runtime import metrics as monitoring
from dreamprvr_ray.search.layout import read_epochs

Command = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "cluster" / "grafana" / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
NEED_A_GPU = {"GPU memory of its tensors", "GPU load", "GPU memory"}  # panels
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

needs_prometheus = pytest.mark.skipif(prometheus.missing() is not None, reason=str(prometheus.missing()))


@dataclass(frozen=True)
class Watched:
    """A search that has ended, and the Prometheus that watched it."""

    out: Path
    prometheus: prometheus.Prometheus
    began: float
    ended: float

    def drawn(self, query: str) -> list[dict[str, Any]]:
        return self.prometheus.drawn(filled_in(query), self.began, self.ended)


def filled_in(query: str) -> str:
    """A query of the dashboard as Grafana would send it."""
    for name, value in {"experiment": "out", "trial": "trial_000", "__range": "10m"}.items():
        query = query.replace(f"${name}", value)
    assert "$" not in query, query
    return query


def metrics_in(query: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", query))


def exported() -> set[str]:
    """The names that `monitoring` gives its gauges, as Ray exports them."""
    names: set[str] = set()

    class Named:
        def __init__(self, name: str, *rest: object) -> None:
            names.add(f"ray_{name}" + ("_total" if type(self) is NamedCounter else ""))

        def set_default_tags(self, tags: Mapping[str, str]) -> None:
            pass

    class NamedCounter(Named):
        pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitoring.metrics, "Gauge", Named)
        patch.setattr(monitoring.metrics, "Counter", NamedCounter)
        monitoring.Gauges("any")
    return names


@pytest.fixture(scope="module")
def watched(demo_shards: Path, command: Command, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A trial of two workers, on a Ray with a directory of its own."""
    folder = tmp_path_factory.mktemp("metrics")
    space = TINY | {"training.epochs": 10, "training.patience": 10, "model.registers": {"int": [0, 4]}}
    values = {
        "config": "demo",
        "shards": str(demo_shards),
        "out": str(folder / "out"),
        "trials": 1,
        "trial": {"workers": 2},
        "final": None,
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(values | {"space": space}))
    ray_folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path: Ray's sockets are in it
    environment = {"RAY_TMPDIR": str(ray_folder), "RAY_metrics_report_interval_ms": "1000"}
    try:
        with (
            prometheus.running(folder, ray_folder / "ray" / PROMETHEUS_SERVICE_DISCOVERY_FILE) as asked,
            pytest.MonkeyPatch.context() as patch,
        ):
            for name, value in environment.items():
                patch.setenv(name, value)
            began = time.time()
            done = command("tune", "--space", folder / "space.yaml")
            assert done.returncode == 0, done.stderr
            yield Watched(folder / "out", asked, began, time.time())
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)


@needs_prometheus
def test_the_files_are_as_prometheus_wants_them_and_each_alert_fires_when_it_should() -> None:
    for words in (
        ("check", "config", "prometheus.yml"),
        ("test", "rules", str(Path(__file__).with_name("alerts_test.yml"))),
    ):
        done = subprocess.run(["promtool", *words], cwd=prometheus.FILES, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    tried = yaml.safe_load(Path(__file__).with_name("alerts_test.yml").read_text())["tests"]
    checks = [
        (check["alertname"], bool(check.get("exp_alerts"))) for test in tried for check in test["alert_rule_test"]
    ]
    rules = yaml.safe_load((prometheus.FILES / "alerts.yml").read_text())["groups"][0]["rules"]
    assert {(rule["alert"], fires) for rule in rules for fires in (True, False)} == set(checks)
    config = yaml.safe_load((prometheus.FILES / "prometheus.yml").read_text())
    assert config["scrape_configs"][0]["file_sd_configs"][0]["files"] == [
        f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"
    ]


@needs_prometheus
@pytest.mark.parametrize("panel", PANELS, ids=[f"{panel['id']}-{panel['title']}" for panel in PANELS])
def test_every_panel_draws_something(watched: Watched, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        series = watched.drawn(target["expr"])
        assert bool(series) != (panel["title"] in NEED_A_GPU), target["expr"]
        legend = re.findall(r"{{(\w+)}}", target["legendFormat"])
        assert all(each["metric"].get(label) for each in series for label in legend), (legend, series[0]["metric"])


@needs_prometheus
def test_the_panels_show_what_the_search_reported(watched: Watched) -> None:
    epochs = read_epochs(watched.out / "runs" / "trial_000")
    shown = {f"loss {name.removeprefix('loss/')}": name for name in epochs[0] if name.startswith("loss/")}
    shown |= {f"recall {rank}": f"R@{rank}" for rank in (1, 5, 10, 100)} | {
        "sumr ": "SumR",
        "epoch ": "epoch",
        "epoch_seconds ": "seconds",
    }
    for what, result in shown.items():
        name, part = what.split(" ")
        series = watched.drawn(
            f"ray_dreamprvr_trial_{name}"
            + (f'{{{monitoring.PARTS[result.removesuffix(part)]}="{part}"}}' if part else "")
        )
        assert len(series) == 1
        # When the last trial has ended, so has its Ray, perhaps before somebody looked.
        assert {float(value) for _, value in series[0]["values"]} <= {float(epoch[result]) for epoch in epochs}


@needs_prometheus
def test_the_variables_have_values(watched: Watched) -> None:
    asked = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert list(asked) == ["datasource", "experiment", "trial"] and asked["datasource"]["query"] == "prometheus"
    values = {}
    for name in ("experiment", "trial"):
        series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", filled_in(asked[name]["query"]["query"])).groups()  # type: ignore[union-attr]
        values[name] = watched.prometheus.ask(
            f"label/{label}/values", **{"match[]": series, "start": watched.began, "end": watched.ended}
        )
    assert values == {"experiment": ["out"], "trial": ["trial_000"]}


@needs_prometheus
def test_the_rules_ask_for_what_there_is(watched: Watched) -> None:
    [group] = watched.prometheus.ask("rules")["groups"]
    for rule in group["rules"]:
        assert rule["health"] == "ok", rule
        watched.drawn(rule["query"])
        for metric in metrics_in(rule["query"]) - GPU_METRICS:
            assert watched.drawn(metric), metric


def test_every_gauge_is_on_the_dashboard_and_in_the_document() -> None:
    drawn = {metric for panel in PANELS for target in panel["targets"] for metric in metrics_in(target["expr"])}
    assert exported() <= drawn
    document = (ROOT / "docs" / "metrics.md").read_text()
    assert not [metric for metric in exported() if f"`{metric}" not in document]


def test_the_dashboard_is_laid_out_and_says_units() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)


def test_gauges_are_repeated_until_their_training_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray forgets what is not set again."""
    said: list[tuple[str, float]] = []

    class Gauge:
        def __init__(self, name: str, *rest: object) -> None:
            self.name = name

        def set_default_tags(self, tags: Mapping[str, str]) -> None:
            pass

        def set(self, value: float, tags: Mapping[str, str] | None = None) -> None:
            said.append((f"{self.name} {(tags or {}).get('trial')}", value))

        def inc(self) -> None:
            pass

    monkeypatch.setattr(monitoring.metrics, "Gauge", Gauge)
    monkeypatch.setattr(monitoring.metrics, "Counter", Gauge)
    monkeypatch.setattr(monitoring, "REPEAT_SECONDS", 0.01)

    def repeated(what: str) -> bool:
        before = said.count((what, 1))
        time.sleep(0.1)
        return said.count((what, 1)) > before + 1

    with monitoring.Gauges("search") as gauges:
        gauges.epoch("a", {"epoch": 1})
        gauges.epoch("b", {"epoch": 1})
        assert repeated("dreamprvr_trial_epoch a") and repeated("dreamprvr_trial_running a")
        gauges.ended("a")
        assert said.count(("dreamprvr_trial_running a", 0)) == 1
        assert (
            not repeated("dreamprvr_trial_epoch a")
            and not repeated("dreamprvr_trial_running a")
            and repeated("dreamprvr_trial_epoch b")
        )
    assert said[-2:] == [("dreamprvr_trial_running b", 0), ("dreamprvr_driver_running None", 0)] and not repeated(
        "dreamprvr_trial_epoch b"
    )
    del said[:]
    with pytest.raises(ValueError), monitoring.Gauges("search"):
        raise ValueError
    assert set(said) == {("dreamprvr_driver_running None", 1)}  # it looks as after a kill
