from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
import yaml
from huggingface_hub import errors

from genrec.errors import ArtifactError, ModelError
from genrec.tokenizers.semantic_id import SemanticIdTokenizer
from genrec.tokenizers.sharing.hub import names_repository, send_folder
from genrec.tokenizers.sharing.model_card import render_card

from .made_report import plant_codes, write_imported

SENT = {"README.md", "codes.parquet", "config.json", "model.safetensors", "quality.json"}


class FakeHub:
    """Writes down what it is asked for, and copies what it is sent."""

    asked: list[tuple[str, dict[str, Any]]]
    token: str | None

    def __init__(self, folder: Path) -> None:
        self.asked, self.folder, self.fault = [], folder, None

    def __call__(self, token: str | None = None) -> FakeHub:
        self.asked.append(("HfApi", {"token": token}))
        return self

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.asked.append(("create_repo", {"repo_id": repo_id, **options}))
        if self.fault is not None:
            raise self.fault
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, folder_path: Path, **options: Any) -> None:
        self.asked.append(("upload_folder", options))
        shutil.copytree(folder_path, self.folder)

    def snapshot_download(self, repo_id: str, **options: Any) -> str:
        self.asked.append(("snapshot_download", {"repo_id": repo_id, **options}))
        if self.fault is not None:
            raise self.fault
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture
def tokenizer(tmp_path: Path) -> SemanticIdTokenizer:
    return SemanticIdTokenizer.from_pretrained(
        write_imported(tmp_path / "tokenizer", plant_codes(), (6, 20))
    )


def test_what_is_sent_and_how(hub: FakeHub, tokenizer: SemanticIdTokenizer) -> None:
    address = tokenizer.push_to_hub("me/ids", private=True, token="secret")
    assert address == "https://hub.example/me/ids"
    assert hub.asked == [
        ("HfApi", {"token": "secret"}),
        ("create_repo", {"repo_id": "me/ids", "private": True, "exist_ok": True}),
        ("upload_folder", {"repo_id": "me/ids", "commit_message": "Semantic IDs by genrec"}),
    ]
    assert {path.name for path in hub.folder.iterdir()} == SENT
    card = (hub.folder / "README.md").read_text()
    assert 'from_pretrained("me/ids")' in card
    assert "secret" not in card


def test_what_was_sent_is_fetched(hub: FakeHub, tokenizer: SemanticIdTokenizer) -> None:
    tokenizer.push_to_hub("me/ids")
    hub.asked.clear()
    fetched = SemanticIdTokenizer.from_pretrained("me/ids", revision="v2")
    assert fetched.sids == tokenizer.sids
    assert fetched.quality == tokenizer.quality
    [(name, options)] = hub.asked
    assert name == "snapshot_download"
    assert (options["repo_id"], options["revision"]) == ("me/ids", "v2")
    assert set(options["allow_patterns"]) == SENT | {"retired.parquet"}


def test_an_incomplete_directory_is_never_sent(
    hub: FakeHub, tmp_path: Path, tokenizer: SemanticIdTokenizer
) -> None:
    tokenizer.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "codes.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"codes\.parquet missing"):
        SemanticIdTokenizer.from_pretrained(tmp_path / "plain").push_to_hub("me/ids")
    assert hub.asked == []


@pytest.mark.parametrize("name", ["ids", "me/ids/more", "/me/ids", "me/", "../ids", "me/i ds"])
def test_bad_names_are_refused_before_anything_is_sent(
    hub: FakeHub, tokenizer: SemanticIdTokenizer, name: str
) -> None:
    with pytest.raises(ArtifactError, match="names no repository; give OWNER/NAME"):
        tokenizer.push_to_hub(name)
    assert hub.asked == []


def test_a_path_is_a_path_and_a_text_may_be_a_repository(hub: FakeHub, tmp_path: Path) -> None:
    del hub
    assert names_repository("me/ids")
    assert not names_repository(Path("me/ids"))
    assert not names_repository("ids")
    assert not names_repository("./me/ids")
    (tmp_path / "me" / "ids").mkdir(parents=True)
    assert not names_repository("me/ids")
    with pytest.raises(ArtifactError, match="is no semantic-ID tokenizer"):
        SemanticIdTokenizer.from_pretrained("me/ids")


def make_response(status: int) -> httpx2.Response:
    request = httpx2.Request("GET", "https://hub.example/api")
    return httpx2.Response(status, request=request)


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (errors.RepositoryNotFoundError("404", response=make_response(404)), ArtifactError,
         "no repository 'me/ids' .no directory of that name is here.*hf auth login"),
        (errors.RevisionNotFoundError("404", response=make_response(404)), ArtifactError,
         "no revision 'v9'"),
        (errors.GatedRepoError("403", response=make_response(403)), ArtifactError, "is gated"),
        (errors.HfHubHTTPError("401", response=make_response(401)), ArtifactError, "refused"),
        (errors.LocalTokenNotFoundError("no token"), ArtifactError, "refused .*hf auth login"),
        (errors.LocalEntryNotFoundError("offline\nmore"), ModelError,
         "cannot be asked for 'me/ids'.*: offline; check the network, unset HF_HUB_OFFLINE"),
        (errors.OfflineModeIsEnabled("offline mode"), ModelError, "offline mode"),
        (httpx2.ConnectError("refused"), ModelError, "check the network"),
        (OSError(), ModelError, "OSError"),
        (errors.HFValidationError("too long"), ArtifactError, "does not accept .*too long"),
    ],
)  # fmt: skip
def test_faults_of_the_hub_have_a_way_out(
    hub: FakeHub, fault: Exception, kind: type[Exception], message: str
) -> None:
    hub.fault = fault
    with pytest.raises(kind, match=message):
        SemanticIdTokenizer.from_pretrained("me/ids", revision="v9")


def test_a_fault_while_sending(hub: FakeHub, tmp_path: Path) -> None:
    hub.fault = errors.HfHubHTTPError("403 Forbidden", response=make_response(403))
    with pytest.raises(
        ArtifactError, match="the hub refused 'me/ids': 403 Forbidden; try again later, or log in"
    ):
        send_folder(tmp_path, "me/ids", private=False, token=None)
    assert [name for name, _ in hub.asked] == ["HfApi", "create_repo"]


def test_offline_is_said_by_the_real_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"'genrec-no-such/owner'.* unset HF_HUB_OFFLINE"):
        SemanticIdTokenizer.from_pretrained("genrec-no-such/owner")


def test_the_card_says_what_is_in_the_directory(tmp_path: Path) -> None:
    folder = write_imported(tmp_path / "tokenizer", plant_codes(), (6, 20))
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "genrec"
    assert "semantic-ids" in front["tags"]
    assert "# Semantic IDs of 120 items" in card
    assert "| collisions after | 0.00% |" in card
    assert "| a | 6 | 6 | 6.0 | 2.58 | 0.000 |" in card
    assert "    quantizer: imported" in card
    assert "rqvae:" not in card


def test_the_card_of_unknown_quality_and_of_changed_values() -> None:
    config = {
        "subject": "users", "n_items": 2, "n_levels": 1, "codebook_sizes": [4], "version": 3,
        "quantizer": "rqkmeans", "files": {"retired.parquet": "x"},
        "recipe": {"quantizer": "rqkmeans", "rqkmeans": {"iterations": 3}, "options": {"a": "```"}},
    }  # fmt: skip
    card = render_card(config, None)
    assert "## Quality" not in card
    assert "    rqkmeans:\n      iterations: 3\n" in card
    assert "retired.parquet" in card
    assert "version 3 of this vocabulary" in card


def test_reconstruction_is_on_the_card() -> None:
    config = {
        "subject": "items", "n_items": 2, "n_levels": 1, "codebook_sizes": [4], "version": 1,
        "quantizer": "rqvae", "files": {}, "recipe": {},
    }  # fmt: skip
    quality = {
        "collision_rate": {"before": 0.5, "after": 0.0},
        "moved": {"items": 1, "share": 0.5},
        "levels": [],
        "reconstruction": {"after": {"cosine": 0.912345, "relative_error": 0.25}},
    }
    card = render_card(config, quality)
    assert "| reconstruction, cosine | 0.9123 |" in card
    assert "| reconstruction, relative error | 0.2500 |" in card
