"""Training of StyleGAN2-ADA generators."""
