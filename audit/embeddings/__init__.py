"""Networks that see: the embeddings and perceptual distances that metrics rest on."""
