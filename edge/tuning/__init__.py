"""Remote settings: checked as a whole, tried, stored, rolled back."""
