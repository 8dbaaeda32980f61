"""This runtime's own facts."""
