"""Summaries of what a command could not use."""

import json

from osdhuman.summary import Summary


def filled():
    summary = Summary()
    for name, reason in (("a.txt", "not an image"), ("b.png", "damaged"), ("c.txt", "not an image")):
        summary.add(name, reason)
    return summary


def test_paths_are_counted_by_reason():
    assert filled().counts == {"not an image": 2, "damaged": 1}


def test_the_text_names_each_path_below_its_reason():
    assert str(filled()) == "2 x not an image\n  a.txt\n  c.txt\nb.png: damaged"


def test_the_list_has_one_object_per_line(tmp_path):
    filled().write(tmp_path / "list.jsonl")
    lines = (tmp_path / "list.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {"path": "b.png", "reason": "damaged"}


def test_an_empty_summary_leaves_no_file(tmp_path):
    filled().write(tmp_path / "list.jsonl")
    Summary().write(tmp_path / "list.jsonl")
    assert not (tmp_path / "list.jsonl").exists()


def test_many_names_of_one_reason_are_cut_short():
    summary = Summary()
    for i in range(12):
        summary.add(f"{i}.png", "damaged")
    assert str(summary).endswith("and 2 more")
