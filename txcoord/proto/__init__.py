"""Messages and services on the wire over gRPC. `scripts/proto` makes the modules from the `.proto` files."""
