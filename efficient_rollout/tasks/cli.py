"""The `policy` and `data` commands. Parsing needs neither torch nor transformers."""

import argparse
import logging
import sys
from pathlib import Path

from efficient_rollout.errors import ConfigError
from efficient_rollout.tasks.smollm2 import SIZE as SMOLLM2
from efficient_rollout.tasks.smollm2 import SOURCE_FILE
from efficient_rollout.tasks.training_plans import CARD_FILE, SIZES

_SIZES = (*SIZES, SMOLLM2)


def add_policy_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `policy`, which finds, copies or trains a policy."""
    parser = subparsers.add_parser("policy", help="say where a policy is, copy it, or train one like it")
    parser.add_argument(
        "--size", choices=_SIZES, required=True, help="nano: tests; small: quickstart; smollm2: a real language model"
    )
    parser.add_argument("--out", type=Path, help="directory for a copy, or for the policy that is trained")
    parser.add_argument("--train", action="store_true", help="train it anew, as the shipped one was; takes minutes")
    parser.add_argument("--seed", type=int, help="of the initial weights and training data (default: 0)")
    parser.add_argument(
        "--tied",
        action=argparse.BooleanOptionalAction,
        help="share the output head with the embedding (default: the size's own choice)",
    )
    parser.set_defaults(run=run_policy)


def add_data_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `data`, which writes the parquet files."""
    parser = subparsers.add_parser("data", help="write the embedded task's parquet files for veRL")
    parser.add_argument("--size", choices=_SIZES, required=True, help="the policy's size, which sets the difficulty")
    parser.add_argument("--out", type=Path, required=True, help="directory for train.parquet and validation.parquet")
    parser.add_argument("--num-train", type=int, required=True, metavar="N", help="training problems")
    parser.add_argument("--num-validation", type=int, required=True, metavar="M", help="validation problems")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument(
        "--max-response-tokens", type=int, metavar="T", help="leave out problems with longer worked answers"
    )
    parser.set_defaults(run=run_data)


def run_policy(args: argparse.Namespace) -> int:
    """Find, copy or train the policy, and say where it is and what was measured of it.

    Raises:
        ConfigError: Options do not go together.
    """
    from efficient_rollout.tasks.policy import ensure_policy, train_policy

    _show_progress()
    if args.train and args.out is None:
        raise ConfigError("--train needs --out, the directory for the policy")
    if not args.train and (args.seed, args.tied) != (None, None):
        raise ConfigError("--seed and --tied are of a policy that is trained: add --train, or leave them out")
    if args.train:
        path = train_policy(args.size, args.out, seed=args.seed or 0, tied=args.tied)
    else:
        path = ensure_policy(args.size, out=args.out)
    card = path / (SOURCE_FILE if args.size == SMOLLM2 else CARD_FILE)
    sys.stdout.write(f"{path}\n{card.read_text()}")
    return 0


def run_data(args: argparse.Namespace) -> int:
    """Write the data set and say where it is."""
    from efficient_rollout.tasks.dataset import write_dataset

    _show_progress()
    paths = write_dataset(
        args.out, size=args.size, num_train=args.num_train, num_validation=args.num_validation, seed=args.seed,
        max_response_tokens=args.max_response_tokens,
    )  # fmt: skip
    sys.stdout.write("".join(f"{path}\n" for path in paths))
    return 0


def _show_progress() -> None:
    """Send this package's progress lines to standard error, unless the caller set logging up."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("efficient_rollout").setLevel(logging.INFO)
