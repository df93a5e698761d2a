"""A backup holds what a champion needs; a restore brings it back, or changes nothing."""

import io
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from registry_fixtures import Runs

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.operations import backup
from mobilenet_pipeline.operations.backup import BackupError
from mobilenet_pipeline.registry import aliases, versions
from mobilenet_pipeline.workspace import history, locks, paths, records
from mobilenet_pipeline.workspace.history import Event


def silent(sentence: str) -> None:
    pass


def snapshot_of(folder: Path) -> dict[str, bytes]:
    """Return every file of the folder except locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.name.startswith((".deciding", ".running", ".numbering", ".restoring"))
        and path.suffix != ".lock"
    }


def delete_everything(workspace: Path) -> None:
    for path in workspace.iterdir():
        if path.name != "params.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def in_database(workspace: Path, query: str) -> list[str]:
    """Ask the file itself; MLflow's clients may hold the deleted one open."""
    with closing(sqlite3.connect(workspace / "mlflow.db")) as database:
        return [str(row[0]) for row in database.execute(query)]


@pytest.fixture
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backups") / "backup.tar.gz"


@pytest.fixture
def saved(runs: Runs, workspace: Path, file: Path) -> dict[str, bytes]:
    """The files of a workspace with a backup; version 4 is champion, version 2 was it before."""
    runs((181, 183), (182, 195))
    before = snapshot_of(workspace)
    backup.backup(file, silent)
    return before


def test_everything_that_was_deleted_comes_back(saved: dict[str, bytes], workspace: Path, file: Path) -> None:
    delete_everything(workspace)
    backup.restore(file, say=silent)
    after = snapshot_of(workspace)
    expected = {name for name in saved if name.startswith(("mlruns/", "records/", "mlflow.db")) or "verdict" in name}
    assert {name for name in expected if name != "mlflow.db"} == set(after) - {"params.yaml", "mlflow.db"}
    assert {name for name in after if name != "mlflow.db" and after[name] != saved[name]} == set()


def test_the_champion_is_champion_again(saved: dict[str, bytes], workspace: Path, file: Path) -> None:
    delete_everything(workspace)
    backup.restore(file, say=silent)
    query = "SELECT version FROM registered_model_aliases WHERE alias = 'champion'"
    assert in_database(workspace, query) == ["4"]


def test_another_folder_gets_the_artefacts_under_its_own_path(
    saved: dict[str, bytes], workspace: Path, file: Path, tmp_path_factory, monkeypatch, recipe: Recipe
) -> None:
    other = tmp_path_factory.mktemp("an%20odd place?")
    shutil.copyfile(workspace / "params.yaml", other / "params.yaml")
    shutil.rmtree(workspace)
    monkeypatch.chdir(other)
    backup.restore(file, say=silent)
    champion = aliases.with_alias(recipe.registered_model, "champion")
    assert champion is not None
    assert versions.fetch(champion, other / "fetched").joinpath("model.tflite").is_file()


def test_a_workspace_with_something_to_lose_is_refused(saved: dict[str, bytes], workspace: Path, file: Path) -> None:
    with pytest.raises(BackupError, match=r"would be replaced by .*--force"):
        backup.restore(file, say=silent)
    assert snapshot_of(workspace) == saved


def test_force_keeps_what_it_replaces(saved: dict[str, bytes], workspace: Path, file: Path, recipe: Recipe) -> None:
    paths.history_path(recipe).write_text("another history\n")
    backup.restore(file, force=True, say=silent)
    (kept,) = workspace.glob("before-restore-*")
    assert (kept / paths.history_path(recipe)).read_text() == "another history\n"
    assert [event.version for event in history.champions(recipe)] == ["2", "4"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_backup_that_is_cut_off_changes_nothing(
    saved: dict[str, bytes], workspace: Path, file: Path, share: float
) -> None:
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(BackupError, match=r"cut off|damaged"):
        backup.restore(file, force=True, say=silent)
    assert snapshot_of(workspace) == saved


def test_a_damaged_byte_changes_nothing(saved: dict[str, bytes], workspace: Path, file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    with pytest.raises(BackupError, match="damaged"):
        backup.restore(file, force=True, say=silent)
    assert snapshot_of(workspace) == saved


def repacked(file: Path, change: Callable[[str, bytes], bytes], more: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    """Write the backup again with changed members, and return its path."""
    target = file.with_name("repacked.tar.gz")
    with tarfile.open(file) as old, tarfile.open(target, "w:gz") as new:
        for member in old:
            content = change(member.name, old.extractfile(member).read())
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
        for member in more:
            new.addfile(member, io.BytesIO(bytes(member.size)))
    return target


def test_a_file_that_differs_from_the_manifest_is_refused(saved: dict[str, bytes], workspace: Path, file: Path) -> None:
    forged = repacked(file, lambda name, content: b"x" if name.endswith("model.tflite") else content)
    with pytest.raises(BackupError, match=r"model\.tflite differs from its manifest"):
        backup.restore(forged, force=True, say=silent)
    assert snapshot_of(workspace) == saved


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "artefacts/../../outside"])
def test_a_path_out_of_the_workspace_is_refused(
    saved: dict[str, bytes], workspace: Path, file: Path, name: str
) -> None:
    forged = repacked(file, lambda _, content: content, (tarfile.TarInfo(name),))
    with pytest.raises(BackupError, match=r"damaged|differs"):
        backup.restore(forged, force=True, say=silent)
    assert not (workspace.parent / "outside").exists()
    assert snapshot_of(workspace) == saved


def test_a_link_in_a_backup_is_refused(saved: dict[str, bytes], file: Path) -> None:
    link = tarfile.TarInfo("artefacts/link")
    link.type, link.linkname = tarfile.SYMTYPE, "mlflow.db"
    with pytest.raises(BackupError, match="which no backup has"):
        backup.restore(repacked(file, lambda _, content: content, (link,)), force=True, say=silent)


def test_a_history_that_was_changed_is_refused(saved: dict[str, bytes], workspace: Path, file: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        return content.replace(b'"2"', b'"3"', 1) if name.endswith("history.jsonl") else content

    with pytest.raises(ValueError, match=r"history\.jsonl"):
        backup.restore(repacked(file, change), force=True, say=silent)
    assert snapshot_of(workspace) == saved


def test_another_kind_of_registry_is_refused(saved: dict[str, bytes], file: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://team@db/mlflow")
    with pytest.raises(BackupError, match="in an SQLite file, and MLFLOW_TRACKING_URI names PostgreSQL"):
        backup.restore(file, force=True, say=silent)


@pytest.mark.parametrize("step", range(3))
def test_a_restore_that_fails_between_two_files_is_undone(
    saved: dict[str, bytes], workspace: Path, file: Path, monkeypatch, step: int
) -> None:
    calls, move = iter(range(100)), shutil.move

    def failing(source, target):
        if next(calls) == step:
            raise OSError(28, "No space left on device")
        return move(source, target)

    monkeypatch.setattr(backup.shutil, "move", failing)
    with pytest.raises(OSError, match="No space"):
        backup.restore(file, force=True, say=silent)
    assert {name: data for name, data in snapshot_of(workspace).items() if "before-restore" not in name} == saved


def test_a_restore_that_was_killed_is_undone_by_the_next(
    saved: dict[str, bytes], workspace: Path, file: Path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(backup, "_undo", lambda _: None)  # SIGKILL leaves no time for it
        patch.setattr(backup.shutil, "move", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            backup.restore(file, force=True, say=silent)
    assert "a restore was killed" in str(backup.interrupted())
    (workspace / ".restore-killed").mkdir()
    with pytest.raises(BackupError, match="--force"):
        backup.restore(file, say=silent)
    assert [*workspace.glob(".restor*"), *workspace.glob("before-restore-*")] == []
    assert {name: data for name, data in snapshot_of(workspace).items() if "before-restore" not in name} == saved


@pytest.mark.parametrize("name", ["labels.csv", "state.json"])
def test_what_the_monitoring_has_kept_comes_back(runs: Runs, workspace: Path, file: Path, name: str) -> None:
    runs((181, 183))
    kept = workspace / "reports" / "digits" / "monitoring" / name
    kept.parent.mkdir(parents=True)
    kept.write_text("of a week")
    backup.backup(file, silent)
    delete_everything(workspace)
    backup.restore(file, say=silent)
    assert kept.read_text() == "of a week"


def test_a_full_disk_is_that_of_the_workspace(
    saved: dict[str, bytes], workspace: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup.shutil, "copyfileobj", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left") as failure:
        backup.restore(file, force=True, say=silent)
    assert Path(failure.value.filename).parent == workspace


@pytest.mark.parametrize(("kind", "word"), [("file", "champion"), ("server", "live")])
def test_only_a_restored_registry_has_its_champion_again(
    saved: dict[str, bytes], file: Path, monkeypatch: pytest.MonkeyPatch, kind: str, word: str
) -> None:
    champion = {"version": "4", "sha256": "a" * 64, "bento": "digits:4"}
    read = backup._read
    monkeypatch.setattr(
        backup,
        "_read",
        lambda *words, **more: {**read(*words, **more), "kind": kind, "champions": {"digits": champion}},
    )
    monkeypatch.setattr(backup.snapshot, "kind", lambda: kind)
    said: list[str] = []
    backup.restore(file, force=True, say=said.append)
    assert f"digits: version 4 is {word} again (aaaaaaaaaaaa), digits:4" in said


def test_nothing_is_restored_beside_a_run(saved: dict[str, bytes], workspace: Path, file: Path, recipe: Recipe) -> None:
    with locks.only_run(recipe), pytest.raises(BlockingIOError, match="a run of digits is in progress"):
        backup.restore(file, force=True, say=silent)
    assert snapshot_of(workspace) == saved


def test_an_existing_file_is_not_replaced_by_a_backup(saved: dict[str, bytes], file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(BackupError, match="exists; give the backup another name"):
        backup.backup(file, silent)
    assert file.read_bytes() == before


def test_a_backup_in_a_folder_that_it_saves_is_refused(saved: dict[str, bytes]) -> None:
    with pytest.raises(BackupError, match="part of the backup"):
        backup.backup(Path("mlruns/backup.tar.gz"), silent)


def test_an_empty_workspace_is_no_backup(workspace: Path, file: Path) -> None:
    with pytest.raises(BackupError, match="nothing to save"):
        backup.backup(file, silent)
    assert not file.exists()


def test_a_backup_that_fails_leaves_no_file(saved: dict[str, bytes], file: Path, monkeypatch) -> None:
    monkeypatch.setattr(backup, "_read", lambda *_, **__: (_ for _ in ()).throw(BackupError("damaged")))
    with pytest.raises(BackupError):
        backup.backup(file.with_name("second.tar.gz"), silent)
    assert list(file.parent.iterdir()) == [file]


def test_only_its_owner_reads_a_backup(saved: dict[str, bytes], file: Path) -> None:
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def shared(workspace: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The database of the shared records."""
    path = tmp_path_factory.mktemp("shared") / "records.db"
    monkeypatch.setenv(records.SETTING, f"sqlite:///{path}")
    return path


def rows_of(database: Path) -> int:
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {records.TABLE}").fetchone()[0])


def test_the_rows_of_shared_records_come_back(shared: Path, runs: Runs, workspace: Path, file: Path) -> None:
    runs((181, 183), (182, 195))
    backup.backup(file, silent)
    expected = rows_of(shared)
    delete_everything(workspace)
    with closing(sqlite3.connect(shared)) as connection:
        connection.execute(f"DELETE FROM {records.TABLE}")
        connection.commit()
    backup.restore(file, say=silent)
    assert (rows_of(shared), expected > 0) == (expected, True)


def test_a_decision_after_the_backup_stays_in_the_shared_record(
    shared: Path, runs: Runs, workspace: Path, file: Path, recipe: Recipe
) -> None:
    runs((181, 183), (182, 195))
    backup.backup(file, silent)
    history.append(recipe, Event("rejected", "3", "somebody", "blurred", "4", "4", "r" * 32, 0.9, withdraws="a" * 64))
    delete_everything(workspace)
    backup.restore(file, say=silent)
    assert history.withdrawn(recipe) == {"a" * 64: "rejected by somebody: blurred"}


def test_records_in_mlflow_s_own_file_are_not_rewound(
    runs: Runs, workspace: Path, file: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs((181, 183))
    monkeypatch.setenv(records.SETTING, f"sqlite:///{workspace}/mlflow.db")
    backup.backup(file, silent)
    with pytest.raises(BackupError, match=r"MLflow's own file.*decisions of other workspaces"):
        backup.restore(file, force=True, say=silent)


def test_another_shared_history_refuses_the_backup(
    saved: dict[str, bytes], shared: Path, workspace: Path, file: Path, recipe: Recipe, tmp_path_factory
) -> None:
    event = Event("promoted", "1", "the gate", "", None, "1", "r" * 32, 0.9)
    history.append(recipe, event, tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(BackupError, match=r"history\.jsonl in .* contradict each other; nothing was changed"):
        backup.restore(file, force=True, say=silent)
    assert snapshot_of(workspace) == saved
