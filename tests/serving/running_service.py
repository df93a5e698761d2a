"""What the tests know of the service that runs."""

from dataclasses import dataclass
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
VERDICT = {"promoted": True, "reason": "It beats the champion."}


@dataclass(frozen=True)
class Service:
    """A running service: its address, a client of it, its first process, and its Bento's tag."""

    address: str
    client: httpx.Client
    process: psutil.Popen
    tag: str

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.client.request(method, path, **options)

    def counted(self, name: str, **labels: str) -> float:
        """What /metrics says of a series; 0 where it has none."""
        for family in text_string_to_metric_families(self.ask("GET", "/metrics").text):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return 0.0

    def processes(self) -> list[psutil.Process]:
        """Those that live."""
        return [self.process, *self.process.children(recursive=True)] if self.process.is_running() else []
