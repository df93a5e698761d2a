"""Show a run on the terminal: its steps, their progress, and the result."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from flows import training
from flows.artifacts import epoch_of
from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.stages import runner
from mobilenet_pipeline.workspace import provenance

STEPS_AFTER = ("judge", "promote", "report")
MARKS = {"ran": "[green]✓[/]", "restored": "[green]✓[/]", "unchanged": "[dim]=[/]", "failed": "[red]✗[/]"}


class Elapsed(ProgressColumn):
    """Seconds since the start of the step; empty before it."""

    def render(self, task: Task) -> Text:
        """Return the time as M:SS."""
        seconds = int(task.elapsed or 0)
        return Text(f"{seconds // 60}:{seconds % 60:02d}" if task.started else "", style="cyan")


class EpochBar(BarColumn):
    """A progress bar for a step with epochs."""

    def render(self, task: Task) -> Any:
        """Return the bar, or empty text for a step without epochs."""
        return super().render(task) if task.fields["epochs"] else Text("")


class Display:
    """The steps with state, time, last line and epoch bar. Output to a file is plain lines."""

    def __init__(self, console: Console, steps: list[str], jobs: int = 1) -> None:
        self.console, self.steps, self.jobs = console, steps, jobs
        self.progress = Progress(
            TextColumn("{task.fields[mark]}"),
            SpinnerColumn("dots", finished_text=" "),
            TextColumn("{task.description}"),
            Elapsed(),
            EpochBar(bar_width=20),
            TextColumn("{task.fields[detail]}", style="dim"),
            console=console,
            disable=not console.is_terminal,
        )
        self.rows: dict[str, TaskID] = {}
        self.began: dict[str, float] = {}

    def __enter__(self) -> "Display":
        self.progress.start()
        for step in self.steps:
            self.rows[step] = self.progress.add_task(
                step, start=False, total=1, visible=False, mark=" ", detail="", epochs=None
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def begin(self, step: str) -> None:
        """Show that the step starts; a retry starts it again."""
        self.began[step] = time.monotonic()
        if self.console.is_terminal:
            self.progress.reset(self.rows[step], visible=True, total=None, mark=" ", detail="", epochs=None)
        else:
            self.console.print(f"{step} …", highlight=False)

    def hear(self, step: str, line: str) -> None:
        """Show a line that the step wrote."""
        if not self.console.is_terminal:
            # Lines of several steps take turns.
            name = f"{step}: " if self.jobs > 1 and not line.startswith(step) else ""
            self.console.print(f"    {name}{line}", highlight=False, markup=False, soft_wrap=True)
            return
        epoch = epoch_of(line)
        if epoch:
            line = line[line.index("epoch ") :]  # without the line's own bar, which is for logs
            self.progress.update(self.rows[step], completed=epoch[0], total=epoch[1], epochs=epoch[1])
        self.progress.update(self.rows[step], detail=escape(line))

    def end(self, step: str, outcome: str) -> None:
        """Show that the step has ended, and its outcome."""
        if self.console.is_terminal:
            note = {"unchanged": "nothing to do", "restored": "restored from DVC's cache"}.get(outcome)
            self.progress.update(self.rows[step], mark=MARKS[outcome])
            if outcome != "failed":  # the bar of a failed step stays where it stopped
                self.progress.update(self.rows[step], total=1, completed=1)
            if note:
                self.progress.update(self.rows[step], detail=note)
            self.progress.stop_task(self.rows[step])
        else:
            self.console.print(f"{step} {outcome}, {time.monotonic() - self.began[step]:.1f} s", highlight=False)


def run_and_show(recipe: Recipe, force: bool, console: Console, jobs: int = 1, cluster: str | None = None) -> str:
    """Run the flow in this process, at most `jobs` stages at a time, show it, and return its last sentence.

    Trainings run on the Ray cluster at the address `cluster`; None is this machine. Raises the flow's exceptions, and
    InterruptedError if the run was cancelled or crashed.
    """
    if console.is_terminal and (reason := provenance.why_no_commit()):  # a file has this line of the training itself
        console.print(
            f"[yellow]warning:[/] no commit will be recorded for new models: {escape(reason)}", soft_wrap=True
        )
    with Display(console, [*runner.stage_names(recipe), *STEPS_AFTER], jobs) as display:
        token = training.listener.set(display)
        try:
            state = training.train_and_promote(recipe.name, force, jobs, cluster, return_state=True)
        finally:
            training.listener.reset(token)
    if state.is_cancelled() or state.is_crashed():
        raise InterruptedError(f"the run has ended as {state.name}: {state.message or 'without a reason'}")
    state.result()
    return state.message or ""
