"""Embeddings: networks that turn images into the vectors and feature maps that metrics are computed from."""
