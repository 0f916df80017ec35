"""ResShift and SinSR: one Swin UNet, one VQ autoencoder, one residual-shifting schedule, two samplers."""
