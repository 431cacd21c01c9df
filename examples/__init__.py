"""The example: an order service, a storage service and the BFF that makes orders through both. See docs/examples.md."""
