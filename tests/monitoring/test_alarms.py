"""From windows to alerts: several windows before an alarm, one alert for a cause, and a cool-down."""

from mobilenet_pipeline.config import Monitoring
from mobilenet_pipeline.monitoring.alarms import State, after_window, begin
from mobilenet_pipeline.monitoring.comparisons import Finding
from mobilenet_pipeline.monitoring.windows import Scale

SHORT, HOUR = Scale("short", 900, 10), 3600.0


def drift(*tests: str, cause: str = "images") -> list[Finding]:
    return [Finding(test, cause, 0.5, 1e-9, 1.0, 2.0, large=True, drifted=True) for test in tests]


def after(limits: Monitoring, *windows: list[Finding], state: State | None = None) -> tuple[State, list[str]]:
    """Return the state and what is told after short windows with these findings."""
    now, told = state or State("3"), []
    for findings in windows:
        start = now.since.get("short", 0.0)
        now, changes = after_window(now, SHORT, (start, start + 900, 20), findings, limits)
        told += [f"{change.what} {change.alert.cause}" for change in changes]
    return now, told


def test_one_window_is_no_alarm(limits: Monitoring) -> None:
    state, told = after(limits, drift("brightness"), [], [], drift("brightness"))
    assert (state.open, told) == ([], [])


def test_two_of_three_windows_are_an_alarm(limits: Monitoring) -> None:
    state, told = after(limits, drift("brightness"), [], drift("brightness"))
    assert told == ["raised images"]
    assert (state.open[0].raised_at, state.open[0].version) == (2700, "3")


def test_two_quantities_in_two_windows_are_no_alarm(limits: Monitoring) -> None:
    assert after(limits, drift("brightness"), drift("contrast"))[1] == []


def test_quantities_of_one_cause_share_an_alert(limits: Monitoring) -> None:
    both = drift("brightness", "contrast")
    state, told = after(limits, both, both, drift("contrast", "gradient"), drift("gradient"))
    assert told == ["raised images"]
    assert [*state.open[0].sentences] == ["brightness", "contrast", "gradient"]


def test_an_alert_closes_after_windows_without_drift(limits: Monitoring) -> None:
    state, told = after(limits, drift("brightness"), drift("brightness"), [], [], [])
    assert told == ["raised images", "closed images"]
    assert state.open == []


def test_within_the_cool_down_an_alert_opens_again_in_silence(limits: Monitoring) -> None:
    closed, _ = after(limits, drift("brightness"), drift("brightness"), [], [], [])
    state, told = after(limits, drift("brightness"), drift("brightness"), state=closed)
    assert told == []
    assert [alert.id for alert in state.open] == [closed.alerts[0].id]


def test_another_quantity_within_the_cool_down_is_raised(limits: Monitoring) -> None:
    closed, _ = after(limits, drift("brightness"), drift("brightness"), [], [], [])
    assert after(limits, drift("contrast"), drift("contrast"), state=closed)[1] == ["raised images"]


def test_after_the_cool_down_an_alert_is_raised_again(limits: Monitoring) -> None:
    short = limits.model_copy(update={"cool_down_hours": 0.1})
    assert after(short, *([drift("brightness")] * 2), [], [], [], *([drift("brightness")] * 2))[1] == [
        *("raised images", "closed images", "raised images")
    ]


def test_a_new_champion_closes_the_alerts_on_the_old_one(limits: Monitoring) -> None:
    old, _ = after(limits, drift("brightness"), drift("brightness"))
    state, changes = begin(old, "4", now=9000)
    assert (state.version, state.open, state.windows) == ("4", [], [])
    assert changes[0].alert.closed_because == "version 4 is champion now"


def test_a_state_does_not_grow_for_ever(limits: Monitoring) -> None:
    assert len(after(limits, *[[]] * 300)[0].windows) == 200
