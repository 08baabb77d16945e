"""Writing images out as class folders of PNG files, for tools that want files."""

from pathlib import Path

import torch
from PIL import Image

from slimkit.core.data.images import Images
from slimkit.core.files import require_absent, staged_folder
from slimkit.core.progress import Progress, silent


def write_image_folder(
    images: Images, class_names: tuple[str, ...], path: Path, *, force: bool = False, progress: Progress = silent
) -> None:
    """Write `path`/<class>/<index>.png for each image, as it is held: squares of the preprocessing's `resize`.

    The folder is there whole or not at all. Raises FolderError where it holds anything, unless `force` is given.
    """
    require_absent(path, force)
    with staged_folder(path) as staging, progress(f"writing {path.name}", len(images)) as advance:
        for name in class_names:
            (staging / name).mkdir()
        for pixels, labels, indices in images.batches(torch.arange(len(images)), 256):
            for square, label, index in zip(pixels, labels.tolist(), indices.tolist(), strict=True):
                picture = Image.fromarray(square.permute(1, 2, 0).contiguous().numpy())
                picture.save(staging / class_names[label] / f"{index:06d}.png")
            advance(len(indices))
