"""Put a release and settings in force; go back automatically if they do not work."""

from __future__ import annotations

import contextlib
import filecmp
import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

from edge_release.daemon import api_port, fetch_json, probe
from edge_release.files import Refused, log, reason_of, replace_file, run, set_link, sync_directory, write_json
from edge_release.layout import (
    ATTEMPTS,
    COMMAND,
    CRASHES,
    CURRENT,
    ETC,
    FIRST_TIMEOUT_S,
    LAST_SWITCH,
    NEXT_SETTINGS,
    OPT,
    POLL_S,
    PREVIOUS,
    RELEASES,
    RETURN_TIMEOUT_S,
    SERVICE,
    SETTINGS,
    SETTINGS_REJECTED,
    SWITCH,
    SWITCH_SERVICE,
)
from edge_release.releases import installed, link, prune
from edge_release.service import files_changed, install_units, prepare_directories, record_loaded_files, service_state

if TYPE_CHECKING:
    from pathlib import Path


def apply(release: str | None, settings: Path | None, *, restart: bool, timeout_s: float) -> tuple[int, dict[str, Any]]:
    """Let the switch service put them in force; wait for the result. `restart`: also if nothing differs.

    Raises: Refused: the release is missing or damaged, or rejects the settings.
    """
    current = link(CURRENT)
    release = release or current
    if release is None:
        raise Refused("no release is installed: edge-release install BUNDLE comes first")
    if not (RELEASES / release / "release.json").exists():
        raise Refused(f"{release} is not installed (installed: {', '.join(installed()) or 'none'})")
    if settings is None and not SETTINGS.exists():
        raise Refused(f"there are no settings yet: name a file with --settings, or write {SETTINGS}")
    if settings is not None and not settings.is_file():
        raise Refused(f"{settings} is not a file: name the settings file with --settings")
    new = settings is not None and not (SETTINGS.exists() and filecmp.cmp(settings, SETTINGS, shallow=False))
    check_settings(release, settings if settings is not None else SETTINGS)
    same = release == current and not new and not restart and not files_changed()
    if same and service_state()["ActiveState"] in ("active", "activating") and not install_units(release, look=True):
        log(f"{release} is in force already, and nothing has changed")
        return 0, {"changed": False, "outcome": "unchanged", "release": release, "previous": link(PREVIOUS)}
    try:
        prepare_directories()
        if settings is not None and new:
            replace_file(NEXT_SETTINGS, settings.read_bytes(), 0o640, group=True)
        before = probe() if service_state()["ActiveState"] == "active" else None
        order = {
            "from": current,
            "to": release,
            "settings": new,
            "needs": {"ready": True, "frame": True, "broker": True} if before is None else before,
            "first": before is None,
            "timeout_s": timeout_s,
            "attempts": 0,
        }
        install_units(release if current is None else current)
        if not SWITCH.exists():
            saved_settings().unlink(missing_ok=True)  # from a switch that could not remove it
        write_json(SWITCH, order)
    except (OSError, subprocess.SubprocessError) as exc:
        raise Refused(f"the switch cannot be prepared: {reason_of(exc)}") from exc
    LAST_SWITCH.unlink(missing_ok=True)
    return run_switch()


def check_settings(release: str, settings: Path) -> None:
    """Raises: Refused: the release rejects the settings, or is damaged."""
    try:
        done = run(str(RELEASES / release / "bin/edge-streamer"), "check-config", str(settings.absolute()))
        status, output = done.returncode, (done.stderr or done.stdout).strip()
    except OSError as exc:
        status, output = 127, reason_of(exc)
    if status == SETTINGS_REJECTED:
        raise Refused(f"{release} rejects these settings, so nothing was changed:\n{output}")
    if status < 0:
        raise Refused(f"{release} could not check the settings (signal {-status}): free some memory, and try again")
    if status:
        remedy = f"rm -r {RELEASES / release}, then install it again"
        raise Refused(f"{release} is damaged: {remedy}\n{output[-600:]}")


def run_switch() -> tuple[int, dict[str, Any]]:
    """Run the switch service until it has finished; log and return the result."""
    for attempt in range(ATTEMPTS + 1):
        if attempt:
            log("the switch was interrupted: continuing it")
        run("systemctl", "reset-failed", SWITCH_SERVICE)
        run("systemctl", "start", SWITCH_SERVICE)
        if not SWITCH.exists():
            break
    try:
        result: dict[str, Any] = json.loads(LAST_SWITCH.read_text())
    except (OSError, ValueError):
        reason = f"the switch did not end: journalctl -u {SWITCH_SERVICE}"
        result = {"changed": True, "outcome": "failed", "release": link(CURRENT), "reason": reason}
    release, outcome = result["release"], result["outcome"]
    if outcome == "applied":
        log(f"{release} is in force; downtime {result['downtime_s']} s")
        for missing in (name for name, works in result["seen"].items() if not works):
            log(f"warning: no {missing} yet: curl http://127.0.0.1:{api_port()}/readyz, journalctl -u {SERVICE}")
    else:
        log(f"{result['reason']}\n{release} is in force again" if outcome == "rolled_back" else result["reason"])
    return {"applied": 0, "rolled_back": 3}.get(outcome, 4), result


def resume() -> int:
    """In the switch service: carry out switch.json from the start, or continue it after an interruption.

    On a full disk it keeps no record of its progress, but still ends with one of the two releases in force.
    """
    if not SWITCH.exists():
        raise Refused("there is no interrupted switch")
    order: dict[str, Any] = json.loads(SWITCH.read_text())
    order["attempts"] += 1
    with contextlib.suppress(OSError):
        write_json(SWITCH, order)
    started_s = time.monotonic()
    reason: str | None = order.get("reason")
    if reason is None and order["attempts"] > ATTEMPTS:
        reason = f"the switch was interrupted {ATTEMPTS} times"
    seen: dict[str, Any] = {}
    ready_s: float | None = None
    if reason is None:
        log(f"switching to {order['to']}")
        try:
            put_in_force(order["to"], fresh_settings=order["settings"])
            reason, ready_s, seen = gate(order["needs"], order["timeout_s"], first=order["first"])
        except (OSError, subprocess.SubprocessError) as exc:
            reason = reason_of(exc)
    result: dict[str, Any] = {"changed": True, "release": order["to"], "previous": order["from"], "seen": seen}
    if reason is None:
        finish(order)
        result |= {
            "outcome": "applied",
            "downtime_s": round((ready_s or time.monotonic()) - started_s, 2),
            "reason": None,
        }
        log(f"{order['to']} is in force")
    else:
        log(f"{order['to']} does not work: {reason}")
        result |= go_back(order, reason)
        result["downtime_s"] = round(time.monotonic() - started_s, 2)
    prune()
    write_json(LAST_SWITCH, result)
    SWITCH.unlink()
    return 0 if result["outcome"] == "applied" else 1


def put_in_force(release: str, *, fresh_settings: bool) -> None:
    """Replace settings, link and units, then restart. Each step may have been done before an interruption."""
    if fresh_settings and NEXT_SETTINGS.exists():
        if SETTINGS.exists() and not saved_settings().exists():
            replace_file(saved_settings(), SETTINGS.read_bytes(), 0o640, group=True)
        NEXT_SETTINGS.replace(SETTINGS)
        sync_directory(ETC)
    set_link(CURRENT, RELEASES / release)
    COMMAND.parent.mkdir(parents=True, exist_ok=True)
    set_link(COMMAND, CURRENT / "bin/edge-streamer")
    install_units(release)
    run("systemctl", "enable", "--quiet", SERVICE, SWITCH_SERVICE)
    run("systemctl", "reset-failed", SERVICE)
    record_loaded_files()
    run("systemctl", "restart", SERVICE)


def gate(needs: dict[str, bool], timeout_s: float, *, first: bool) -> tuple[str | None, float | None, dict[str, bool]]:
    """Wait until everything works that worked before.

    Returns: why it does not work, or None; when it became ready (monotonic seconds); what was seen to work.
    Nothing worked before a first installation. There, what does not work is reported, and the installation stays.
    """
    deadline_s = time.monotonic() + (min(timeout_s, FIRST_TIMEOUT_S) if first else timeout_s)
    ready_s: float | None = None
    seen: dict[str, bool] = {}
    while True:
        state = service_state()
        if state["ActiveState"] == "failed":
            return f"the service ended with exit status {state['ExecMainStatus']}: journalctl -u {SERVICE}", None, seen
        if int(state["NRestarts"]) >= CRASHES:
            return f"the service ended {state['NRestarts']} times in a row: journalctl -u {SERVICE}", None, seen
        if state["ActiveState"] == "active":
            if ready_s is None and fetch_json("/readyz")[0]:
                ready_s = time.monotonic()
            seen = probe(frame=seen.get("frame", False))
            if all(seen[name] for name in needs if needs[name]):
                return None, ready_s, seen
        if time.monotonic() > deadline_s:
            missing = ", no ".join(name for name in needs if needs[name] and not seen.get(name))
            if first and seen:
                return None, ready_s, seen
            return f"after {timeout_s:.0f} s there was no {missing}: journalctl -u {SERVICE}", None, seen
        time.sleep(POLL_S)


def go_back(order: dict[str, Any], reason: str) -> dict[str, Any]:
    """Restore the release and the settings from before the switch."""
    with contextlib.suppress(OSError):
        write_json(SWITCH, {**order, "reason": reason})
    if order["settings"]:
        NEXT_SETTINGS.unlink(missing_ok=True)
        if saved_settings().exists():
            saved_settings().replace(SETTINGS)
    if order["from"] is None:
        run("systemctl", "stop", SERVICE)
        return {"outcome": "failed", "reason": reason, "release": order["to"]}
    try:
        put_in_force(order["from"], fresh_settings=False)
        second_reason, _, _ = gate(order["needs"], RETURN_TIMEOUT_S, first=False)
    except (OSError, subprocess.SubprocessError) as exc:
        second_reason = reason_of(exc)
    if second_reason is not None:
        log(f"{order['from']} does not work either: {second_reason}")
        failed = f"{reason}; and {order['from']}: {second_reason}"
        return {"outcome": "failed", "reason": failed, "release": order["from"]}
    log(f"{order['from']} is in force again")
    return {"outcome": "rolled_back", "reason": reason, "release": order["from"]}


def finish(order: dict[str, Any]) -> None:
    """Keep what a rollback needs: the previous release, and the settings that it last worked with."""
    try:
        if order["from"] not in (None, order["to"]):
            set_link(PREVIOUS, RELEASES / order["from"])
            if saved_settings().exists():
                saved_settings().replace(RELEASES / order["from"] / "settings.toml")
            elif not order["settings"]:
                replace_file(RELEASES / order["from"] / "settings.toml", SETTINGS.read_bytes(), 0o640, group=True)
        saved_settings().unlink(missing_ok=True)
    except OSError as exc:
        log(f"warning: a rollback to {order['from']} may need --settings: {reason_of(exc)}")


def rollback(timeout_s: float) -> tuple[int, dict[str, Any]]:
    """Go to the previous release, with the current settings if it accepts them, or with those it last worked with."""
    previous = link(PREVIOUS)
    if previous is None:
        raise Refused("there is no previous release to go back to")
    settings = None
    try:
        check_settings(previous, SETTINGS)
    except Refused:
        settings = RELEASES / previous / "settings.toml"
        if not settings.exists():
            raise
        log(f"{previous} rejects the current settings: it gets those that it last ran with")
    return apply(previous, settings, restart=False, timeout_s=timeout_s)


def saved_settings() -> Path:
    """A copy of the settings from before the running switch."""
    return OPT / "settings-before.toml"
