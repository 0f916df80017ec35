"""Person detectors for images without annotations: YOLO11 as in the paper (3.1), or a small one that needs nothing.

Pixels are uint8 RGB (H,W,3) in numpy arrays. The boxes of an image do not depend on those that come with it.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from itertools import islice
from typing import Literal

import cv2
import numpy as np
from pydantic import Field

from osdhuman.config import Config
from osdhuman.curate.record import Box

Detector = Callable[[Sequence[np.ndarray]], list[tuple[Box, ...]]]

SSDLITE = files("osdhuman") / "weights" / "pedestrian_ssdlite.onnx"
SSDLITE_SIDE = 640  # larger images are reduced to it: the network itself works at a few hundred pixels
YOLO_PERSON = 0  # the class in COCO's 80, on which YOLO11 was trained


class DetectorConfig(Config):
    """Which detector and how sure it must be. The paper names YOLO11 and no numbers."""

    kind: Literal["ssdlite", "yolo"] = "ssdlite"  # the packaged network, or ultralytics
    weights: str = "yolo11x.pt"  # yolo: a path, or a name that ultralytics downloads
    score: float = Field(default=0.5, gt=0, lt=1)
    batch: int = Field(default=16, gt=0)  # images in one call of the yolo network
    device: str = "cpu"  # or cuda, cuda:1
    threads: int = Field(default=1, gt=0)  # ssdlite on the CPU; shards already fill the cores


def build_detector(config: DetectorConfig) -> Detector:
    """A function from images to the persons in each: boxes in the image's pixels, the surest first.

    Raises ImportError with the command to run where a package is missing, ValueError where weights or device are.
    """
    return {"ssdlite": SSDLite, "yolo": YOLO}[config.kind](config)


class SSDLite:
    """SSDLite on MobileNetV2, one class; 12 MB beside the code (osdhuman/weights/README.md). One image at a time."""

    def __init__(self, config: DetectorConfig) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ImportError("the ssdlite detector needs onnxruntime: pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = config.threads, 1
        provider = "CPUExecutionProvider" if config.device == "cpu" else "CUDAExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise ValueError(f"device {config.device!r} needs pip install onnxruntime-gpu, or set device=cpu")
        index = int(config.device.partition(":")[2] or 0)
        settings = {} if config.device == "cpu" else {"device_id": index}
        self.session = onnxruntime.InferenceSession(str(SSDLITE), options, providers=[(provider, settings)])
        self.score = config.score

    def __call__(self, images: Sequence[np.ndarray]) -> list[tuple[Box, ...]]:
        return [self._detect(checked(image)) for image in images]

    def _detect(self, image: np.ndarray) -> tuple[Box, ...]:
        height, width = image.shape[:2]
        edges, scores = self.session.run(
            ["detection_boxes:0", "detection_scores:0"], {"image_tensor:0": _reduced(image)[None]}
        )
        sure = edges[0][scores[0] >= self.score].clip(0, 1)  # y0, x0, y1, x1 as fractions
        return numbered_boxes(sure[:, [1, 0, 3, 2]].astype(np.float64) * [width, height, width, height])


def _reduced(image: np.ndarray) -> np.ndarray:
    factor = SSDLITE_SIDE / max(image.shape[:2])
    if factor >= 1:
        return np.ascontiguousarray(image)
    height, width = (max(round(side * factor), 1) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


class YOLO:
    """YOLO11 through ultralytics (AGPL-3.0), any of its weights whose class 0 is a person."""

    def __init__(self, config: DetectorConfig) -> None:
        try:
            from ultralytics import YOLO as Model
        except ImportError:
            raise ImportError("the yolo detector needs ultralytics: pip install 'osdhuman[detect]'") from None
        try:
            self.model = Model(config.weights)
        except (OSError, RuntimeError) as error:  # no such file, and no way to download it
            raise ValueError(
                f"weights {config.weights!r} are neither a file nor to be had by ultralytics ({error}); "
                "download them from https://github.com/ultralytics/assets/releases and set weights to their path"
            ) from error
        if self.model.names[YOLO_PERSON] != "person":
            raise ValueError(
                f"class 0 of {config.weights!r} must be 'person', as in COCO, but is {self.model.names[YOLO_PERSON]!r}"
            )
        self.config = config

    def __call__(self, images: Sequence[np.ndarray]) -> list[tuple[Box, ...]]:
        found: list[tuple[Box, ...]] = []
        rest = iter(images)
        while batch := [checked(image) for image in islice(rest, self.config.batch)]:
            found += islice(self._detect(batch), len(batch))
        return found

    def _detect(self, images: list[np.ndarray]) -> Iterator[tuple[Box, ...]]:
        """Always a full batch of squares, so that no image's arithmetic depends on how many come with it."""
        full = images + images[-1:] * (self.config.batch - len(images))
        results = self.model.predict(
            [np.ascontiguousarray(image[..., ::-1]) for image in full],  # ultralytics takes BGR
            conf=self.config.score,
            classes=[YOLO_PERSON],
            device=self.config.device,
            rect=False,  # no narrower padding where all images of a batch have one shape
            verbose=False,
        )
        for result in results:
            yield numbered_boxes(result.boxes.xyxy.cpu().numpy().astype(np.float64))


def numbered_boxes(edges: np.ndarray) -> tuple[Box, ...]:
    """(N,4) x0, y0, x1, y1 -> boxes with an area, numbered in their order."""
    rows = (row for row in edges.tolist() if row[2] > row[0] and row[3] > row[1])
    return tuple(Box(*row, id=str(i)) for i, row in enumerate(rows))


def checked(image: np.ndarray) -> np.ndarray:
    """The image itself; ValueError unless it is uint8 (H,W,3)."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a detector takes uint8 RGB (H,W,3), got {image.dtype} {image.shape}")
    return image
