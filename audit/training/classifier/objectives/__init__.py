"""Training objectives: plain, PGD-AT, TRADES, MART, AWP, VAT, ALD."""
