"""Files of tensors of every kind, read as data under budgets; nothing that they hold is run."""
