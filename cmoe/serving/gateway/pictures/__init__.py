"""Clients' pictures: fetched, and decoded by processes of their own."""
