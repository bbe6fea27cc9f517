"""The configuration of an audit of one shipped classifier that takes seconds."""

AUDIT = """
[data]
path = "phantom"
phantom = { calibration = 30, audit = 30 }

[robustness]
n = 4
eps = ["2/255"]
steps = 1
attacks = ["pgd"]
trust = false

[reliance]
interventions = ["side-marker"]
n = 4

[[classifiers]]
name = "candidate"
checkpoint = "shipped:plain"
"""
