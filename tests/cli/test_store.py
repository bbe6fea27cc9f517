"""`store` lists, shows, bounds and checks what audits have kept."""

import torch

from audit.storage.cache import Store


def test_what_is_kept_is_listed_shown_bounded_and_checked(run, tmp_path):
    store, cache = Store(tmp_path / "cache"), ("--cache", str(tmp_path / "cache"))
    for i in range(4):
        store.put(f"{i}{i}", {"x": torch.zeros(50_000)}, stage="answers" if i else "attack")
    status, text = run("store", "ls", *cache)
    assert (status, "4 entries, 0.8 MB" in text) == (0, True)
    assert "answers" in text
    assert "11" in run("store", "ls", "--stage", "answers", *cache)[1]
    status, text = run("store", "show", "0", *cache)
    assert (status, "stage: attack" in text, "tensor x: F32 [50000]" in text) == (0, True, True)
    store.path("22").write_bytes(b"torn")
    status, text = run("store", "verify", *cache)
    assert (status, "3 entries are whole, 1 were damaged" in text) == (2, True)
    assert run("store", "verify", *cache)[0] == 0
    status, text = run("store", "gc", "--cache-size", "500KB", *cache)
    assert (status, "1 entries removed" in text) == (0, True)
    assert len(list(store.entries())) == 2


def test_what_is_not_there_is_told(run, tmp_path):
    result = run("store", "ls", "--cache", str(tmp_path / "none"))
    assert result[0] != 0
    (tmp_path / "cache").mkdir()
    assert run("store", "show", "ab", "--cache", str(tmp_path / "cache"))[0] != 0
    status, text = run("store", "gc", "--cache", str(tmp_path / "cache"), "--cache-size", "much")
    assert (status, "20GB" in text) == (2, True)
