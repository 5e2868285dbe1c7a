"""What ships besides the code, checked without a Docker engine.

Every path, command, option and variable that docker-compose.yml, the Dockerfile and the example
configuration mention must exist in the checkout and in the program.
"""

import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests.paths import ROOT

COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
DOCKERIGNORE = ROOT / ".dockerignore"
EXAMPLE = ROOT / "deploy" / "buddy.example.toml"
CI = ROOT / ".ci" / "run"
REQUIREMENTS = [ROOT / "requirements.txt", ROOT / "requirements-dev.txt"]
BENCH_REQUIREMENTS = ROOT / "requirements-bench.txt"

# `image:tag`, with or without registry and digest.
PINNED_IMAGE = re.compile(r"^[\w./-]+:(?!latest\b)[\w.-]+(@sha256:[0-9a-f]{64})?$")


# --- readers ---


def services() -> dict[str, dict[str, Any]]:
    parsed = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    assert isinstance(parsed, dict)
    return parsed


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order: (name, rest of the line), continuations joined."""
    lines = DOCKERFILE.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if line.strip() and not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", text)
    pairs = (line.strip().split(maxsplit=1) for line in joined.splitlines())
    return [(name.upper(), rest) for name, rest in pairs]


def last(name: str) -> str:
    """The instruction of that name that is in force at the end of the last stage."""
    return [rest for found, rest in instructions() if found == name][-1]


def exec_form(text: str) -> list[str]:
    """`… ["a", "b"]` → ["a", "b"]; a shell form would not get its signals through."""
    parsed = yaml.safe_load(text[text.index("[") :])
    assert isinstance(parsed, list)
    return [str(part) for part in parsed]


def copied_sources() -> list[str]:
    """What COPY takes from the checkout (not from another stage)."""
    found = []
    for name, rest in instructions():
        if name in {"COPY", "ADD"}:
            words = shlex.split(rest)
            if not any(word.startswith("--from=") for word in words):
                found += [word for word in words if not word.startswith("--")][:-1]
    return found


def service_commands() -> Iterator[tuple[str, list[str]]]:
    """(where, arguments after `buddy`) of each service that runs our image."""
    for name, service in services().items():
        if "build" not in service:
            continue
        assert "entrypoint" not in service, "the image's entrypoint is `buddy`"
        command = service["command"]
        yield name, shlex.split(command) if isinstance(command, str) else command


def health_checks() -> Iterator[tuple[str, list[str]]]:
    """(where, arguments after `buddy`) of each health check that the compose file gives to us."""
    for name, service in services().items():
        test = service.get("healthcheck", {}).get("test")
        if "build" in service and test is not None:
            assert test[:2] == ["CMD", "buddy"], name
            yield f"{name} healthcheck", test[2:]


def commands() -> list[tuple[str, list[str]]]:
    """(where, arguments after `buddy`) of every command line in compose file and Dockerfile."""
    healthcheck = exec_form(last("HEALTHCHECK"))
    assert healthcheck[0] == "buddy"
    return [
        *service_commands(),
        *health_checks(),
        ("Dockerfile HEALTHCHECK", healthcheck[1:]),
        ("Dockerfile CMD", exec_form(last("CMD"))),
    ]


def example_keys() -> set[str]:
    """Every key of the example, the commented-out ones too, as `key` or `kafka.key`.

    Of an array of tables its name: one variable holds it all.
    """
    table = ""
    keys = set()
    array = False
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        if header := re.match(r"\[\[(\w+)\]\]$", line):
            keys.add(header[1])
            array = True
        elif header := re.match(r"\[(\w+)\]$", line):
            table = f"{header[1]}."
            array = False
        elif array:
            continue
        elif assignment := re.match(r"(?:# )?(\w+) = ", line):
            keys.add(table + assignment[1])
    return keys


def complaint(arguments: list[str]) -> str | None:
    """Why the program would not understand this command line; None if it would."""
    from worker.cli.main import cli

    command: click.Command = cli
    context = click.Context(cli, info_name="buddy")
    words = iter(arguments)
    for word in words:
        options = {
            spelling: option
            for option in command.get_params(context)
            if isinstance(option, click.Option)
            for spelling in (*option.opts, *option.secondary_opts)
        }
        if word.startswith("-") and word != "-":
            name, equals, _ = word.partition("=")
            if name not in options:
                return f"{context.command_path}: no option {name}"
            takes_value = not (options[name].is_flag or options[name].count)
            if takes_value and not equals and name != "--help":
                next(words, None)
        elif isinstance(command, click.Group):
            found = command.get_command(context, word)
            if found is None:
                return f"{context.command_path}: no command {word}"
            command = found
            context = click.Context(command, parent=context, info_name=word)
        elif not any(isinstance(param, click.Argument) for param in command.params):
            return f"{context.command_path}: takes no argument, got {word}"
    return None


# --- docker-compose.yml ---


def test_compose_has_the_whole_path() -> None:
    assert set(services()) == {"kafka", "topics", "worker", "sink", "desk"}


def test_compose_paths_exist() -> None:
    for name, service in services().items():
        if build := service.get("build"):
            context = ROOT / build["context"]
            assert context.is_dir(), name
            assert (context / build["dockerfile"]).is_file(), name
        for path in service.get("env_file", []):
            assert (ROOT / path).is_file(), f"{name}: {path}"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith((".", "/", "~")):
                assert (ROOT / source).exists(), f"{name}: {source}"


def test_compose_volumes_are_declared() -> None:
    declared = set(yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["volumes"])
    used = {
        volume.split(":")[0]
        for service in services().values()
        for volume in service.get("volumes", [])
        if not volume.startswith((".", "/", "~"))
    }
    assert used == declared


def test_compose_dependencies_exist() -> None:
    known = services()
    for name, service in known.items():
        for other, condition in service.get("depends_on", {}).items():
            assert other in known, f"{name}: {other}"
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in known[other], f"{name} waits for {other}'s health"


def test_compose_images_are_pinned_or_built_here() -> None:
    for name, service in services().items():
        assert "build" in service or PINNED_IMAGE.match(service["image"]), name


def test_compose_state_outlives_its_containers() -> None:
    mounted = {
        name: {volume.split(":")[1] for volume in service.get("volumes", [])}
        for name, service in services().items()
    }
    for name in ("worker", "sink"):
        environment = services()[name]["environment"]
        assert environment["BUDDY_DATA"] in mounted[name]
    assert services()["sink"]["environment"]["BUDDY_EXPORTS"] in mounted["sink"]
    assert services()["kafka"]["environment"]["KAFKA_LOG_DIRS"] in mounted["kafka"]


def test_services_reach_kafka_by_its_advertised_name() -> None:
    kafka = services()["kafka"]["environment"]
    advertised = dict(
        entry.split("://", 1) for entry in kafka["KAFKA_ADVERTISED_LISTENERS"].split(",")
    )
    for name, _ in service_commands():
        assert (
            services()[name]["environment"]["BUDDY_BROKER"] == f"kafka://{advertised['INTERNAL']}"
        )
    host_port = advertised["HOST"].split(":")[1]
    assert any(port.endswith(f":{host_port}") for port in services()["kafka"]["ports"])


def test_the_health_of_a_container_is_that_of_its_own_service() -> None:
    """The image's check asks for a worker; what a container of another service asks for itself."""
    assert dict(health_checks()) == {"sink healthcheck": ["status", "--quiet", "--service", "sink"]}
    assert exec_form(last("HEALTHCHECK"))[1:] == ["status", "--quiet"]


# --- Dockerfile ---


def test_dockerfile_sources_exist_and_are_not_ignored() -> None:
    patterns = DOCKERIGNORE.read_text(encoding="utf-8").split()
    sources = copied_sources()
    assert sources
    assert "*" in patterns
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source.removeprefix('./')}" in patterns, f".dockerignore leaves out {source}"


def test_base_images_are_pinned() -> None:
    stages: set[str] = set()
    for name, rest in instructions():
        if name == "FROM":
            image, *alias = rest.split()
            assert image in stages or PINNED_IMAGE.match(image), image
            stages.update(alias[1:])


def test_image_runs_as_nobody_special() -> None:
    names = [name for name, _ in instructions()]
    last_stage = len(names) - 1 - names[::-1].index("FROM")
    assert "USER" in names[last_stage:]
    assert last("USER").split(":")[0] not in {"", "0", "root"}


def test_image_installs_with_hashes() -> None:
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert installs
    assert all("--require-hashes" in rest or "--no-deps" in rest for rest in installs)


def test_entrypoint_is_the_console_script() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert exec_form(last("ENTRYPOINT")) == ["buddy"]
    assert project["scripts"]["buddy"] == "worker.cli.__main__:main"


# --- the program agrees ---


@pytest.mark.parametrize(("where", "arguments"), commands(), ids=str)
def test_commands_exist(where: str, arguments: list[str]) -> None:
    assert complaint(arguments) is None


@pytest.mark.parametrize(
    "arguments",
    [["no-such-command"], ["topics", "no-such-command"], ["status", "--no-such-option"]],
    ids=" ".join,
)
def test_commands_that_do_not_exist_would_be_noticed(arguments: list[str]) -> None:
    assert complaint(arguments) is not None


@pytest.mark.parametrize("path", [COMPOSE, DOCKERFILE, EXAMPLE], ids=lambda path: path.name)
def test_variables_are_known(path: Path) -> None:
    from worker.cli.settings import environment_names

    used = set(re.findall(r"\bBUDDY_[A-Z0-9_]*[A-Z0-9]\b", path.read_text(encoding="utf-8")))
    assert used
    assert used <= environment_names()


def test_example_is_toml_and_each_key_has_its_variable() -> None:
    from worker.cli.settings import environment_names

    tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    variables = {f"BUDDY_{key.upper().replace('.', '_')}" for key in example_keys()}
    assert variables <= environment_names()


# --- set-up ---


@pytest.mark.parametrize("path", [*REQUIREMENTS, BENCH_REQUIREMENTS], ids=lambda path: path.name)
def test_requirements_are_pinned_and_name_no_place(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index|--find-links|(?<!\w)/\w+/", text)
    logical = [
        line
        for line in text.replace("\\\n", " ").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    for line in logical:
        assert re.match(r"[a-z0-9-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line


def test_dev_requirements_contain_the_runtime_ones() -> None:
    runtime, dev = (
        dict(re.findall(r"^([a-z0-9-]+)==(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE))
        for path in REQUIREMENTS
    )
    assert runtime.items() <= dev.items()


def test_every_dependency_is_pinned() -> None:
    parsed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = parsed["project"]["optional-dependencies"]
    wanted = {
        REQUIREMENTS[0]: parsed["project"]["dependencies"] + extras["build"],
        REQUIREMENTS[1]: extras["dev"],
        BENCH_REQUIREMENTS: extras["bench"],
    }
    for path, dependencies in wanted.items():
        pinned = set(re.findall(r"^([a-z0-9-]+)==", path.read_text(encoding="utf-8"), re.MULTILINE))
        assert {re.split(r"[<>=~![]", entry)[0] for entry in dependencies} <= pinned


def test_ci_requires_kafka_and_a_browser() -> None:
    text = CI.read_text(encoding="utf-8")
    assert os.access(CI, os.X_OK)
    assert "BUDDY_REQUIRE_KAFKA=1" in text
    assert "BUDDY_REQUIRE_CHROMIUM=1" in text
    assert "make --no-print-directory test" in text
