"""The command `txcoord`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import typer
from rich.console import Console
from rich.table import Table

from txcoord import __version__
from txcoord.errors import TxcoordError
from txcoord.process.start import EXIT_NOT_STARTED, StartError, sentences
from txcoord.settings.load import Loaded, SettingsError, load, resolved_log_format
from txcoord.settings.show import documentation, rows, shown, shown_value
from txcoord.settings.table import FIELDS, Settings

EXIT_WRONG_SETTINGS = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="txcoord",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
db = typer.Typer(help="The tables of the store.", no_args_is_help=True)
app.add_typer(db, name="db")
xa = typer.Typer(help="The participants' databases in XA transactions.", no_args_is_help=True)
app.add_typer(xa, name="xa")


def _flag(setting: str, name: str | None = None) -> Any:
    """The flag that sets a setting: its help is what the table of settings says."""
    field = FIELDS[setting]
    if choices := get_args(field.annotation):
        metavar = "|".join(choices)
    elif setting.endswith("_s"):
        metavar = "SECONDS"
    else:
        metavar = "NUMBER" if field.annotation is int else "URL" if setting == "store" else "ADDRESS"
    help_text = f"{field.description} Default: {shown(field.default)}"
    return typer.Option(name or f"--{setting.replace('_', '-')}", help=help_text, show_default=False, metavar=metavar)


Config = Annotated[
    Path | None, typer.Option(help="TOML file with settings (or TXCOORD_CONFIG).", show_default=False, metavar="FILE")
]
Store = Annotated[str | None, _flag("store")]
Other = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting; may be repeated.", show_default=False, metavar="NAME=VALUE"),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def every_command(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """A distributed transaction coordinator that speaks the DTM protocol."""


@app.command()
def serve(
    config: Config = None,
    host: Annotated[str | None, _flag("host")] = None,
    port: Annotated[str | None, _flag("port")] = None,
    grpc_port: Annotated[str | None, _flag("grpc_port")] = None,
    workers: Annotated[str | None, _flag("workers")] = None,
    store: Store = None,
    log_level: Annotated[str | None, _flag("log_level")] = None,
    log_format: Annotated[str | None, _flag("log_format")] = None,
    lease_s: Annotated[str | None, _flag("lease_s", "--lease")] = None,
    drain_s: Annotated[str | None, _flag("drain_s", "--drain")] = None,
    request_timeout_s: Annotated[str | None, _flag("request_timeout_s", "--request-timeout")] = None,
    retry_interval_s: Annotated[str | None, _flag("retry_interval_s", "--retry-interval")] = None,
    other: Other = None,
) -> None:
    """Run the coordinator until SIGTERM or Ctrl+C.

    Every setting can also be given as TXCOORD_<NAME> or in a file; `txcoord settings` shows them all.
    """
    flags = {
        "host": host,
        "port": port,
        "grpc_port": grpc_port,
        "workers": workers,
        "store": store,
        "log_level": log_level,
        "log_format": log_format,
        "lease_s": lease_s,
        "drain_s": drain_s,
        "request_timeout_s": request_timeout_s,
        "retry_interval_s": retry_interval_s,
    }
    settings = _load(flags, config, other).values
    # Here, because the other commands do without the server and shall be quick.
    from txcoord.logs import configure
    from txcoord.process.server import run
    from txcoord.process.sockets import bind, grpc_reserved, urls_of
    from txcoord.process.supervisor import Supervisor

    writer = configure(level=settings.log_level, log_format=resolved_log_format(settings))
    try:
        if settings.workers > 1:
            supervisor = Supervisor(settings, on_ready=lambda urls, nodes: _say_ready(settings, urls, nodes))
            code = supervisor.run()
        else:
            with bind(settings.host, settings.port) as listener, grpc_reserved(settings) as grpc_address:
                urls = urls_of(settings, listener.getsockname()[:2], grpc_address)
                code = run(
                    settings,
                    listener,
                    grpc_address=grpc_address,
                    on_ready=lambda ready: _say_ready(settings, urls, [ready.engine.node_id]),
                )
    except StartError as error:
        _fail(str(error), EXIT_NOT_STARTED)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    finally:
        writer.close()
    raise typer.Exit(code)


def _say_ready(settings: Settings, urls: Sequence[str], nodes: list[int]) -> None:
    named = f"node {nodes[0]}" if len(nodes) == 1 else "nodes " + ", ".join(map(str, sorted(nodes)))
    typer.echo(f"txcoord {__version__} ready on {', '.join(urls)}, store {settings.shown_store()}, {named}")
    sys.stdout.flush()


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command("settings")
def show_settings(
    config: Config = None,
    other: Other = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/settings.md instead.")] = False,
) -> None:
    """Show every setting, what it is set to, and where that came from."""
    if markdown:
        typer.echo(documentation(), nl=False)
        return
    loaded = _load({}, config, other)
    table = Table("setting", "value", "from", "allowed", box=None, pad_edge=False)
    for name, allowed, _, _ in rows():
        value = shown(shown_value(name, getattr(loaded.values, name)))
        origin = loaded.origin(name)
        table.add_row(name, value, origin, allowed, style="" if origin == "default" else "bold")
    _print(table)


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        # Whoever reads this through a pipe wants whole lines.
        console.width = 200
    console.print(table, highlight=False, markup=False)


@db.command()
def upgrade(config: Config = None, store: Store = None) -> None:
    """Make the tables, or bring them to this version. Safe while coordinators run."""
    from txcoord.store.url import current as current_schema
    from txcoord.store.url import upgrade as upgrade_schema

    settings = _load_for_tables(store, config)
    with _failing(settings):
        upgrade_schema(settings.store)
        found = current_schema(settings.store)
    typer.echo(f"store {settings.shown_store()}: the schema is at version {found}")


@db.command()
def current(config: Config = None, store: Store = None) -> None:
    """Say what version the tables have, and which one this program needs.

    Ends with 1 if this program does not run on them.
    """
    from txcoord.store.migrations import HEAD, runs_on
    from txcoord.store.url import current as current_schema

    settings = _load_for_tables(store, config)
    with _failing(settings):
        found = current_schema(settings.store)
    state = f"the schema is at version {found}" if found else "there is no schema"
    if found and runs_on(found):
        typer.echo(f"store {settings.shown_store()}: {state}, as this program needs it")
    else:
        _fail(f"store {settings.shown_store()}: {state}, this program needs {HEAD}: run txcoord db upgrade", 1)


@xa.command()
def recover(
    url: Annotated[str, typer.Option(help="A participant's database: mysql://… or postgresql://…", metavar="URL")],
    coordinator: Annotated[
        str | None,
        typer.Option(
            help="The coordinator to ask; else TXCOORD_URL, or this machine.", show_default=False, metavar="URL"
        ),
    ] = None,
    end: Annotated[bool, typer.Option("--end", help="Commit what has succeeded, roll back what has failed.")] = False,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="With --end, roll back what the coordinator does not know.")
    ] = False,
    gid: Annotated[
        list[str] | None,
        typer.Option(
            help="A gid that the transaction's name does not show; may be repeated.",
            show_default=False,
            metavar="GID",
        ),
    ] = None,
    table: Annotated[
        str | None, typer.Option(help="The barrier table, if it is not DTM's.", show_default=False, metavar="NAME")
    ] = None,
) -> None:
    """Show prepared transactions in a participant's database that nobody will end, and end them with --end.

    Only txcoord's own transactions are shown or touched. Ends with 1 if something is left to do.
    """
    try:
        from txcoord_sdk.xa.cli import COLUMNS, recover_at, row
    except ImportError as error:
        _fail(f"this needs the SDK: pip install 'txcoord-sdk[mysql,postgres]' ({error})", EXIT_NOT_STARTED)
    try:
        found = recover_at(url, coordinator=coordinator, end=end, unknown=unknown, gids=gid or (), table=table)
    except TxcoordError as error:
        _fail(str(error), EXIT_NOT_STARTED)
    if not found:
        typer.echo("no prepared transaction of ours")
        return
    shown_rows = Table(*COLUMNS, box=None, pad_edge=False)
    for leftover in found:
        shown_rows.add_row(*row(leftover), style="" if leftover.is_settled else "bold")
    _print(shown_rows)
    if not all(leftover.is_settled for leftover in found):
        raise typer.Exit(1)


def _load_for_tables(store: str | None, config: Path | None) -> Settings:
    settings = _load({"store": store}, config, None).values
    if settings.store == "memory://":
        _fail("the store memory:// has no tables: name a database with --store or TXCOORD_STORE", EXIT_WRONG_SETTINGS)
    return settings


@contextmanager
def _failing(settings: Settings) -> Iterator[None]:
    try:
        with sentences(settings.store):
            yield
    except StartError as error:
        _fail(str(error), EXIT_NOT_STARTED)


def _load(flags: dict[str, Any], config: Path | None, other: list[str] | None) -> Loaded:
    try:
        return load(
            {**_pairs(other or []), **{name: value for name, value in flags.items() if value is not None}},
            config=config,
        )
    except SettingsError as error:
        _fail(str(error), EXIT_WRONG_SETTINGS)


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError([f"--set {text}: write it as NAME=VALUE"])
        pairs[name.strip()] = value
    return pairs


def _fail(sentences: str, code: int) -> NoReturn:
    for sentence in sentences.splitlines():
        typer.echo(f"txcoord: {sentence}", err=True)
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
