"""The glossary, the code and the diagrams of the docs use the same names."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from schemas import ENTITIES
from tests.paths import ROOT
from worker.core.parked import TRANSITIONS, State
from worker.core.topics import Names

GLOSSARY = ROOT / "docs" / "glossary.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]

MOST_TERMS = 30
ROW = re.compile(r"^\| (?P<term>[^|]+) \| (?P<meaning>[^|]+) \| (?P<where>[^|]+) \|$", re.MULTILINE)
QUOTED = re.compile(r"`([^`]+)`")
CLASS = re.compile(r"[A-Z][A-Za-z]+")
PATH = re.compile(r"(?:worker|schemas)/[\w/]*(?:\.py)?")
TOPIC = re.compile(r"\b(?:in|accepted|rejected|internal)\.(?:<entity>|\*|[a-z]+)")

DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STATE = re.compile(r'state "([A-Z_]+): [^"]+" as (\w+)')
STEP = re.compile(r"^ *(\w+) --> (\w+)", re.MULTILINE)
KINDS = ("stateDiagram-v2", "flowchart", "sequenceDiagram")

RETIRED = {
    "Active": "Leader",
    "Ahead": "RecentRows",
    "Barrier": "Frontier",
    "Claim": "ReservationRequest",
    "Follower": "IndexUpdater",
    "Grant": "ReservationReply",
    "Granted": "Reservation",
    "Learned": "IndexDelta",
    "Outgoing": "ProducerRecord",
    "Owned": "TaskHandle",
    "Rules": "TaskSettings",
    "Settled": "Release",
    "Span": "OffsetRange",
    "Tasks": "TaskManager",
    "Term": "LeadershipSession",
}
"""Class names of earlier releases, and the term that replaced each."""


def terms() -> dict[str, tuple[str, str]]:
    """Meaning and place of each term."""
    rows = ROW.findall(GLOSSARY.read_text("utf-8"))
    return {term: (meaning, where) for term, meaning, where in rows if term not in ("term", "---")}


@cache
def classes_of(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    }


def topics() -> set[str]:
    """Every topic without its prefix, also with what stands for the eight entities."""
    names = {name.partition(".")[2] for name in Names("p").every()}
    for kind in ("in", "accepted", "rejected"):
        assert {f"{kind}.{entity}" for entity in ENTITIES} <= names
        names |= {f"{kind}.<entity>", f"{kind}.*"}
    return names | {"internal.*"}


def diagrams() -> dict[str, str]:
    """The text of each diagram, by page and number."""
    return {
        f"{page.relative_to(ROOT)}-{number}": text
        for page in PAGES
        for number, text in enumerate(DIAGRAM.findall(page.read_text("utf-8")), 1)
    }


# --- the glossary ---


def test_each_term_stands_there_once_and_there_are_few() -> None:
    named = [row[0] for row in ROW.findall(GLOSSARY.read_text("utf-8"))]
    named = [name for name in named if name not in ("term", "---")]
    assert len(named) == len(set(named))
    assert 20 <= len(named) <= MOST_TERMS


@pytest.mark.parametrize("term", terms())
def test_each_term_lives_where_the_glossary_says(term: str) -> None:
    _, where = terms()[term]
    paths = []
    for part in where.split("; "):
        topic = re.match(r"topics? ", part)
        for number, quoted in enumerate(QUOTED.findall(part)):
            if topic:
                assert quoted in topics(), quoted
            elif number == 0:
                paths.append(ROOT / quoted)
                assert paths[-1].is_file(), quoted
            else:
                assert quoted in classes_of(paths[-1]), f"{quoted} is not in {paths[-1].name}"
    assert paths, "the term lives nowhere"


@pytest.mark.parametrize("term", terms())
def test_a_meaning_names_no_class_and_only_topics_that_exist(term: str) -> None:
    meaning, _ = terms()[term]
    for quoted in QUOTED.findall(meaning):
        assert not CLASS.fullmatch(quoted), f"{quoted} belongs into the third column"
        if TOPIC.fullmatch(quoted):
            assert quoted in topics(), quoted


def test_a_class_name_stands_for_one_thing() -> None:
    named: dict[str, list[str]] = {}
    for folder in ("schemas", "worker"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name in classes_of(path):
                if not name.startswith("_"):
                    named.setdefault(name, []).append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in named.items() if len(paths) > 1}
    assert not twice


def test_retired_words_are_no_class_names() -> None:
    found = {
        f"{name} in {path.relative_to(ROOT)}, rather {RETIRED[name.lstrip('_')]}"
        for folder in ("schemas", "worker")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in classes_of(path)
        if name.lstrip("_") in RETIRED
    }
    assert not found


def test_the_words_that_replaced_them_are_class_names() -> None:
    known = {name for path in (ROOT / "worker").rglob("*.py") for name in classes_of(path)}
    assert set(RETIRED.values()) <= known


# --- diagrams ---


def test_the_pages_have_diagrams() -> None:
    assert len(diagrams()) >= 4


@pytest.mark.parametrize("text", diagrams().values(), ids=diagrams())
def test_a_diagram_names_files_and_topics_that_exist(text: str) -> None:
    assert text.startswith(KINDS)
    paths = [path for path in PATH.findall(text) if path not in ("worker/", "schemas/")]
    for path in paths:
        assert (ROOT / path).exists(), path
    named = TOPIC.findall(text)
    assert set(named) <= topics(), set(named) - topics()
    assert paths or named, "the diagram names nothing that is real"


@pytest.mark.parametrize("text", diagrams().values(), ids=diagrams())
def test_a_diagram_names_classes_that_exist(text: str) -> None:
    known = {name for path in (ROOT / "worker").rglob("*.py") for name in classes_of(path)}
    named = re.findall(r"\b(?:[A-Z][a-z]+){2,}\b", text)
    assert set(named) <= known, set(named) - known


def test_names_that_do_not_exist_would_be_noticed() -> None:
    bad = "worker/core/nothing.py reads internal.nothing and in.nobody"
    assert PATH.findall(bad) == ["worker/core/nothing.py"]
    assert not (ROOT / "worker/core/nothing.py").exists()
    assert not set(TOPIC.findall(bad)) & topics()


def test_the_states_of_a_record_are_drawn_as_the_code_has_them() -> None:
    (drawn,) = (text for text in diagrams().values() if "GRACE" in text)
    names = {alias: State[name] for name, alias in STATE.findall(drawn)}
    assert {*names.values(), State.TURN} == {*State}, "a record in TURN is only queued"
    steps = {(names[a], names[b]) for a, b in STEP.findall(drawn) if {a, b} <= names.keys()}
    assert steps == {(a, b) for a, after in TRANSITIONS.items() for b in after}
