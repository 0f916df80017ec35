"""Values of annotations: one reading of ids, flags and boxes for all formats."""

import math
from decimal import Decimal
from typing import Literal

FLAGS = {"": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


class AnnotationFault(ValueError):
    """One annotation that cannot be used; the message says why."""


def field(record: object, name: str) -> object:
    """`record[name]`; AnnotationFault where `record` is not an object or lacks the name."""
    if not isinstance(record, dict):
        raise AnnotationFault(f"expected an object, got {record!r:.80}")
    if name not in record:
        raise AnnotationFault(f"has no {name!r}")
    return record[name]


def identifier(value: object) -> str:
    """An id as text, so that 1, 1.0 and "1" are the same; AnnotationFault for null, a flag, a list or an object.

    Half of a surrogate pair, which JSON can escape but UTF-8 cannot hold, becomes a question mark.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise AnnotationFault(f"an id must be a number or text, got {value!r:.80}")
    whole = isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value)
    return plain_text(int(value) if whole else value)


def plain_text(value: object) -> str:
    """`value` as text that UTF-8 can hold."""
    return str(value).encode("utf-8", "replace").decode()


def flag(value: object, name: str) -> bool:
    """0 or 1, true or false, as a number, a bool or text; absent or empty is false. AnnotationFault for all else."""
    text = "" if value is None else str(value).strip().casefold()
    if text not in FLAGS:
        raise AnnotationFault(f"{name} must be 0 or 1, got {value!r:.80}")
    return FLAGS[text]


def corners(values: object, form: Literal["xyxy", "xywh"]) -> tuple[float, float, float, float]:
    """Four numbers as x0, y0, x1, y1; AnnotationFault unless they are finite and enclose an area."""
    try:
        x0, y0, x1, y1 = map(float, values)
    except (TypeError, ValueError, OverflowError):
        raise AnnotationFault(f"box must be four numbers, got {values!r:.80}") from None
    if form == "xywh":
        x1, y1 = x0 + x1, y0 + y1
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise AnnotationFault(f"box must be four finite numbers, got {values!r:.80}")
    if x1 <= x0 or y1 <= y0:
        raise AnnotationFault(f"box must have a positive width and height, got {values!r:.80} ({form})")
    return x0, y0, x1, y1


def pixels(value: object) -> int | None:
    """A width or height: a positive number, or one as text; None where it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if 1 <= number < 2**31 else None
