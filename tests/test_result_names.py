"""Names of results: no two inputs share one, and none changes when inputs are added."""

from pathlib import Path

import pytest

from osdhuman.result_names import result_names


def named(*names, known=()):
    results = result_names(map(Path, names), known={Path(name): Path(result) for name, result in known})
    return {name.as_posix(): result.as_posix() for name, result in results.items()}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg"], {"a.jpg": "a.png"}),
        (["a.jpg", "a.png"], {"a.jpg": "a.jpg.png", "a.png": "a.png"}),
        (["a.bmp", "a.jpg"], {"a.bmp": "a.png", "a.jpg": "a.jpg.png"}),
        (["a.jpg", "b/a.jpg"], {"a.jpg": "a.png", "b/a.jpg": "b/a.png"}),
        (["a.jpg", "a.jpg.png", "a.png"], {"a.jpg": "a.jpg.png.png", "a.jpg.png": "a.jpg.png", "a.png": "a.png"}),
        (["a", "a.png"], {"a": "a.png.png", "a.png": "a.png"}),
    ],
)
def test_the_input_that_has_its_results_name_keeps_it(names, expected):
    assert named(*names) == expected


def test_a_known_name_stays():
    assert named("a.jpg", "a.png", known=[("a.jpg", "a.png")]) == {"a.jpg": "a.png", "a.png": "a.png.png"}


def test_a_known_name_of_another_place_is_forgotten():
    assert named("a.jpg", known=[("a.jpg", "elsewhere/b.png")]) == {"a.jpg": "a.png"}
