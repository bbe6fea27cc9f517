"""The natural corruptions themselves, one file a family; `audit.robustness.corruptions` is the door."""
