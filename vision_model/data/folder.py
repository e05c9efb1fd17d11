"""Read a folder per class: `<root>/<label>/*.png`, or `<root>/{train,val,test}/<label>/*.png`."""

import re
from collections.abc import Iterator
from pathlib import Path

from vision_model.data.example import PRECEDENCE, Example, Split, split_of
from vision_model.errors import RecipeInvalid, SourceInvalid

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


def read_folder(
    root: Path,
    *,
    name: str,
    modality: str,
    body_part: str,
    licence: str,
    provenance: str = "",
    population: str = "unknown",
    group_pattern: str = "",
) -> list[Example]:
    """The images under a folder for each class, in the order of their paths, labelled with the folder's name.

    `group_pattern` is a regular expression whose first bracket (or whole match) in the file's name is the patient; a
    file that it does not match, and every file without it, is a group of its own. Without folders for the splits a
    group's digest decides: 70 % train, 10 % val, 20 % test.
    Raises SourceInvalid for a folder without classes or images, and RecipeInvalid for a pattern that is none.
    """
    try:
        pattern = re.compile(group_pattern) if group_pattern else None
    except re.error as exc:
        raise RecipeInvalid(
            f"group_pattern {group_pattern!r} of source {name} is no regular expression: {exc}"
        ) from exc
    examples = []
    for split, label, path in labelled_files(root):
        if path.suffix.lower() not in IMAGES:
            continue
        found = pattern.search(path.name) if pattern else None
        patient = path.relative_to(root).as_posix() if found is None else found[1] if found.groups() else found[0]
        group = f"{name}:{patient}"
        examples.append(
            Example(
                path=path,
                dataset=name,
                modality=modality,
                body_part=body_part,
                label=label,
                group=group,
                split=split or split_of(group),
                licence=licence,
                population=population,
                provenance=provenance,
            )
        )
    if not examples:
        raise SourceInvalid(f"{root} holds no images in folders named by their label ({', '.join(sorted(IMAGES))})")
    return examples


def labelled_files(root: Path) -> Iterator[tuple[Split | None, str, Path]]:
    """(split or None, label, file) of all files in class folders, sorted; folders inside a class belong to it.

    Raises SourceInvalid when `root` is no folder, or when only some of its folders are splits.
    """
    if not root.is_dir():
        raise SourceInvalid(f"{root} is no folder")
    top = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    splits = [p for p in top if p.name in PRECEDENCE]
    if splits and len(splits) < len(top):
        others = ", ".join(p.name for p in top if p not in splits)
        raise SourceInvalid(f"{root} holds folders for splits beside {others}; it is one or the other")
    named: list[tuple[Split | None, Path]] = [(None, root)]
    if splits:
        named = [(split, root / split) for split in PRECEDENCE if (root / split).is_dir()]
    for split, parent in named:
        for label in sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith(".")):
            yield from ((split, label.name, path) for path in sorted(label.rglob("*")) if path.is_file())
