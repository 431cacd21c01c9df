"""What TCC and XA have in common: branches join one by one, then all are completed or all undone."""
