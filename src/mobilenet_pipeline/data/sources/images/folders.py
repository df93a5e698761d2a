"""A folder for each class, also nested, also inside folders for train, val and test."""

import os
from collections.abc import Iterator
from pathlib import Path

from mobilenet_pipeline.data.sources.images.found import Content, Found, Problem, Record, split_of

IGNORED = ("__MACOSX", "Thumbs.db", "desktop.ini")


def read(root: Path) -> Found:
    """Return the images below `root`; the class of an image is its folder, relative to `root` or to the split's."""
    problems: list[Problem] = []
    files = sorted(_files(root, problems), key=lambda file: file.relative_to(root).as_posix())
    tops = {file.relative_to(root).parts[0] for file in files if len(file.relative_to(root).parts) > 1}
    ready = bool(tops) and all(split_of(top) for top in tops)
    records, paths = [], []
    for file in files:
        name = file.relative_to(root)
        folders = name.parts[:-1]
        split = split_of(folders[0]) or "" if ready and folders else ""
        label = "/".join(folders[1:] if split else folders)
        if not label:
            problems.append(Problem(name.as_posix(), "no_class", "the file is in no folder of a class"))
            continue
        records.append(Record(name.as_posix(), label, split))
        paths.append(file)

    def contents() -> Iterator[Content]:
        yield from paths

    form = "folders of classes in folders of splits" if ready else "a folder for each class"
    return Found(form, records, problems, contents)


def _files(root: Path, problems: list[Problem]) -> Iterator[Path]:
    """Yield the files below `root`; what is left out becomes a problem."""
    hidden = 0
    for folder, names, files in os.walk(root, followlinks=True, onerror=lambda error: problems.append(_closed(error))):
        here = Path(folder)
        real = here.resolve()
        above = {real, *real.parents}
        for name in sorted(names):
            below = here / name
            if _is_hidden(name):
                hidden += 1
                names.remove(name)
            elif below.is_symlink() and below.resolve() in above:
                sentence = f"the link leads to {os.readlink(below)}, a folder that it is in; it is not followed"
                problems.append(Problem(_shown(below, root), "link_loop", sentence))
                names.remove(name)
        seen = [name for name in sorted(files) if not _is_hidden(name)]
        hidden += len(files) - len(seen)
        for name in seen:
            file = here / name
            if not _is_text(file):
                problems.append(Problem(_shown(file, root), "name", "the name is no UTF-8 text; rename it"))
            elif file.is_file():
                yield file
            else:
                sentence = "the link leads nowhere" if file.is_symlink() else "it is neither a file nor a folder"
                problems.append(Problem(_shown(file, root), "missing", sentence))
        if not names and not seen and here != root:
            problems.append(Problem(_shown(here, root), "empty_folder", "the folder has no images"))
    if hidden:
        sentence = f"{hidden:,} hidden files and folders, such as .DS_Store, are ignored"
        problems.append(Problem(".", "hidden", sentence))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in IGNORED


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(path: Path, root: Path) -> str:
    return os.fsencode(path.relative_to(root)).decode("utf-8", "replace")


def _closed(error: OSError) -> Problem:
    return Problem(str(error.filename), "unreadable", f"the folder cannot be read ({error.strerror})")
