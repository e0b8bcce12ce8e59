"""Why, and is it real."""
