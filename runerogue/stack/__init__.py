"""The embedded stack: PostgreSQL, Valkey, HAProxy and RuneRogue's own processes under supervisord.

Nothing in here knows what the product does, and nothing in here needs Django.
"""
