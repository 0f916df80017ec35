"""Restorers: every method of the benchmark behind one door, by name.

    restorer = load_restorer("osdhuman", model="tiny", color_fix="adain")
    image = restorer.restore(lq, seeds=[0])

A method is one file here and one line in `RESTORERS`. Importing this package loads none of them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from osdhuman.config import parse_config
from osdhuman.registry import find_class

if TYPE_CHECKING:
    from torch import Tensor

RESTORERS = {
    "osdhuman": "osdhuman.restorers.osdhuman:OSDHumanRestorer",
    "osediff": "osdhuman.restorers.osediff:OSEDiff",
    "haodiff": "osdhuman.restorers.haodiff:HAODiff",
    "sinsr": "osdhuman.restorers.sinsr:SinSR",
    "resshift": "osdhuman.restorers.resshift:ResShift",
    "realesrgan": "osdhuman.restorers.realesrgan:RealESRGAN",
    "spandrel": "osdhuman.restorers.spandrel:Spandrel",
    "input": "osdhuman.restorers.classical:Input",
    "bicubic": "osdhuman.restorers.classical:Bicubic",
    "gaussian": "osdhuman.restorers.classical:Gaussian",
    "bilateral": "osdhuman.restorers.classical:Bilateral",
    "nlm": "osdhuman.restorers.classical:NonLocalMeans",
}


class Restorer(Protocol):
    """A method, loaded and ready. LQ and result have one size, that of the ground truth; the file tells no scale.

    A class named in `RESTORERS` also has `Settings`, a Config, and is built from an instance of it; its base model and
    its weights are settings. Two methods are optional: `describe()`, a dict for JSON of what decides the result
    ("settings", "weights": hashes by name, "trained_parameters", "merged": whether LoRA is part of the weights); and
    `modules()`, the networks by name ("prompt" is the one that makes the prompt), whose calls are timed and counted.

    How the kinds of methods fit:

    - one step, at the LQ's size (OSDHuman, HAODiff, OSEDiff with upscale 1): as it is;
    - x4 (ResShift, SinSR): the restorer first reduces the LQ by 4, in which such models were trained, and says by which
      kernel; the other way, x4 and then reduced, is a setting of it (DiffBIR's first stage goes 512, 2048, 512);
    - a working size of its own (PASD: 768): enlarged before, reduced after, inside the restorer;
    - many steps, or a latent that is drawn (SeeSR, PASD, DiffBIR, OSEDiff): all noise of an image comes from its seed,
      by a generator made anew for each image, so that neither batch nor order changes a result;
    - another base (Stable Diffusion 1.5, 2) or captioner: a setting of that restorer, hashed in `describe()`.
    """

    name: str

    def restore(self, lq: "Tensor", seeds: Sequence[int]) -> "Tensor":
        """lq (B,3,H,W) in [0,1], one seed per image -> float32 (B,3,H,W) in [0,1] on the device of `lq`."""


def find_restorer(name: str) -> type:
    """The class of a registered restorer, its settings in `.Settings`. Raises ValueError with the nearest name."""
    return find_class(name, RESTORERS, "restorer")


def load_restorer(name: str, **settings: Any) -> Restorer:
    """Load a method by its name. Raises ValueError for an unknown name, and for wrong settings, all at once."""
    restorer = find_restorer(name)
    return restorer(parse_config(restorer.Settings, settings, f"the settings of restorer {name!r}"))


def describe(restorer: Restorer) -> dict[str, Any]:
    """What the restorer says of itself; nothing for one that has no `describe`."""
    return restorer.describe() if hasattr(restorer, "describe") else {}
