"""Real images into the generator's latent space: encoder, W+ optimisation and batched pivotal tuning."""
