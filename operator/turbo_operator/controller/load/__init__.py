"""Reads what pods report of their load: of both engines, and of routers."""
