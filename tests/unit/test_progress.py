"""The time that is left, of work that goes on where it was."""

from uatmc_dist import progress


def test_what_was_kept_says_nothing_of_the_rest(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    line = progress.PlainProgress("users")
    line.tell(80, 100)
    now[0] = 120.0
    line.tell(85, 100)
    assert capsys.readouterr().out == "users 85/100    ETA 0:01:00\n"


def test_the_newest_speed_counts(monkeypatch, capsys):
    """Six of nine scenes were kept; before them all users were ranked, and the next took ten minutes."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    line = progress.PlainProgress("scenes")
    now[0] = 160.0
    for done in range(1, 7):
        line.tell(done, 9)
        now[0] += 0.001
    now[0] = 760.0
    line.tell(7, 9)
    assert capsys.readouterr().out.splitlines()[-1] == "scenes 7/9    ETA 0:20:00"


def test_what_was_done_from_the_beginning_does(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    line = progress.PlainProgress("step", 40)
    now[0] = 120.0
    line.tell(60, 100, "loss 1")
    assert capsys.readouterr().out == "step 60/100  loss 1  ETA 0:00:40\n"
