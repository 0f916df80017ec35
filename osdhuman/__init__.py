"""Human body restoration with a one-step diffusion model: the open implementation of OSDHuman (ICML 2025)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from osdhuman.pretrained import OSDHuman as OSDHuman

__version__ = "0.1.0"
__all__ = ["OSDHuman"]


def __getattr__(name: str) -> object:
    """Load on first use: importing the package costs milliseconds, torch and diffusers seconds."""
    if name == "OSDHuman":
        from osdhuman.pretrained import OSDHuman

        return OSDHuman
    raise AttributeError(f"module 'osdhuman' has no attribute {name!r}")
