"""Remote settings: what may be desired, how it is checked, and what is stored."""

from __future__ import annotations

from typing import Any

import pytest

from edge.contract.topics import Topics
from edge.core.tuning import mark, over, same_encoding, without_nulls
from edge.errors import ConfigInvalid
from edge.mqtt.limits import oversize
from edge.mqtt.settings import MqttSettings
from edge.settings import Settings, tunable, tuned
from edge.tuning.state import State, Trial, bounded, recall
from tests.service.fakes import FakeStateStore

FILE: dict[str, Any] = {
    "device": {"id": "cam-1"},
    "mqtt": {"host": "broker.example"},
    "auth": {"mode": "off"},
    "camera": {"hd": {"max_bps": 1_500_000}},
}
SETTINGS = Settings(**FILE)


def faults(desired: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigInvalid) as caught:
        tuned(SETTINGS, desired)
    return caught.value.faults


def test_only_a_small_part_of_the_settings_can_be_changed() -> None:
    assert tunable(SETTINGS) == {
        "camera": {
            "hd": {"min_bps": 200_000, "max_bps": 1_500_000},
            "sd": {"min_bps": 100_000, "max_bps": 600_000},
            "idle_stop_s": 30,
        },
        "sessions": {"max_viewers": 5},
        "log": {"level": "info"},
    }


def test_desired_values_override_the_file_and_null_restores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # The settings include the environment already; it must not override the desired values.
    monkeypatch.setenv("EDGE__SESSIONS__MAX_VIEWERS", "7")
    desired = {"camera": {"hd": {"max_bps": 3_000_000, "min_bps": None}, "sd": None}, "sessions": {"max_viewers": 2}}
    changed = tuned(SETTINGS, desired)
    assert (changed.camera.hd.max_bps, changed.camera.hd.min_bps) == (3_000_000, 200_000)
    assert changed.sessions.max_viewers == 2
    assert tunable(tuned(changed, {"sessions": {"max_viewers": 5}, "camera": tunable(SETTINGS)["camera"]})) == tunable(
        SETTINGS
    )


def test_the_negotiated_h264_level_is_kept() -> None:
    assert faults({"camera": {"hd": {"max_bps": 14_000_001}}}) == (
        "camera.hd.max_bps: needs a higher H.264 level than the settings file's, which viewers may not decode",
    )
    assert tuned(SETTINGS, {"camera": {"hd": {"max_bps": 14_000_000}}}).camera.hd.max_bps == 14_000_000


def test_all_faults_are_reported_with_keys_and_without_values() -> None:
    reported = faults(
        {
            "camera": {"hd": {"max_bps": 100, "width": 640}, "idle_stop_s": "secret"},
            "sessions": {"max_viewers": True},
            "log": {"level": "loud"},
            "auth": {"mode": "off"},
            "_env_file": "/etc/passwd",
            "line\nbreak": 1,
        }
    )
    assert {fault.partition(":")[0] for fault in reported} == {
        "camera.hd.max_bps",
        "camera.hd.width",
        "camera.idle_stop_s",
        "sessions.max_viewers",
        "log.level",
        "auth",
        "_env_file",
        "line\\nbreak",
    }
    assert sum("unknown key" in fault for fault in reported) == 4
    assert "secret" not in "".join(reported)


@pytest.mark.parametrize(
    ("camera", "reported"),
    [
        ({"hd": {"min_bps": 2_000_000}}, "camera.hd.min_bps: greater than max_bps"),
        ({"sd": {"max_bps": 20_000_000}}, "camera.sd: needs a higher H.264 level than camera.hd"),
        ({"idle_stop_s": float("nan")}, "camera.idle_stop_s: "),
        ({"hd": 5}, "camera.hd: "),
    ],
)
def test_the_rules_between_settings_hold(camera: dict[str, Any], reported: str) -> None:
    (fault,) = faults({"camera": camera})
    assert fault.startswith(reported)


def test_rules_over_documents() -> None:
    values = tunable(SETTINGS)
    assert same_encoding(values, over(values, {"sessions": {"max_viewers": 1}, "camera": {"idle_stop_s": 1}}))
    assert not same_encoding(values, over(values, {"camera": {"sd": {"min_bps": 1}}}))
    assert without_nulls({"a": None, "b": {"c": None, "d": 0}}) == {"b": {"d": 0}}
    assert mark({"a": 1, "b": 2}, 1) == mark({"b": 2, "a": 1}, 1)
    assert len({mark({"a": 1}, 1), mark({"a": 1}, 2), mark({"a": 2}, 1), mark({}, None)}) == 4


def check(desired: dict[str, Any]) -> dict[str, Any]:
    return tunable(tuned(SETTINGS, desired))


def stored(fields: dict[str, Any] | None) -> FakeStateStore:
    store = FakeStateStore()
    store.fields = fields
    return store


LESS = {"camera": {"hd": {"max_bps": 1_000_000}}}


@pytest.mark.parametrize("fields", [None, {"confirmed": 5}, {"confirmed": {}, "outcome": {"state": "odd"}}])
def test_an_unusable_state_file_counts_as_empty(fields: dict[str, Any] | None) -> None:
    assert recall(stored(fields), check) == State()


def test_a_restart_fails_a_begun_trial_and_keeps_a_waiting_one() -> None:
    waiting = State(trial=Trial(desired=LESS, version=3, begun=False), mark="m")
    assert recall(stored(waiting.model_dump(mode="json")), check) == waiting
    begun = waiting.to(trial=Trial(desired=LESS, version=3, begun=True))
    recalled = recall(stored(begun.model_dump(mode="json")), check)
    assert (recalled.desired, recalled.mark, recalled.fresh) == ({}, "m", True)
    assert recalled.outcome is not None
    assert (recalled.outcome.state, recalled.outcome.version) == ("rolled_back", 3)


def test_settings_that_are_no_longer_valid_are_dropped_and_reported() -> None:
    kept = State(confirmed={"camera": {"hd": {"min_bps": 1_400_000}}}, mark="m").model_dump(mode="json")
    assert recall(stored(kept), check).mark == "m"
    lower = Settings(**{**FILE, "camera": {"hd": {"max_bps": 1_000_000}}})
    dropped = recall(stored(kept), lambda desired: tunable(tuned(lower, desired)))
    assert (dropped.confirmed, dropped.mark, dropped.fresh) == ({}, None, True)
    assert dropped.outcome is not None
    assert "are not valid with this settings file" in dropped.outcome.reasons[0]
    assert dropped.outcome.reasons[1] == "camera.hd.min_bps: greater than max_bps"


def test_reasons_are_bounded() -> None:
    reported = bounded(["x" * 1000] * 100)
    assert (len(reported), len(reported[0]), reported[-1]) == (17, 200, "and 84 more")


def test_the_shadow_uses_the_topics_of_aws_or_its_own() -> None:
    cert: Any = {"cert_file": "c", "key_file": "k"}
    assert MqttSettings(host="x-ats.iot.eu-central-1.amazonaws.com", **cert).shadow_by == "aws"
    assert MqttSettings(host="broker.example").shadow_by == "own"
    assert MqttSettings(host="broker.example", shadow="aws").shadow_by == "aws"
    assert MqttSettings(host="broker.example", shadow="off").shadow_by is None
    topics = Topics("cam-1")
    assert topics.shadow(at_aws=True).delta == "$aws/things/cam-1/shadow/name/edge/update/delta"
    assert topics.shadow(at_aws=False).update == "edge/v1/cam-1/shadow/update"
    # AWS IoT accepts eight topics in one SUBSCRIBE, including the command topic.
    assert len(topics.shadow(at_aws=True).to_device) + 1 <= 8
    longest = Topics("d" * 64, "/".join(["p" * 28] * 4))
    for at_aws in (True, False):
        assert all(oversize(topic, b"") is None for topic in longest.shadow(at_aws=at_aws).to_device)
