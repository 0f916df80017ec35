"""SeeSR, PASD and DiffBIR: Stable Diffusion with a ControlNet that sees the low-quality image, sampled in many steps."""
