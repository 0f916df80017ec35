"""SinSR (Wang et al., 2024) as a restorer: ResShift's networks, distilled to one step.

The single step starts from noise as ResShift does, so a result depends on the image's seed.
"""

from typing import ClassVar, Literal

from osdhuman.restorers.resshift import ResidualShiftingSettings, ResShift


class SinSRSettings(ResidualShiftingSettings):
    """v1, or v2, which stopped training early: sharper, less faithful. null: own weights."""

    version: Literal["v1", "v2"] | None = "v1"


class SinSR(ResShift):
    """The autoencoder is ResShift's file."""

    name = "sinsr"
    Settings: ClassVar[type[ResidualShiftingSettings]] = SinSRSettings
    source = "an asset of release v1.0 of github.com/wyf0912/SinSR"
    licence = "CC BY-NC-SA 4.0, non-commercial"
