"""The machine: systemd, the journal, the clock, files and vital signs."""
