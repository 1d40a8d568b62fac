"""The contract's controls in libcamera's terms: rules over names and numbers, nothing imported.

Source: libcamera's control_ids_core.yaml; picamera2's manual, appendix C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from edge.core.camera_controls import Offered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge.core.camera_controls import Values

Advertised: TypeAlias = "Mapping[str, tuple[Any, Any, Any]]"
"""picamera2's `camera_controls`: libcamera's name to lowest, highest and default (or None)."""
Rectangle: TypeAlias = "tuple[int, int, int, int]"
"""x, y, width, height in pixels of the sensor."""

_NUMBERS = {
    "exposure_compensation": "ExposureValue",
    "gain": "AnalogueGain",
    "brightness": "Brightness",
    "contrast": "Contrast",
    "saturation": "Saturation",
    "sharpness": "Sharpness",
    "lens_position": "LensPosition",
}
_WORDS = {
    "exposure_mode": ("AeExposureMode", ("normal", "short", "long")),
    "white_balance": (
        "AwbMode",
        ("auto", "incandescent", "tungsten", "fluorescent", "indoor", "daylight", "cloudy"),
    ),
    "autofocus": ("AfMode", ("manual", "auto", "continuous")),
}
_BY_ITSELF = {"gain", "lens_position"}
"""Where nothing is set, the camera decides for itself."""
_SMALLEST_ZOOM = 0.05
FLIPS = ("flip_horizontal", "flip_vertical")


def offered(advertised: Advertised, fps: int) -> dict[str, Offered]:
    """What this camera takes, as it says itself. `fps`: the settings' frame rate, the most the encoder was made for."""
    offers: dict[str, Offered] = {}
    for name, theirs in _NUMBERS.items():
        if theirs in advertised:
            lowest, highest, default = advertised[theirs]
            offers[name] = Offered(float(lowest), float(highest), default=None if name in _BY_ITSELF else default)
    for name, (theirs, words) in _WORDS.items():
        if theirs in advertised:
            lowest, highest, default = advertised[theirs]
            choices = tuple(word for number, word in enumerate(words) if lowest <= number <= highest)
            known = isinstance(default, int) and default < len(words)
            offers[name] = Offered(choices=choices, default=words[default] if known else None)
    if "ScalerCrop" in advertised:
        offers["zoom"] = Offered(_SMALLEST_ZOOM, 1.0, region=True)
    offers |= {name: Offered(default=False) for name in FLIPS}
    shortest_us, longest_us, _ = advertised.get("FrameDurationLimits", (None, None, None))
    if shortest_us and longest_us:
        offers["fps"] = Offered(-(-1_000_000 // longest_us), min(fps, round(1_000_000 / shortest_us)), default=fps)
    return offers


def to_libcamera(values: Values, advertised: Advertised, fps: int) -> dict[str, Any]:
    """These values as libcamera's controls; None becomes the camera's default. Flips are no controls there."""
    controls: dict[str, Any] = {}
    for name, value in values.items():
        if name in _NUMBERS:
            theirs = _NUMBERS[name]
            default = advertised[theirs][2]
            # libcamera's word for "by itself" is a gain of 0.
            by_itself = 0.0 if name == "gain" else default
            controls[theirs] = by_itself if value is None else float(value)
        elif name in _WORDS:
            theirs, words = _WORDS[name]
            controls[theirs] = advertised[theirs][2] if value is None else words.index(value)
            if (name, value) == ("autofocus", "auto"):
                controls["AfTrigger"] = 0  # this mode focuses once, and only when it is told to start
        elif name == "zoom":
            controls["ScalerCrop"] = crop(value, advertised["ScalerCrop"][2] or advertised["ScalerCrop"][1])
        elif name == "fps":
            duration_us = round(1_000_000 / (value or fps))
            controls["FrameDurationLimits"] = (duration_us, duration_us)
    return {name: value for name, value in controls.items() if value is not None}


def crop(zoom: Mapping[str, float] | None, field: Rectangle) -> Rectangle:
    """The part of the sensor's field that is shown, whole even pixels, inside the field."""
    if zoom is None:
        return field
    left, top, width, height = field
    wide, high = (
        max(2, int(size * part) // 2 * 2) for size, part in ((width, zoom["width"]), (height, zoom["height"]))
    )
    across = min(int(width * zoom["x"]), width - wide)
    down = min(int(height * zoom["y"]), height - high)
    return left + across // 2 * 2, top + down // 2 * 2, wide, high
