"""Records that several workspaces share: two folders, and one SQLite database that both name."""

import errno
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.workspace import files, history, ledger, paths, records
from mobilenet_pipeline.workspace.history import Event, HistoryError
from mobilenet_pipeline.workspace.records import RecordError, RecordsAway

PROMOTED = Event("promoted", "2", "the gate", "It is the first.", None, "2", "r", 0.9)
REJECTED = Event("rejected", "3", "ann", "odd", "2", "2", "s", 0.8)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The database of the shared records, which every workspace of the test uses."""
    path = tmp_path / "records.db"
    monkeypatch.setenv(records.SETTING, f"sqlite:///{path}")
    return path


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    return tmp_path / "ours"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    return tmp_path / "theirs"


def test_a_second_workspace_has_the_same_history(recipe: Recipe, database: Path, ours: Path, theirs: Path) -> None:
    history.append(recipe, PROMOTED, ours)
    history.append(recipe, REJECTED, theirs)
    assert history.read(recipe, ours) == history.read(recipe, theirs) == [PROMOTED, REJECTED]


def test_the_files_are_copies_of_the_shared_record(recipe: Recipe, database: Path, ours: Path, theirs: Path) -> None:
    history.append(recipe, PROMOTED, ours)
    history.read(recipe, theirs)
    assert paths.history_path(recipe, ours).read_bytes() == paths.history_path(recipe, theirs).read_bytes()


def test_a_second_workspace_counts_the_same_reads(recipe: Recipe, database: Path, ours: Path, theirs: Path) -> None:
    ledger.record_read(recipe, "scratch", "d1", "a" * 64, ours)
    assert ledger.count_reads("d1", theirs) == 1


def test_comparisons_of_both_workspaces_are_numbered(recipe: Recipe, database: Path, ours: Path, theirs: Path) -> None:
    ledger.number_comparisons(recipe, {"scratch": "a" * 64}, "c" * 64, "d1", ours)
    assert ledger.number_comparisons(recipe, {"scratch": "b" * 64}, "c" * 64, "d1", theirs) == {"scratch": 2}


def test_appending_at_once_keeps_every_line_and_the_chain(
    recipe: Recipe, database: Path, ours: Path, theirs: Path
) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from mobilenet_pipeline.config import load_recipe; from mobilenet_pipeline.workspace import history\n"
        "recipe, folder = load_recipe('digits', Path(sys.argv[1])), Path(sys.argv[2])\n"
        "for i in range(20): history.append(recipe, history.Event('rejected', str(i), 'a', '', None, None, 'r', 0.5),"
        " folder)"
    )
    params = Path(__file__).resolve().parents[2] / "params.yaml"
    started = [subprocess.Popen([sys.executable, "-c", program, str(params), str(folder)]) for folder in (ours, theirs)]
    assert [process.wait() for process in started] == [0, 0]
    assert len(history.read(recipe, ours)) == 40
    assert history.read(recipe, theirs) == history.read(recipe, ours)


def test_a_workspace_that_was_alone_brings_its_history(
    recipe: Recipe, ours: Path, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.append(recipe, PROMOTED, ours)
    monkeypatch.setenv(records.SETTING, f"sqlite:///{tmp_path}/records.db")
    assert history.read(recipe, ours) == history.read(recipe, theirs) == [PROMOTED]


def test_two_histories_are_not_mixed(
    recipe: Recipe, ours: Path, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.append(recipe, PROMOTED, ours)
    history.append(recipe, REJECTED, theirs)
    monkeypatch.setenv(records.SETTING, f"sqlite:///{tmp_path}/records.db")
    history.read(recipe, ours)
    before = paths.history_path(recipe, theirs).read_bytes()
    with pytest.raises(RecordError, match="differs from the shared record of digits"):
        history.read(recipe, theirs)
    assert paths.history_path(recipe, theirs).read_bytes() == before


def test_the_reads_of_two_workspaces_are_added(
    recipe: Recipe, ours: Path, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.record_read(recipe, "scratch", "d1", "a" * 64, ours)
    ledger.record_read(recipe, "scratch", "d1", "b" * 64, theirs)
    monkeypatch.setenv(records.SETTING, f"sqlite:///{tmp_path}/records.db")
    assert (ledger.count_reads("d1", ours), ledger.count_reads("d1", theirs), ledger.count_reads("d1", ours)) == (
        1,
        2,
        2,
    )


def test_a_changed_line_of_the_database_is_found(recipe: Recipe, database: Path, ours: Path, theirs: Path) -> None:
    import sqlite3

    for event in (PROMOTED, REJECTED):
        history.append(recipe, event, ours)
    with sqlite3.connect(database) as connection:
        connection.execute(f"UPDATE {records.TABLE} SET line = replace(line, '0.9', '0.8') WHERE number = 0")
    with pytest.raises(HistoryError, match="line 2 does not follow line 1"):
        history.read(recipe, theirs)


def test_a_database_that_is_away_is_named_without_its_password(
    recipe: Recipe, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(records.SETTING, "postgresql://ann:secret@127.0.0.1:9/team")
    with pytest.raises(RecordsAway, match=r"postgresql://127.0.0.1:9/team .* start that database") as error:
        history.append(recipe, PROMOTED, ours)
    assert "secret" not in str(error.value)
    assert not paths.history_path(recipe, ours).exists()


def test_the_copy_can_be_read_while_the_database_is_away(
    recipe: Recipe, database: Path, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.append(recipe, PROMOTED, ours)
    monkeypatch.setenv(records.SETTING, "postgresql://127.0.0.1:9/team")
    assert history.read(recipe, ours, copy=True) == [PROMOTED]


@pytest.mark.parametrize("url", ["mysql://host/team", "nonsense", "postgres:/team"])
def test_an_address_that_is_no_database_s_is_refused(url: str, ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(records.SETTING, url)
    with pytest.raises(ValueError, match=f"{records.SETTING}=.*; give an address such as postgresql"):
        ledger.count_reads("d1", ours)


def test_a_lock_holds_in_all_workspaces(database: Path, ours: Path, theirs: Path) -> None:
    order = []

    def second() -> None:
        with records.exclusively("deciding", theirs):
            order.append("second")

    with records.exclusively("deciding", ours):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_text_with_unicode_s_line_ends_is_one_line(recipe: Recipe, ours: Path) -> None:
    event = Event("rejected", "3", "ann", "odd\u2028very\x85odd", "2", "2", "s", 0.8)
    history.append(recipe, event, ours)
    assert history.read(recipe, ours) == [event]


def test_a_line_is_json_with_the_hash_of_the_line_before(recipe: Recipe, database: Path, ours: Path) -> None:
    history.append(recipe, PROMOTED, ours)
    (line,) = records.lines(paths.history_path(recipe, ours))
    assert json.loads(line)["previous"] == history.START


def test_a_line_that_a_reader_has_copied_in_between_is_written_once(
    recipe: Recipe, database: Path, ours: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = records._insert

    def insert_and_read(path: Path, new: list[str], number: int) -> bool:
        done = insert(path, new, number)
        monkeypatch.setattr(records, "_insert", insert)
        history.read(recipe, ours)
        return done

    monkeypatch.setattr(records, "_insert", insert_and_read)
    history.append(recipe, PROMOTED, ours)
    assert history.read(recipe, ours) == history.read(recipe, theirs) == [PROMOTED]


def test_a_torn_line_of_a_workspace_stays_out_of_the_shared_record(
    recipe: Recipe, ours: Path, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.record_read(recipe, "scratch", "d1", "a" * 64, ours)
    with paths.ledger_path(recipe, ours).open("a") as file:
        file.write('{"at": "2026-')
    monkeypatch.setenv(records.SETTING, f"sqlite:///{tmp_path}/records.db")
    with pytest.raises(RecordError, match=r"ours/records/digits/test_reads\.jsonl, line 2 is damaged"):
        ledger.count_reads("d1", ours)
    assert ledger.count_reads("d1", theirs) == 0


def test_a_changed_history_of_a_workspace_stays_out_of_the_shared_record(
    recipe: Recipe, ours: Path, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for event in (PROMOTED, REJECTED):
        history.append(recipe, event, ours)
    path = paths.history_path(recipe, ours)
    path.write_text(path.read_text().replace("0.9", "0.8"))
    monkeypatch.setenv(records.SETTING, f"sqlite:///{tmp_path}/records.db")
    with pytest.raises(HistoryError, match="line 2 does not follow line 1"):
        history.read(recipe, ours)
    assert history.read(recipe, theirs) == []


def test_a_copy_that_cannot_be_written_loses_no_decision(
    recipe: Recipe,
    database: Path,
    ours: Path,
    theirs: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_text", full)
        history.append(recipe, PROMOTED, ours)
    assert "history.jsonl is not up to date: [Errno 28] No space left on device" in caplog.text
    assert history.read(recipe, theirs) == history.read(recipe, ours) == [PROMOTED]


def test_a_database_has_one_identity(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = records.identity()
    monkeypatch.setenv(records.SETTING, f"sqlite:///{database.with_name('typo.db')}")
    assert records.identity() not in (None, first)
    monkeypatch.setenv(records.SETTING, f"sqlite:///{database}")
    assert records.identity() == first
