"""The command line `ganserve`: commands become function calls, output and exit codes.

What takes long to import is imported where it is used, so that `--help` answers at once.
"""

import asyncio
import contextlib
import functools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import BaseModel, ValidationError
from pydantic_settings import CliApp, CliSettingsSource, get_subcommand

from ganserve.cli_options import Ganserve, Generate, HelpFormatter, LoadTest, Models
from ganserve.config import ServerConfig
from ganserve.flag_names import (
    describe_error,
    parse_arguments,
    spell_file,
    spell_flags,
    spell_request,
    spell_subject,
)

if TYPE_CHECKING:
    from ganserve.client import Client
    from ganserve.client.channel_security import ChannelSecurity
    from ganserve.client.models import ModelInfo
    from ganserve.load_test.report import LoadReport
    from ganserve.load_test.sweep import LoadKind, Sweep


class CommandError(Exception):
    """A command that could not do its work; the message says why in one line."""


class UsageError(Exception):
    """A command whose flags do not fit together; the message names them, as their fields."""


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
        code = 1
    leave_working_threads(code, seconds=1)
    sys.exit(code)


def leave_working_threads(code: int, *, seconds: float) -> None:
    """End the process if threads work on for longer than this.

    Python would wait for them, such as for a model that is being loaded when the server is stopped.
    """
    end = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(end - time.monotonic(), 0))
            if thread.is_alive():
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    0 success, 1 the command failed (stderr says why in one line), 2 bad usage, 130 interrupted.
    """
    try:
        root = CliApp.run(Ganserve, list(arguments), _command_line())
    except ValidationError as error:
        fields = {name: kind.model_fields for kind, (name, _) in _COMMANDS.items()}
        for details in error.errors():
            print(describe_error(details, fields), file=sys.stderr)
        return 2
    if root.version:
        print(f"ganserve {installed_version('ganserve')}")
        return 0
    command: Any = get_subcommand(root, is_required=False)
    if command is None:
        CliApp.print_help(Ganserve, _command_line(), file=sys.stderr)
        return 2
    name, execute = _COMMANDS[type(command)]
    try:
        execute(command)
    except UsageError as error:
        told = spell_flags(name, str(error), type(command).model_fields)
        print(f"ganserve {name}: {told}", file=sys.stderr)
        return 2
    except CommandError as error:
        print(f"ganserve {name}: {spell_request(name, str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _command_line() -> CliSettingsSource[Any]:
    return CliSettingsSource(
        Ganserve, formatter_class=HelpFormatter, parse_args_method=parse_arguments
    )


def _serve(config: ServerConfig) -> None:
    with _stoppable_start():
        from ganserve.errors import StartupError
        from ganserve.server import serve

        try:
            asyncio.run(serve(config))
        except (StartupError, OSError) as error:
            told = spell_subject("serve", str(error), ServerConfig.model_fields)
            raise CommandError(told) from error


class _StartStopped(KeyboardInterrupt):
    """A signal came before the server answers them itself; it has accepted no call yet.

    Of this kind, for asyncio swallows other exceptions where a callback was running.
    """


@contextlib.contextmanager
def _stoppable_start() -> Iterator[None]:
    """Answer signals until the server does, which takes imports and a start; then end quietly.

    Without a handler a container's first process is deaf to SIGTERM, and SIGHUP, which is to have
    the server look for models, ends any other. A server that has stopped ends with 0, however often
    it is told to.
    """

    def stop(*_: object) -> NoReturn:
        raise _StartStopped

    handlers: dict[signal.Signals, Callable[..., NoReturn] | signal.Handlers]
    handlers = {signal.SIGHUP: signal.SIG_IGN, signal.SIGINT: stop, signal.SIGTERM: stop}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with contextlib.suppress(_StartStopped):
            yield
    except BaseException:
        for number, handler in before.items():
            signal.signal(number, handler)
        raise
    for number in handlers:
        signal.signal(number, signal.SIG_IGN)


def _generate(command: Generate) -> None:
    from ganserve.saved_images import write_images

    with _connected(command, command.model or "") as client:
        print(write_images(client, command), flush=True)


@contextlib.contextmanager
def _connected(command: Generate | Models, model: str = "") -> Iterator["Client"]:
    """A client of the server that a command names; what fails with it is the command's failure."""
    from ganserve.client import CallError, Client

    try:
        with Client(
            command.address,
            model=model,
            timeout_seconds=command.timeout_seconds,
            security=_security(command),
        ) as client:
            yield client
    except BrokenPipeError:
        raise  # of the output: `main` knows
    except (CallError, OSError, ValueError) as error:
        raise CommandError(spell_file(error, vars(command))) from error


def _security(command: Generate | Models | LoadTest) -> "ChannelSecurity":
    from ganserve.client.channel_security import ChannelSecurity

    try:
        return ChannelSecurity(
            command.tls_ca, command.tls_certificate, command.tls_key, command.token_file
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _models(command: Models) -> None:
    with _connected(command) as client:
        models = client.models()
        if command.json_:
            listed = [asdict(model) | {"evaluation": dict(model.evaluation)} for model in models]
            print(json.dumps(listed, indent=2), flush=True)
        else:
            print(_render_models(models), flush=True)


def _render_models(models: "Sequence[ModelInfo]") -> str:
    columns = ("NAME", "VERSION", "STATE", "IMAGE", "LATENTS", "CLASSES")
    rows = [(*columns, "PROVIDER", "DIGEST OR ERROR")]
    for model in models:
        if model.height:
            image = f"{model.height}x{model.width}x{model.channels}"
            latents, classes = str(model.latent_dim), str(len(model.class_names) or "-")
        else:
            image = latents = classes = "-"
        tail = (model.execution_provider or "-", model.digest[:12] or model.error)
        rows.append((model.name, model.version, model.state, image, latents, classes, *tail))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _load_test(command: LoadTest) -> None:
    from ganserve.load_test.plot import draw_sweep, require_plotting
    from ganserve.load_test.report import render_report
    from ganserve.load_test.sweep import Sweep, render_sweep

    try:
        if command.plot is not None:
            require_plotting()
        result = asyncio.run(_offer_load(command))
        if isinstance(result, Sweep):
            text, reports, failure = render_sweep(result), result.points, result.failure
        else:
            text, reports, failure = render_report(result), [result], None
        print(json.dumps(asdict(result), indent=2) if command.json_ else text)
        if isinstance(result, Sweep) and command.plot is not None:
            draw_sweep(result, command.plot)
    except BrokenPipeError:
        raise  # of the output: `main` knows
    except (OSError, ValueError, ImportError) as error:
        raise CommandError(spell_file(error, vars(command))) from error
    _judge(reports)
    if failure is not None:
        raise CommandError(failure)


async def _offer_load(command: LoadTest) -> "LoadReport | Sweep":
    from ganserve.load_test.plan import LoadPlan
    from ganserve.load_test.run import offer_load, stopped_by_interrupts
    from ganserve.load_test.sweep import parse_sweep, sweep

    plan = LoadPlan(
        address=command.address,
        model=command.model or "",
        rate=command.rate,
        concurrency=command.concurrency or LoadPlan.concurrency,
        images_per_request=command.images_per_request,
        image_format=command.format,
        class_label=command.class_label,
        seconds=command.seconds,
        warm_up_seconds=command.warm_up_seconds,
        connections=command.connections,
        timeout_seconds=command.timeout_seconds,
        max_calls_under_way=command.max_calls_under_way,
        security=_security(command),
    )
    with stopped_by_interrupts() as stop:
        offer = functools.partial(
            offer_load, processes=command.processes, verify=command.verify, stop=stop
        )
        if command.sweep is None:
            return await offer(plan)

        async def offer_at(kind: "LoadKind", value: float) -> "LoadReport":
            if kind == "rate":
                return await offer(replace(plan, rate=value))
            return await offer(replace(plan, concurrency=int(value)))

        return await sweep(parse_sweep(command.sweep), offer_at)


def _judge(reports: "Sequence[LoadReport]") -> None:
    """Fail where images were wrong or there were none; what is interrupted is not judged by that.

    Raises:
        CommandError: so.
        KeyboardInterrupt: the test was interrupted.
    """
    verifications = [report.verification for report in reports if report.verification is not None]
    wrong = [seed for verification in verifications for seed in verification.wrong_requests]
    if wrong:
        calls = sum(verification.wrong for verification in verifications)
        first = ", ".join(map(str, sorted(set(wrong))[:10]))
        raise CommandError(
            f"{calls} calls gave images of other bytes than before the load; their first seeds: "
            f"{first}"
        )
    if any(report.interrupted for report in reports):
        raise KeyboardInterrupt
    if not any(report.latency_seconds for report in reports):
        reasons = [": ".join(pair) for report in reports for pair in report.error_details.items()]
        raise CommandError(": ".join(["no call succeeded", *reasons[:1]]))
    if verifications and all(part.calls == part.other_version for part in verifications):
        raise CommandError("no image was verified: another version of the model answers now")


_COMMANDS: dict[type[BaseModel], tuple[str, Callable[[Any], None]]] = {
    ServerConfig: ("serve", _serve),
    Generate: ("generate", _generate),
    Models: ("models", _models),
    LoadTest: ("load-test", _load_test),
}
