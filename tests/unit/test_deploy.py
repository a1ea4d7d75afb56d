"""The files in deploy/ and docs/deployment.md are valid, fit together, and use the names of this version.

No container runtime, cluster or service manager is needed: paths are looked up, commands are parsed by the
command line itself, manifests are checked against Kubernetes' schemas, units are read by systemd where it is
installed.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest

from clockwork.cli.root import cli
from clockwork.models.compile.host import COMPILERS
from clockwork.wire.keys import ALLOWED_FILE, CONTROLLER_KEY_FILE, KEY_FILES
from clockwork.wire.roles import Role
from tests.patience import PATIENCE_S

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (extra [test])")

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
YAML = sorted(DEPLOY.rglob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCHEMAS = ("1.29", "1.34")
"""The oldest and the newest version of Kubernetes whose schemas the manifests are checked against."""

EXPOSURE_MAX = 20
"""Largest exposure that `systemd-analyze security` may report, in tenths: below this, it says OK."""


class Loader(yaml.SafeLoader):  # type: ignore[misc]
    """A loader that rejects mappings with a repeated key, which YAML would drop silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [
            self.construct_object(key, deep=True)
            for key, _ in node.value
            if key.tag != "tag:yaml.org,2002:merge"
        ]
        assert len(keys) == len(set(map(str, keys))), f"a key twice at {node.start_mark}: {keys}"
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def documents(path: Path) -> list[Any]:
    return list(yaml.load_all(path.read_text(encoding="utf-8"), Loader))


def parse(words: list[str]) -> click.Context:
    """Parse the arguments of `clockwork` as the program itself does; raise its error."""
    name, *rest = words
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"there is no command {name!r}"
    if (
        isinstance(command, click.Group)
        and rest
        and not (command.invoke_without_command and rest[0][:1] == "-")
    ):
        inner = command.get_command(click.Context(command), rest[0])
        assert inner is not None, f"there is no command {name} {rest[0]!r}"
        command, rest = inner, rest[1:]
    try:
        return command.make_context(name, list(rest))
    except click.BadParameter as error:
        # The user has this file, or this extra of the package
        if "does not exist" in error.message or "pip install 'clockwork-serving[" in error.message:
            return click.Context(command)
        raise


def option(words: list[str], name: str) -> str:
    """Return the value of --name VALUE or --name=VALUE."""
    for place, word in enumerate(words):
        if word == name:
            return words[place + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    raise AssertionError(f"no {name} in {words}")


# ----- every YAML file --------------------------------------------------------------------------


@pytest.mark.parametrize("path", YAML, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_yaml_is_tidy_and_every_key_is_there_once(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert documents(path)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    for number, line in enumerate(text.splitlines(), 1):
        assert "\t" not in line, f"{path.name}:{number} has a tab"
        assert line == line.rstrip(), f"{path.name}:{number} ends with blanks"
        assert len(line) <= 120, f"{path.name}:{number} is too long"
        assert (len(line) - len(line.lstrip())) % 2 == 0, f"{path.name}:{number} is indented by an odd number"


def test_nothing_names_a_machine_or_a_registry() -> None:
    """Check that an image is the reader's own, or Python's in its short form."""
    for path in [*DEPLOY.rglob("*"), ROOT / "docs" / "deployment.md", ROOT / ".dockerignore"]:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"/home/|/root/|index-url", text), path
            for image in re.findall(r"^\s*(?:image|newName): *(\S+)|^FROM (\S+)", text, re.MULTILINE):
                assert not re.search(r"[.:].*/", "".join(image)), f"{path}: {image}"


# ----- the image --------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (word, " ".join(rest.split()))
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def in_context(path: str) -> bool:
    """Whether a build includes the path, by .dockerignore: the last matching pattern decides."""
    seen = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern, keeps = line.removeprefix("!"), line.startswith("!")
        parts = path.split("/")
        heads = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        if any(
            fnmatch.fnmatch(head, pattern) or fnmatch.fnmatch(f"./{head}", f"./{pattern}") for head in heads
        ):
            seen = keeps
    return seen


def test_what_the_image_copies_exists_and_is_sent_to_the_build() -> None:
    copied: list[str] = []
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            copied += rest.split()[:-1]
    for source in copied:
        assert (ROOT / source).exists(), source
        assert in_context(source), f"{source} is kept from the build by .dockerignore"
    needed = [
        "setup.py",
        "pyproject.toml",
        PROJECT["project"]["readme"],
        *PROJECT["project"]["license-files"],
    ]
    assert set(needed) <= set(copied), "the wheel cannot be built without these"
    for source in (
        "clockwork/scheduler/_core.pyx",
        "clockwork/models/data/digits.onnx",
        "csrc/device/lane.h",
    ):
        assert in_context(source), source
    for source in (
        ".git",
        ".venv",
        "deploy/kubernetes/keys/worker.key",
        "clockwork/scheduler/_core.cpp",
        "tests",
    ):
        assert not in_context(source), source


def test_the_image_runs_as_a_user_by_number_and_starts_the_program() -> None:
    found = instructions()
    stages = [index for index, (word, _) in enumerate(found) if word == "FROM"]
    assert len(stages) == 2, "what builds is not what runs"
    last = dict(found[stages[-1] :])
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert last["ENTRYPOINT"] == '["clockwork"]'
    assert "clockwork" in PROJECT["project"]["scripts"]
    base = next(rest for word, rest in found if word == "ARG")
    assert base == "PYTHON=python:3.12-slim-bookworm"
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    for names in re.findall(r"EXTRAS=([\w,]+)", text):
        assert set(names.split(",")) <= set(PROJECT["project"]["optional-dependencies"]), names


@pytest.mark.parametrize("locale", ["en_US", "en_US.UTF-8"])
def test_an_image_has_the_locales_that_exporters_name(locale: str) -> None:
    assert any(
        f"localedef -i en_US -f UTF-8 {locale} " in rest for word, rest in instructions() if word == "RUN"
    )


@pytest.mark.parametrize(("extras", "installs"), [("gateway,cuda12,compile", True), ("gateway,text", False)])
def test_an_image_that_compiles_models_has_a_c_compiler(extras: str, installs: bool, tmp_path: Path) -> None:
    found = instructions()
    last = found[max(index for index, (word, _) in enumerate(found) if word == "FROM") :]
    (command,) = [rest for word, rest in last if word == "RUN" and "apt-get" in rest and "EXTRAS" in rest]
    assert ("ARG", "EXTRAS=gateway") in last[: last.index(("RUN", command))]
    for name in ("apt-get", "rm"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$@"\n')
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["sh", "-ec", command],
        env={"EXTRAS": extras, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    packages = done.stdout.split()
    assert (bool({*COMPILERS} & {*packages}), "libc6-dev" in packages) == (installs, installs)


# ----- commands ---------------------------------------------------------------------------------


def commands_of_compose() -> Iterator[tuple[str, list[str]]]:
    [compose] = documents(DEPLOY / "compose.yaml")
    for name, service in compose["services"].items():
        if service.get("entrypoint") == ["sh", "-c"]:
            text = service["command"][0].replace("\\\n", " ")
            for found in re.findall(r"clockwork ([a-z][^|&;\n]*)", text):
                yield f"compose {name}", shlex.split(found)
        else:
            yield f"compose {name}", service["command"]
        if "healthcheck" in service:
            _, program, *words = service["healthcheck"]["test"]
            assert program == "clockwork"
            yield f"compose {name}, its health check", words


def test_compose_names_only_what_it_has() -> None:
    [compose] = documents(DEPLOY / "compose.yaml")
    services, volumes = compose["services"], compose["volumes"]
    assert {"controller", "worker", "gateway"} <= set(services)
    for name in ("controller", "worker", "gateway"):
        assert services[name]["restart"] == "unless-stopped", f"{name} is started again, as by the other ways"
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in volumes, f"{name}: {volume}"
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), (
                f"{name} publishes {port} beyond this machine, without a token"
            )
        for _, host in re.findall(r"tcp://(([a-z]+)):", " ".join(service["command"])):
            assert host in services
        # A dependency on an ended container keeps podman from restarting these; and podman runs no health
        # checks there.
        for needed in service.get("depends_on", {}).values():
            assert needed == {"condition": "service_started"}, name
    built = [service["build"] for service in services.values() if "build" in service]
    assert [(DEPLOY / one["context"] / one["dockerfile"]).resolve() for one in built] == [
        DEPLOY / "Containerfile"
    ]


def test_compose_waits_for_the_key_that_each_service_reads() -> None:
    [compose] = documents(DEPLOY / "compose.yaml")
    [script] = compose["services"]["controller"]["command"]
    made = [name for name in KEY_FILES.values() if f"test -e {name} ||" in script]
    assert made == list(KEY_FILES.values())
    for name in ("worker", "gateway"):
        service = compose["services"][name]
        assert service["entrypoint"][-1] == option(service["command"], "--key")
        assert service["entrypoint"][2] == 'until test -e "$$0"; do sleep 0.1; done; exec clockwork "$$@"'
    assert made.index("operator.key") < made.index("gateway.key"), "the gateway has both when it has its own"


def test_what_the_page_says_of_composes_variables_is_so() -> None:
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    used = dict(re.findall(r"\$\{(CLOCKWORK_\w+):-(\w+)\}", text))
    assert set(used) == set(re.findall(r"\$\{(\w+)", text))
    assert dict(re.findall(r"(CLOCKWORK_\w+) \((\w+)\)", text.replace("\n#", ""))) == used
    assert set(re.findall(r"CLOCKWORK_(?:WORKERS|IMAGE|\w+_PORT)", page)) == set(used)
    assert "--scale" not in text + page, "podman-compose does nothing with it"


def containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Return every container of the manifests and of the overlays, with its pod."""
    for one in [*manifests(), *patched("gpu"), *patched("standby")]:
        pod = one.get("spec", {}).get("template", {}).get("spec")
        for container in (pod or {}).get("containers", ()):
            yield pod, container


def commands_of_kubernetes() -> Iterator[tuple[str, list[str]]]:
    for _, container in containers():
        values = stores() if "envFrom" in container else {}
        yield (
            f"kubernetes {container['name']}",
            [
                re.sub(r"\$\((\w+)\)", lambda name: values.get(name[1], name[0]), word)  # noqa: B023
                for word in container["args"]
            ],
        )
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            words = container.get(kind, {}).get("exec", {}).get("command", [])
            if words[:2] == ["sh", "-c"]:
                words = shlex.split(words[2].removeprefix("exec "))
            if words:
                assert words[0] == "clockwork"
                yield f"kubernetes {container['name']}, {kind}", words[1:]


def settings_of(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "[")):
            name, equals, value = line.partition("=")
            assert equals, f"{unit.name}: {line}"
            found.setdefault(name, []).append(value)
    return found


def commands_of_systemd() -> Iterator[tuple[str, list[str]]]:
    arguments = dict(
        line.split("=", 1)
        for line in (DEPLOY / "systemd" / "clockwork.env").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    for unit in UNITS:
        [line] = settings_of(unit)["ExecStart"]
        words = []
        for word in line.split()[1:]:
            words += shlex.split(arguments[word[1:]]) if re.fullmatch(r"\$[A-Z_]+", word) else [word]
        yield unit.name, words


def commands_of_the_page() -> Iterator[tuple[str, list[str]]]:
    pages = [ROOT / "docs" / name for name in ("deployment.md", "security.md")]
    text = "\n".join(page.read_text(encoding="utf-8").replace("\\\n", " ") for page in pages)
    for line in text.splitlines():
        if found := re.match(
            r"    (?:\$ |sudo (?:-u clockwork )?|kubectl .* -- )?(?:/opt/clockwork/bin/)?clockwork ([a-z].*)",
            line,
        ):
            yield f"the page: {line.strip()}", shlex.split(found[1], comments=True)


@pytest.mark.parametrize(
    "commands",
    [commands_of_compose, commands_of_kubernetes, commands_of_systemd, commands_of_the_page],
    ids=["compose", "kubernetes", "systemd", "page"],
)
def test_every_command_is_one_of_this_version(commands: Any) -> None:
    found = list(commands())
    assert len(found) >= 3
    for where, words in found:
        try:
            parse(words)
        except click.ClickException as error:
            pytest.fail(f"{where}: {error.format_message()}")


def test_a_wrong_flag_would_be_found() -> None:
    with pytest.raises(click.NoSuchOption):
        parse(["worker", "--drian", "30"])
    with pytest.raises(click.BadParameter):
        parse(["worker", "--arena", "much"])


# ----- Kubernetes -------------------------------------------------------------------------------


def kustomization(path: Path = KUBERNETES) -> dict[str, Any]:
    [found] = documents(path / "kustomization.yaml")
    assert isinstance(found, dict)
    return found


def manifests() -> list[dict[str, Any]]:
    return [one for name in kustomization()["resources"] for one in documents(KUBERNETES / name)]


def manifest(kind: str, name: str) -> dict[str, Any]:
    [found] = [one for one in manifests() if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def patched(overlay: str, *, below: str = "") -> list[dict[str, Any]]:
    """Apply an overlay, and before it the one below, to the manifests that it changes."""
    base = {(one["kind"], one["metadata"]["name"]): one for one in manifests()}
    changed: dict[tuple[str, str], dict[str, Any]] = {}
    for name in filter(None, (below, overlay)):
        changed = {}
        for patch in kustomization(KUBERNETES / name)["patches"]:
            key = patch["target"]["kind"], patch["target"]["name"]
            for step in yaml.load(patch["patch"], Loader):
                apply_step(base[key], step)
            changed[key] = base[key]
    return list(changed.values())


def apply_step(one: dict[str, Any], step: dict[str, Any]) -> None:
    """Change a manifest by a step of a JSON patch."""
    *way, last = (int(word) if word.isdigit() else word for word in step["path"].split("/")[1:])
    place: Any = one
    for word in way:
        place = place[word]
    is_there = last < len(place) if isinstance(last, int) else last in place
    assert step["op"] == "add" or is_there, f"there is nothing to replace at {step['path']}"
    if step["op"] == "test":
        assert place[last] == step["value"], step["path"]
    elif last == "-":  # JSON Patch's end of a list
        place.append(step["value"])
    else:
        place[last] = step["value"]


STANDBY = KUBERNETES / "standby"


def stores() -> dict[str, str]:
    """The variables of the secret of the overlay for two controllers, as its example has them."""
    lines = (STANDBY / "stores.env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.skipif(find_spec("kubernetes_validate") is None, reason="kubernetes-validate is not installed")
@pytest.mark.parametrize("version", SCHEMAS)
def test_kubernetes_would_accept_the_manifests(version: str) -> None:
    import kubernetes_validate

    def mistakes(one: dict[str, Any]) -> list[str]:
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [f"{one['kind']} {one['metadata']['name']}: {error.message}"]
        return []

    kinds = [one["kind"] for one in manifests()]
    for kind in (
        "StatefulSet",
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
        "Namespace",
    ):
        assert kind in kinds
    every = [*manifests(), *patched("gpu"), *patched("standby"), *patched("standby", below="gpu")]
    every += documents(STANDBY / "disruption.yaml")
    assert [text for one in every for text in mistakes(one)] == []
    wrong = manifest("StatefulSet", "clockwork-worker")
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 40
    assert mistakes(wrong), "a field that there is not would be found"


def test_the_customisation_has_every_manifest_and_every_secret_that_is_used() -> None:
    listed = kustomization()
    others = {"kustomization.yaml", "prometheus-adapter-values.yaml"}
    assert set(listed["resources"]) | others == {path.name for path in KUBERNETES.glob("*.yaml")}
    assert kustomization(KUBERNETES / "gpu")["resources"] == [".."]
    assert kustomization(STANDBY)["resources"] == ["..", "disruption.yaml"]
    assert {image["name"] for image in listed["images"]} == {one["image"] for _, one in containers()}
    assert manifest("Namespace", listed["namespace"])

    secrets = {one["name"]: [Path(file).name for file in one["files"]] for one in listed["secretGenerator"]}
    assert secrets["clockwork-controller-key"] == [CONTROLLER_KEY_FILE]
    for role in (Role.CLIENT, Role.WORKER, Role.GATEWAY):
        assert secrets[f"clockwork-{role}-key"] == [KEY_FILES[role]]
    [allowed] = listed["configMapGenerator"]
    assert [Path(file).name for file in allowed["files"]] == [ALLOWED_FILE]
    assert allowed["options"] == {"disableNameSuffixHash": True}, "it changes in place"
    used = set()
    for pod, container in containers():
        mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
        for volume in pod["volumes"]:
            if "secret" not in volume:
                continue
            name = volume["secret"]["secretName"]
            used.add(name)
            text = str(container)
            assert not re.search(r"operator|controller\.key", text) or container["name"] == "controller"
            assert f"{mounts[volume['name']]}/{secrets[name][0]}" in text, (
                f"{container['name']} does not use {name}"
            )
    assert used == set(secrets)
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    for folder in ("/deploy/kubernetes/keys/", "/deploy/kubernetes/standby/keys/"):
        assert folder in ignored, "nobody commits keys by accident"


def test_every_process_has_the_key_of_its_role_and_no_other() -> None:
    """Return the value that a command has, by --key or by the environment of its unit or container."""
    probes = 0
    for where, words in [*commands_of_compose(), *commands_of_kubernetes()]:
        if words[0] in ("controller", "worker", "gateway"):
            assert Path(option(words, "--key")).name == f"{words[0]}.key", where
        elif words[0] == "probe" and any(word.startswith("--key") for word in words):
            probes += 1
            assert Path(option(words, "--key")).name == KEY_FILES[Role.CLIENT], where
    assert probes >= 2
    for unit in UNITS:
        found = settings_of(unit)
        name = unit.stem.removeprefix("clockwork-")
        assert f"CLOCKWORK_KEY=%d/{name}.key" in " ".join(found["Environment"])
        keys = [one.partition(":")[0] for one in found["LoadCredential"] if one.endswith(".key")]
        assert [one for one in keys if not one.startswith("tls")] == [f"{name}.key"], unit.name


def test_pods_run_with_as_little_as_they_need() -> None:
    found = list(containers())
    assert len(found) == 7
    for pod, container in found:
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "CLOCKWORK_... would be set by Kubernetes, too"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert "cpu" not in container["resources"]["limits"], "what is throttled is late"
        assert container["resources"]["limits"]["memory"]


def test_ports_services_and_probes_fit_together() -> None:
    pods = {
        one["metadata"]["name"]: one["spec"]["template"]
        for one in manifests()
        if one["kind"] in ("StatefulSet", "Deployment")
    }
    for one in manifests():
        if one["kind"] == "StatefulSet":
            assert manifest("Service", one["spec"]["serviceName"])
        if one["kind"] not in ("Service", "PodDisruptionBudget"):
            continue
        selector = one["spec"].get("selector", {})
        selector = selector.get("matchLabels", selector)
        [template] = [pod for pod in pods.values() if selector.items() <= pod["metadata"]["labels"].items()]
        [container] = template["spec"]["containers"]
        named = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
        for port in one["spec"].get("ports", ()):
            assert named[port["targetPort"]] == port["port"]
    for _, container in containers():
        named = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
        text = " ".join(container["args"])
        for name, port in named.items():
            assert str(port) in text, f"{container['name']} does not listen for {name}"
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container.get(kind, {})
            for how in ("httpGet", "tcpSocket"):
                if how in probe:
                    assert probe[how]["port"] in named
    gateway = manifest("Deployment", "clockwork-gateway")["spec"]["template"]["spec"]["containers"][0]
    assert gateway["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert gateway["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    for _, container in containers():
        for name in re.findall(r"tcp://([a-z][\w-]*):(\d+)", str(container)):
            ports = [port["port"] for port in manifest("Service", name[0])["spec"]["ports"]]
            assert int(name[1]) in ports


def test_the_autoscaler_asks_for_what_the_adapter_offers() -> None:
    scaler = manifest("HorizontalPodAutoscaler", "clockwork-worker")["spec"]
    target = scaler["scaleTargetRef"]
    workers = manifest(target["kind"], target["name"])["spec"]
    assert "replicas" not in workers, "each apply would undo what the autoscaler did"
    [metric] = scaler["metrics"]
    name = metric["external"]["metric"]["name"]
    [rules] = documents(KUBERNETES / "prometheus-adapter-values.yaml")
    [rule] = rules["rules"]["external"]
    assert name == rule["name"]["as"] == "clockwork_devices_wanted"
    assert name in rule["seriesQuery"]
    # One device for each worker, so as many workers as devices are wanted.
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}


# ----- two controllers on Kubernetes --------------------------------------------------------------


def two_controllers(below: str = "") -> dict[str, dict[str, Any]]:
    """The manifests that the overlay for two controllers changes, by kind and role: "StatefulSet worker"."""
    return {
        f"{one['kind']} {one['metadata']['name'].removeprefix('clockwork-')}": one
        for one in patched("standby", below=below)
    }


def only_container(one: dict[str, Any]) -> dict[str, Any]:
    [container] = one["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def variable(container: dict[str, Any], name: str) -> str:
    [value] = [one["value"] for one in container["env"] if one["name"] == name]
    return str(value)


@pytest.mark.parametrize("below", ["", "gpu"])
def test_everyone_has_the_address_of_each_controller(below: str) -> None:
    found = two_controllers(below)
    controllers = found["StatefulSet controller"]
    service = controllers["spec"]["serviceName"]
    names = [
        f"{controllers['metadata']['name']}-{n}.{service}" for n in range(controllers["spec"]["replicas"])
    ]
    assert len(names) == 2

    def all_at(port: int) -> str:
        return ",".join(f"tcp://{name}:{port}" for name in names)

    worker, gateway = only_container(found["StatefulSet worker"]), only_container(found["Deployment gateway"])
    assert option(worker["args"], "--connect") == all_at(5556)
    assert option(gateway["args"], "--connect") == all_at(5555)
    for container in (worker, only_container(controllers)):
        assert variable(container, "CLOCKWORK_ENDPOINT") == all_at(5555)
    assert ("--device=cuda" in worker["args"]) == (below == "gpu"), "the overlays go together"
    headless = found["Service controller"]["spec"]
    assert headless["clusterIP"] == "None", "nothing balances between the active and a standby"
    assert headless["publishNotReadyAddresses"] is True
    for one in found.values():
        assert "tcp://clockwork-controller:" not in str(one), "the address of the single controller"


def test_two_controllers_share_what_they_must_and_nothing_secret_is_an_argument() -> None:
    controller = only_container(two_controllers()["StatefulSet controller"])
    assert "--standby" in controller["args"]
    assert option(controller["args"], "--catalog") == "$(CATALOG)"
    assert option(controller["args"], "--packages") == "$(PACKAGES)"
    [secret] = kustomization(STANDBY)["secretGenerator"]
    assert controller["envFrom"] == [{"secretRef": {"name": secret["name"]}}]
    assert secret["envs"] == ["keys/stores.env"], "it lies where git ignores it"
    values = stores()
    assert values["CATALOG"].startswith("postgresql://"), "SQLite is not for network volumes"
    assert values["PACKAGES"].startswith("s3://")
    for name in ("PGPASSWORD", "AWS_SECRET_ACCESS_KEY"):
        assert values[name]
        assert f"$({name})" not in str(controller), f"{name} would be among a process's arguments"
    fields = {
        one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"]
        for one in controller["env"]
        if "valueFrom" in one
    }
    given = {*values, *fields}
    assert fields == {"POD_IP": "status.podIP"}
    assert set(re.findall(r"\$\((\w+)\)", str(controller["args"]))) <= given


def test_a_standbys_readiness_asks_by_role_at_the_address_where_it_would_listen() -> None:
    controller = only_container(two_controllers()["StatefulSet controller"])
    listens = option(controller["args"], "--listen").replace("$(POD_IP)", "$POD_IP")
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert "tcpSocket" not in controller[kind], "a standby's port is closed"
        words = shlex.split(controller[kind]["exec"]["command"][2])
        assert words[:3] == ["exec", "clockwork", "probe"]
        assert option(words, "--endpoint") == listens
        assert option(words, "--data") == "$CLOCKWORK_DATA"
        assert "--ready" not in words, "a standby never is, and its pod would never be"
        assert float(option(words, "--timeout")) < controller[kind]["timeoutSeconds"]


def test_two_controllers_are_apart_and_are_not_ended_together() -> None:
    found = two_controllers()["StatefulSet controller"]
    spec, pod = found["spec"], found["spec"]["template"]["spec"]
    labels = found["spec"]["template"]["metadata"]["labels"]
    [apart] = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    [spread] = pod["topologySpreadConstraints"]
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    assert spread["topologyKey"] == "topology.kubernetes.io/zone"
    [budget] = documents(STANDBY / "disruption.yaml")
    assert budget["spec"]["maxUnavailable"] == 1
    for one in (apart["labelSelector"], spread["labelSelector"], budget["spec"]["selector"]):
        assert one["matchLabels"].items() <= labels.items()
    assert spec["updateStrategy"] == {"type": "OnDelete"}, "the standby first, whichever pod it is"
    assert spec["podManagementPolicy"] == "Parallel"


# ----- draining ---------------------------------------------------------------------------------


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_whoever_ends_a_worker_waits_for_as_long_as_it_drains() -> None:
    margin = 5
    [compose] = documents(DEPLOY / "compose.yaml")
    worker = compose["services"]["worker"]
    waits = [(seconds(worker["stop_grace_period"]), option(worker["command"], "--drain"))]
    for pod, container in containers():
        if container["name"] == "worker":
            waits.append((pod["terminationGracePeriodSeconds"], option(container["args"], "--drain")))
    for name, words in commands_of_systemd():
        if words[0] == "worker":
            [limit] = settings_of(DEPLOY / "systemd" / name)["TimeoutStopSec"]
            waits.append((seconds(limit), option(words, "--drain")))
    assert len(waits) == 5
    for limit, drain in waits:
        assert limit >= seconds(drain) + margin


# ----- systemd ----------------------------------------------------------------------------------


def test_a_worker_is_started_behind_what_gpus_need() -> None:
    """Without the wait, it fails until the fabric of an NVSwitch machine is up, and systemd gives up after
    ten times."""
    [after] = settings_of(DEPLOY / "systemd" / "clockwork-worker.service")["After"]
    assert {"nvidia-persistenced.service", "nvidia-fabricmanager.service"} <= set(after.split())


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_restart_stop_by_the_right_signal_and_are_locked_down(unit: Path) -> None:
    found = settings_of(unit)
    assert found["ExecStart"][0].startswith("/opt/clockwork/bin/clockwork ")
    assert found["KillSignal"] == ["SIGTERM"]
    assert found["Restart"] == ["always"]
    assert found["User"] == ["clockwork"]
    for name in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictNamespaces", "LockPersonality"):
        assert found[name] == ["yes"], name
    assert found["ProtectSystem"] == ["strict"]
    assert found["CapabilityBoundingSet"] == [""]
    if "worker" in unit.name:
        assert found["LimitMEMLOCK"] == ["infinity"]
        assert found["KillMode"] == ["mixed"]
    for credential in found["LoadCredential"]:
        name = credential.partition(":")[0]
        used = found["ExecStart"] + found["Environment"]
        assert any(f"%d/{name}" in text or f"${{CREDENTIALS_DIRECTORY}}/{name}" in text for text in used), (
            name
        )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_the_units(unit: Path, tmp_path: Path) -> None:
    """Run with an existing program in the place of ours, because the tool looks for it."""
    copy = tmp_path / unit.name
    text = unit.read_text(encoding="utf-8").replace("/opt/clockwork/bin/clockwork", "/bin/true")
    copy.write_text(text, encoding="utf-8")
    environment = {**os.environ, "SYSTEMD_PAGER": "", "LC_ALL": "C"}

    def analyze(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["systemd-analyze", *words, str(copy)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    done = analyze("verify", "--man=no")
    assert (done.returncode, done.stderr) == (0, "")
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}")
    assert done.returncode == 0, done.stdout[-300:]
    copy.write_text(text.replace("KillSignal=SIGTERM", "KillSignal=SIGNOTHING"), encoding="utf-8")
    assert "SIGNOTHING" in analyze("verify", "--man=no").stderr, "a mistake would be found"
