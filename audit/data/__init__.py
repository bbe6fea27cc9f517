"""Images, labels, regions and splits: what an audit looks at."""
