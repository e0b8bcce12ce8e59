"""Is all this still right? Reviews with their facts, the scorecard, and who is asked next. It reads everything; only
entry points import it."""
