"""TCC: tries reserve, then confirms use it or cancels give it back."""
