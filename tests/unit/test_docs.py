"""The documentation says what the program does: commands, settings, codes, events, links.

Fenced blocks marked `sh` or `console` hold commands; those of the README marked `sh` are run by
tests/acceptance/test_readme.py.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from tests.paths import ROOT
from worker import errors
from worker.cli.main import cli
from worker.cli.settings import SECRETS, TABLES, Settings, environment_names
from worker.core.violations import MEANINGS, WARNINGS, Code
from worker.rules_page import rules_page

README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
OPERATIONS = ROOT / "docs" / "operations"
RUNNING = (OPERATIONS / "running.md").read_text("utf-8")
CONFIGURING = (OPERATIONS / "configuring.md").read_text("utf-8")
WATCHING = (OPERATIONS / "watching.md").read_text("utf-8")
EXAMPLE = (ROOT / "deploy" / "buddy.example.toml").read_text("utf-8")

NOT_TRACKED = {".git", ".venv", "build", "dist", "buddy-demo", "buddy-data", "buddy-exports"}
CACHE = re.compile(r"\.cache|\.nox|\.hypothesis|\.\w+_cache|__pycache__|.*\.egg-info")
TEXT = {".cfg", ".ini", ".json", ".md", ".ndjson", ".py", ".sh", ".svg", ".toml", ".txt", ".xml"}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
REDIRECTION = re.compile(r"(?<!\S)\d?(?:<<?|>>?)\s*\S+")
LINK = re.compile(r"""(?:!?\[[^\]]*\]\(|\bsrc(?:set)?=")([^)\s"]+)[)"]""")


# --- readers ---


def pages() -> list[object]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def shell_lines(page: Path) -> Iterator[str]:
    """The commands of a page, one a line, without prompts; what is fed to them is left out."""
    for language, block in FENCE.findall(page.read_text("utf-8")):
        if language not in ("sh", "console", "bash"):
            continue
        end = None
        for line in block.replace("\\\n", " ").splitlines():
            if end is not None:
                end = None if line == end else end
                continue
            here = re.search(r"<<'?(\w+)'?", line)
            end = here[1] if here else None
            yield line.removeprefix("$ ")


def calls(line: str) -> Iterator[list[str]]:
    """The arguments of each `buddy` in a line of shell."""
    lexer = shlex.shlex(REDIRECTION.sub("", line), posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    command: list[str] = []
    for token in [*lexer, ";"]:
        if not re.fullmatch("[|&;]+", token):
            command.append(token)
            continue
        names = [part.removeprefix(".venv/bin/") for part in command]
        if "buddy" in names:
            yield command[names.index("buddy") + 1 :]
        command = []


def parse(arguments: list[str]) -> None:
    """Parse as `buddy` would, without running anything. Raises click.ClickException."""
    group: click.Command = cli
    context = click.Context(cli, info_name="buddy")
    rest = arguments
    while isinstance(group, click.Group):
        context = group.make_context(group.name or "buddy", list(rest), parent=context)
        left = [*context._protected_args, *context.args]
        name, command, rest = group.resolve_command(context, left)
        assert command is not None, name
        group = command
    group.make_context(group.name or "", list(rest), parent=context)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)}


def log_events() -> dict[str, set[str]]:
    """Every event that the program logs, with its levels."""
    events: dict[str, set[str]] = {}
    for path in sorted((ROOT / "worker").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "_log"
            ):
                assert node.args, f"{path}:{node.lineno} logs nothing"
                event = node.args[0]
                assert isinstance(event, ast.Constant), f"{path}:{node.lineno}: no plain event"
                events.setdefault(str(event.value), set()).add(node.func.attr)
    return events


def text_files() -> Iterator[Path]:
    for folder, names, files in os.walk(ROOT):
        inner = Path(folder)
        names[:] = [
            n for n in names if not CACHE.fullmatch(n) and not (inner == ROOT and n in NOT_TRACKED)
        ]
        for name in files:
            path = inner / name
            if path.suffix in TEXT or path.name in ("Makefile", "Dockerfile", "run"):
                yield path


# --- rules and codes ---


def test_rules_page_is_the_generated_one() -> None:
    page = (ROOT / "docs" / "rules.md").read_text("utf-8")
    assert page == rules_page(), "run: .venv/bin/python -m worker.rules_page > docs/rules.md"


@pytest.mark.parametrize("page", ["contract.md", "rules.md"])
@pytest.mark.parametrize("code", Code)
def test_each_code_stands_in_the_tables_with_its_severity(code: Code, page: str) -> None:
    severity = "warning" if code in WARNINGS else "error"
    assert code in MEANINGS
    assert f"| `{code}` | {severity} |" in (ROOT / "docs" / page).read_text("utf-8")


def test_tables_name_no_code_that_does_not_exist() -> None:
    for page in ("contract.md", "rules.md"):
        text = (ROOT / "docs" / page).read_text("utf-8")
        named = set(re.findall(r"^\| `(\w+)` \| (?:error|warning) \|", text, re.MULTILINE))
        assert named == {code.value for code in Code}


# --- settings, exit codes, log events ---


@pytest.mark.parametrize("field", msgspec.structs.fields(Settings), ids=lambda f: f.name)
def test_each_setting_is_documented(field: msgspec.structs.FieldInfo) -> None:
    name = field.name
    if name in TABLES:
        assert f"`[{name}]`" in CONFIGURING
        assert f"\n[{name}]\n" in EXAMPLE
        return
    row = re.search(rf"^\| `{name}` \| `BUDDY_{name.upper()}` \|.*$", CONFIGURING, re.MULTILINE)
    assert row, f"configuring.md has no row for {name}"
    if name == "schedules":
        assert all(f"`{schedule.name}`" in row[0] for schedule in Settings().schedules)
        assert "[[schedules]]" in EXAMPLE
        return
    default = str(field.default).removesuffix(".0")
    if isinstance(field.default, bool):
        default = default.lower()
    assert default in row[0], f"configuring.md has another default of {name} than {default}"
    assert re.search(rf"^(# )?{name} = ", EXAMPLE, re.MULTILINE), (
        f"deploy/buddy.example.toml lacks {name}"
    )


@pytest.mark.parametrize(
    ("table", "name"),
    [(t, f.name) for t, kind in TABLES.items() for f in msgspec.structs.fields(kind)],
)
def test_each_setting_of_a_table_is_documented(table: str, name: str) -> None:
    variable = f"BUDDY_{table}_{name}".upper()
    assert re.search(rf"^\| `{name}` \| `{variable}` \|", CONFIGURING, re.MULTILINE)
    here = EXAMPLE.partition(f"\n[{table}]\n")[2].partition("\n[")[0]
    assert re.search(rf"^(# )?{name} = ", here, re.MULTILINE)


def test_the_example_shows_the_defaults() -> None:
    shown = tomllib.loads(EXAMPLE)
    left = {field.name for field in msgspec.structs.fields(Settings)} - shown.keys()
    assert all(re.search(rf"^# {name} = ", EXAMPLE, re.MULTILINE) for name in left), (
        "files of secrets"
    )
    assert msgspec.convert(shown, Settings) == Settings()


def test_variables_in_the_pages_exist() -> None:
    tests = {"BUDDY_TEST_KAFKA", "BUDDY_REQUIRE_KAFKA", "BUDDY_HYPOTHESIS", "BUDDY_KAFKA_HOME"}
    tests |= {"BUDDY_CHROMIUM", "BUDDY_REQUIRE_CHROMIUM", "BUDDY_READERS_ROWS"}
    known = environment_names() | tests | {"BUDDY_"}
    for page in PAGES:
        named = set(re.findall(r"BUDDY_[A-Z0-9_]*", page.read_text("utf-8")))
        assert named <= known, (page.name, named - known)
    assert all(f"`{secret}`" in CONFIGURING for secret in SECRETS)


def test_each_exit_code_is_documented() -> None:
    codes = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.BuddyError)
    }
    documented = {int(n) for n in re.findall(r"^\| (\d+) \|", RUNNING, re.MULTILINE)}
    assert codes | {0, 130} == documented


def test_each_log_event_is_documented_with_its_level() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (debug|info|warning|error) \|", WATCHING, re.MULTILINE)
    assert {name: {level} for name, level in rows} == log_events()
    assert len(rows) == len(dict(rows)), "an event stands there twice"


# --- commands ---


def test_the_pages_have_commands() -> None:
    assert sum(1 for line in shell_lines(README) for _ in calls(line)) >= 15


@pytest.mark.parametrize("page", pages())
def test_commands_in_blocks_are_the_programs(page: Path) -> None:
    for line in shell_lines(page):
        for arguments in calls(line):
            try:
                parse(arguments)
            except click.ClickException as error:
                pytest.fail(f"{line!r}: {error.format_message()}")


@pytest.mark.parametrize(
    "line",
    [
        "buddy nope",
        ".venv/bin/buddy send",
        "cat x | .venv/bin/buddy send --entity nobody -",
        "BUDDY_BROKER=x buddy export --nope 2> y &",
        "docker compose exec -T worker buddy rejections nope",
    ],
)
def test_commands_that_do_not_exist_would_be_noticed(line: str) -> None:
    ((arguments),) = calls(line)
    with pytest.raises(click.ClickException):
        parse(arguments)


@pytest.mark.parametrize("page", pages())
def test_commands_in_sentences_are_the_programs(page: Path) -> None:
    for quoted in INLINE.findall(prose(page)):
        words = quoted.split()
        if words[:1] not in (["buddy"], [".venv/bin/buddy"]):
            continue
        command: click.Command = cli
        options = {name for p in cli.params for name in p.opts} | {"-h", "--help"}
        for word in words[1:]:
            if isinstance(command, click.Group) and re.fullmatch("[a-z]+", word):
                found = command.get_command(click.Context(command), word)
                assert found is not None, f"{page.name}: `{quoted}`"
                command = found
                options |= {name for p in command.params for name in p.opts}
            elif word.startswith("--"):
                assert word in options, f"{page.name}: `{quoted}`"


def test_the_readme_lists_every_command() -> None:
    def leaves(group: click.Group, path: str) -> Iterator[str]:
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if isinstance(command, click.Group):
                yield from leaves(command, f"{path} {name}")
            else:
                yield f"{path} {name}"

    text = README.read_text("utf-8")
    for path in leaves(cli, "buddy"):
        assert re.search(rf"^\| `{path}[` ]", text, re.MULTILINE), (
            f"README.md has no row for {path}"
        )


@pytest.mark.parametrize("page", pages())
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    quoted = " ".join(f"`{q}`" for q in INLINE.findall(prose(page)))
    blocks = "\n".join(block for _, block in FENCE.findall(page.read_text("utf-8")))
    named = re.findall(r"`make ([a-z-]+)", quoted) + re.findall(
        r"^make ([a-z-]+)", blocks, re.MULTILINE
    )
    assert set(named) <= targets, set(named) - targets


# --- links and places ---


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{page.name}: {link}"
        assert target.is_relative_to(ROOT), f"{page.name}: {link} leaves the checkout"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_the_index_of_operations_lists_each_page() -> None:
    index = OPERATIONS.with_suffix(".md")
    listed = {index.parent / link.partition("#")[0] for link in LINK.findall(prose(index))}
    assert set(OPERATIONS.iterdir()) <= listed


def test_every_picture_is_shown() -> None:
    shown = {(page.parent / link).resolve() for page in PAGES for link in LINK.findall(prose(page))}
    assert set((ROOT / "docs" / "images").iterdir()) <= shown


PLACES = {
    "a path of one machine": re.compile(r"(?<![\w.$})/-])/(?:work|root|home/\w+|Users/\w+)/"),
    "a registry": re.compile(
        r"://[^/\s\"'`]*(?:pypi|pythonhosted|artifactory|nexus|registry|mirror|proxy)",
        re.IGNORECASE,
    ),
    "an address of one network": re.compile(r"://(?!127\.|0\.0\.0\.0)\d+\.\d+\.\d+\.\d+"),
    "a login in an address": re.compile(r"\w://[^/\s:@\"'`]+:[^/\s@\"'`]+@"),
}


@pytest.mark.parametrize("what", PLACES)
def test_no_file_names_a_place_of_one_machine(what: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in text_files()
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1)
        if PLACES[what].search(line)
    ]
    assert not found, f"{what} in {found[:5]}"


def test_places_would_be_noticed() -> None:
    bad = {
        "a path of one machine": "see " + str(Path("/", "work", "main")),
        "a registry": "https:" + "//pypi.example.com/simple",
        "an address of one network": "http:" + "//10.0.0.7:8080/",
        "a login in an address": "https:" + "//me:secret@example.com",
    }
    assert all(PLACES[what].search(text) for what, text in bad.items())
    assert bad.keys() == PLACES.keys()
