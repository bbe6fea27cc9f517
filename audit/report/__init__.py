"""The report: one self-contained HTML file made from `results.json` and the images beside it."""
