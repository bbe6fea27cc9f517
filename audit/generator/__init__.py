"""Generators of images: the protocol that an audit needs, StyleGAN2, and the reading of generator files."""
