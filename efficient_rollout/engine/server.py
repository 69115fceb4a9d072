"""vLLM's own server of an engine of this package, in a process of its own that ends with the one that started it.

The arguments are a model, this package's settings as JSON, and options of `vllm serve`.
"""

import argparse
import ctypes
import json
import signal
import socket
import sys
from collections.abc import Sequence

from efficient_rollout.config import Settings
from efficient_rollout.engine.checks import check_vllm_version
from efficient_rollout.engine.engine_args import engine_args
from efficient_rollout.engine.prometheus import MIDDLEWARE
from efficient_rollout.errors import EXIT_BAD_INPUT, EXIT_TERMINATED, ConfigError, EfficientRolloutError

_PR_SET_PDEATHSIG = 1
_LOOPBACK = "127.0.0.1"
_MERGED = "additional_config"


def main(argv: Sequence[str]) -> int:
    """Serve until a signal ends it.

    Returns:
        2 after bad input, 143 after SIGTERM while the engine starts; 1 where the engine ended, and the server with it.
    """
    model, settings, *options = argv
    try:
        check_vllm_version()
        arguments = server_arguments(model, Settings.parse(json.loads(settings)), options)
        from vllm.entrypoints.cli.serve import ServeSubcommand
        from vllm.entrypoints.serve.utils.api_utils import cli_env_setup

        cli_env_setup()
        ServeSubcommand.cmd(arguments)
    except EfficientRolloutError as error:
        sys.stderr.write(f"efficient-rollout serve: error: {error}\n")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_TERMINATED
    # A server whose engine is alive ends by a signal alone, and who sent that does not ask for the exit code.
    return 1


def server_arguments(model: str, settings: Settings, options: Sequence[str]) -> argparse.Namespace:
    """Return what vLLM's server is started with, everything checked that can be; options are of `vllm serve`.

    Raises:
        EfficientRolloutError: As `engine_args`.
        ConfigError: An option does not fit, or the address cannot be listened on.
        SystemExit: An option is unknown, or help was asked for.
    """
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    command, parser = ServeSubcommand(), FlexibleArgumentParser(prog="vllm")
    serve_parser = command.subparser_init(parser.add_subparsers(dest="subparser"))
    try:
        arguments = parser.parse_args(["serve", model, *options])
        command.validate(arguments)
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"vLLM refuses its options: {error}") from error
    arguments.model = arguments.model_tag
    if arguments.model != model:
        raise ConfigError(f"the model is {model}, and vLLM's options name {arguments.model}: leave that out")
    if arguments.uds is None:
        arguments.host = arguments.host or _LOOPBACK
        check_address(arguments.host, arguments.port)
    given = vars(arguments)
    ours = engine_args(settings=settings, **given)
    chosen = {name: (serve_parser.get_default(name), value) for name, value in ours.items() if name != _MERGED}
    both = [name for name, known in chosen.items() if given[name] not in known]
    if both:
        raise ConfigError(
            f"vLLM's options set {', '.join(both)}, which this package sets itself: leave them out, or start plain "
            "vLLM with enabled=false"
        )
    given |= ours | {_MERGED: {**(given[_MERGED] or {}), **ours[_MERGED]}}
    arguments.middleware = [*arguments.middleware, MIDDLEWARE]
    return arguments


def check_address(host: str, port: int) -> None:
    """Raise ConfigError where nobody can listen there, before minutes go into an engine."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error.strerror}. Another server may run there; choose others with "
            "--host and --port, among vLLM's options"
        ) from error


if __name__ == "__main__":
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    sys.exit(main(sys.argv[1:]))
