"""`python -m audit.cli` is `spruce-audit`; torchrun starts a training so."""

from audit.cli import main

main()
