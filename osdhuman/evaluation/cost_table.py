"""The table of what each method costs, from the files of `osdhuman.evaluation.cost`."""

import json
from collections.abc import Callable
from typing import Any

from osdhuman.evaluation.config import EvalConfig
from osdhuman.evaluation.tables import title_of

Measured = dict[str, Any]


def _number(key: str, scale: float = 1, digits: int = 3) -> Callable[[Measured], str]:
    return lambda row: "" if row.get(key) is None else f"{row[key] / scale:.{digits}g}"


COLUMNS: dict[str, Callable[[Measured], str]] = {
    "Seconds, median": _number("seconds_median"),
    "p95": _number("seconds_p95"),
    "Processor's seconds": _number("cpu_seconds_mean"),
    "Peak memory, GiB": _number("peak_memory_bytes", 2**30),
    "Parameters, M": _number("parameters", 1e6, 4),
    "trained, M": _number("trained_parameters", 1e6, 4),
    "MACs, G": _number("macs", 1e9, 4),
    "Prompt network, % of seconds": _number("prompt_share_of_seconds", 0.01, 2),
    "LoRA merged": lambda row: {True: "yes", False: "no"}.get(row.get("lora_merged"), ""),
    "Size": lambda row: f"{row['size']}x{row['size']}",
    "Batch": lambda row: str(row["batch"]),
    "Device": lambda row: f"{row['device']} ({row['device_name']}, {row['dtype']}, {row['threads']} threads)",
    "Memory is": lambda row: row["memory"],
}


def cost_table(config: EvalConfig) -> list[list[str]]:
    """A line of heads, then one for each method that was measured; empty if none was."""
    paths = {name: config.output / "cost" / f"{name}.json" for name in config.methods}
    found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}
    lines = [
        [title_of(name, config.methods[name]), *(text(row) for text in COLUMNS.values())] for name, row in found.items()
    ]
    return [["Method", *COLUMNS], *lines] if lines else []
