"""What the tests know of the service that runs."""

from dataclasses import dataclass
from typing import Any

import httpx
import psutil

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
VERDICT = {"promote": True, "reason": "It beats the champion."}


@dataclass(frozen=True)
class Service:
    """A running service: its address, a client of it, its first process, and its Bento's tag."""

    address: str
    client: httpx.Client
    process: psutil.Popen
    tag: str

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.client.request(method, path, **options)

    def processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]
