"""Print every mistake in a cluster file that can be found without an account: python cluster/check.py cluster/gpu.yaml

`ray up` checks little before it starts machines: it ignores unknown keys of a provider, takes the last of two equal
keys, and leaves invalid machine options for AWS to refuse later.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import io
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PLACEHOLDER = re.compile(r"<[A-Z][A-Z0-9_ ]*>")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The keys that Ray reads from `provider`. Its schema lists the keys of all providers together and allows any others.
PROVIDERS = {
    "aws": (
        *("type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "use_external_head_ip"),
        *("security_group", "key_pair", "cloudwatch", "aws_credentials"),
    ),
    "local": ("type", "head_ip", "worker_ips", "external_head_ip", "coordinator_address"),
}
RAY_NODE_KEYS = ("SubnetIds",)  # Ray's own key in `node_config`; all others are those of EC2's RunInstances


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses a key given twice; YAML would use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key}: given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def mistakes(path: Path) -> list[str]:
    """Return the mistakes in a cluster file, one line each."""
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        return ["file does not exist"]
    except OSError as error:
        return [f"cannot be read: {error.strerror or error}"]
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, RecursionError) as error:
        # not UTF-8, a value that does not fit its tag, an anchor that contains itself
        return [f"not valid YAML: {str(error).splitlines()[0] if str(error) else type(error).__name__}"]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        return [f"{f'line {mark.line + 1}: ' if mark else ''}{getattr(error, 'problem', None) or error}"]
    if not isinstance(config, dict):
        return ["must be a mapping"]
    if _is_endless(config):
        return ["an anchor contains itself, or there are more than 100,000 values"]
    found = [
        *_placeholders(config, ""),
        *_unknown_keys(config),
        *_schema_errors(config),
        *_node_errors(config),
        *_start_command_errors(config),
        *_missing_files(config),
    ]
    return list(dict.fromkeys(found or _errors_of_ray(config)))


def _is_endless(config: Any) -> bool:
    """Return whether the values, with those that aliases repeat, are too many."""
    remaining, count = [config], 0
    while remaining and count <= 100_000:
        value = remaining.pop()
        count += 1
        remaining += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(remaining)


def _placeholders(value: Any, where: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _placeholders(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _placeholders(item, f"{where}[{index}]")
    elif isinstance(value, str) and (placeholders := PLACEHOLDER.findall(value)):
        yield f"{where}: fill in {', '.join(dict.fromkeys(placeholders))}"


def _unknown(key: object, known: Iterable[str], where: str, what: str = "key") -> str:
    known = list(known)
    by_lower_case = {name.lower(): name for name in known}
    if str(key).lower() in by_lower_case:
        close = [by_lower_case[str(key).lower()]]
    else:
        close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    return f"{where}: unknown {what} {key}{f'; did you mean {close[0]}?' if close else ''}"


@cache
def _schema() -> dict[str, Any]:
    import ray.autoscaler

    schema: dict[str, Any] = json.loads((Path(str(ray.autoscaler.__file__)).parent / "ray-schema.json").read_text())
    return schema


def _unknown_keys(config: dict[str, Any]) -> Iterator[str]:
    """Yield the keys that Ray does not read, in the sections whose keys are all known."""
    schema, provider = _schema(), config.get("provider")
    kind = provider.get("type") if isinstance(provider, dict) else None
    if kind not in PROVIDERS:
        yield _unknown(kind, PROVIDERS, "provider.type", "provider type (this check supports aws and local)")
    top = [*schema["properties"], *(["min_workers"] if kind == "local" else [])]
    yield from (_unknown(key, top, "top level") for key in config if key not in top)
    sections = {"provider": PROVIDERS.get(str(kind)), "auth": None, "docker": None}
    for name, known in sections.items():
        if isinstance(section := config.get(name), dict) and (known or name != "provider"):
            known = known or tuple(schema["properties"][name]["properties"])
            yield from (_unknown(key, known, name) for key in section if key not in known)
    types = schema["properties"]["available_node_types"]["patternProperties"][".*"]["properties"]
    for name, node in _types(config).items():
        yield from (_unknown(key, types, f"available_node_types.{name}") for key in node if key not in types)
    if _types(config) and config.get("head_node_type") not in _types(config):
        yield _unknown(config.get("head_node_type"), _types(config), "head_node_type", "node type")


def _types(config: dict[str, Any]) -> dict[str, Any]:
    types = config.get("available_node_types")
    return {name: node for name, node in types.items() if isinstance(node, dict)} if isinstance(types, dict) else {}


def _schema_errors(config: dict[str, Any]) -> Iterator[str]:
    """Yield the values that do not match Ray's schema."""
    import jsonschema

    for error in jsonschema.Draft7Validator(_schema()).iter_errors(config):
        where = ".".join(map(str, error.absolute_path))
        if error.validator != "additionalProperties":  # reported by `_unknown_keys`, with a suggestion
            yield f"{where or 'top level'}: {error.message}"


def _node_errors(config: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with node types: machines that EC2 would refuse, or that could never start."""
    for name, node in _types(config).items():
        where = f"available_node_types.{name}"
        minimum, maximum = node.get("min_workers", 0), node.get("max_workers")
        if isinstance(minimum, int) and isinstance(maximum, int) and minimum > maximum:
            yield f"{where}: min_workers {minimum} must not exceed max_workers {maximum}"
    provider = config.get("provider")
    if not isinstance(provider, dict) or provider.get("type") != "aws":
        return
    from botocore.validate import ParamValidator

    regions, shape = _ec2()
    region = str(provider.get("region"))
    if region not in regions and not PLACEHOLDER.search(region):
        yield _unknown(region, regions, "provider.region", "region")
    for zone in str(provider.get("availability_zone", region)).split(","):
        if not zone.strip().startswith(region):
            yield f"provider.availability_zone: {zone.strip()} is not in {region}"
    for name, node in _types(config).items():
        where, node_config = f"available_node_types.{name}.node_config", node.get("node_config")
        if not isinstance(node_config, dict):
            continue
        options = {key: value for key, value in node_config.items() if key not in RAY_NODE_KEYS}
        yield from _ec2_errors(options, shape, where)
        report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1} | options, shape)
        for line in report.generate_report().splitlines():
            if not line.startswith("Unknown parameter"):
                yield f"{where}: {line}"
        image = str(options.get("ImageId", ""))
        if not re.fullmatch(r"ami-[0-9a-f]{8,17}", image) and not PLACEHOLDER.search(image):
            yield (
                f"{where}.ImageId: {image or 'missing'}: must be ami- and 17 hexadecimal digits"
                " (without one, Ray chooses an image with Ubuntu 18.04)"
            )


@cache
def _ec2() -> tuple[list[str], Any]:
    """Return EC2's regions and the shape of its RunInstances request, as the installed botocore describes them."""
    import botocore.session

    session = botocore.session.Session()
    return session.get_available_regions("ec2"), session.get_service_model("ec2").operation_model(
        "RunInstances"
    ).input_shape


def _ec2_errors(value: Any, shape: Any, where: str) -> Iterator[str]:
    """Yield the keys that EC2 does not have, and the values that are not in its enumerations."""
    if shape.type_name == "structure" and isinstance(value, dict):
        for key, item in value.items():
            if key in shape.members:
                yield from _ec2_errors(item, shape.members[key], f"{where}.{key}")
            else:
                yield _unknown(key, shape.members, where, "EC2 key")
    elif shape.type_name == "list" and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _ec2_errors(item, shape.member, f"{where}[{index}]")
    elif shape.type_name == "string" and isinstance(value, str):
        allowed = getattr(shape, "enum", [])
        if allowed and value not in allowed:
            yield _unknown(value, allowed, where, "value")


def _start_command_errors(config: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the `ray start` commands: options, the token, and the dashboard's address."""
    from ray.scripts.scripts import start

    known = [option for parameter in start.params for option in (*parameter.opts, *parameter.secondary_opts)]
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = config.get(name)
        starts = [str(line) for line in commands if "ray start" in str(line)] if isinstance(commands, list) else []
        if not starts:
            yield f"{name}: must contain `ray start`"
        for command in starts:
            environment, _, arguments = command.partition("ray start")
            options = dict(
                word.partition("=")[::2] for word in shlex.split(arguments, comments=True) if word.startswith("--")
            )
            yield from (
                _unknown(option, known, name, "option of ray start") for option in options if option not in known
            )
            if "RAY_AUTH_MODE=token" not in environment:
                yield f"{name}: RAY_AUTH_MODE=token is not set: anyone who can reach the machine can run anything on it"
            if name.startswith("worker"):
                continue
            if "--autoscaling-config" not in options:
                yield f"{name}: without --autoscaling-config=~/ray_bootstrap_config.yaml no worker ever starts"
            if (host := options.get("--dashboard-host", LOOPBACK[0])) not in LOOPBACK:
                yield (
                    f"{name}: --dashboard-host={host} opens the dashboard to the network; use 127.0.0.1, which is all"
                    " that `ray dashboard` needs"
                )


def _missing_files(config: dict[str, Any]) -> Iterator[str]:
    """Yield the local files and directories that the file refers to and that do not exist."""
    mounts, auth = config.get("file_mounts"), config.get("auth")
    for remote, local in mounts.items() if isinstance(mounts, dict) else ():
        if not Path(str(local)).expanduser().exists() and not PLACEHOLDER.search(str(local)):
            if Path(str(local)).name == "auth_token":
                hint = "; create it with `ray get-auth-token --generate`"
            else:
                hint = f" in {Path.cwd().name}"
            yield f"file_mounts.{remote}: {local} does not exist{hint}"
    if not isinstance(mounts, dict) or "~/.ray/auth_token" not in mounts:
        yield "file_mounts: ~/.ray/auth_token is missing; without it no node can join"
    key = str(auth.get("ssh_private_key", "")) if isinstance(auth, dict) else ""
    if key and not PLACEHOLDER.search(key) and not Path(key).expanduser().exists():
        yield f"auth.ssh_private_key: {key} does not exist"


def _errors_of_ray(config: dict[str, Any]) -> list[str]:
    """Return what Ray's own validation reports once it has filled in its defaults."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    output = io.StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(output):
            validate_config(prepare_config(copy.deepcopy(config)))
    except (Exception, SystemExit) as error:
        lines = [line for line in (str(error) or output.getvalue()).splitlines() if line.strip()]
        return [f"Ray: {lines[0] if lines else type(error).__name__}"]
    return []


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python cluster/check.py", description="Print every mistake in a cluster file of `ray up`."
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="a cluster file, such as cluster/gpu.yaml")
    path = parser.parse_args().file
    found = mistakes(path)
    for mistake in found:
        print(f"{path}: {mistake}", file=sys.stderr)
    if found:
        sys.exit(2)
    print(f"{path}: no mistakes found")


if __name__ == "__main__":
    main()
