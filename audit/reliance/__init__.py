"""What a model decides by, seen without a generator: how its decisions react to changes that carry no meaning."""
