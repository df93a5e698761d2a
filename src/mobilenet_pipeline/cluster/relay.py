"""What workers and driver tell each other, kept by an actor of the cluster."""

from typing import Any

Message = dict[str, Any]


class Relay:
    """Messages to the driver, and the state and data for the workers.

    The driver runs it as an actor. It holds the last state of the training: workers that Ray starts again continue from
    it, wherever they are, without a shared disk.
    """

    def __init__(self, state: bytes | None) -> None:
        self._state, self._stop = state, False
        self._messages: list[Message] = []
        self._files: list[Any] | None = None

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

    def ask_for_files(self) -> list[Any] | None:
        """Return references to the dataset's files in the object store; None until the driver has put them there."""
        if self._files is None and {"files_needed": True} not in self._messages:
            self.tell({"files_needed": True})
        return self._files

    def give_files(self, files: list[Any]) -> None:
        """Keep references to the dataset's files: (name, parts) of each."""
        self._files = files
