"""Adapters: parse a request, call the service, map the answer. They hold no rule."""
