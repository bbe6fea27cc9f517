"""Inversion: the codes with which a generator draws given images. Encoder, optimisation in W+, pivotal tuning."""
