"""What to try next. Pure: it proposes recipes and is told results; it starts nothing."""
