"""Read the command line; import what a command needs only once it runs."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import NoReturn

from openklein import __version__
from openklein.contract import DEFAULT_ASPECT_RATIO, MAX_REFERENCES, MAX_SEED, RESOLUTIONS, SERVABLE_MODEL_IDS
from openklein.errors import CallerError, InvalidSetting, OpenKleinError
from openklein.settings import Settings, env_name, flag_name

KEY_FIELDS = {
    "name": ("NAME", "a name to know it by in the list"),
    "owner": ("OWNER", "whose key it is"),
    "scopes": ("SCOPES", "what it may do: generate, read, admin, separated by commas; default: generate,read"),
    "expires_at": ("TIME", "when it ends, like 2026-12-31 or 2026-12-31T12:00:00Z, in UTC; none: never"),
    "requests_per_minute": ("N", "most requests in 60 seconds; this and all limits: none is no limit"),
    "concurrent_requests": ("N", "most requests at a time"),
    "images_per_day": ("N", "most images in a day of UTC"),
    "images_per_month": ("N", "most images in a month of UTC"),
    "dollars_per_day": ("D", "most dollars in a day of UTC"),
    "dollars_per_month": ("D", "most dollars in a month of UTC"),
}


METAVARS = {"S": "SECONDS", "IMAGE": "DOLLARS"}  # where the last word of a setting's name does not say what to give


class HelpFormatter(argparse.HelpFormatter):
    """Print the same help on every terminal and Python."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=100, max_help_position=32)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {self._format_args(action, action.dest.upper())}"


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 where the fault is ours or the installation's, or 2 where the input is wrong."""
    arguments = build_parser().parse_args(argv)
    try:
        exit_code: int = arguments.run(arguments)
    except OpenKleinError as error:
        print(f"openklein: {error}", file=sys.stderr)
        return 2 if isinstance(error, CallerError | InvalidSetting) else 1
    except KeyboardInterrupt:
        return 130
    return exit_code


def build_parser() -> Parser:
    parser = Parser(
        prog="openklein",
        description="Make and edit images with a Klein model, on this machine or as a server.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"openklein {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add = partial(commands.add_parser, formatter_class=HelpFormatter)

    serve = add("serve", help="serve the image API", description="Serve the image API.")
    serve.set_defaults(run=run_serve)
    add_settings(serve, *(row.name for row in fields(Settings)))

    generate = add("generate", help="make an image from text", description="Make an image from text.")
    generate.set_defaults(run=run_generate)
    generate.add_argument("prompt", metavar="PROMPT", help="what to see in the image")
    add_image_flags(generate)

    edit = add(
        "edit",
        help="change or combine images",
        description=f"Change one image, or make one from up to {MAX_REFERENCES}.",
    )
    edit.set_defaults(run=run_edit)
    edit.add_argument("photo", metavar="PHOTO", help="image to start from: PNG, JPEG or WebP")
    edit.add_argument("prompt", metavar="INSTRUCTION", help="what to do with it")
    edit.add_argument("-i", "--image", metavar="FILE", action="append", default=[], help="one more image; repeatable")
    add_image_flags(edit)

    add_models_parsers(add("models", help="download models and look after them", description="Manage models."))
    add_keys_parsers(add("keys", help="manage API keys", description="Manage API keys."))
    return parser


def add_image_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="PNG file to write; one that exists is replaced"
    )
    parser.add_argument(
        "--aspect", choices=RESOLUTIONS, default=DEFAULT_ASPECT_RATIO, help=f"default: {DEFAULT_ASPECT_RATIO}"
    )
    parser.add_argument(
        "--seed", metavar="N", type=read_seed, help="0 to 2^63-1; the same seed gives the same image; default: random"
    )
    parser.add_argument(
        "--model", choices=SERVABLE_MODEL_IDS, default=argparse.SUPPRESS, help="default: OPENKLEIN_MODEL"
    )
    add_settings(parser, "data_dir")


def add_models_parsers(parser: argparse.ArgumentParser) -> None:
    names = f"one of {', '.join(SERVABLE_MODEL_IDS)}"
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, help in {
        "pull": "download a model, or what is missing of it",
        "list": "list the models and what is installed",
        "verify": "read a download to its last byte and compare",
        "rm": "remove a model from the data folder",
        "path": "print the folder of a model, installed or not",
    }.items():
        action = actions.add_parser(
            name, formatter_class=HelpFormatter, help=help, description=f"{help[0].upper()}{help[1:]}."
        )
        action.set_defaults(run=run_models, action=name)
        if name != "list":
            action.add_argument("model", metavar="MODEL", choices=SERVABLE_MODEL_IDS, help=names)
        if name == "pull":
            action.add_argument("--revision", help="branch, tag or commit of its repository; default: a pinned commit")
        add_settings(action, "data_dir")


def add_keys_parsers(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    add = partial(actions.add_parser, formatter_class=HelpFormatter)
    create = add("create", help="make a key and print it, once", description="Make a key and print it, once.")
    create.set_defaults(run=run_keys_create)
    listing = add("list", help="list the keys", description="List the keys; their secrets are not kept.")
    listing.set_defaults(run=run_keys_list)
    update = add("update", help="change a key", description="Change a key: the fields that are given.")
    update.set_defaults(run=run_keys_update)
    revoke = add("revoke", help="make a key worthless, for good", description="Make a key worthless, for good.")
    revoke.set_defaults(run=run_keys_revoke)
    for action in (update, revoke):
        action.add_argument("id", metavar="ID", help="id of the key, as listed")
    for action in (create, update):
        for name, (metavar, text) in KEY_FIELDS.items():
            action.add_argument(flag_name(name), metavar=metavar, default=argparse.SUPPRESS, help=text)
    for action in (create, listing, update, revoke):
        add_settings(action, "data_dir", "database_url")


def add_settings(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add flags for settings; what is not given stays out of the arguments."""
    for row in fields(Settings):
        if row.name not in names:
            continue
        default = row.metadata["default"]
        text = f"{row.metadata['help']} [{env_name(row.name)}{f', default: {default}' if default else ''}]"
        if default == "false":
            parser.add_argument(
                flag_name(row.name), action="store_const", const="true", default=argparse.SUPPRESS, help=text
            )
        else:
            word = row.name.rsplit("_")[-1].upper()
            metavar = METAVARS.get(word, word)
            parser.add_argument(flag_name(row.name), metavar=metavar, default=argparse.SUPPRESS, help=text)


def read_seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_SEED):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^63-1")
    return int(text)


def read_settings(arguments: argparse.Namespace) -> Settings:
    given: Mapping[str, object] = vars(arguments)
    flags = {row.name: str(given[row.name]) for row in fields(Settings) if row.name in given}
    return Settings.load(os.environ, flags)


def run_serve(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments)
    from openklein.cli.serve import serve

    return serve(settings)


def run_generate(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments)
    from openklein.cli.images import generate

    return generate(settings, arguments)


def run_edit(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments)
    from openklein.cli.images import edit

    return edit(settings, arguments)


def run_models(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments)
    from openklein.cli.models import run

    return run(settings, arguments)


def run_keys_create(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments)
    from openklein.cli.keys import create

    return create(settings, read_key_fields(arguments))


def run_keys_list(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments)
    from openklein.cli.keys import show

    return show(settings)


def run_keys_update(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments)
    from openklein.cli.keys import update

    return update(settings, arguments.id, read_key_fields(arguments))


def run_keys_revoke(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments)
    from openklein.cli.keys import revoke

    return revoke(settings, arguments.id)


def read_key_fields(arguments: argparse.Namespace) -> dict[str, str]:
    return {name: text for name, text in vars(arguments).items() if name in KEY_FIELDS}
