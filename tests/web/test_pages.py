"""The audit, model and help pages."""

import re
from pathlib import Path

import pytest
from sqlalchemy import text

import app
from app.db import audit
from app.identity import LOCAL_USER, Actor
from app.web.pages import ACTIONS, ALL_ACTIONS, Audits, help_page, model_page, plain, table
from app.wiring import Services


@pytest.fixture
def audits(services: Services) -> Audits:
    return Audits(services)


def record(services: Services, action: str, actor: Actor = LOCAL_USER) -> None:
    with services.sessions.begin() as session:
        audit.append(session, actor=actor, action=action, now=services.now)


def test_the_newest_event_stands_first_and_an_action_can_be_chosen(services: Services, audits: Audits) -> None:
    for action in ("login", "view", "login"):
        record(services, action)
    rows = audits.events(ALL_ACTIONS, 50).splitlines()[2:]
    assert [row.split(" | ")[3] for row in rows] == ["login", "view", "login"]
    assert [row.split(" | ")[3] for row in audits.events("view", 50).splitlines()[2:]] == ["view"]
    assert audits.events("predict", 50) == "Nothing here yet."


def test_an_actor_cannot_write_markup_into_the_page(services: Services, audits: Audits) -> None:
    record(services, "login", Actor(name="<b>a|b</b>", kind="user", roles=frozenset()))
    row = audits.events("login", 1).splitlines()[2]
    assert "<b>" not in row
    assert row.count(" | ") == 6


def test_a_sound_trail_is_said_to_hold_and_a_broken_one_names_the_row(services: Services, audits: Audits) -> None:
    record(services, "view")
    assert audits.verify().startswith("**The trail holds:**")
    with services.engine.connect() as connection:
        connection.execute(text("DROP TRIGGER audit_event_refuses_update"))
        connection.execute(text("UPDATE audit_event SET actor = 'somebody' WHERE sequence = 2"))
        connection.commit()
    assert audits.verify().startswith(f"**The trail is broken at {plain('audit_event 2')}")


def test_the_model_page_gives_each_task_its_measured_auroc_and_population(services: Services) -> None:
    page = model_page(services.model)
    for task in services.model.manifest.tasks:
        low, high = task.test_auroc_interval
        assert f"{task.test_auroc:.3f} ({low:.3f} to {high:.3f})" in page
        assert plain(task.display) in page


def test_the_help_page_explains_every_key_of_the_reader() -> None:
    keys = set(re.findall(r"<kbd>(.*?)</kbd>", help_page()))
    assert {"z", "w", "p", "+", "-", "=", "i", "r", "l", "h", "v", "c", "o", "1", "5", "Space", "Home", "End"} <= keys


def test_an_empty_table_is_a_sentence() -> None:
    assert table(("A",), []) == "Nothing here yet."


def test_the_actions_of_the_filter_are_those_that_are_recorded() -> None:
    sources = "".join(path.read_text("utf-8") for path in Path(app.__file__).parent.rglob("*.py"))
    calls = re.findall(r"audit\.append\((?:[^()]|\([^()]*\))*?action=\"([a-z-]+)\"", sources)
    assert set(ACTIONS) == set(calls)
