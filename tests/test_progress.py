"""The bar: nothing before the first report, then how far the work is."""

from io import StringIO

from rich.console import Console

from zero_copy.progress import TextProgress


def test_shows_what_was_reported():
    with TextProgress("Tokenizing") as bar:
        shown = StringIO()
        bar.live.console = Console(file=shown, force_terminal=True, width=120)
        assert not bar.live.is_started
        bar.report(0.5, 1200, 30_000)
        assert bar.live.is_started
    assert not bar.live.is_started
    for part in ("Tokenizing", "50%", "1,200 texts", "words/s"):
        assert part in shown.getvalue()
