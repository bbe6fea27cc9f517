"""What lies in a store, by stage."""

from collections import Counter
from pathlib import Path

from audit.storage.cache import Store


def kept(root: Path) -> Counter[str]:
    """How many results of each stage the store at `root` holds."""
    store = Store(root)
    return Counter(store.description(one.key)["stage"] for one in store.entries())
