"""The camera's controls: which values are accepted, and their translation for libcamera."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.camera.picamera2_controls import crop, offered, to_libcamera
from edge.camera.picamera2_source import sensor_modes
from edge.core.camera_controls import Offered, check, in_force, still_accepted
from edge.errors import Rejected

# As picamera2 gives them for a Camera Module 3 (imx708) in its video mode: lowest, highest, default.
IMX708: dict[str, tuple[Any, Any, Any]] = {
    "AeExposureMode": (0, 3, 0),
    "ExposureValue": (-8.0, 8.0, 0.0),
    "AnalogueGain": (1.0, 16.0, None),
    "AwbMode": (0, 7, 0),
    "Brightness": (-1.0, 1.0, 0.0),
    "Contrast": (0.0, 32.0, 1.0),
    "Saturation": (0.0, 32.0, 1.0),
    "Sharpness": (0.0, 16.0, 1.0),
    "AfMode": (0, 2, 0),
    "LensPosition": (0.0, 32.0, 1.0),
    "ScalerCrop": ((0, 0, 64, 64), (0, 0, 4608, 2592), (0, 0, 4608, 2592)),
    "FrameDurationLimits": (17_849, 22_050_000, 33_333),
}
FIXED_FOCUS = {name: range_ for name, range_ in IMX708.items() if name not in {"AfMode", "LensPosition"}}


def test_a_camera_offers_the_controls_that_it_advertises() -> None:
    offers = offered(IMX708, fps=30)
    assert {name: str(offer) for name, offer in offers.items()} == {
        "exposure_mode": "one of normal, short, long",
        "exposure_compensation": "-8 to 8",
        "gain": "1 to 16",
        "white_balance": "one of auto, incandescent, tungsten, fluorescent, indoor, daylight, cloudy",
        "brightness": "-1 to 1",
        "contrast": "0 to 32",
        "saturation": "0 to 32",
        "sharpness": "0 to 16",
        "autofocus": "one of manual, auto, continuous",
        "lens_position": "0 to 32",
        "zoom": "0.05 to 1",
        "flip_horizontal": "true or false",
        "flip_vertical": "true or false",
        "fps": "1 to 30",
    }
    assert not {"autofocus", "lens_position"} & offered(FIXED_FOCUS, fps=30).keys()
    assert offers["autofocus"].default == "manual"
    assert offers["gain"].default is None


def test_the_frame_rate_is_bounded_by_the_settings_and_by_the_sensor() -> None:
    assert offered(IMX708, fps=60)["fps"] == Offered(1, 56, default=60)
    assert offered({"FrameDurationLimits": (33_333, 200_000, None)}, fps=30)["fps"] == Offered(5, 30, default=30)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"brightness": 3}, "brightness: -1 to 1"),
        ({"brightness": float("nan")}, "brightness: -1 to 1"),
        ({"brightness": True}, "brightness: -1 to 1"),
        ({"white_balance": "dusk"}, "white_balance: one of auto, incandescent"),
        ({"flip_vertical": 1}, "flip_vertical: true or false"),
        ({"zoom": {"x": 0, "y": 0, "width": 0.01, "height": 0.5}}, "zoom: 0.05 to 1"),
        ({"zoom": {"x": 0.6, "y": 0, "width": 0.5, "height": 0.5}}, "zoom: 0.05 to 1"),
        ({"zoom": {"x": 0.1, "width": 0.5}}, "zoom: 0.05 to 1"),
        ({"zoom": 0.5}, "zoom: 0.05 to 1"),
        ({"fps": 31}, "fps: 1 to 30"),
        ({"fps": 10**30}, "fps: 1 to 30"),
        ({"colour": 1}, "colour: this camera has no such control"),
        ({"gain": 0.5, "sharpness": -1}, "gain: 1 to 16; sharpness: 0 to 16"),
    ],
)
def test_a_rejected_value_is_reported_with_its_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(Rejected, match=message):
        check(values, offered(IMX708, fps=30))
    assert still_accepted(values, offered(IMX708, fps=30)) == {}


def test_values_that_this_camera_does_not_accept_are_left_out() -> None:
    values = {"lens_position": 2.0, "brightness": 0.5, "exposure_mode": None}
    offers = offered(FIXED_FOCUS, fps=30)
    assert still_accepted(values, offers) == {"brightness": 0.5}
    now = in_force(still_accepted(values, offers), offers)
    assert (now["brightness"], now["contrast"], now["gain"], now["exposure_mode"]) == (0.5, 1.0, None, "normal")


def test_values_are_translated_for_libcamera() -> None:
    values = {
        "exposure_mode": "long",
        "gain": 2,
        "white_balance": "cloudy",
        "autofocus": "continuous",
        "brightness": 0.25,
        "fps": 15,
        "flip_vertical": True,
        "zoom": {"x": 0.25, "y": 0.25, "width": 0.5, "height": 0.5},
    }
    assert to_libcamera(values, IMX708, 30) == {
        "AeExposureMode": 2,
        "AnalogueGain": 2.0,
        "AwbMode": 6,
        "AfMode": 2,
        "Brightness": 0.25,
        "FrameDurationLimits": (66_667, 66_667),
        "ScalerCrop": (1152, 648, 2304, 1296),
    }


def test_null_restores_the_default_of_the_camera() -> None:
    values = dict.fromkeys(("exposure_mode", "gain", "brightness", "contrast", "fps", "zoom", "lens_position"))
    assert to_libcamera(values, IMX708, 30) == {
        "AeExposureMode": 0,
        "AnalogueGain": 0.0,
        "Brightness": 0.0,
        "Contrast": 1.0,
        "FrameDurationLimits": (33_333, 33_333),
        "ScalerCrop": (0, 0, 4608, 2592),
        "LensPosition": 1.0,
    }


fractions = st.floats(0, 1, allow_nan=False)


@given(
    st.tuples(fractions, fractions, st.floats(0.05, 1), st.floats(0.05, 1)),
    st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(64, 5000), st.integers(64, 5000)),
)
def test_a_zoom_region_stays_inside_the_field(
    region: tuple[float, float, float, float], field: tuple[int, int, int, int]
) -> None:
    x, y, wide, high = crop(dict(zip(("x", "y", "width", "height"), region, strict=True)), field)
    left, top, width, height = field
    assert left <= x
    assert top <= y
    assert x + wide <= left + width
    assert y + high <= top + height
    assert wide > 0
    assert high > 0
    assert (wide % 2, high % 2) == (0, 0)


def test_single_autofocus_is_triggered() -> None:
    assert to_libcamera({"autofocus": "auto"}, IMX708, 30) == {"AfMode": 1, "AfTrigger": 0}


def test_the_modes_of_a_sensor_are_listed() -> None:
    class Camera:
        sensor_modes = (
            {"size": (640, 480), "fps": 206.65, "bit_depth": 8},
            {"size": (1640, 1232), "fps": 41.85, "bit_depth": 8},
            {"size": (640, 480), "fps": 206.65, "bit_depth": 10},
        )

    assert sensor_modes(Camera()) == ["640x480 at up to 206.65 fps", "1640x1232 at up to 41.85 fps"]
