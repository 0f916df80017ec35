"""The table of what each method costs, from the files of `osdhuman.evaluation.cost`."""

from collections.abc import Callable
from typing import Any

from osdhuman.evaluation.config import EvalConfig, title_of
from osdhuman.evaluation.json_files import read_json

Measured = dict[str, Any]


def _number(key: str, scale: float = 1, digits: int = 3) -> Callable[[Measured], str]:
    return lambda row: "" if row.get(key) is None else f"{row[key] / scale:.{digits}g}"


def _device(row: Measured) -> list[str]:
    """What the device is and how it computed: name, instruction set, dtype, threads."""
    parts = [row["device_name"], row.get("instructions"), row["dtype"], f"{row['threads']} threads"]
    return [part for part in parts if part]


NEEDED = ("size", "batch", "device", "device_name", "dtype", "threads", "memory")
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
    "Device": lambda row: f"{row['device']} ({', '.join(_device(row))})",
    "Memory is": lambda row: row["memory"],
}


def cost_table(config: EvalConfig) -> list[list[str]]:
    """A line of heads, then one for each method that was measured; empty if none was."""
    paths = {name: config.output / "cost" / f"{name}.json" for name in config.methods}
    found = {name: read_json(path, NEEDED) for name, path in paths.items() if path.is_file()}
    lines = [
        [title_of(name, config.methods[name]), *(text(row) for text in COLUMNS.values())] for name, row in found.items()
    ]
    return [["Method", *COLUMNS], *lines] if lines else []
