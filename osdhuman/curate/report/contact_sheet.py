"""Fig. 6: images of the training set side by side."""

import io
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from osdhuman import page
from osdhuman.curate.report.figures import data_uri, draw_contact_sheet, save
from osdhuman.curate.report.run import Run

ROWS, COLUMNS = 5, 8
TILE, GAP = 180, 6  # pixels


def sheet_section(run: Run, figures: Path, seed: int) -> str:
    """Images of the training set, drawn by a hash of the seed and their ids."""
    ids = run.train.select("id").collect()["id"].to_list()
    ids.sort(key=lambda crop: sha256(f"{seed}\n{crop}".encode()).digest())
    paths = [path for crop in ids if (path := run.out / "persona" / "train" / f"{crop}.png").is_file()]
    title = "Images of PERSONA train (Fig. 6)"
    if not paths:
        return page.section(title, page.text("The folder persona/train holds none of the manifest's images."))
    shown = paths[: ROWS * COLUMNS]
    sheet = contact_sheet(shown)
    save(figures, "figure6", draw_contact_sheet, sheet)
    return page.section(title, page.photograph(_jpeg(sheet), f"{len(shown)} of {len(ids):,} images, drawn by chance."))


def contact_sheet(paths: Sequence[Path]) -> np.ndarray:
    """Images in rows of eight, uint8 RGB (H,W,3) with white gaps."""
    columns = min(COLUMNS, len(paths))
    rows, step = -(-len(paths) // columns), TILE + GAP
    sheet = np.full((rows * step - GAP, columns * step - GAP, 3), 255, np.uint8)
    for place, path in enumerate(paths):
        y, x = (step * n for n in divmod(place, columns))
        with Image.open(path) as image:
            sheet[y : y + TILE, x : x + TILE] = image.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)
    return sheet


def _jpeg(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return data_uri(buffer.getvalue(), "image/jpeg")
