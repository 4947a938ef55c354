"""The files of docs/deployment say what is so: options, metrics, routes, files, times.

They are read here as Docker, Compose, Prometheus, Grafana and Kubernetes read them; none of these
is run.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from served import Serving

from sdfast import errors
from sdfast.cli.serve import serve
from sdfast.service import Limits, Service
from sdfast.service.http import guard, serving
from sdfast.service.http.app import app
from sdfast.service.http.settings import Settings
from sdfast.service.metrics import Metrics

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "deployment"
STORE, PORT = "/var/lib/sdfast", 8000
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def read(name: str) -> Any:
    text = (FOLDER / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)


# Docker.


def stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's instructions, by the names of its stages."""
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            found[rest.rpartition(" AS ")[2]] = []
        found[list(found)[-1]].append((instruction, rest))
    return found


def said(stage: str, instruction: str) -> list[str]:
    return [rest for name, rest in stages()[stage] if name == instruction]


def environment(stage: str) -> dict[str, str]:
    pairs = [pair.split("=", 1) for rest in said(stage, "ENV") for pair in rest.split()]
    return dict(pairs)


def copied() -> list[str]:
    """What the image is built from."""
    return [source for rest in said("wheel", "COPY") for source in rest.split()[:-1]]


def healthcheck(stage: str) -> list[str]:
    (rest,) = said(stage, "HEALTHCHECK")
    return list(json.loads(rest.partition("CMD ")[2]))


IMAGES = ("cpu", "cuda")


def test_what_is_copied_is_there_and_nothing_else_is_sent_to_the_builder() -> None:
    assert list(stages()) == ["wheel", "cuda", "cpu"]  # the last is the one that is built unasked
    assert all((ROOT / source).exists() for source in copied())
    ignore = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert [line[1:] for line in ignore if line.startswith("!")] == copied()
    assert "*" in ignore


@pytest.mark.parametrize("stage", IMAGES)
def test_the_extras_of_an_image_are_extras(stage: str) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (extras,) = said(stage, "ARG")
    names = extras.removeprefix("EXTRAS=").split(",")
    assert "serve" in names
    assert set(names) <= set(known)


@pytest.mark.parametrize("stage", IMAGES)
def test_an_image_is_nobodys_root_and_its_first_process_passes_signals_on(stage: str) -> None:
    (user,) = said(stage, "USER")
    number = user.split(":")[0]
    assert number.isdecimal()
    assert any(f"--uid {number} " in line for line in said(stage, "RUN"))
    (entrypoint,) = said(stage, "ENTRYPOINT")  # a list: no shell stands before the signal
    assert json.loads(entrypoint) == ["tini", "--", "sdfast", "serve"]
    assert any(" tini" in line for line in said(stage, "RUN"))
    assert said(stage, "VOLUME") == [STORE]
    assert environment(stage)["SDFAST_HOME"] == environment(stage)["HOME"] == STORE


@pytest.fixture(scope="module")
def running() -> Iterator[Serving]:
    made = Serving()
    yield made
    made.close()


@pytest.mark.parametrize("stage", IMAGES)
def test_the_healthcheck_says_whether_it_is_ready_without_a_key(
    stage: str, running: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(api_keys=("secret",), allowed_hosts=("gallery.example",))
    port = running.over(settings).rpartition(":")[2]
    program, *words = healthcheck(stage)
    assert program == "python"

    def check(at: str) -> int:
        mapped = [word.replace(str(PORT), at) for word in words]
        assert mapped != words
        return subprocess.run([sys.executable, *mapped], stderr=subprocess.DEVNULL).returncode

    assert check(port) == 0
    with monkeypatch.context() as patched:
        patched.setattr(running.service, "_ready", False)
        assert check(port) == 1
    with socket.socket() as nobody:  # who listens at no port of that number
        nobody.bind(("127.0.0.1", 0))
        assert check(str(nobody.getsockname()[1])) == 1


@pytest.mark.slow
def test_the_wheel_of_what_is_copied_serves(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so"))
        else:
            shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("sdfast-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(re.fullmatch(r"sdfast/_core\..*so", name) for name in names)
    assert "sdfast/service/http/page/index.html" in names
    assert "sdfast/engines/demo/bundle.json" in names


# Options.


def given(arguments: list[str], told: Mapping[str, str], patched: pytest.MonkeyPatch) -> Any:
    """The options of `sdfast serve` that these arguments and this environment are."""
    for name, value in told.items():
        patched.setenv(name, value)
    options = {
        f"SDFAST_SERVE_{p.name.upper()}" for p in serve.params if isinstance(p, click.Option)
    }
    known = {*options, "SDFAST_API_KEYS", "SDFAST_HOME"}
    assert {name for name in told if name.startswith("SDFAST_")} <= known
    return serve.make_context("serve", list(arguments)).params


@pytest.mark.parametrize("stage", IMAGES)
def test_an_image_listens_where_its_ports_say(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = said(stage, "CMD")
    options = given(json.loads(command), environment(stage), monkeypatch)
    assert options["bundles"] == ("demo",)
    assert (options["host"], [str(options["port"])]) == ("0.0.0.0", said(stage, "EXPOSE"))
    assert options["port"] == PORT
    assert options["device"] == {"cpu": "auto", "cuda": "cuda"}[stage]


def test_an_image_serves_nobody_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment("cpu").items():
        if name.startswith("SDFAST_SERVE"):
            monkeypatch.setenv(name, value)
    with pytest.raises(errors.InvalidRequest, match="give an --api-key"):
        serve.main(["demo"], standalone_mode=False)


# Compose, Prometheus, Grafana.


def test_compose_gives_time_to_drain_and_names_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compose = read("compose.yaml")
    ours = compose["services"]["sdfast"]
    told = {name: _without_default(value) for name, value in ours["environment"].items()}
    options = given(ours["command"], told, monkeypatch)
    assert int(ours["stop_grace_period"].removesuffix("s")) > options["drain"] + serving._FLUSH
    assert ours["environment"]["SDFAST_SERVE_THREADS"] == ours["cpus"]
    assert f"store:{STORE}" in ours["volumes"]
    assert ours["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert (FOLDER / ours["build"]["context"]).resolve() == ROOT
    assert (ROOT / ours["build"]["dockerfile"]).is_file()
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source == "/tmp" or (FOLDER / source).is_file() or source in compose["volumes"]
        assert set(service.get("secrets", ())) <= set(compose["secrets"])
    assert set(read("compose.cuda.yaml")["services"]) <= set(compose["services"])
    for one in (compose, read("compose.cuda.yaml")):
        assert one["services"]["sdfast"]["build"]["target"] in IMAGES


def _without_default(value: str) -> str:
    return re.sub(r"\$\{\w+(?::[-?]([^}]*))?\}", lambda found: found[1] or "", value)


def test_prometheus_asks_the_service_with_its_key() -> None:
    (job,) = read("prometheus.yaml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"sdfast:{PORT}"]}]
    assert job["metrics_path"] in paths()
    assert job["metrics_path"] not in guard.OPEN
    compose = read("compose.yaml")
    (secret,) = compose["services"]["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    key = compose["secrets"][secret]["environment"]
    assert key in compose["services"]["sdfast"]["environment"]["SDFAST_API_KEYS"]
    mounted = compose["services"]["prometheus"]["volumes"]
    assert all(
        f"./{name}:/etc/prometheus/{name}:ro" in mounted
        for name in ("prometheus.yaml", *read("prometheus.yaml")["rule_files"])
    )


def metrics() -> dict[str, set[str]]:
    """The names that a query may ask for, as Prometheus reads them, and their labels."""
    made = Metrics()
    for one in (made.requests, made.rejected, made.restarts, made.stage):
        one.labels("some")
    families = list(text_string_to_metric_families(made.text().decode()))
    return {
        family.name + suffix: {label for sample in family.samples for label in sample.labels}
        for family in families
        for suffix in SUFFIXES.get(family.type, ())
        if not family.name.endswith("_created")
    }


def test_queries_are_of_metrics_that_there_are_and_every_metric_is_shown() -> None:
    known = metrics()
    dashboard = read("grafana/sdfast.json")
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    alerts = [rule["expr"] for group in read("alerts.yaml")["groups"] for rule in group["rules"]]
    asked = set()
    for query in (*shown, *alerts):
        names = set(re.findall(r"\bsdfast_\w+", query))
        assert names <= set(known), query
        labels = {label for name in names for label in known[name]}
        by = [
            label for found in re.findall(r"by \(([^)]*)\)", query) for label in found.split(", ")
        ]
        matched = re.findall(r"(\w+)=\"", query)
        assert names, query
        assert {*by, *matched} <= labels, query
        assert query.count("(") == query.count(")"), query
        asked |= names
    families = {re.sub("_(total|bucket|sum|count)$", "", name) for name in known}
    assert {re.sub("_(total|bucket|sum|count)$", "", name) for name in asked} == families
    assert len(known) > len(families) == 15


def test_the_dashboard_asks_the_source_that_is_provisioned() -> None:
    (source,) = read("grafana/datasources.yaml")["datasources"]
    dashboard = read("grafana/sdfast.json")
    asked = [p["datasource"] for p in dashboard["panels"]]
    asked += [target["datasource"] for p in dashboard["panels"] for target in p["targets"]]
    assert {(one["type"], one["uid"]) for one in asked} == {(source["type"], source["uid"])}
    places = [
        (p["gridPos"]["x"] + x, p["gridPos"]["y"] + y)
        for p in dashboard["panels"]
        for x in range(p["gridPos"]["w"])
        for y in range(p["gridPos"]["h"])
    ]
    assert len(set(places)) == len(places)  # none lies over another
    assert max(x for x, _ in places) < 24
    assert len({p["id"] for p in dashboard["panels"]}) == len(dashboard["panels"])
    (provider,) = read("grafana/dashboards.yaml")["providers"]
    mounted = read("compose.yaml")["services"]["grafana"]["volumes"]
    assert any(f":{provider['options']['path']}/sdfast.json:" in volume for volume in mounted)


# Kubernetes.


def paths() -> set[str]:
    return set(app(Service(["demo"]), Settings()).openapi()["paths"])


def manifest() -> dict[str, Any]:
    text = (FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def pod() -> Any:
    return manifest()["Deployment"]["spec"]["template"]["spec"]


def container() -> Any:
    (only,) = pod()["containers"]
    return only


@pytest.mark.parametrize("version", ["1.30", "1.34"])
def test_the_manifest_is_what_kubernetes_reads(version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for one in manifest().values():
        validate.validate(one, version, strict=True)


def test_probes_are_of_routes_that_need_no_key_and_no_name() -> None:
    probes = {name: container()[name]["httpGet"] for name in container() if "Probe" in name}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/readyz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/healthz",
    }
    for probe in probes.values():
        assert probe["path"] in paths()
        assert probe["path"] in guard.OPEN
        assert probe["port"] in [port["name"] for port in container()["ports"]]
        assert probe["httpHeaders"] == [{"name": "Host", "value": "localhost"}]


def test_a_pod_has_time_to_drain_and_threads_for_its_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = {one["name"]: one["value"] for one in container()["env"] if "value" in one}
    options = given(container()["args"], told, monkeypatch)
    before = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = pod()["terminationGracePeriodSeconds"]
    assert grace > before + options["drain"] + serving._FLUSH
    assert str(options["threads"]) == container()["resources"]["limits"]["cpu"]
    startup = container()["startupProbe"]
    # Longer than a worker is given to compile, after which it is started anew.
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 10 * Limits().stall
    assert pod()["enableServiceLinks"] is False


def test_a_pod_is_nobodys_root_and_writes_to_its_volumes_alone() -> None:
    (user,) = {said(stage, "USER")[0].split(":")[0] for stage in IMAGES}
    assert pod()["securityContext"]["runAsUser"] == int(user)
    assert pod()["securityContext"]["runAsNonRoot"]
    context = container()["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert not context["allowPrivilegeEscalation"]
    mounted = {one["mountPath"]: one["name"] for one in container()["volumeMounts"]}
    assert set(mounted) == {STORE, "/tmp"}
    assert set(mounted.values()) == {volume["name"] for volume in pod()["volumes"]}


def test_what_selects_pods_selects_these() -> None:
    found = manifest()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    (port,) = found["Service"]["spec"]["ports"]
    assert {"name": port["targetPort"], "containerPort": PORT} in container()["ports"]
    keys = next(one for one in container()["env"] if one["name"] == "SDFAST_API_KEYS")
    secret = keys["valueFrom"]["secretKeyRef"]
    made = (FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")
    assert f"create secret generic {secret['name']} --from-literal={secret['key']}=" in made
    assert (
        found["PodDisruptionBudget"]["spec"]["minAvailable"]
        < found["Deployment"]["spec"]["replicas"]
    )
