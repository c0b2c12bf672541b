"""The configuration, keys and names: where they come from, and one line for what cannot be used."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stratum_models.errors import UserError
from stratum_serve.__main__ import main as command
from stratum_serve.app import _options, is_loopback, with_pipelines
from stratum_serve.config import DEMO_PACKAGE, ServeArgs, load_config
from stratum_serve.keys import KeyRing, hash_key, main, new_key
from stratum_serve.names import NAME, Reference, parse_reference
from stratum_serve.problems import KINDS, Problem


def test_names_of_the_registry_and_packages(tmp_path: Path) -> None:
    config = load_config(ServeArgs(models="losnet, ore=packages/ore,big=s3://bucket/ore"), tmp_path)
    assert [(model.name, model.package) for model in config.models] == [
        ("losnet", ""),
        ("ore", str(tmp_path / "packages/ore")),
        ("big", "s3://bucket/ore"),
    ]
    assert config.models[0].alias == "champion"


def test_arguments_go_before_the_file_and_the_file_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "serving.yaml"
    path.write_text(yaml.safe_dump({"models": ["a", "b"], "limits": {"pixels": 7}, "refresh_seconds": 3}))
    monkeypatch.setenv("STRATUM_SERVE_REFRESH_SECONDS", "9")
    monkeypatch.setenv("STRATUM_SERVE_BATCHING", '{"images": 2}')
    config = load_config(ServeArgs(config=str(path), models="c"), tmp_path)
    assert [model.name for model in config.models] == ["c"]
    assert (config.limits.pixels, config.refresh_seconds, config.batching.images) == (7, 3, 2)


def test_without_anything_the_demo_is_served(tmp_path: Path, packages: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="make demo"):
        load_config(ServeArgs(), tmp_path)
    (tmp_path / DEMO_PACKAGE).parent.mkdir(parents=True)
    (tmp_path / DEMO_PACKAGE).symlink_to(packages["losnet"])
    (model,) = load_config(ServeArgs(), tmp_path).models
    assert (model.name, model.package) == ("losnet", str(tmp_path / DEMO_PACKAGE))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": "a", "colour": 1}, "colour"),
        ({"models": "a,a"}, "twice"),
        ({"models": "a b"}, "models"),
        ({"models": "a", "limits": {"pixels": 0}}, "pixels"),
        ({"models": "a", "scaling": {"min_replicas": 3}}, "above max_replicas"),
        ({"models": [{"name": "a", "package": "p", "canary": {"to": "x", "share": 0.5}}]}, "no versions"),
        ({"models": [{"name": "a", "canary": {"to": "x", "share": 2}}]}, "share"),
        ({"models": "a", "config": "/nowhere.yaml"}, "/nowhere.yaml"),
        ({"models": "a,b,c", "models_per_replica": 2}, "models_per_replica 2: 3 are configured"),
    ],
)
def test_what_cannot_be_used_is_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(ServeArgs(**values))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_replica_holds_all_that_is_configured_and_one_more() -> None:
    shares = {"canary": {"to": "next", "share": 0.1}, "shadow": {"to": "best", "share": 1}}
    models = [{"name": "a", **shares}, {"name": "b"}]
    assert load_config(ServeArgs(models=models)).models_held == 5  # type: ignore[call-arg]
    assert load_config(ServeArgs(models=models, models_per_replica=4)).models_held == 4  # type: ignore[call-arg]


def test_two_stage_packages_become_pipelines(packages: dict[str, Path]) -> None:
    config = load_config(ServeArgs(models=",".join(f"{name}={path}" for name, path in packages.items())))
    assert with_pipelines(config).pipelines == ("cells",)
    with pytest.raises(UserError, match="nobody"):
        with_pipelines(config.model_copy(update={"pipelines": ("nobody",)}))


def test_a_replica_that_is_told_to_go_may_answer_the_longest_request() -> None:
    config = load_config(ServeArgs(models="a", limits={"seconds": 90}))
    assert _options(config.scaling, config, {})["graceful_shutdown_timeout_s"] > 90


def test_references() -> None:
    assert parse_reference("losnet") == Reference(name="losnet")
    assert parse_reference("losnet@3").version == "3"
    assert parse_reference("losnet@champion").version == ""
    assert str(parse_reference("a.b-c_d@v1.2")) == "a.b-c_d@v1.2"


@given(st.text(max_size=30))
def test_any_other_text_is_no_reference(text: str) -> None:
    if re.fullmatch(rf"{NAME}(@{NAME})?", text):
        assert str(parse_reference(text)) == text
        return
    with pytest.raises(Problem) as caught:
        parse_reference(text)
    assert caught.value.kind == "unknown-model"


def test_keys_are_kept_as_hashes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["plant", "predict,batches"]) == 0
    said = capsys.readouterr().out
    key = said.splitlines()[0].rpartition(" ")[2]
    (tmp_path / "keys.yaml").write_text(said)
    assert key not in yaml.safe_dump(yaml.safe_load(said))
    ring = KeyRing(str(tmp_path / "keys.yaml"))
    found = ring.check(f"Bearer {key}", "batches")
    assert found is not None
    assert (found.name, found.sha256) == ("plant", hash_key(key))
    second, entry = new_key("second")
    monkeypatch.setenv("STRATUM_SERVE_KEYS", json.dumps([entry.model_dump(mode="json")]))
    assert KeyRing().check(f"bearer {second}", "predict") is not None
    assert main([]) == main(["a", "everything"]) == 2


@pytest.mark.parametrize("text", ["{", "keys: 1", "- name: a", "- {name: a, sha256: b}"])
def test_broken_files_of_keys(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.yaml").write_text(text)
    with pytest.raises(UserError, match=r"keys\.yaml"):
        KeyRing(str(tmp_path / "keys.yaml"))
    with pytest.raises(UserError, match="none"):
        KeyRing(str(tmp_path / "none.yaml"))


def test_an_empty_file_of_keys_is_not_open(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text("[]")
    ring = KeyRing(str(tmp_path / "keys.yaml"))
    assert not ring.open
    with pytest.raises(Problem):
        ring.check(None, None)


def test_an_empty_variable_of_keys_is_not_open_either(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, is_open in (("[]", False), (" [] ", False), ("", True), (" ", True)):
        monkeypatch.setenv("STRATUM_SERVE_KEYS", text)
        assert KeyRing().open == is_open
    monkeypatch.delenv("STRATUM_SERVE_KEYS")
    assert KeyRing().open


def test_keys_of_the_driver_reach_the_ingress_wherever_it_stands(
    packages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = json.dumps([new_key("plant")[1].model_dump(mode="json")])
    (tmp_path / "keys.yaml").write_text(keys)
    models = f"losnet={packages['losnet']}"
    assert "STRATUM_SERVE_KEYS" not in env_of(ServeArgs(models=models))
    monkeypatch.setenv("STRATUM_SERVE_KEYS", keys)
    assert env_of(ServeArgs(models=models))["STRATUM_SERVE_KEYS"] == keys
    assert "STRATUM_SERVE_KEYS" not in env_of(ServeArgs(models=models, keys_file=str(tmp_path / "keys.yaml")))


def test_a_new_version_comes_up_beside_the_old_one_which_answers_what_it_has(packages: dict[str, Path]) -> None:
    from stratum_serve.app import build

    models = ",".join(f"{name}={path}" for name, path in packages.items())
    ingress = build(ServeArgs(models=models, limits={"seconds": 90}))._bound_deployment  # type: ignore[call-arg]
    models, stage1 = (bound._bound_deployment for bound in ingress.init_args[1:])
    for one in (ingress, models, stage1, stage1.init_args[1]._bound_deployment):
        assert one._deployment_config.max_surge_percent == 100
        assert one._deployment_config.graceful_shutdown_timeout_s >= 90


def test_a_replica_whose_network_hangs_is_not_healthy() -> None:
    from stratum_serve.replica import check_age

    check_age(15.0, longest=10.0)
    with pytest.raises(RuntimeError, match="21 s"):
        check_age(21.0, longest=10.0)


def env_of(args: ServeArgs) -> dict[str, str]:
    """The variables that the ingress replicas get."""
    from stratum_serve.app import build

    found: dict[str, str] = build(args)._bound_deployment.ray_actor_options["runtime_env"]["env_vars"]
    return found


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "", "192.168.0.1", "host.example"))


def test_problems_travel_between_processes() -> None:
    import pickle

    for kind in KINDS:
        problem = pickle.loads(pickle.dumps(Problem(kind, "detail", 3)))
        assert (problem.kind, problem.detail, problem.retry_after) == (kind, "detail", 3)
        assert problem.document("id")["status"] == KINDS[kind].status


WRONG = [(["models"], "field=value"), (["models=a,a"], "twice"), ([], "make demo"), (["models=a", "keys_file=/none"], "/none")]


@pytest.mark.parametrize(("argv", "word"), WRONG)
def test_the_command_ends_with_one_line(
    argv: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert word in said
    assert said.count("\n") == 1
