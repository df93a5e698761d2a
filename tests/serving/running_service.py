"""What the tests know of the service that runs."""

from dataclasses import dataclass
from typing import Any

import httpx
import psutil

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
VERDICT = {"promote": True, "reason": "It beats the champion."}


@dataclass(frozen=True)
class Service:
    """A running service: its address, its first process, and its Bento's tag."""

    address: str
    process: psutil.Popen
    tag: str

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return httpx.request(method, self.address + path, trust_env=False, timeout=30, **options)

    def processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]
