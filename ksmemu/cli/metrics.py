"""`ksmemu metrics`: the figures of an instance for Prometheus."""

from __future__ import annotations

import re
import signal

import click

from ksmemu.cli.options import directory_option, require_extra
from ksmemu.instance import Instance

_HOST = "127.0.0.1"
_NUMBER = re.compile("[0-9]{1,5}")
_STOP = (signal.SIGINT, signal.SIGTERM)


class _Address(click.ParamType[tuple[str, int]]):
    """[HOST:]PORT; an IPv6 address is in brackets."""

    name = "[HOST:]PORT"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Return (host, port)."""
        if isinstance(value, tuple):
            return value
        host, _, port = str(value).rpartition(":")
        if not (_NUMBER.fullmatch(port) and int(port) < 1 << 16):
            self.fail(f"{value!r} is not [HOST:]PORT", param, ctx)
        return host.strip("[]") or _HOST, int(port)


@click.command(short_help="Serve the figures to Prometheus.")
@directory_option
@click.option("--listen", type=_Address(), required=True, help="Where to serve; HOST is else 127.0.0.1.")
def metrics(directory: str | None, listen: tuple[str, int]) -> None:
    """Serve the figures of an instance to Prometheus until SIGINT or SIGTERM, whether a ksmd runs or not.

    Whoever can connect can read them: they tell what is shared.
    """
    require_extra("metrics", "prometheus_client")
    from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415 (an extra)

    from ksmemu.control.metrics import InstanceCollector  # noqa: PLC0415

    host, port = listen
    shown = f"[{host}]" if ":" in host else host
    registry = CollectorRegistry()
    registry.register(InstanceCollector(Instance.resolve(directory)))
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)  # before there are threads, so that none of them is told
    try:
        server, thread = start_http_server(port, host, registry)
    except UnicodeError:
        raise click.UsageError(f"--listen: {shown} is no host") from None
    except OSError as error:
        raise click.UsageError(f"--listen: {shown}:{port}: {error.strerror or error}") from None
    click.echo(f"http://{shown}:{server.server_port}/metrics")
    signal.sigwait(_STOP)
    server.shutdown()
    server.server_close()
    thread.join()
