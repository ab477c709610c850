"""How far a long command is, where texts go through it."""

from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class TextProgress(Progress):
    """A bar with the share, the texts and the words a second; it appears at the first report.

    title (str): What is being done.
    """

    def __init__(self, title: str) -> None:
        super().__init__(
            TextColumn(title),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[texts]:,} texts, {task.fields[speed]:,.0f} words/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._task = self.add_task("", total=1, texts=0, speed=0)

    def __enter__(self) -> "TextProgress":
        # Not started before the processes that do the work: forking goes ill with threads.
        return self

    def report(self, share: float, texts: int, words: int) -> None:
        """Tell how far the work is.

        share (float): Of the work that is done.
        texts (int): How many of them.
        words (int): In them.
        """
        self.start()
        speed = words / max(self.tasks[0].elapsed or 0, 0.001)
        self.update(self._task, completed=share, texts=texts, speed=speed)
