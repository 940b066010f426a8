"""Checks what is in this folder: the chart by Helm itself and by Kubernetes' schemas, compose.yaml by its own, and
everything by what the server and its metrics are called. scripts/lint runs it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import helm_python as helm
import kubernetes_validate
import yaml

HERE = Path(__file__).parent
CHART = HERE / "helm" / "unmask"
ARGUMENTS = [HERE.parent / "src" / "cli" / name for name in ("serve.rs", "model.rs", "traces.rs")]
METRICS = HERE.parent / "docs" / "metrics.md"
KUBERNETES = "1.37"

# Kinds that others define; their fields are checked by hand below.
FOREIGN = {"ServiceMonitor", "ScaledObject"}

RELEASES = {
    "as it is": {},
    "on CPUs": {"gpu": {"count": 0}, "replicaCount": 3},
    "with everything": {
        "model": {"name": "GSAI-ML/LLaDA-8B-Instruct", "revision": "main", "dtype": "bf16"},
        "apiKeys": {"secret": "keys"},
        "hub": {"tokenSecret": "hub", "offline": True},
        "modelCache": {"create": True, "storageClassName": "shared"},
        "autoscaling": {"kind": "hpa"},
        "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
        "extraArgs": ["--max-queue=64"],
        "extraEnv": [{"name": "RUST_LOG", "value": "warn"}],
        "runtimeClassName": "nvidia",
        "imagePullSecrets": [{"name": "pull"}],
        "podAnnotations": {"a": "b"},
        "podLabels": {"a": "b"},
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
    },
    "with KEDA": {
        "autoscaling": {"kind": "keda"},
        "modelCache": {"existingClaim": "models"},
        "metrics": {"serviceMonitor": {"enabled": True}},
    },
}

REFUSED = {
    "two cards": {"gpu": {"count": 2}},
    "an unknown value": {"modle": {}},
    "an unknown number format": {"model": {"dtype": "int4"}},
    "KEDA without the ServiceMonitor whose labels it asks for": {"autoscaling": {"kind": "keda"}},
    "metrics that the ServiceMonitor cannot read": {
        "apiKeys": {"secret": "keys"},
        "metrics": {"open": False, "serviceMonitor": {"enabled": True}},
    },
}

faults = []


def expect(holds, fault):
    if not holds:
        faults.append(fault)


def documents(chart, values):
    texts = chart.render(values, name="demo", namespace="prod")
    rendered = (yaml.safe_load(text) for name, text in texts.items() if name.endswith(".yaml"))
    return {document["kind"]: document for document in rendered if document}


def check_pod(name, deployment):
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    drain = int(option(container["args"], "--drain-seconds"))
    stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    expect(pod["terminationGracePeriodSeconds"] >= drain + stop, f"{name}: pods are killed while they drain")
    expect(container["securityContext"]["readOnlyRootFilesystem"], f"{name}: the root file system can be written")
    expect(pod["securityContext"]["runAsNonRoot"], f"{name}: runs as root")
    expect(pod["enableServiceLinks"] is False, f"{name}: a Service named unmask sets UNMASK_PORT")
    probes = [container[probe] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    expect({probe["httpGet"]["path"] for probe in probes} == {"/ready"}, f"{name}: a probe does not ask the engine")
    patience = probes[2]["periodSeconds"] * probes[2]["failureThreshold"]
    expect(patience >= 300, f"{name}: a pod that is unready for {patience} s is restarted")
    device = option(container["args"], "--device")
    cards = container["resources"]["limits"].get("nvidia.com/gpu", 0)
    expect((device == "cuda") == (cards == 1), f"{name}: {device} with {cards} cards")


def option(arguments, name):
    return next(argument.split("=", 1)[1] for argument in arguments if argument.startswith(f"{name}="))


def check_chart():
    result = helm.lint(str(CHART), strict=True)
    faults.extend(f"helm lint: {error}" for error in result["errors"])
    with helm.Chart.load(str(CHART)) as chart:
        for name, values in RELEASES.items():
            kinds = documents(chart, values)
            for kind, document in kinds.items():
                if kind not in FOREIGN:
                    try:
                        kubernetes_validate.validate(document, KUBERNETES, strict=True)
                    except Exception as error:  # whatever it is, it names what is wrong
                        faults.append(f"{name}: {kind}: {error}")
            check_pod(name, kinds["Deployment"])
            scaled = values.get("autoscaling", {}).get("kind")
            expect(("replicas" in kinds["Deployment"]["spec"]) == (scaled is None), f"{name}: two rule over the replicas")
            selector = kinds["Service"]["spec"]["selector"]
            expect(selector.items() <= kinds["Deployment"]["spec"]["template"]["metadata"]["labels"].items(), f"{name}: selector")
            if monitor := kinds.get("ServiceMonitor"):
                chosen = monitor["spec"]["selector"]["matchLabels"]
                expect(chosen.items() <= kinds["Service"]["metadata"]["labels"].items(), f"{name}: ServiceMonitor")
                ports = {port["name"] for port in kinds["Service"]["spec"]["ports"]}
                expect({end["port"] for end in monitor["spec"]["endpoints"]} <= ports, f"{name}: ServiceMonitor's port")
            if scaler := kinds.get("ScaledObject"):
                expect(scaler["spec"]["scaleTargetRef"]["name"] == kinds["Deployment"]["metadata"]["name"], f"{name}: KEDA")
        for name, values in REFUSED.items():
            try:
                chart.render(values, name="demo")
                faults.append(f"the chart takes {name}")
            except helm.HelmError:
                pass


def check_compose():
    compose = HERE / "compose.yaml"
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", compose]
    done = subprocess.run(command, capture_output=True, text=True)
    expect(done.returncode == 0, f"compose.yaml: {done.stdout}{done.stderr}")
    services = yaml.safe_load(compose.read_text())["services"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            expect(not source.startswith(".") or (HERE / source).exists(), f"compose.yaml: {source} is not there")


def check_names():
    """Metrics and options that are named here must be the server's."""
    metrics = set(re.findall(r"`(unmask_\w+)`", METRICS.read_text()))
    fields = [field for path in ARGUMENTS for field in re.findall(r"^    (?:pub )?(\w+): ", path.read_text(), re.MULTILINE)]
    options = {"--" + field.replace("_", "-") for field in fields}
    files = [path for path in HERE.rglob("*") if path.is_file() and path.suffix in {".yaml", ".json", ".service", ".md"}]
    for path in files:
        text = path.read_text()
        for metric in re.findall(r"\bunmask_\w+", text):
            expect(re.sub(r"_(bucket|sum|count)$", "", metric) in metrics, f"{path.name}: no metric {metric}")
        if path.name in {"compose.yaml", "deployment.yaml", "unmask.service"}:
            lines = [line for line in text.splitlines() if not line.lstrip().startswith(("#", "- --config", "- --storage"))]
            for name in re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines)):
                expect(name in options, f"{path.name}: no option {name}")


def check_dashboard():
    panels = json.loads((HERE / "grafana" / "dashboards" / "unmask.json").read_text())["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    expect(len(set(places)) == len(places), "unmask.json: panels lie on each other")
    for path in [*HERE.glob("prometheus/*.yaml"), *HERE.glob("grafana/**/*.yaml")]:
        expect(isinstance(yaml.safe_load(path.read_text()), dict), f"{path.name} is empty")


check_chart()
check_compose()
check_names()
check_dashboard()
if faults:
    sys.exit("\n".join(["deploy/ is wrong:", *faults]))
print(f"deploy/: {len(RELEASES)} releases of the chart, compose.yaml, the dashboard and the alerts are right")
