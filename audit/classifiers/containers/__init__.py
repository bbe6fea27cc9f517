"""What classifiers come in beside a plain checkpoint, one kind a file; `table.py` is the list of them."""
