"""Exceptional features and SPRUCE latent optimisation: what is the smallest realistic change that flips a model?"""
