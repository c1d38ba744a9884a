"""Checkpoints by name: found in local caches without network, fetched by one verb alone."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import mimbench
from mimbench.benchmarks.cells import read_candidate
from mimbench.benchmarks.evaluation import describe_weights
from mimbench.checkpoints.files import read_checkpoint, read_weights
from mimbench.checkpoints.names import hub as hubs
from mimbench.checkpoints.names.caches import hub_cache, torch_cache
from mimbench.checkpoints.names.located import locate, present, require_all
from mimbench.checkpoints.names.registry import fine_tuned, look_up
from mimbench.commands.inspect import main as inspect
from mimbench.suite.suite import read_candidates
from mimbench.system.errors import UserError
from mimbench.system.files import file_digest
from mimbench.vit.weights import VitSpec, VitWeights
from tests.support.checkpoint_layouts import TINY, canonical
from tests.support.tiny_hub import Hub, serving

REVISION = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
HF_CONFIG = {"hidden_size": 48, "num_attention_heads": 3, "image_size": 64, "patch_size": 16,
             "hidden_act": "gelu", "layer_norm_eps": 1e-12}  # fmt: skip
TIMM = "vit_small_patch14_dinov2.lvd142m"
SMALL = VitSpec(
    embed_dim=48, depth=2, num_heads=3, mlp_dim=96, patch_size=14, grid=(4, 4),
    layer_scale=True, position_rule="bicubic-antialias",
)  # fmt: skip


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and no way out of this machine."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    reach = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        assert isinstance(address, tuple)
        assert address[0] in ("127.0.0.1", "::1"), f"reached for {address}"
        reach(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return tmp_path


def keep(repository: str, files: dict[str, bytes], revision: str = REVISION) -> Path:
    """Lay a repository into the cache as Hugging Face's library does; return the snapshot."""
    root = hub_cache() / f"models--{repository.replace('/', '--')}"
    for name, content in files.items():
        blob = root / "blobs" / f"{abs(hash(content)):x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = root / "snapshots" / revision / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"{'../' * (2 + name.count('/'))}blobs/{blob.name}")
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(revision)
    return root / "snapshots" / revision


def hf_files() -> dict[str, bytes]:
    from tests.support.checkpoint_layouts import LAYOUTS

    layout = LAYOUTS["hf-vit"]
    tensors = {k: v.contiguous() for k, v in layout.write(canonical(layout.spec(TINY))).items()}
    statistics = {"image_mean": [0.4, 0.4, 0.4], "image_std": [0.2, 0.2, 0.2]}
    return {
        "model.safetensors": save(tensors),
        "config.json": json.dumps(HF_CONFIG).encode(),
        "preprocessor_config.json": json.dumps(statistics).encode(),
    }


def timm_file() -> bytes:
    return save({k: v.contiguous() for k, v in canonical(SMALL).items()})


def test_a_hub_name_is_read_as_its_folder_and_keeps_its_revision(caches: Path) -> None:
    folder = keep("facebook/vit-mae-base", hf_files())
    weights = read_weights("hf:facebook/vit-mae-base")
    direct = read_weights(folder)
    assert isinstance(weights, VitWeights)
    assert weights.digest == direct.digest
    assert weights.spec == direct.spec
    assert weights.spec.mean == (0.4, 0.4, 0.4)
    assert all(torch.equal(weights.tensors[n], t) for n, t in direct.tensors.items())
    assert (weights.name, weights.origin) == (
        "vit-mae-base", f"hf:facebook/vit-mae-base@{REVISION}",
    )  # fmt: skip
    assert describe_weights(weights)["origin"] == weights.origin
    assert "origin" not in describe_weights(direct)


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_the_cache_is_where_hugging_face_looks_for_it(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "there"))
    inside = {"HF_HOME": "hub", "HF_HUB_CACHE": "", "XDG_CACHE_HOME": "huggingface/hub",
              "HOME": ".cache/huggingface/hub"}  # fmt: skip
    assert hub_cache() == tmp_path / "there" / inside[variable]


def test_revisions_branches_and_single_files(caches: Path) -> None:
    keep("a/b", {"x/one.safetensors": timm_file(), "two.safetensors": timm_file()})
    root = hub_cache() / "models--a--b"
    (root / "refs" / "pr").mkdir()
    (root / "refs" / "pr" / "1").write_text(REVISION)
    for name in ("hf:a/b/two.safetensors", f"hf:a/b/x/one.safetensors@{REVISION}",
                 "hf:a/b/two.safetensors@pr/1"):  # fmt: skip
        found = locate(name)
        assert found.path.is_file()
        assert found.origin.endswith(f"@{REVISION}")
    with pytest.raises(UserError, match=r"hf:a/b holds 2 files of weights .*name one: hf:a/b/two"):
        locate("hf:a/b")
    with pytest.raises(UserError, match=r"holds revision 0123456789ab, not ffffffffffff"):
        locate(f"hf:a/b@{OTHER}")
    with pytest.raises(UserError, match=r"fetch hf:a/b/three\.pth"):
        locate("hf:a/b/three.pth")


@pytest.mark.parametrize("name", ["hf:a", "hf:../b/c", "hf:a/b/../../c", "hf:a/b@../x", "hf:/a/b"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="expected hf:ORG/NAME"):
        locate(name)


def test_what_is_not_there_is_named_with_its_command(caches: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"nothing of a/b lies in .*hub\); get it with: python -m mimbench fetch hf:a/b$",
    ):
        read_weights("hf:a/b")
    keep("a/c", {"config.json": b"{}"})
    with pytest.raises(UserError, match=r"holds no weights, only config.json\); get it with"):
        locate("hf:a/c")
    (hub_cache() / "models--a--c" / "refs" / "main").unlink()
    with pytest.raises(UserError, match="not main"):
        locate("hf:a/c")
    file = caches / "here.pth"
    file.touch()
    with pytest.raises(
        UserError,
        match=r"2 names .*: python -m mimbench fetch hf:a/b timm:vit_small_patch14_dinov2\.lvd142m$",
    ):
        require_all(["hf:a/b", file, f"timm:{TIMM}", "hf:a/b"])
    assert not present("hf:a/b")
    assert present(file)


def test_timms_names_find_the_weights_that_timm_itself_downloaded(caches: Path) -> None:
    """timm fetches the file alone: architecture and statistics are timm's own word."""
    folder = keep(f"timm/{TIMM}", {"model.safetensors": timm_file()})
    weights = read_weights(f"timm:{TIMM}", num_heads=3)
    assert weights.format == "timm"
    assert weights.origin == f"timm:{TIMM}@{REVISION}"
    assert weights.name == TIMM
    assert not any("does not say how images are normalised" in note for note in weights.notes)
    again = read_weights(weights.origin, num_heads=3)
    assert again.digest == weights.digest
    # the same bytes without the name leave more open, and are another row
    assert read_weights(folder / "model.safetensors", num_heads=3).digest != weights.digest


def test_statistics_follow_the_tag(caches: Path) -> None:
    tag = "vit_base_patch16_siglip_gap_224.webli"
    pinned = look_up(tag)
    assert pinned.config["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
    spec = VitSpec(embed_dim=48, depth=1, num_heads=3, mlp_dim=96, patch_size=16, grid=(14, 14))
    keep(f"timm/{tag}", {"model.safetensors": save(canonical(spec))})
    assert read_weights(f"timm:{tag}", num_heads=3).spec.mean == (0.5, 0.5, 0.5)


def test_a_name_without_a_tag_says_which_it_took() -> None:
    known = look_up("hiera_base_224")
    assert (known.tag, known.others) == ("mae_in1k_ft_in1k", ("mae",))
    assert fine_tuned("mae_in1k_ft_in1k")
    assert not fine_tuned("lvd142m")
    keep(f"timm/{known.architecture}.mae", {"model.safetensors": timm_file()})
    with pytest.raises(UserError, match=r"timm:hiera_base_224\.mae would be\); get it with"):
        locate("timm:hiera_base_224")
    keep(known.repository, {"model.safetensors": timm_file()})
    [note] = locate("timm:hiera_base_224").notes
    assert "'mae_in1k_ft_in1k' is taken, which was fine-tuned on labels; others: mae" in note


def test_torchs_cache_holds_files_from_addresses(caches: Path) -> None:
    known = look_up("vit_huge_patch14_gap_224.in1k_ijepa")
    assert not known.repository
    torch_cache().mkdir(parents=True)
    (torch_cache() / known.file).write_bytes(b"x")
    assert locate(known.name).path == torch_cache() / "IN1K-vit.h.14-300e.pth.tar"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:vit_smal_patch14_dinov2", "did you mean 'vit_small_patch14_dinov2.lvd142m'"),
        ("timm:hiera_base_224.mea", "has no weights tagged 'mea'; did you mean 'mae'"),
        ("timm:vit_tiny_patch16_384x", r"no architecture 'vit_tiny_patch16_384x'"),
        ("timm:vit_pwee_patch16_reg1_gap_256x", "no architecture"),
    ],
)
def test_wrong_names_of_timm_are_refused(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        locate(name)


def test_names_and_files_side_by_side(caches: Path) -> None:
    keep("facebook/vit-mae-base", hf_files())
    torch.save(canonical(TINY), caches / "own.pth")
    from mimbench.benchmarks.cells import Request

    request = Request(out=caches / "out", num_heads=3)
    first, second = read_candidates(
        [("", Path("hf:facebook/vit-mae-base")), ("mine", caches / "own.pth")], request
    )
    assert (first.weights["name"], str(first.path)) == (
        "vit-mae-base", f"hf:facebook/vit-mae-base@{REVISION}",
    )  # fmt: skip
    assert second.path == caches / "own.pth"
    # the order's name is enough to read the same weights again
    assert read_candidate(first.path).weights["digest"] == first.weights["digest"]


def test_inspect_and_python_take_names(caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mimbench.commands import load_command

    keep("a/vit", hf_files())
    assert mimbench.load("hf:a/vit").name == "vit"
    _, parser = load_command("inspect")
    assert inspect(parser.parse_args(["hf:a/vit"])) == 0
    assert f"name         hf:a/vit@{REVISION}" in capsys.readouterr().out
    keep("a/bad", {"model.safetensors": b"\x08\0\0\0\0\0\0\0{}      "})
    with pytest.raises(UserError, match=rf"^hf:a/bad@{REVISION}"):
        read_checkpoint("hf:a/bad")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        yield found


def test_fetched_names_resolve(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    from mimbench.__main__ import main

    hub.files["a/b"] = {**hf_files(), "pytorch_model.bin": b"x" * 5000, "README.md": b"-"}
    hub.files[f"timm/{TIMM}"] = {"model.safetensors": timm_file()}
    assert main(["fetch", "hf:a/b", f"timm:{TIMM}"]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.split()) == 2
    assert "licence: cc-by-nc-4.0" in printed.err
    weights = read_weights("hf:a/b")
    assert weights.origin == f"hf:a/b@{hub.revision('a/b')}"
    assert read_weights(f"timm:{TIMM}", num_heads=3).format == "timm"
    # safetensors are preferred, and nothing else is fetched
    assert not [p for p in hub.paths("/a/b/resolve") if p.endswith(("bin", "md"))]
    large = locate("hf:a/b").path / "model.safetensors"
    assert large.resolve().name == file_digest(large)
    before = len(hub.requests)
    hubs.fetch("hf:a/b")
    assert len(hub.requests) == before + 1, "what is there is not fetched twice"


def test_an_interrupted_fetch_goes_on(hub: Hub) -> None:
    hub.files["a/b"] = hf_files()
    whole = hub.files["a/b"]["model.safetensors"]
    hub.cut = len(whole) // 2
    with pytest.raises(
        UserError, match=rf"stopped after {len(whole) // 2:,} bytes .* goes on there"
    ):
        hubs.fetch("hf:a/b")
    assert not present("hf:a/b"), "half a fetch is no checkpoint"
    hubs.fetch("hf:a/b")
    path = locate("hf:a/b").path / "model.safetensors"
    assert path.read_bytes() == whole
    asked = [headers.get("Range") for path, headers in hub.requests if path.endswith("safetensors")]
    assert f"bytes={len(whole) // 2}-" in asked


def test_a_server_without_ranges_is_asked_for_all(hub: Hub) -> None:
    hub.files["a/b"] = hf_files()
    hub.ranges, hub.cut = False, 3000
    with pytest.raises(UserError, match="stopped after 3,000 bytes"):
        hubs.fetch("hf:a/b")
    hubs.fetch("hf:a/b")
    path = locate("hf:a/b").path / "model.safetensors"
    assert path.read_bytes() == hub.files["a/b"]["model.safetensors"]


def test_damage_on_the_way_is_found(hub: Hub) -> None:
    hub.files["a/b"] = hf_files()
    hub.damage = True
    with pytest.raises(UserError, match=r"its digest is [0-9a-f]{40}, expected"):
        hubs.fetch("hf:a/b")
    hub.files["a/b"] = {"model.safetensors": timm_file()}
    with pytest.raises(UserError, match=r"its digest is [0-9a-f]{64}, expected"):
        hubs.fetch("hf:a/b")
    assert not list(hub_cache().rglob("*.incomplete"))
    assert not present("hf:a/b")


def test_shards_are_fetched_by_their_index(hub: Hub) -> None:
    tensors = {k: v.contiguous() for k, v in canonical(TINY).items()}
    first = dict(list(tensors.items())[:5])
    rest = {k: v for k, v in tensors.items() if k not in first}
    parts = {**dict.fromkeys(first, "a.safetensors"), **dict.fromkeys(rest, "b.safetensors")}
    index = json.dumps({"weight_map": parts}).encode()
    hub.files["a/b"] = {
        "model.safetensors.index.json": index, "a.safetensors": save(first),
        "b.safetensors": save(rest), "c.safetensors": save(rest),
    }  # fmt: skip
    hubs.fetch("hf:a/b")
    assert len(read_weights("hf:a/b", num_heads=3).tensors) == len(tensors)
    assert not hub.paths("/a/b/resolve/" + hub.revision("a/b") + "/c.")


def test_a_token_goes_to_the_hub_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files["a/b"], hub.token = hf_files(), "hf_secret"
    with pytest.raises(UserError, match=r"asks for a login \(401\): accept the model's licence"):
        hubs.fetch("hf:a/b")
    (hub_cache().parent).mkdir(parents=True, exist_ok=True)
    (hub_cache().parent / "token").write_text("hf_secret\n")
    hubs.fetch("hf:a/b")
    sent = {
        p.split("/")[1]: h.get("Authorization") for p, h in hub.requests if "model.safetensors" in p
    }
    assert sent == {"a": "Bearer hf_secret", "stored": None}


def test_hubs_that_lie_write_nothing_outside(hub: Hub, caches: Path) -> None:
    hub.files["a/b"] = {"../../../escaped.safetensors": timm_file(), "/abs.pth": b"x" * 3000}
    with pytest.raises(UserError, match="holds no weights"):
        hubs.fetch("hf:a/b")
    assert not list(caches.rglob("escaped*"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:a/none", "does not exist; check the name and the revision"),
        ("a/b", "expected timm:NAME"),
        ("hf:a/b/x.pth", "holds no x.pth; its weights are model.safetensors"),
    ],
)
def test_fetch_says_what_is_wrong(name: str, said: str, hub: Hub) -> None:
    hub.files["a/b"] = hf_files()
    with pytest.raises(UserError, match=said):
        hubs.fetch(name)


def test_fetch_without_a_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"no answer .*is this machine online\?"):
        hubs.fetch("hf:a/b")


def test_files_from_addresses_are_checked_by_their_names(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib
    from dataclasses import replace

    content = timm_file()
    digest = hashlib.sha256(content).hexdigest()
    file = f"net-{digest[:8]}.pth"
    hub.files["some/where"] = {file: content}
    url = f"{hub.address}/some/where/resolve/{REVISION}/{file}"
    known = replace(look_up("vit_huge_patch14_gap_224.in1k_ijepa"), url=url)
    monkeypatch.setattr(hubs, "look_up", lambda _: known)
    found = hubs.fetch(known.name)
    assert found.path == torch_cache() / file
    assert found.path.read_bytes() == content
    hub.damage = True
    found.path.unlink()
    with pytest.raises(UserError, match="its digest is"):
        hubs.fetch(known.name)
