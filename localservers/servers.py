"""Private database servers for tests, benchmark and developers: real, durable, on free ports.

    with start_mariadb() as server:
        url = server.create_database("orders")      # mysql://root@127.0.0.1:23456/orders

`python -m localservers.servers mariadb|postgres|redis` starts one, prints its URL and waits.

A server lives in a folder of its own, runs as an unprivileged user, and dies with the process
that started it. Everything a commit promises is on disk: no setting here trades that for speed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self
from urllib.parse import unquote, urlsplit

from localservers.processes import (
    ProgramMissingError,
    descendants,
    end,
    free_port,
    freeze,
    kill,
    program,
    remove_folder,
    spawn,
    temporary_folder,
    thaw,
    unprivileged_user,
)

if TYPE_CHECKING:
    import psycopg
    import pymysql

READY_S = 90.0
"""How long a server may take until it answers: recovery after a SIGKILL included."""


class ServerFailedError(Exception):
    """A server did not start, or is not what was asked for; the sentence says which and why."""


class Server(ABC):
    """A database server: one that we started in a folder, or an existing one behind a URL.

    Of an existing one only `url`, `database_url`, `create_database` and `drop_database` may be used.
    """

    kind: ClassVar[str]
    scheme: ClassVar[str]
    """Scheme of the URLs handed out; one given to us may have any of `schemes`."""
    schemes: ClassVar[Sequence[str]]
    default_port: ClassVar[int]
    root_user: ClassVar[str]
    variable: ClassVar[str]
    """Environment variable that names an existing server."""
    own_users: ClassVar[Sequence[str]] = ()
    """Whom to run as when we are root: the first that exists."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        existing_url: str | None = None,
        may_install: bool = True,
    ) -> None:
        self._settings = dict(settings or {})
        self._may_install = may_install
        self._process: subprocess.Popen[bytes] | None = None
        self._owns_folder = False
        self.private = existing_url is None
        if existing_url is not None:
            parts = urlsplit(existing_url)
            if parts.scheme.partition("+")[0] not in self.schemes or not parts.hostname:
                raise ServerFailedError(f"{self.variable} is to look like {self.scheme}://user:password@host:port/")
            self._authority = parts.netloc
            self.host = parts.hostname
            self.port = parts.port or self.default_port
            self._user, self._password = unquote(parts.username or self.root_user), unquote(parts.password or "")
            return
        self._programs = self._find_programs()
        self.user = unprivileged_user(*self.own_users)
        self.folder = self._prepare_folder(folder)
        self.log = self.folder / "server.log"
        self.host = "127.0.0.1"
        self._user, self._password = self.root_user, ""
        self._start_somewhere()

    # -- its databases -------------------------------------------------------------------

    @property
    def url(self) -> str:
        """URL of the server's first database, `txcoord`, which is made when it is missing."""
        return self.create_database("txcoord")

    def database_url(self, name: str) -> str:
        """URL of a database of this server, whether it exists or not."""
        return f"{self.scheme}://{self._authority}/{name}"

    def create_database(self, name: str) -> str:
        """Make a database unless it exists, and return its URL."""
        self._create(_checked(name))
        return self.database_url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database; connections to it are cut first. No error when it does not exist."""
        self._drop(_checked(name))

    def version(self) -> str:
        """The server program's version, e.g. 10.11.6-MariaDB."""
        text = subprocess.run([self._command()[0], "--version"], capture_output=True, text=True, check=True).stdout
        found = re.search(r"\d+\.\d+\S*", text)
        return found[0] if found else text.strip()

    # -- its life ------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        return self._running().pid

    def start(self) -> None:
        """Start on the same folder and port, and return when it answers."""
        self._require_private()
        if self._process is not None and self._process.poll() is None:
            return
        with self.log.open("ab"):
            pass
        self._process = spawn(self._command(), log=self.log, cwd=self.folder, user=self.user, env=_plain_environment())
        self._wait_until_ready(self._process)

    def stop(self) -> None:
        """End in order. The data stays until `close`. Idempotent."""
        self._require_private()
        if self._process is not None:
            end(self._process, with_signal=self._stop_signal())
            self._process = None

    def kill(self) -> None:
        """SIGKILL to the server and every process of it."""
        running = self._running()
        # A killed PostgreSQL is not ready to start again before the last of its processes is gone.
        family = descendants(running.pid)
        kill(running)
        _wait_until_gone(family)
        self._process = None

    def restart(self) -> None:
        """Stop in order if it runs, and start on the same folder and port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP to the server and every process of it: it is there, and says nothing."""
        freeze(self._running().pid)

    def resume(self) -> None:
        """Let a paused server go on."""
        thaw(self._running().pid)

    def ensure_running(self) -> None:
        """Undo pause, stop and kill: return when the server answers."""
        if self._process is not None and self._process.poll() is None:
            self.resume()
        self.start()

    def close(self) -> None:
        """Stop, and remove the folder if it was made here. Idempotent."""
        if not self.private:
            return
        if self._process is not None and self._owns_folder:
            # Nobody will read the data again: an orderly shutdown would only take time.
            kill(self._process)
            self._process = None
        self.stop()
        if self._owns_folder:
            remove_folder(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what differs --------------------------------------------------------------------

    @abstractmethod
    def _find_programs(self) -> Mapping[str, Path]:
        """Find or install what `_initialise` and `_command` run."""

    @abstractmethod
    def _initialise(self) -> None:
        """Make the empty database files, unless the folder has them."""

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """What starts the server in the foreground, on `self.port`."""

    @abstractmethod
    def _answers(self) -> bool:
        """Tell whether the server takes statements now."""

    @abstractmethod
    def _create(self, name: str) -> None: ...

    @abstractmethod
    def _drop(self, name: str) -> None: ...

    def _stop_signal(self) -> int:
        return signal.SIGTERM

    # -- common --------------------------------------------------------------------------

    def _start_somewhere(self) -> None:
        try:
            self._initialise()
            for attempt in range(1, 4):
                self.port = free_port()
                self._authority = f"{self.root_user}@{self.host}:{self.port}".removeprefix("@")
                try:
                    self.start()
                except ServerFailedError:
                    # Somebody else may have taken the port between our look and its use.
                    if attempt == 3:
                        raise
                else:
                    return
        except BaseException:
            self.close()
            raise

    def _prepare_folder(self, folder: Path | None) -> Path:
        if folder is None:
            self._owns_folder = True
            return temporary_folder(f"txcoord-{self.kind}-", user=self.user)
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if self.user:
            shutil.chown(folder, self.user)
            closed = [str(each) for each in folder.parents if not each.stat().st_mode & 0o001]
            if closed:
                raise ServerFailedError(
                    f"the server runs as `{self.user}`, who cannot reach {folder}: {closed[-1]} is closed to others"
                )
        return folder

    def _initialise_with(self, command: Sequence[str | Path]) -> None:
        process = spawn(command, log=self.log, cwd=self.folder, user=self.user, env=_plain_environment())
        # `end` with all the patience it needs: making the files takes seconds, or a minute on a slow disk.
        try:
            code = process.wait(READY_S)
        finally:
            end(process)
        if code != 0:
            raise ServerFailedError(f"{Path(command[0]).name} failed ({code}): {self._log_tail()}")

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        give_up = time.monotonic() + READY_S
        while not self._answers():
            if (code := process.poll()) is not None:
                raise ServerFailedError(f"{self.kind} ended at start ({code}): {self._log_tail()}")
            if time.monotonic() > give_up:
                raise ServerFailedError(f"{self.kind} did not answer within {READY_S:.0f} s: {self._log_tail()}")
            time.sleep(0.05)

    def _log_tail(self) -> str:
        if not self.log.exists():
            return "(no output)"
        return self.log.read_text(errors="replace").strip()[-1500:] or "(no output)"

    def _running(self) -> subprocess.Popen[bytes]:
        self._require_private()
        if self._process is None or self._process.poll() is not None:
            raise ServerFailedError(f"{self.kind} on port {self.port} is not running")
        return self._process

    def _require_private(self) -> None:
        if not self.private:
            raise ServerFailedError(f"the server named by {self.variable} is not ours to stop; start a private one")


class MariaDB(Server):
    """MariaDB with InnoDB's full durability: the log is synced at each commit."""

    kind = "mariadb"
    scheme = "mysql"
    schemes = ("mysql", "mariadb")
    default_port = 3306
    root_user = "root"
    variable = "TXCOORD_TEST_MYSQL_URL"
    own_users = ("mysql",)

    def _find_programs(self) -> Mapping[str, Path]:
        instead = f", or name an existing MySQL or MariaDB server: {self.variable}=mysql://user:password@host:port/"
        programs = {
            what: program(*names, package="mariadb-server", instead=instead, may_install=self._may_install)
            for what, names in (
                ("server", ("mariadbd", "mysqld")),
                ("install", ("mariadb-install-db", "mysql_install_db")),
            )
        }
        version = subprocess.run([programs["server"], "--version"], capture_output=True, text=True, check=True).stdout
        if "MariaDB" not in version:
            raise ProgramMissingError(f"{programs['server']} is not MariaDB; install mariadb-server{instead}")
        return programs

    def _initialise(self) -> None:
        if (self.folder / "data" / "mysql").exists():
            return
        self._initialise_with(
            [
                self._programs["install"],
                "--no-defaults",
                f"--datadir={self.folder / 'data'}",
                # A server that starts removes temporary tables of others from a folder that it shares with them.
                f"--tmpdir={self.folder}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--skip-name-resolve",
            ]
        )

    def _command(self) -> Sequence[str | Path]:
        settings = {
            "datadir": str(self.folder / "data"),
            "bind-address": self.host,
            "port": str(self.port),
            # Relative to the data folder: the path of a socket is limited to about 100 characters.
            "socket": "server.sock",
            "pid-file": "server.pid",
            "tmpdir": str(self.folder),
            "innodb-flush-log-at-trx-commit": "1",
            "innodb-doublewrite": "1",
            "innodb-buffer-pool-size": "256M",
            "max-connections": "500",
            "max-allowed-packet": "64M",
            "character-set-server": "utf8mb4",
        } | self._settings
        return [
            self._programs["server"],
            "--no-defaults",
            "--skip-name-resolve",
            *(f"--{name}={value}" for name, value in settings.items()),
        ]

    def _connect(self) -> pymysql.Connection:
        import pymysql

        return pymysql.connect(
            host=self.host,
            port=self.port,
            user=self._user,
            password=self._password,
            autocommit=True,
            connect_timeout=10,
        )

    def _answers(self) -> bool:
        import pymysql

        try:
            self._connect().close()
        except pymysql.err.OperationalError:
            return False
        return True

    def _create(self, name: str) -> None:
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb4")

    def _drop(self, name: str) -> None:
        import pymysql

        with self._connect() as connection, connection.cursor() as cursor:
            # A transaction left open in a test would hold its tables, and the drop, for good.
            cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (name,))
            for (connection_id,) in cursor.fetchall():
                try:
                    cursor.execute("KILL %s", (connection_id,))
                except pymysql.err.OperationalError as error:
                    if error.args[0] != 1094:  # it has ended by itself meanwhile
                        raise
            cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")


class Postgres(Server):
    """PostgreSQL with fsync and synchronous commit, and prepared transactions allowed."""

    kind = "postgres"
    scheme = "postgresql"
    schemes = ("postgresql", "postgres")
    default_port = 5432
    root_user = "txcoord"
    variable = "TXCOORD_TEST_POSTGRES_URL"
    own_users = ("postgres",)

    def _find_programs(self) -> Mapping[str, Path]:
        instead = f", or name an existing server: {self.variable}=postgresql://user:password@host:port/"
        return {
            name: program(
                name,
                package="postgresql",
                folders=_postgres_folders,
                instead=instead,
                may_install=self._may_install,
            )
            for name in ("postgres", "initdb")
        }

    def _initialise(self) -> None:
        if (self.folder / "data" / "PG_VERSION").exists():
            return
        self._initialise_with(
            [
                self._programs["initdb"],
                "--pgdata",
                self.folder / "data",
                "--username",
                self.root_user,
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
            ]
        )

    def _command(self) -> Sequence[str | Path]:
        settings = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "max_connections": "300",
            "max_prepared_transactions": "64",
        } | self._settings
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [self._programs["postgres"], "-D", self.folder / "data", *options]

    def _stop_signal(self) -> int:
        # "Fast": SIGTERM would wait until every client has gone.
        return signal.SIGINT

    def _connect(self) -> psycopg.Connection:
        import psycopg

        return psycopg.connect(
            host=self.host,
            port=self.port,
            user=self._user,
            password=self._password,
            dbname="postgres",
            autocommit=True,
            connect_timeout=10,
        )

    def _answers(self) -> bool:
        import psycopg

        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _create(self, name: str) -> None:
        import psycopg

        with self._connect() as connection:
            try:
                connection.execute(f'CREATE DATABASE "{name}"')
            except psycopg.errors.DuplicateDatabase:
                return

    def _drop(self, name: str) -> None:
        with self._connect() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


class Redis(Server):
    """Redis that syncs its append-only file at each write."""

    kind = "redis"
    scheme = "redis"
    schemes = ("redis",)
    default_port = 6379
    root_user = ""
    variable = "TXCOORD_TEST_REDIS_URL"
    own_users = ("redis",)
    databases = 256

    def _find_programs(self) -> Mapping[str, Path]:
        instead = f", or name an existing server: {self.variable}=redis://:password@host:port/"
        return {
            "server": program("redis-server", package="redis-server", instead=instead, may_install=self._may_install)
        }

    def __init__(
        self,
        folder: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        existing_url: str | None = None,
        may_install: bool = True,
    ) -> None:
        self._numbers: dict[str, int] = {}
        self.cluster_port = (settings or {}).get("cluster-port", "")
        super().__init__(folder, settings=settings, existing_url=existing_url, may_install=may_install)

    def _initialise(self) -> None:
        pass  # an empty folder is an empty Redis

    def _command(self) -> Sequence[str | Path]:
        settings = {
            "bind": self.host,
            "port": str(self.port),
            "dir": str(self.folder),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            "databases": str(self.databases),
        } | self._settings
        return [self._programs["server"], *(word for name, value in settings.items() for word in (f"--{name}", value))]

    def database_url(self, name: str) -> str:
        """Redis numbers its databases: a name stands for the next number that is free."""
        number = self._numbers.setdefault(name, len(self._numbers))
        if number >= self.databases:
            raise ServerFailedError(f"redis has {self.databases} databases, and all have been handed out")
        return super().database_url(str(number))

    def say(self, *commands: str) -> str:
        """Send commands, and return the beginning of the last one's answer."""
        with socket.create_connection((self.host, self.port), timeout=10) as connection:
            reply = ""
            login = [f"AUTH {self._password}"] if self._password else []
            for command in [*login, *commands]:
                connection.sendall(command.encode() + b"\r\n")
                reply = connection.recv(1000).decode()
            return reply

    def _answers(self) -> bool:
        try:
            return self.say("PING") == "+PONG\r\n"
        except OSError:
            return False

    def _create(self, name: str) -> None:
        self.database_url(name)

    def _drop(self, name: str) -> None:
        number = self._numbers.get(name)
        if number is not None:
            self.say(f"SELECT {number}", "FLUSHDB")


class RedisCluster:
    """Three private Redis servers that share the slots of a cluster, without replicas."""

    SIZE = 3
    SLOTS = 16384

    def __init__(self) -> None:
        self.nodes: list[Redis] = []
        try:
            for _ in range(self.SIZE):
                settings = {"cluster-enabled": "yes", "cluster-port": str(free_port()), "databases": "1"}
                self.nodes.append(Redis(settings=settings))
            self._join()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """URL of one node, which knows the others."""
        return self.nodes[0].database_url("cluster")

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _join(self) -> None:
        for number, node in enumerate(self.nodes):
            first, after = (self.SLOTS * edge // self.SIZE for edge in (number, number + 1))
            # Names of their own for the configuration: nodes that meet with the same one would have to vote.
            node.say(f"CLUSTER SET-CONFIG-EPOCH {number + 1}", f"CLUSTER ADDSLOTSRANGE {first} {after - 1}")
        [meeting, *others] = self.nodes
        for node in others:
            node.say(f"CLUSTER MEET {meeting.host} {meeting.port} {meeting.cluster_port}")
        deadline = time.monotonic() + READY_S
        while not all("cluster_state:ok" in node.say("CLUSTER INFO") for node in self.nodes):
            if time.monotonic() > deadline:
                raise ServerFailedError("the nodes of a Redis cluster did not find together")
            time.sleep(0.02)


def start_mariadb(folder: Path | None = None, *, settings: Mapping[str, str] | None = None) -> MariaDB:
    """Start a private MariaDB, in a temporary folder unless one is given; `settings` are added to ours."""
    return MariaDB(folder, settings=settings)


def start_postgres(folder: Path | None = None, *, settings: Mapping[str, str] | None = None) -> Postgres:
    """Start a private PostgreSQL, in a temporary folder unless one is given; `settings` are added to ours."""
    return Postgres(folder, settings=settings)


KINDS: Mapping[str, type[Server]] = {server.kind: server for server in (MariaDB, Postgres, Redis)}


def existing_or_private(kind: str) -> Server:
    """The server that the environment names (`TXCOORD_TEST_..._URL`), or else a private one."""
    server = KINDS[kind]
    return server(existing_url=os.environ.get(server.variable) or None)


def _postgres_folders() -> Sequence[Path]:
    # Debian keeps the server's programs of each version off the PATH.
    return sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda each: -float(each.parent.name))


def _checked(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,59}", name):
        raise ValueError(f"{name!r} is not a database name: a-z first, then a-z, 0-9 and _, 60 at most")
    return name


def _plain_environment() -> dict[str, str]:
    # Nothing of the caller's (PGDATA, MYSQL_HOME, ...) is to reach the server.
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"}


def _wait_until_gone(pids: Sequence[int]) -> None:
    give_up = time.monotonic() + READY_S
    while any(_exists(pid) for pid in pids):
        if time.monotonic() > give_up:
            raise ServerFailedError(f"processes {pids} outlive SIGKILL")
        time.sleep(0.01)


def _exists(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


def main() -> None:
    """Start one server, print its URL and wait for Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m localservers.servers", description=main.__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--folder", type=Path, help="keep the data here; without it they go when the server does")
    parser.add_argument("--database", default="txcoord", help="database to make and to name in the URL (%(default)s)")
    arguments = parser.parse_args()
    ends = {signal.SIGINT, signal.SIGTERM}
    try:
        with KINDS[arguments.kind](arguments.folder) as server:
            # Blocked only now: the server would inherit it.
            signal.pthread_sigmask(signal.SIG_BLOCK, ends)
            sys.stdout.write(server.create_database(arguments.database) + "\n")
            sys.stdout.flush()
            signal.sigwait(ends)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ProgramMissingError, ServerFailedError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
