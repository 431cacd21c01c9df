"""One coordinator process, or several side by side: sockets, signals, an orderly end."""
