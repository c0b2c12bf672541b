"""Log lines: JSON where that is asked for, with what they belong to."""

import json
import logging
import threading
from contextvars import copy_context
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratum import logs
from stratum.cli import say
from stratum.training.context import LocalContext
from stratum.training.distributed import work
from stratum.training.progress import say_on_stdout
from stratum.training.spec import RunSpec


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.VARIABLE, "json")


def test_plain_lines_stay_plain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(logs.VARIABLE, raising=False)
    with logs.log_fields(run="a"):
        say_on_stdout("epoch 1")
    assert capsys.readouterr().out == "epoch 1\n"


def test_fields_nest_and_end(as_json: None) -> None:
    with logs.log_fields(run="a", rank=0):
        with logs.log_fields(trial="t", rank=1, mlflow_run=None):
            inner = json.loads(logs.line("x"))
        outer = json.loads(logs.line("y"))
    assert (inner["run"], inner["trial"], inner["rank"]) == ("a", "t", 1)
    assert "mlflow_run" not in inner
    assert {"trial", "mlflow_run"}.isdisjoint(outer)
    assert "run" not in json.loads(logs.line("z"))
    assert datetime.fromisoformat(inner["time"]).tzinfo is not None


@given(st.text())
def test_any_message_is_one_line(message: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(logs.VARIABLE, "json")
        text = logs.line(message)
    assert "\n" not in text
    assert json.loads(text)["message"] == message


def test_a_thread_with_a_copied_context_has_the_fields(as_json: None) -> None:
    found: list[str] = []
    with logs.log_fields(run="a"):
        thread = threading.Thread(target=copy_context().run, args=(lambda: found.append(logs.line("x")),))
    thread.start()
    thread.join()
    assert json.loads(found[0])["run"] == "a"


def test_warnings_and_tracebacks_are_json(as_json: None, capsys: pytest.CaptureFixture[str]) -> None:
    ours = logging.getLogger("stratum")
    before = list(ours.handlers)
    try:
        for _ in range(2):
            logs.set_up_logging()
        try:
            raise ValueError("no")
        except ValueError:
            logging.getLogger("stratum.x").warning("it %s", "broke", exc_info=True)
        (record,) = [json.loads(one) for one in capsys.readouterr().err.splitlines()]
    finally:
        ours.handlers[:], ours.propagate = before, True
    assert (record["level"], record["logger"], record["message"]) == ("warning", "stratum.x", "it broke")
    assert "ValueError: no" in record["error"]


def test_jobs_speak_json(as_json: None, capsys: pytest.CaptureFixture[str]) -> None:
    say("trial 3: started")
    assert json.loads(capsys.readouterr().out)["message"] == "trial 3: started"


def test_a_trainings_lines_name_run_and_rank(
    as_json: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stratum.training import distributed

    spec = RunSpec.__new__(RunSpec)
    object.__setattr__(spec, "name", "first")
    monkeypatch.setattr(distributed, "execute", lambda spec, context, log, say, data: say("epoch 1/1"))
    ours = logging.getLogger("stratum")
    before = list(ours.handlers)
    try:
        work(spec, None, say_on_stdout, LocalContext(str(tmp_path)))
    finally:
        ours.handlers[:], ours.propagate = before, True
    found = json.loads(capsys.readouterr().out)
    assert (found["run"], found["rank"], found["message"]) == ("first", 0, "epoch 1/1")
