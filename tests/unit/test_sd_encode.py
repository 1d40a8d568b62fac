"""When SD is encoded, and when it counts as failed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge.camera.sd_encode import SdEncode
from edge.camera.wire import EncodeSd

STALL_S = 2.0


def test_sd_is_encoded_while_viewers_or_a_trial_request_it() -> None:
    sd = SdEncode()
    sd.opened(offered=True)
    assert sd.step(0.0) is None
    sd.set_viewers(on=True)
    assert sd.step(0.0) == EncodeSd(on=True, number=1)
    sd.set_trial(on=True)
    sd.set_viewers(on=False)
    assert sd.step(0.0) is None
    sd.set_trial(on=False)
    assert sd.step(0.0) == EncodeSd(on=False, number=1)


def test_sd_is_ordered_again_when_the_camera_is_opened_again() -> None:
    sd = SdEncode()
    sd.set_viewers(on=True)
    for number in (1, 2):
        sd.opened(offered=True)
        assert sd.step(0.0) == EncodeSd(on=True, number=number)


def test_a_trial_of_a_source_without_sd_does_not_order_it() -> None:
    sd = SdEncode()
    sd.opened(offered=False)
    sd.set_trial(on=True)
    assert sd.step(0.0) is None
    sd.set_viewers(on=True)  # the source answers that it has none
    assert sd.step(0.0) == EncodeSd(on=True, number=1)


def test_sd_that_delivers_nothing_is_overdue_and_is_ended() -> None:
    sd = SdEncode()
    sd.set_viewers(on=True)
    sd.step(10.0)
    sd.picture(11.0)
    assert not sd.overdue(13.0, STALL_S)
    assert sd.overdue(13.1, STALL_S)
    sd.failed("no picture", 13.1, outdated=False)
    assert not sd.overdue(13.1, STALL_S)
    assert (sd.error, sd.step(13.1)) == ("no picture", EncodeSd(on=False, number=1))


def test_a_failure_of_settings_that_are_not_on_trial_does_not_end_the_trial() -> None:
    sd = SdEncode()
    sd.set_trial(on=True)
    sd.step(0.0)
    sd.failed("no picture", 5.0, outdated=True)
    assert sd.tried
    sd.opened(offered=True)
    assert sd.step(6.0) == EncodeSd(on=True, number=2)
    sd.failed("no picture", 9.0, outdated=False)
    assert not sd.tried


class Source:
    """What the camera process makes of the orders."""

    def __init__(self) -> None:
        self.on = False
        self.number = 0

    def obey(self, order: EncodeSd | None) -> None:
        if order is not None:
            assert order.on is not self.on, "an order that changes nothing"
            assert not order.on or order.number > self.number, "a number is used twice"
            self.on = order.on
            self.number = order.number


EVENTS = st.sampled_from(
    ["viewers", "no viewers", "trial", "no trial", "opened", "opened without sd", "picture", "reported", "late report"]
)


@given(st.lists(st.tuples(EVENTS, st.floats(0, 5), st.booleans()), max_size=60))
def test_the_source_always_does_what_is_requested(events: list[tuple[str, float, bool]]) -> None:
    sd, source, now_s = SdEncode(), Source(), 0.0
    for event, passed_s, outdated in events:
        now_s += passed_s
        if sd.overdue(now_s, STALL_S):
            assert source.on
            sd.failed("no picture", now_s, outdated=outdated)
        happen(sd, source, event, now_s, outdated=outdated)
        source.obey(sd.step(now_s))
        assert sd.step(now_s) is None, "one order is enough"
        assert source.on is sd.requested
        assert not sd.overdue(now_s, STALL_S)


def happen(sd: SdEncode, source: Source, event: str, now_s: float, *, outdated: bool) -> None:
    match event:
        case "viewers" | "no viewers":
            sd.set_viewers(on=event == "viewers")
        case "trial" | "no trial":
            sd.set_trial(on=event == "trial")
        case "opened" | "opened without sd":
            sd.opened(offered=event == "opened")
            source.on = False
        case "picture" if source.on:
            sd.picture(now_s)
            assert sd.error is None
        case "reported" if source.on:
            source.on = False
            assert sd.reported(source.number)
            sd.failed("the encoder failed", now_s, outdated=outdated)
            assert sd.requested <= outdated
        case "late report":
            assert not sd.reported(source.number - 1)
