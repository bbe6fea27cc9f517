"""Training of the encoder that brings images into a generator's latent space."""
