"""The weekly digest: what needs a reader, what changed and what it did to the numbers, and what is next."""
