"""The data and the errors of every source of images."""

from dataclasses import dataclass

import numpy as np

REMEDY = "set CIFAR10_ARCHIVE to the path or URL of a good cifar-10-binary.tar.gz or cifar-10-python.tar.gz"


class IngestError(ValueError):
    """A source cannot become a dataset. The message names the source, the cause and the remedy."""


class DownloadError(IngestError, ConnectionError):
    """The network or the server failed. A later try may succeed."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """`images` uint8 (n, h, w, 3) RGB, `labels` uint8 (n,), `is_test` bool (n,), and `origin` for messages."""

    images: np.ndarray
    labels: np.ndarray
    is_test: np.ndarray
    origin: str
