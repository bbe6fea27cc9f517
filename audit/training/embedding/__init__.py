"""Training of domain embeddings and of the phantom's factor network."""
