"""Writing images out as class folders of PNG files, for tools that want files."""

import re
from pathlib import Path

import torch
from PIL import Image

from slimkit.core.data.images import Images
from slimkit.core.errors import FolderError
from slimkit.core.files import require_folder, staged_folder
from slimkit.core.progress import Progress, silent

MARK = ".slimkit-images.txt"  # in a folder that was written here, and so may be replaced


def write_image_folder(
    images: Images, class_names: tuple[str, ...], path: Path, *, force: bool = False, progress: Progress = silent
) -> None:
    """Write `path`/<class>/<index>.png for each image, as it is held: squares of the preprocessing's `resize`.

    The folder is there whole or not at all. Raises FolderError where it holds anything, unless `force` is given and
    this function wrote all of it.
    """
    require_folder(path, force)
    if path.exists() and any(path.iterdir()):
        _require_written_here(path)
    with staged_folder(path) as staging, progress(f"writing {path.name}", len(images)) as advance:
        for name in class_names:
            (staging / name).mkdir()
        for pixels, labels, indices in images.batches(torch.arange(len(images)), 256):
            for square, label, index in zip(pixels, labels.tolist(), indices.tolist(), strict=True):
                picture = Image.fromarray(square.permute(1, 2, 0).contiguous().numpy())
                picture.save(staging / class_names[label] / f"{index:06d}.png")
            advance(len(indices))
        (staging / MARK).write_text("Images that slimkit wrote out; it may replace this folder.\n", encoding="utf-8")


def _require_written_here(path: Path) -> None:
    """Raise FolderError where a folder holds anything that `write_image_folder` does not write."""
    if not (path / MARK).is_file():
        raise FolderError(f"{path} was not written by slimkit, so it is not replaced.", "Give another folder.")
    for file in path.rglob("*"):
        if file.name != MARK and not file.is_dir() and not re.fullmatch(r"\d{6,}\.png", file.name):
            raise FolderError(f"{path} holds {file}, so it is not replaced.", "Move that file, or give another folder.")
