"""The images of a folder that is measured: their names, and what is known of a file without decoding it."""

import io
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from PIL import UnidentifiedImageError

from osdhuman.folders import list_images
from osdhuman.image_files import open_image, upright_size
from osdhuman.metrics.score_files import printable


@dataclass(frozen=True)
class ScoredImage:
    """An image to be measured: `file` is relative to its folder, `size` (width, height) as shown upright."""

    file: str
    path: Path
    size: tuple[int, int]
    sha256: str
    reference: Path | None = None
    reference_sha256: str | None = None

    @property
    def stem(self) -> str:
        return stem_of(Path(self.file))


@dataclass(frozen=True)
class Header:
    """What is known of a file without decoding: its size as shown upright, its format by content, its sha256."""

    size: tuple[int, int]
    format: str
    sha256: str


def list_names(folder: Path) -> tuple[dict[str, Path], list[dict[str, str]]]:
    """Name without suffix -> image, sorted, for all images below `folder`; and the other files there, with the reason.

    Raises ValueError where there are none, or two of one name.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of images")
    paths, unlisted = list_images(folder)
    if not paths:
        others = f", only {len(unlisted)} other file(s)" if unlisted else ""
        raise ValueError(f"no image in {folder}{others}")
    found = dict(sorted((stem_of(path.relative_to(folder)), path) for path in paths))
    if len(found) < len(paths):
        twice = sorted({printable(path.name) for path in paths} - {printable(path.name) for path in found.values()})
        raise ValueError(f"{folder}: two images have the same name but for the suffix: {', '.join(twice)}")
    return found, [{"file": printable(str(path.relative_to(folder))), "reason": reason} for path, reason in unlisted]


def stem_of(path: Path) -> str:
    """The name by which an image and its reference are paired: without suffix, with slashes."""
    return path.with_suffix("").as_posix()


def read_header(path: Path) -> Header:
    """Read and hash a file. Raises ValueError where it cannot be read or is no image."""
    try:
        data = path.read_bytes()
        with open_image(io.BytesIO(data)) as image:
            return Header(upright_size(image), str(image.format), sha256(data).hexdigest())
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None


@dataclass
class Reference:
    """A reference image, hashed at the first request; an unreadable one is a mistake of every method."""

    path: Path
    found: Header | ValueError | None = None

    def header(self) -> Header:
        if self.found is None:
            try:
                self.found = read_header(self.path)
            except ValueError as error:
                self.found = ValueError(f"its reference {printable(str(self.path))} {error}")
        if isinstance(self.found, ValueError):
            raise self.found
        return self.found


def checked(image: Header, reference: Header | None, png_only: bool) -> Header:
    """The header of an image that can be measured; ValueError with the reason for one that cannot."""
    if png_only and image.format != "PNG":
        raise ValueError(f"is a {image.format}, but its compression would be measured too: save restored images as PNG")
    if reference and image.size != reference.size:
        sizes = "{}x{}".format(*image.size), "{}x{}".format(*reference.size)
        raise ValueError(f"is {sizes[0]}, its reference {sizes[1]}")
    return image
