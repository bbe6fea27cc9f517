"""One hash of a set of images, so that a later audit can tell whether it measured the same thing."""

import hashlib

import numpy as np

from audit.data.audit_set import AuditSet
from audit.data.reading import digest
from audit.runtime.progress import track


def fingerprint(dataset: AuditSet) -> str:
    """Return the SHA-256 of the images, labels and ids of `dataset`, in their order, and of its class names.

    Equal pixels give an equal hash, whether they are held as bytes or as floats in [0, 1]. Images are read one by one.
    Raises DataError if one cannot be read.
    """
    whole = hashlib.sha256("\0".join(dataset.class_names).encode("utf-8", "surrogateescape"))
    rows = dataset.rows if dataset.rows is not None else np.arange(len(dataset))
    for row in track(rows.tolist(), "Hashing audited images", len(rows)):
        whole.update(f"\0{dataset.ids[row]}\0{_written(dataset.labels[row])}\0".encode("utf-8", "surrogateescape"))
        whole.update(digest(np.asarray(dataset.read_image(row))))
    return whole.hexdigest()


def _written(label: np.ndarray) -> str:
    """Return a class, or a row of multi-hot labels, as text."""
    return ",".join(str(int(one)) for one in np.atleast_1d(label))


def listing_fingerprint(dataset: AuditSet) -> str:
    """Return the SHA-256 of the ids and labels of `dataset`, in their order; no image is read."""
    whole = hashlib.sha256()
    for row_id, label in zip(dataset.row_ids, dataset.row_labels.numpy(), strict=True):
        whole.update(f"\0{row_id}\0{_written(label)}".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()
