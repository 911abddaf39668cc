"""`genrec serve` before its port is bound: settings, keys, models and adapters that are wrong."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from genrec import cli, cli_serve
from genrec.errors import (
    ArtifactError,
    DataError,
    GenrecError,
    MissingExtraError,
    ModelError,
    RecipeError,
)
from genrec.opening import ModelChoice
from genrec.serve.assemble import Parts, assemble_server
from genrec.serve.keys import KeyRing, add_key, hash_key
from genrec.serve.settings import ServeSettings

runner = CliRunner()


def serve(*arguments: str) -> Any:
    return runner.invoke(cli.app, ["serve", *arguments])


def refuse(kind: type[GenrecError], *arguments: str) -> str:
    """What the command says before it ends."""
    error = serve(*arguments).exception
    assert isinstance(error, kind), error
    return str(error)


def test_help_groups_its_options() -> None:
    shown = runner.invoke(cli.app, ["serve", "--help"]).output
    for word in ("LIMIT=VALUE", "--api-key-file", "--adapter", "--drain-seconds", "Access"):
        assert word in shown


def test_a_public_port_wants_a_key(tmp_path: Path) -> None:
    words = refuse(RecipeError, "model", "--host", "0.0.0.0")
    assert "'0.0.0.0' can be reached from other machines" in words
    assert "--insecure-public" in words
    for host in ("::", "192.168.0.1", "example.org"):
        with pytest.raises(RecipeError, match="there is no API key"):
            ServeSettings(host=host)
    ring = KeyRing((("me", hash_key("k")),))
    assert not ServeSettings(host="0.0.0.0", keys=ring).is_local
    assert not ServeSettings(host="::", insecure_public=True).is_local
    for host in ("127.0.0.1", "::1", "localhost", "127.8.9.1"):
        assert ServeSettings(host=host).is_local


def test_settings_that_mean_nothing_are_all_named() -> None:
    with pytest.raises(RecipeError) as caught:
        ServeSettings(max_k=0, port=70_000, gather_seconds=-1, deadline_seconds=float("nan"))
    for words in (
        "max_k=0; use a number above 0",
        "port=70000",
        "gather_seconds=-1; use a number above 0, or 0",
        "deadline_seconds=nan; use a number above 0",
    ):
        assert words in str(caught.value)


def test_limits_are_given_by_name() -> None:
    settings = cli_serve._read_settings(["max_k=7", "body_seconds=0.5"], host="127.0.0.1")
    assert (settings.max_k, settings.body_seconds) == (7, 0.5)
    assert settings.allowed_hosts == ("localhost", "127.0.0.1", "::1")
    own = cli_serve._read_settings(None, allowed_hosts=("shop",))
    assert own.allowed_hosts == ("shop",)
    ring = KeyRing((("me", hash_key("k")),))
    assert cli_serve._read_settings(None, keys=ring).allowed_hosts == ()
    # Those that are options, too, as docs/serving.md lists them.
    options = {"max_queue": 256, "linger_seconds": 0.0}
    both = cli_serve._read_settings(["linger_seconds=10", "max_queue=2"], **options)
    assert (both.linger_seconds, both.max_queue) == (10, 2)
    words = refuse(RecipeError, "model", "max_kk=3", "max_k=z", "host=x", "port=1")
    assert "'port=1': no such limit" in words
    assert "did you mean 'max_k'?" in words
    assert "'z' is no int" in words
    assert "'host=x': no such limit" in words


def test_pairs_are_names_and_values() -> None:
    words = refuse(RecipeError, "model", "--adapter", "x", "--adapter", "a=1", "--adapter", "a=2")
    assert "'x' is not --adapter NAME=PATH" in words
    assert "'a' is given twice" in words
    words = refuse(RecipeError, "model", "--domain", "games=a")
    assert "adapter 'a', which is not served; pass --adapter a=PATH" in words


def test_an_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_serve, "find_spec", lambda name: None)
    assert "pip install 'genrec[serve]'" in refuse(MissingExtraError, "model")


def test_a_model_that_cannot_be_served(tiny_run: Path, tmp_path: Path) -> None:
    assert "no manifest" in refuse(ArtifactError, str(tmp_path), "--port", "0")
    broken = tmp_path / "model"
    shutil.copytree(tiny_run / "model", broken)
    (broken / "item_index.parquet").unlink()
    assert "item_index.parquet" in refuse(ArtifactError, str(broken), "--port", "0")


def test_an_adapter_that_is_none(tiny_run: Path, tmp_path: Path) -> None:
    words = refuse(ModelError, str(tiny_run / "model"), "--port", "0", "--adapter", f"a={tmp_path}")
    assert "adapter 'a'" in words


def test_vllm_that_is_not_installed_is_named(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genrec.decode.vllm_open.importlib.util.find_spec", lambda name: None)
    words = refuse(MissingExtraError, str(tiny_run / "model"), "--port", "0", "--engine", "vllm")
    assert "pip install 'genrec[vllm]'" in words
    words = refuse(RecipeError, "model", "--port", "0", "--vllm-arg", "tensor_parallel_size")
    assert "'tensor_parallel_size' is not KEY=VALUE" in words


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = refuse(RecipeError, "no-such-model", "--port", port)
    assert f"cannot listen on 127.0.0.1 port {port}" in words
    assert "(0 takes a free one)" in words


def test_an_assembled_server_has_its_parts(tiny_run: Path, tmp_path: Path) -> None:
    choice = ModelChoice(tiny_run / "model", device="cpu")
    service, app = assemble_server(Parts(choice), ServeSettings())
    assert service.encoder is not None  # the tokenizer lies beside the model
    assert len(service.encoder.encode_texts(["red lacquer"])) == 1
    assert "/v1/recommendations" in app.openapi()["paths"]
    body = {"history": list(service.edition.recommender.item_ids[:12])}
    with TestClient(app) as client:
        answers = [client.post("/v1/recommendations", json=body) for _ in range(2)]
        first, second = ([item["item_id"] for item in a.json()["items"]] for a in answers)
        assert first == second
        metrics = client.get("/metrics").text
    assert "genrec_prefix_cache_hits_total 1.0" in metrics
    assert "genrec_prefix_cache_misses_total 3.0" in metrics  # with the two of the start's check
    with pytest.raises(ArtifactError):
        assemble_server(Parts(choice, tokenizer=tmp_path), ServeSettings())


def test_a_store_has_the_routes_that_change_it(tiny_run: Path, tmp_path: Path) -> None:
    choice = ModelChoice(tiny_run / "model", device="cpu")
    service, app = assemble_server(Parts(choice, store=tmp_path / "store"), ServeSettings())
    assert "/v1/catalog/items" in app.openapi()["paths"]
    assert service.encoder is not None


def test_keys_are_made_kept_as_hashes_and_found(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    made = runner.invoke(cli.app, ["serve-key", str(path), "--name", "ann"])
    key = made.stdout.strip()
    assert key.startswith("gr_")
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    second = add_key(path, "bob")
    path.write_text(path.read_text() + "\n# a comment\n")
    ring = KeyRing.load(path)
    assert (ring.find_owner(key), ring.find_owner(second)) == ("ann", "bob")
    for wrong in ("", key[:-1], key + "x", "\ud800", hash_key(key)):
        assert ring.find_owner(wrong) is None


def test_key_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    with pytest.raises(DataError, match="cannot be read"):
        KeyRing.load(path)
    path.write_text("# nothing\n")
    with pytest.raises(DataError, match="holds no key; make one"):
        KeyRing.load(path)
    path.write_text("ann gr_secret\nann sha256:12\none\n")
    with pytest.raises(DataError, match="3 problems") as caught:
        KeyRing.load(path)
    assert "secret" not in str(caught.value)
    with pytest.raises(DataError, match="a key's name is 1 to 64 letters"):
        add_key(path, "a b")
    with pytest.raises(DataError, match="cannot be written"):
        add_key(tmp_path / "no" / "keys.txt", "ann")


def test_an_engine_that_does_not_start_ends_the_command(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ModelError("the engine lies")

    monkeypatch.setattr("genrec.serve.torch_backend.probe_engine", fail)
    ended = serve(str(tiny_run / "model"), "--port", "0")
    assert str(ended.exception) == "the engine lies"
    assert "genrec serves" not in ended.output

    def break_down(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("genrec.serve.torch_backend.probe_engine", break_down)
    words = refuse(ModelError, str(tiny_run / "model"), "--port", "0")
    assert "did not start: RuntimeError('out of memory')" in words
