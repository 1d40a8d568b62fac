"""The machine underneath: systemd, the journal."""
