"""Adapters: parse a request, call the service, map the answer. They hold no rule.

Read in this order: `operations` (what all three offer), `replies` (what a result or an error comes to, in each
protocol). Then one adapter from its way in to its way out: `http` with `wire` (bodies), `queries` and `views` (what can
be asked, and how it is shown) and `answers`; `jsonrpc` reads as HTTP does; `grpc` with `grpc_wire`, `grpc_server` and
`grpc_health`. `openapi` describes the HTTP API.
"""
