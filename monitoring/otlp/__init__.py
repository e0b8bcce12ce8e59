"""OTLP without Django: what arrives is stripped to an allowlist, named, and folded into sums."""
