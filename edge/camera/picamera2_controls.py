"""Translate the contract's controls to libcamera's: rules over names and numbers, without libcamera.

Source: libcamera's control_ids_core.yaml; picamera2's manual, appendix C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from edge.core.camera_controls import Offered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge.core.camera_controls import ControlValues

Advertised: TypeAlias = "Mapping[str, tuple[Any, Any, Any]]"
"""picamera2's `camera_controls`: libcamera's name of a control to its lowest, highest and default value (or None)."""
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
_CHOICES = {
    "exposure_mode": ("AeExposureMode", ("normal", "short", "long")),
    "white_balance": (
        "AwbMode",
        ("auto", "incandescent", "tungsten", "fluorescent", "indoor", "daylight", "cloudy"),
    ),
    "autofocus": ("AfMode", ("manual", "auto", "continuous")),
}
_AUTOMATIC = {"gain", "lens_position"}
"""If these are not set, the camera controls them."""
_SMALLEST_ZOOM = 0.05
FLIPS = ("flip_horizontal", "flip_vertical")


def offered(advertised: Advertised, fps: int) -> dict[str, Offered]:
    """The controls that this camera accepts. `fps`: of the settings; the encoder cannot go higher."""
    offers: dict[str, Offered] = {}
    for name, theirs in _NUMBERS.items():
        if theirs in advertised:
            lowest, highest, default = advertised[theirs]
            offers[name] = Offered(float(lowest), float(highest), default=None if name in _AUTOMATIC else default)
    for name, (theirs, choices) in _CHOICES.items():
        if theirs in advertised:
            lowest, highest, default = advertised[theirs]
            within = tuple(choice for number, choice in enumerate(choices) if lowest <= number <= highest)
            known = isinstance(default, int) and default < len(choices)
            offers[name] = Offered(choices=within, default=choices[default] if known else None)
    if "ScalerCrop" in advertised:
        offers["zoom"] = Offered(_SMALLEST_ZOOM, 1.0, region=True)
    offers |= {name: Offered(default=False) for name in FLIPS}
    shortest_us, longest_us, _ = advertised.get("FrameDurationLimits", (None, None, None))
    if shortest_us and longest_us:
        offers["fps"] = Offered(-(-1_000_000 // longest_us), min(fps, round(1_000_000 / shortest_us)), default=fps)
    return offers


def to_libcamera(values: ControlValues, advertised: Advertised, fps: int) -> dict[str, Any]:
    """These values as libcamera's controls. None becomes the camera's default. Flips are not controls in libcamera."""
    controls: dict[str, Any] = {}
    for name, value in values.items():
        if name in _NUMBERS:
            theirs = _NUMBERS[name]
            default = advertised[theirs][2]
            # In libcamera, a gain of 0 means automatic gain.
            automatic = 0.0 if name == "gain" else default
            controls[theirs] = automatic if value is None else float(value)
        elif name in _CHOICES:
            theirs, choices = _CHOICES[name]
            controls[theirs] = advertised[theirs][2] if value is None else choices.index(value)
            if (name, value) == ("autofocus", "auto"):
                controls["AfTrigger"] = 0  # this mode focuses once, when triggered
        elif name == "zoom":
            controls["ScalerCrop"] = crop(value, advertised["ScalerCrop"][2] or advertised["ScalerCrop"][1])
        elif name == "fps":
            duration_us = round(1_000_000 / (value or fps))
            controls["FrameDurationLimits"] = (duration_us, duration_us)
    return {name: value for name, value in controls.items() if value is not None}


def crop(zoom: Mapping[str, float] | None, field: Rectangle) -> Rectangle:
    """The part of the sensor's field that is shown, in even pixels, inside the field."""
    if zoom is None:
        return field
    left, top, width, height = field
    crop_width, crop_height = (
        max(2, int(size * part) // 2 * 2) for size, part in ((width, zoom["width"]), (height, zoom["height"]))
    )
    offset_x = min(int(width * zoom["x"]), width - crop_width)
    offset_y = min(int(height * zoom["y"]), height - crop_height)
    return left + offset_x // 2 * 2, top + offset_y // 2 * 2, crop_width, crop_height
