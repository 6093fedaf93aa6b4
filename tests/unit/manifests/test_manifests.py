"""The cluster's files against Kubernetes' and KubeRay's own definitions, in which a misspelt field is an error."""

import copy
import gzip
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "cluster"
KUBERNETES = "1.37"
OWN = {"RayCluster": "rayclusters", "RayJob": "rayjobs"}
MANIFESTS = ("raycluster.yaml", "rayjob.yaml", "mlflow.yaml", "redis.yaml", "store.example.yaml")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def schema(kind: str) -> dict[str, Any]:
    packed = Path(__file__).parent / "crds" / f"{OWN[kind]}.json.gz"
    found: dict[str, Any] = closed(json.loads(gzip.decompress(packed.read_bytes())))
    return found


def closed(part: Any) -> Any:
    """A structural schema in which unknown fields are errors, as for `kubectl apply --validate=strict`."""
    if isinstance(part, list):
        return [closed(one) for one in part]
    if not isinstance(part, dict):
        return part
    found = {name: closed(one) for name, one in part.items()}
    named = part.get("type") == "object" and isinstance(part.get("properties"), dict)
    if named and "additionalProperties" not in part and not part.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    return found


def validate(document: dict[str, Any]) -> None:
    """Raise ValidationError, jsonschema's or kubernetes-validate's, which is one."""
    if document["kind"] in OWN:
        jsonschema.validate(document, schema(document["kind"]))
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_what_kubernetes_and_kuberay_define(name: str) -> None:
    for document in documents(name):
        validate(document)


def misspelt(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Copies of a document with one field's name changed, for every field of its spec that the schema names."""
    free = re.compile(r"(labels|matchLabels|nodeSelector|rayStartParams|requests|limits|data|stringData|annotations)$")
    if isinstance(part, dict):
        for name, value in part.items():
            if "/" in name:  # a label, whose name is anybody's
                continue
            changed = {(f"{n}x" if n == name else n): v for n, v in part.items()}
            yield f"{path}/{name}", changed
            if not free.search(name):
                for where, inner in misspelt(value, f"{path}/{name}"):
                    yield where, {**part, name: inner}
    elif isinstance(part, list):
        for i, value in enumerate(part):
            for where, inner in misspelt(value, f"{path}/{i}"):
                yield where, [*part[:i], inner, *part[i + 1 :]]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_misspelt_field_is_found_wherever_it_is(name: str) -> None:
    for document in documents(name):
        found = list(misspelt(document.get("spec", {}), "spec"))
        validator = jsonschema.Draft7Validator(schema(document["kind"])) if document["kind"] in OWN else None
        for where, spec in found:
            changed = {**copy.deepcopy(document), "spec": spec}
            if validator is not None:
                assert not validator.is_valid(changed), where
            else:
                with pytest.raises(jsonschema.ValidationError):
                    validate(changed)


def test_pods_are_without_root_s_rights_and_hold_no_secret() -> None:
    for name in MANIFESTS:
        for pod in pods(documents(name)):
            assert pod["securityContext"]["runAsNonRoot"] is True
            for container in pod["containers"]:
                assert ":" in container["image"]
                assert not container["image"].endswith(":latest")
                assert all("value" not in entry for entry in container.get("env", ()) if "PASSWORD" in entry["name"])
                assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    for document in documents("store.example.yaml"):
        if document["kind"] == "Secret":
            assert set(document["stringData"].values()) == {"CHANGE-ME"}


def pods(part: Any) -> Iterator[dict[str, Any]]:
    """Every pod's spec in documents."""
    if isinstance(part, dict):
        if "containers" in part:
            yield part
        for value in part.values():
            yield from pods(value)
    elif isinstance(part, list):
        for value in part:
            yield from pods(value)


def test_the_job_s_line_is_one_that_the_job_takes() -> None:
    from raystill.config.overrides import override, parse_assignments
    from raystill.recipes.resolve import resolve

    line = shlex.split(documents("rayjob.yaml")[0]["spec"]["entrypoint"])
    assert line[:2] == ["python", "jobs/distill.py"]
    assert (ROOT / line[1]).is_file()
    changes = [line[i + 1] for i, word in enumerate(line) if word == "--set"]
    run = override(resolve(line[line.index("--recipe") + 1]), parse_assignments(changes))
    run.check()
    groups = {g["groupName"]: g for g in documents("rayjob.yaml")[0]["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    given = [group["labels"] for group in groups.values()]
    for labels in (run.cluster.worker.labels, run.cluster.actor.labels, run.cluster.reader_labels):
        assert labels in given


def test_the_file_for_plain_machines_is_what_ray_defines() -> None:
    import ray

    definition = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    found = documents("vms.yaml")[0]
    jsonschema.validate(found, definition)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**found, "head_start_ray_comands": []}, definition)


def test_the_secrets_and_places_that_pods_read_are_in_the_example() -> None:
    made = {(d["kind"], d["metadata"]["name"]) for d in documents("store.example.yaml")}
    text = "".join((FOLDER / name).read_text() for name in MANIFESTS)
    asked = {("Secret", name) for name in re.findall(r"secret(?:Ref|KeyRef):\s+name: (\S+)", text)}
    asked |= {("ConfigMap", name) for name in re.findall(r"configMapRef:\s+name: (\S+)", text)}
    assert asked
    assert asked <= made


def test_a_submitted_job_takes_no_secret_along() -> None:
    environment = yaml.safe_load((FOLDER / "runtime_env.yaml").read_text())
    assert not [name for name in environment["env_vars"] if "SECRET" in name or "TOKEN" in name or "KEY" in name]
    modules = {ROOT / module for module in environment["py_modules"]}
    assert modules == {path.parent for path in (ROOT / "platform").glob("*/__init__.py")}
