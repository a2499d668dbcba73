"""A user's model rewritten, all or nothing."""
