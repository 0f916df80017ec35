"""Detectors: the packaged network on a photograph of the repository, and YOLO's adapter on a stand-in."""

import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from osdhuman.config import parse_config
from osdhuman.curate.detect import DetectorConfig, build_detector
from osdhuman.curate.record import Box

PHOTOGRAPH = Path(__file__).parents[1] / "assets" / "demo" / "grace_hopper.png"


def detector(**settings):
    return build_detector(parse_config(DetectorConfig, settings))


def flat(height=60, width=80, value=127):
    return np.full((height, width, 3), value, np.uint8)


def iou(a, b):
    shared = max(min(a.x1, b.x1) - max(a.x0, b.x0), 0) * max(min(a.y1, b.y1) - max(a.y0, b.y0), 0)
    return shared / ((a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0) - shared)


@pytest.fixture(scope="module")
def photograph():
    """A portrait in the upper right quarter of a grey canvas of 960 x 768."""
    portrait = cv2.cvtColor(cv2.imread(str(PHOTOGRAPH)), cv2.COLOR_BGR2RGB)
    height, width = portrait.shape[:2]
    canvas = flat(2 * height, 2 * width)
    canvas[:height, width:] = portrait
    return canvas


@pytest.fixture(scope="module")
def ssdlite():
    return detector()


# ------------------------------------------------------------------------------------------------------------ SSDLite


def test_the_packaged_detector_finds_the_person(ssdlite, photograph):
    (box,) = ssdlite([photograph])[0]
    assert iou(box, Box(384, 0, 768, 480)) > 0.8


def test_it_finds_nobody_on_a_flat_picture(ssdlite):
    assert ssdlite([flat()]) == [()]


def test_a_larger_picture_gives_the_same_box_in_its_own_pixels(ssdlite, photograph):
    large = cv2.resize(photograph, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    (small,), (found,) = ssdlite([photograph, large])
    assert iou(small, found._replace(**{edge: getattr(found, edge) / 3 for edge in ("x0", "y0", "x1", "y1")})) > 0.9


def test_the_neighbours_of_a_picture_do_not_change_its_boxes(ssdlite, photograph):
    assert ssdlite([flat(), photograph, flat(200, 30)])[1] == ssdlite([photograph])[0]


def test_a_higher_score_finds_fewer(photograph):
    assert len(detector(score=0.001)([photograph])[0]) > len(detector(score=0.5)([photograph])[0])


def test_boxes_are_numbered_in_their_order(photograph):
    boxes = detector(score=0.001)([photograph])[0]
    assert [box.id for box in boxes] == [str(i) for i in range(len(boxes))]


def test_floats_are_refused(ssdlite):
    with pytest.raises(ValueError, match=r"uint8 RGB \(H,W,3\), got float64 \(4, 4, 3\)"):
        ssdlite([np.zeros((4, 4, 3))])


def test_a_gpu_that_onnxruntime_cannot_use_is_an_error_with_the_remedy(monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match="pip install onnxruntime-gpu"):
        detector(device="cuda")


# --------------------------------------------------------------------------------------------------------------- YOLO


class StandIn:
    """A model as ultralytics shows it: finds one box as wide as the first pixel's blue value; notes its calls."""

    def __init__(self, weights):
        if weights == "missing.pt":
            raise FileNotFoundError(2, "No such file or directory")
        self.names = {0: "face" if weights == "faces.pt" else "person"}
        self.calls = []

    def predict(self, source, **settings):
        self.calls.append((len(source), settings))
        for picture in source:
            box = torch.tensor([[0.0, 0.0, float(picture[0, 0, 0]), 5.0]])
            yield SimpleNamespace(boxes=SimpleNamespace(xyxy=box))


@pytest.fixture
def ultralytics(monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics", SimpleNamespace(YOLO=StandIn))


def coloured(blue):
    picture = flat()
    picture[..., 2] = blue
    return picture


def test_yolo_gets_bgr_and_gives_a_box_for_each_picture_in_order(ultralytics):
    found = detector(kind="yolo", batch=2)([coloured(10), coloured(20), coloured(30)])
    assert [[box.x1 for box in boxes] for boxes in found] == [[10], [20], [30]]


def test_every_call_of_yolo_is_a_full_batch(ultralytics):
    yolo = detector(kind="yolo", batch=2)
    yolo([coloured(10), coloured(20), coloured(30)])
    assert [size for size, _ in yolo.model.calls] == [2, 2]


def test_yolo_is_asked_for_persons_above_the_score_on_square_padding(ultralytics):
    yolo = detector(kind="yolo", score=0.4, device="cuda:1")
    yolo([flat()])
    asked = {"conf": 0.4, "classes": [0], "device": "cuda:1", "rect": False, "verbose": False}
    assert yolo.model.calls[0][1] == asked


def test_no_pictures_need_no_call_of_yolo(ultralytics):
    assert detector(kind="yolo")([]) == []


def test_a_box_without_area_is_no_person(ultralytics):
    assert detector(kind="yolo")([coloured(0)]) == [()]


def test_weights_that_cannot_be_had_are_an_error_with_the_remedy(ultralytics):
    with pytest.raises(ValueError, match=r"'missing\.pt' are neither a file nor .* set weights to their path"):
        detector(kind="yolo", weights="missing.pt")


def test_weights_whose_first_class_is_no_person_are_refused(ultralytics):
    with pytest.raises(ValueError, match=r"class 0 of 'faces\.pt' must be 'person'.*'face'"):
        detector(kind="yolo", weights="faces.pt")


def test_without_ultralytics_the_error_prints_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(ImportError, match=r"pip install 'osdhuman\[detect\]'"):
        detector(kind="yolo")
