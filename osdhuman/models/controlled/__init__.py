"""SeeSR, PASD and DiffBIR: Stable Diffusion with a ControlNet that sees the LQ image, sampled in many steps."""
