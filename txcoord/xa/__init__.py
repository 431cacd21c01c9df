"""XA: databases prepare, then all of them commit or all roll back."""
