"""Says every mistake in a cluster file that can be seen without an account, one a line: python cluster/check.py cluster/gpu.yaml

`ray up` starts machines by whatever it understands: it takes an unknown key of a provider for nothing, a second key for the only one, and
an option that no machine can be given for one to be refused later, by AWS.
"""

from __future__ import annotations

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

PLACE = re.compile(r"<[A-Z][A-Z0-9_ ]*>")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What Ray reads of `provider`; its schema lists what any provider may have, and allows all else.
PROVIDERS = {
    "aws": (
        *("type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "use_external_head_ip"),
        *("security_group", "key_pair", "cloudwatch", "aws_credentials"),
    ),
    "local": ("type", "head_ip", "worker_ips", "external_head_ip", "coordinator_address"),
}
EC2_OWN = ("SubnetIds",)  # a key of Ray's own among those of EC2's RunInstances


class _Loader(yaml.SafeLoader):
    """Refuses a key that is written twice, of which YAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key}: there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def mistakes(path: Path) -> list[str]:
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        return ["there is no such file"]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        return [f"{f'line {mark.line + 1}: ' if mark else ''}{getattr(error, 'problem', None) or error}"]
    if not isinstance(config, dict):
        return ["not a cluster: no keys at the top"]
    found = [
        *_places(config, ""),
        *_keys(config),
        *_shape(config),
        *_nodes(config),
        *_commands(config),
        *_files(config),
    ]
    return list(dict.fromkeys(found or _rays_own(config)))


def _places(value: Any, where: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _places(each, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _places(each, f"{where}[{number}]")
    elif isinstance(value, str) and (places := PLACE.findall(value)):
        yield f"{where}: fill in {', '.join(dict.fromkeys(places))}"


def _unknown(key: object, known: Iterable[str], where: str, what: str = "key") -> str:
    known = list(known)
    lower = {each.lower(): each for each in known}
    near = (
        [lower[str(key).lower()]]
        if str(key).lower() in lower
        else difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    )
    return f"{where}: unknown {what} {key}{f', near {near[0]}' if near else ''}"


@cache
def _schema() -> dict[str, Any]:
    import ray.autoscaler

    schema: dict[str, Any] = json.loads((Path(str(ray.autoscaler.__file__)).parent / "ray-schema.json").read_text())
    return schema


def _keys(config: dict[str, Any]) -> Iterator[str]:
    """Keys that Ray does not read, wherever it knows them all."""
    schema, provider = _schema(), config.get("provider")
    kind = provider.get("type") if isinstance(provider, dict) else None
    if kind not in PROVIDERS:
        yield _unknown(kind, PROVIDERS, "provider.type", "kind of provider (this check knows aws and local)")
    top = [*schema["properties"], *(["min_workers"] if kind == "local" else [])]
    yield from (_unknown(key, top, "the file") for key in config if key not in top)
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


def _shape(config: dict[str, Any]) -> Iterator[str]:
    """What Ray's schema says of values."""
    import jsonschema

    for error in jsonschema.Draft7Validator(_schema()).iter_errors(config):
        where = ".".join(map(str, error.absolute_path))
        if error.validator != "additionalProperties":  # said already, with the key that is near
            yield f"{where or 'the file'}: {error.message}"


def _nodes(config: dict[str, Any]) -> Iterator[str]:
    """Machines that EC2 would refuse, or that never come."""
    for name, node in _types(config).items():
        where = f"available_node_types.{name}"
        least, most = node.get("min_workers", 0), node.get("max_workers")
        if isinstance(least, int) and isinstance(most, int) and least > most:
            yield f"{where}: min_workers {least} is more than max_workers {most}"
    provider = config.get("provider")
    if not isinstance(provider, dict) or provider.get("type") != "aws":
        return
    from botocore.validate import ParamValidator

    regions, shape = _ec2()
    region = str(provider.get("region"))
    if region not in regions and not PLACE.search(region):
        yield _unknown(region, regions, "provider.region", "region")
    for zone in str(provider.get("availability_zone", region)).split(","):
        if not zone.strip().startswith(region):
            yield f"provider.availability_zone: {zone.strip()} is not in {region}"
    for name, node in _types(config).items():
        where, wanted = f"available_node_types.{name}.node_config", node.get("node_config")
        if not isinstance(wanted, dict):
            continue
        wanted = {key: value for key, value in wanted.items() if key not in EC2_OWN}
        yield from _values(wanted, shape, where)
        report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1} | wanted, shape)
        for line in report.generate_report().splitlines():
            if not line.startswith("Unknown parameter"):
                yield f"{where}: {line}"
        image = str(wanted.get("ImageId", ""))
        if not re.fullmatch(r"ami-[0-9a-f]{8,17}", image) and not PLACE.search(image):
            yield f"{where}.ImageId: {image or 'missing'}: Ray's own are of Ubuntu 18.04; an image is ami- and 17 hexadecimal digits"


@cache
def _ec2() -> tuple[list[str], Any]:
    """EC2's regions, and what it takes for a machine, as this botocore knows them."""
    import botocore.session

    session = botocore.session.Session()
    return session.get_available_regions("ec2"), session.get_service_model("ec2").operation_model(
        "RunInstances"
    ).input_shape


def _values(value: Any, shape: Any, where: str) -> Iterator[str]:
    """Keys that EC2 does not have, and words where it has a list of them."""
    if shape.type_name == "structure" and isinstance(value, dict):
        for key, each in value.items():
            if key in shape.members:
                yield from _values(each, shape.members[key], f"{where}.{key}")
            else:
                yield _unknown(key, shape.members, where, "key of EC2's")
    elif shape.type_name == "list" and isinstance(value, list):
        for number, each in enumerate(value):
            yield from _values(each, shape.member, f"{where}[{number}]")
    elif (
        shape.type_name == "string"
        and isinstance(value, str)
        and (words := getattr(shape, "enum", []))
        and value not in words
    ):
        yield _unknown(value, words, where, "value")


def _commands(config: dict[str, Any]) -> Iterator[str]:
    """Ray's start: its options, the token, and a dashboard that the network does not reach."""
    from ray.scripts.scripts import start

    options = [option for parameter in start.params for option in (*parameter.opts, *parameter.secondary_opts)]
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = config.get(name)
        starts = [str(each) for each in commands if "ray start" in str(each)] if isinstance(commands, list) else []
        if not starts:
            yield f"{name}: no `ray start`"
        for command in starts:
            before, _, after = command.partition("ray start")
            given = dict(
                word.partition("=")[::2] for word in shlex.split(after, comments=True) if word.startswith("--")
            )
            yield from (
                _unknown(option, options, name, "option of ray start") for option in given if option not in options
            )
            if "RAY_AUTH_MODE=token" not in before:
                yield f"{name}: RAY_AUTH_MODE=token is not set: whoever reaches the machine may run anything on it"
            if name.startswith("worker"):
                continue
            if "--autoscaling-config" not in given:
                yield f"{name}: without --autoscaling-config=~/ray_bootstrap_config.yaml no worker is ever started"
            if given.get("--dashboard-host", LOOPBACK[0]) not in LOOPBACK:
                yield f"{name}: --dashboard-host={given['--dashboard-host']} opens the dashboard to the network; `ray dashboard` needs 127.0.0.1 only"


def _files(config: dict[str, Any]) -> Iterator[str]:
    """What is to be sent, and is not here."""
    mounts, auth = config.get("file_mounts"), config.get("auth")
    for remote, local in mounts.items() if isinstance(mounts, dict) else ():
        if not Path(str(local)).expanduser().exists() and not PLACE.search(str(local)):
            how = (
                ": make it with `ray get-auth-token --generate`"
                if Path(str(local)).name == "auth_token"
                else f" in {Path.cwd().name}"
            )
            yield f"file_mounts.{remote}: there is no {local}{how}"
    if not isinstance(mounts, dict) or "~/.ray/auth_token" not in mounts:
        yield "file_mounts: ~/.ray/auth_token is missing, without which no node can join"
    key = str(auth.get("ssh_private_key", "")) if isinstance(auth, dict) else ""
    if key and not PLACE.search(key) and not Path(key).expanduser().exists():
        yield f"auth.ssh_private_key: there is no {key}"


def _rays_own(config: dict[str, Any]) -> list[str]:
    """What Ray says when it has filled in its defaults."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            validate_config(prepare_config(copy.deepcopy(config)))
    except (Exception, SystemExit) as error:
        lines = [line for line in (str(error) or said.getvalue()).splitlines() if line.strip()]
        return [f"Ray: {lines[0] if lines else type(error).__name__}"]
    return []


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python cluster/check.py FILE")
    path = Path(sys.argv[1])
    found = mistakes(path)
    for mistake in found:
        print(f"{path}: {mistake}", file=sys.stderr)
    if found:
        sys.exit(2)
    print(f"{path}: fine")


if __name__ == "__main__":
    main()
