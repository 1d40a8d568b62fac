"""Settings that a backend changes: checked as one, tried, kept, put back."""
