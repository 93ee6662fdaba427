"""A profile for people: tables, and a page with figures."""
