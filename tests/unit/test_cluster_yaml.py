"""cluster.yaml as Ray's launcher reads it, without a network, AWS credentials or boto3."""

import copy
import json
import os
import re
import subprocess
import tomllib

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# AWS key ids, private keys, values of secret-like names, and hex of the length of Ray's tokens and of SHA-256.
SECRET = re.compile(
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|PRIVATE KEY|(secret|password|token)\w*\s*[:=]\s*['\"]?\w{12,}|\b[0-9a-f]{32,}\b", re.I
)


def read(name: str) -> str:
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


@pytest.fixture
def config() -> dict:
    return yaml.safe_load(read("cluster.yaml"))


@pytest.fixture
def prepared(config: dict) -> dict:
    """The configuration with Ray's defaults filled in, as `ray up` sends it to the head."""
    return prepare_config(config)


def commands_of(prepared: dict, node_type: str) -> list[str]:
    """The set-up commands that Ray runs on a node of a type, by Ray's own choice among the lists."""
    if node_type == prepared["head_node_type"]:
        return prepared["head_setup_commands"]
    # The head prepares what `ray up` had prepared already, through JSON.
    autoscaling = AutoscalingConfig(json.loads(json.dumps(prepared)), skip_content_hash=True)
    return autoscaling.get_worker_setup_commands(node_type)


def test_ray_accepts_it(prepared: dict) -> None:
    validate_config(prepared)


def drop_head_type(config: dict) -> None:
    del config["available_node_types"]["head"]


def misspell_a_key(config: dict) -> None:
    config["idle_timeout_minute"] = 5


def misspell_a_key_of_a_type(config: dict) -> None:
    config["available_node_types"]["gpu_worker"]["setup_command"] = []


def ask_for_half_a_gpu(config: dict) -> None:
    config["available_node_types"]["gpu_worker"]["resources"]["GPU"] = 0.5


def start_more_than_allowed(config: dict) -> None:
    config["available_node_types"]["gpu_worker"]["min_workers"] = 9


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (drop_head_type, ValueError, "head_node_type"),
        (misspell_a_key, jsonschema.ValidationError, "idle_timeout_minute"),
        (misspell_a_key_of_a_type, jsonschema.ValidationError, "setup_command"),
        (ask_for_half_a_gpu, jsonschema.ValidationError, "0.5 is not of type 'integer'"),
        (start_more_than_allowed, ValueError, "max_workers"),
    ],
)
def test_ray_refuses_a_spoilt_copy(config: dict, spoil, error: type[Exception], message: str) -> None:
    spoilt = copy.deepcopy(config)
    spoil(spoilt)
    with pytest.raises(error, match=message):
        validate_config(prepare_config(spoilt))


def test_the_head_offers_neither_cpu_nor_gpu(prepared: dict) -> None:
    head = prepared["available_node_types"][prepared["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert head["node_config"]["InstanceType"].startswith("m")


def test_workers_come_and_go(prepared: dict) -> None:
    workers = {name: node for name, node in prepared["available_node_types"].items() if node["max_workers"]}
    assert set(workers) == {"cpu_worker", "gpu_worker"}
    assert [node["min_workers"] for node in workers.values()] == [0, 0]
    assert sum(node["max_workers"] for node in workers.values()) <= prepared["max_workers"]
    assert workers["gpu_worker"]["resources"]["GPU"] == 1
    assert "GPU" not in workers["cpu_worker"]["resources"]
    assert prepared["idle_timeout_minutes"] > 0
    assert prepared["provider"]["cache_stopped_nodes"] is False


def test_merging_keeps_what_a_gpu_node_must_not_inherit(prepared: dict) -> None:
    types = {name: node["node_config"] for name, node in prepared["available_node_types"].items()}
    assert types["gpu_worker"]["InstanceType"].startswith("g")
    assert "nvidia-driver" in types["gpu_worker"]["ImageId"]
    assert types["cpu_worker"]["InstanceType"].startswith("m")
    assert types["cpu_worker"]["IamInstanceProfile"] == types["gpu_worker"]["IamInstanceProfile"]
    assert types["head"]["IamInstanceProfile"] != types["cpu_worker"]["IamInstanceProfile"]


@pytest.mark.parametrize(("node_type", "extras"), [("head", set()), ("cpu_worker", set()), ("gpu_worker", {"gpu"})])
def test_each_node_installs_from_the_lock(prepared: dict, node_type: str, extras: set[str]) -> None:
    installs = [command for command in commands_of(prepared, node_type) if "-r pyproject.toml" in command]
    assert installs
    for command in installs:
        assert "uv pip install --constraint requirements.lock " in command
        assert set(re.findall(r"--extra (\S+)", command)) == extras
    assert extras <= set(tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"])


def test_uv_comes_from_the_lock_alone(prepared: dict) -> None:
    for node_type in prepared["available_node_types"]:
        (awk,) = {
            match[0]
            for command in commands_of(prepared, node_type)
            for match in re.finditer(r"awk '.*?' requirements\.lock", command)
        }
        block = subprocess.run(["bash", "-c", awk], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert re.findall(r"^[^ #\n]+", block, re.M) == [block.split(maxsplit=1)[0]]
        assert block.startswith("uv==")
        assert "--hash=sha256:" in block


def test_commands_are_valid_shell(prepared: dict) -> None:
    commands = [
        *prepared["head_start_ray_commands"],
        *prepared["worker_start_ray_commands"],
        *(command for node_type in prepared["available_node_types"] for command in commands_of(prepared, node_type)),
    ]
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_what_is_copied_is_there_and_small(prepared: dict) -> None:
    copied = {remote: local for remote, local in prepared["file_mounts"].items() if not local.startswith("~")}
    assert copied
    for remote, local in copied.items():
        assert os.path.isfile(os.path.join(ROOT, local))
        assert remote == f"~/tlray/{local}"


def test_ray_starts_with_the_autoscaler_and_with_the_token(prepared: dict) -> None:
    (head,) = (command for command in prepared["head_start_ray_commands"] if "ray start" in command)
    (worker,) = (command for command in prepared["worker_start_ray_commands"] if "ray start" in command)
    assert "RAY_AUTH_MODE=token ray start --head " in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "--dashboard-host" not in head  # open on localhost only
    assert "RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379" in worker
    assert ("~/.ray/auth_token", "~/.ray/auth_token") in prepared["file_mounts"].items()
    for node_type in prepared["available_node_types"]:
        (shell,) = {command for command in commands_of(prepared, node_type) if ".bashrc" in command}
        assert "export RAY_AUTH_MODE=token" in shell
        assert "chmod 600 ~/.ray/auth_token" in shell


def test_no_secret_in_the_file() -> None:
    assert SECRET.search(read("cluster.yaml")) is None


@pytest.mark.parametrize(
    "line",
    [
        "RAY_AUTH_TOKEN=" + "0a" * 32,
        "ssh_public_key: " + "0a" * 32,
        "AKIA" + "A" * 16,
        "aws_secret_access_key: abcdefghijklmnop",
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
def test_a_secret_would_be_seen(line: str) -> None:
    assert SECRET.search(read("cluster.yaml") + line) is not None
