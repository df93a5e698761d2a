"""What workers and driver tell each other, kept by an actor of the cluster."""

import shutil
from typing import Any

PARTS = 8
"""Parts of files, of 64 MiB, that are in the object store at a time."""
Message = dict[str, Any]


class Relay:
    """Messages to the driver, and the state and data for the workers.

    The driver runs it as an actor. It holds the last state of the training: workers that Ray starts again continue from
    it, wherever they are, without a shared disk.
    """

    def __init__(self, state: bytes | None) -> None:
        self._state, self._stop = state, False
        self._messages: list[Message] = []
        self._parts: dict[tuple[str, int], list[Any]] = {}
        self._asked: set[tuple[str, int]] = set()

    def tell(self, message: Message) -> None:
        """Keep a message for the driver."""
        self._messages.append(message)

    def take(self) -> list[Message]:
        """Return the messages since the last call, in order."""
        taken, self._messages = self._messages, []
        return taken

    def save(self, state: bytes) -> None:
        """Keep the content of a checkpoint as the training's state, and tell it to the driver."""
        self._state = state
        self.tell({"state": state})

    def state(self) -> bytes | None:
        """Return the content of the last checkpoint, None before the first."""
        return self._state

    def stop(self) -> None:
        """Ask the workers to save the state and stop."""
        self._stop = True

    def should_stop(self) -> bool:
        """Return whether the workers shall stop."""
        return self._stop

    def ask_for_part(self, name: str, index: int) -> list[Any] | None:
        """Return a reference, in a list, to a part of a file of the dataset; None until the driver has given it."""
        if (name, index) not in self._parts and (name, index) not in self._asked:
            self._asked.add((name, index))
            self.tell({"wanted": [name, index]})
        return self._parts.get((name, index))

    def give_part(self, name: str, index: int, reference: list[Any]) -> None:
        """Keep a reference to a part; only the newest `PARTS` are kept, so that the object store has room."""
        self._parts[name, index] = reference
        self._asked.discard((name, index))
        while len(self._parts) > PARTS:
            del self._parts[next(iter(self._parts))]

    def waits(self, workers: int, devices: dict[str, float]) -> bool:
        """Return whether so many workers with these devices wait for room.

        The actor asks, because Ray's client, which the driver may be, cannot.
        """
        from ray.util import placement_group_table

        wanted = [{name: float(count) for name, count in devices.items()}] * workers
        groups = placement_group_table().values()
        return any(group["state"] == "PENDING" and [*group["bundles"].values()] == wanted for group in groups)

    def remove(self, folder: str) -> None:
        """Remove a folder of the driver's node."""
        shutil.rmtree(folder, ignore_errors=True)
