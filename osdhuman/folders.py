"""List the images below a folder: one rule for the whole package."""

from pathlib import Path

from osdhuman.images import SUFFIXES


def find_images(folder: Path) -> list[Path]:
    """All pictures below `folder`, sorted. Raises FileNotFoundError where there are none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder.absolute()} is not a folder of images")
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not images:
        raise FileNotFoundError(f"no picture ({', '.join(SUFFIXES)}) in {folder.absolute()}")
    return images
