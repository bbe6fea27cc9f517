"""Training of an encoder, which gives the codes of images for a generator."""
