import builtins
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

import imaginet_hub
from imaginet_hub import selfcon
from imaginet_hub.selfcon import SelfConImageProcessor, SelfConResNetForImageClassification, register, save_publishable
from tests.golden import image

from .conftest import tiny

ROOT = Path(imaginet_hub.__path__[0]).parent
CODE = {"configuration_selfcon.py", "modeling_selfcon.py", "image_processing_selfcon.py"}
FILES = CODE | {"config.json", "model.safetensors", "preprocessor_config.json"}


def python(script: str, *arguments: object, cwd: Path, path: Path | None = None) -> str:
    """Runs a script in an interpreter of its own, offline, without a terminal to answer questions on."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "hf"), "OMP_NUM_THREADS": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-P" if path else "-I", "-c", script, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_folder_holds_what_it_should(classifier_folder: Path, pretraining_folder: Path) -> None:
    for folder in (classifier_folder, pretraining_folder):
        assert {path.name for path in folder.iterdir()} == FILES
        auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
        kinds = {"": "Model", "ForPreTraining": "ForPreTraining", "ForImageClassification": "ForImageClassification"}
        assert auto_map == {"AutoConfig": "configuration_selfcon.SelfConResNetConfig"} | {
            f"AutoModel{task}": f"modeling_selfcon.SelfConResNet{kind}" for task, kind in kinds.items()
        }
        for name in CODE:
            assert (folder / name).read_bytes() == (Path(selfcon.__path__[0]) / name).read_bytes()


WITHOUT_THE_PACKAGE = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "imaginet_hub":
            raise ModuleNotFoundError(f"blocked: {name}")

sys.meta_path.insert(0, Block())
import json
import numpy as np
from PIL import Image
from transformers import (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
                          AutoModelForPreTraining, pipeline)

folder, stage1, pictures, out = sys.argv[1:]
trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trust)
processor = AutoImageProcessor.from_pretrained(folder, **trust)
model = AutoModelForImageClassification.from_pretrained(folder, **trust)
encoder = AutoModel.from_pretrained(folder, **trust)
half = AutoModelForImageClassification.from_pretrained(folder, dtype="bfloat16", device_map="cpu", **trust)
new_head = AutoModelForImageClassification.from_pretrained(stage1, num_labels=3, **trust)
refused = {}
for name, auto, path, fields in (
    ("stride", AutoModel, folder, {"stem_stride": 1}),
    ("head", AutoModelForImageClassification, stage1, {}),
):
    try:
        auto.from_pretrained(path, **fields, **trust)
    except ValueError as error:
        refused[name] = str(error)
pictures = [Image.fromarray(array) for array in np.load(pictures).values()]
inputs = processor(pictures, return_tensors="pt")
classify = pipeline("image-classification", model=folder, **trust)
found = {
    "inputs": inputs["pixel_values"].tolist(),
    "logits": model(**inputs).logits.tolist(),
    "features": encoder(**inputs).pooler_output.tolist(),
    "hidden_states": [list(s.shape) for s in model(**inputs, output_hidden_states=True).hidden_states],
    "exit_features": [f.tolist() for f in model(**inputs, output_exit_features=True).exit_features],
    "half": [str(half.dtype), str(half.encoder.stem_stride.dtype), half(**inputs).logits.float().tolist()],
    "trained_on": model.config.trained_on,
    "refused": refused,
    "new head": new_head.classifier[-1].out_features,
    "projections": AutoModelForPreTraining.from_pretrained(stage1, **trust)(**inputs).projections.tolist(),
    "pipeline": classify(pictures, batch_size=2),
    "label": config.id2label[1],
    "package": "imaginet_hub" in sys.modules,
}
model.save_pretrained(out)
with open(out + "/found.json", "w") as file:
    json.dump(found, file)
"""


def test_all_files_are_as_readable_as_each_other(classifier_folder: Path) -> None:
    assert len({file.stat().st_mode for file in classifier_folder.iterdir() if file.is_file()}) == 1


def test_loads_where_the_package_is_absent(
    classifier_folder: Path,
    classifier: SelfConResNetForImageClassification,
    pretraining_folder: Path,
    pretraining: torch.nn.Module,
    tmp_path: Path,
) -> None:
    arrays = [image(1, 50, 60), image(2, 30, 90), image(3, 40, 40)]
    np.savez(tmp_path / "pictures.npz", *arrays)
    again = tmp_path / "again"
    python(WITHOUT_THE_PACKAGE, classifier_folder, pretraining_folder, tmp_path / "pictures.npz", again, cwd=tmp_path)
    found = json.loads((again / "found.json").read_text())
    assert not found["package"]
    assert found["label"] == "synthetic"

    inputs = SelfConImageProcessor(crop_size=40)(arrays, return_tensors="pt").pixel_values
    assert torch.equal(torch.tensor(found["inputs"]), inputs)
    with torch.no_grad():
        logits = classifier(inputs).logits
        assert torch.equal(torch.tensor(found["logits"]), logits)
        assert torch.equal(torch.tensor(found["features"]), classifier.encoder(inputs).pooler_output)
        assert torch.equal(torch.tensor(found["projections"]), pretraining(inputs).projections)
        outputs = classifier(inputs, output_exit_features=True, output_hidden_states=True)
    assert found["hidden_states"] == [list(state.shape) for state in outputs.hidden_states]
    for got, expected in zip(found["exit_features"], outputs.exit_features, strict=True):
        assert torch.equal(torch.tensor(got), expected)
    assert found["half"][:2] == ["torch.bfloat16", "torch.int64"]
    torch.testing.assert_close(torch.tensor(found["half"][2]), logits, atol=0.05, rtol=0.1)
    assert found["trained_on"] == {"fingerprint": "abc"}
    assert "trained with stem_stride=2" in found["refused"]["stride"]
    assert "would be random" in found["refused"]["head"]
    assert found["new head"] == 3
    for scores, row in zip(found["pipeline"], logits.softmax(-1), strict=True):
        by_label = {score["label"]: score["score"] for score in scores}
        assert by_label == pytest.approx({"real": row[0].item(), "synthetic": row[1].item()}, abs=1e-5)

    # What was saved over there is whole again, and loads here.
    of_the_model = FILES - {"image_processing_selfcon.py", "preprocessor_config.json"}
    assert {path.name for path in again.iterdir()} == of_the_model | {"found.json"}
    model = AutoModelForImageClassification.from_pretrained(again)
    assert torch.equal(model(inputs).logits, logits)
    assert model.config.trained_on == {"fingerprint": "abc"}


def test_loads_without_trust_once_registered(
    classifier_folder: Path, classifier: SelfConResNetForImageClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(question: str) -> str:
        raise AssertionError(question)

    monkeypatch.setattr(builtins, "input", refuse)
    register()
    assert AutoConfig.from_pretrained(classifier_folder).track == "detection"
    assert isinstance(AutoImageProcessor.from_pretrained(classifier_folder), SelfConImageProcessor)
    classify = pipeline("image-classification", model=str(classifier_folder))
    assert isinstance(classify.model, SelfConResNetForImageClassification)
    picture = Image.fromarray(image(1, 50, 60))
    pixel_values = SelfConImageProcessor(crop_size=40)(picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        scores = classifier(pixel_values).logits.softmax(-1)[0]
    best = scores.argmax().item()
    assert classify(picture)[0]["label"] == ("real", "synthetic")[best]
    assert classify(picture)[0]["score"] == pytest.approx(scores[best].item(), abs=1e-6)


@pytest.mark.parametrize("folder", ["classifier_folder", "pretraining_folder"])
def test_feature_pipeline(folder: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(folder)
    encoder = request.getfixturevalue(folder.removesuffix("_folder")).encoder
    picture = Image.fromarray(image(1, 50, 60))
    extract = pipeline("image-feature-extraction", model=str(path))
    with torch.no_grad():
        outputs = encoder(SelfConImageProcessor(crop_size=40)(picture, return_tensors="pt").pixel_values)
    assert torch.equal(torch.tensor(extract(picture)), outputs.last_hidden_state)
    assert torch.equal(extract(picture, pool=True, return_tensors=True), outputs.pooler_output)


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ({"max_shard_size": "1MB"}, {"model.safetensors.index.json"}),
        ({"variant": "fp16"}, {"model.fp16.safetensors"}),
        ({"safe_serialization": False}, {"model.safetensors"}),
    ],
    ids=str,
)
def test_ways_to_save(
    how: dict[str, Any], names: set[str], classifier: SelfConResNetForImageClassification, tmp_path: Path
) -> None:
    classifier.save_pretrained(tmp_path, **how)
    written = {path.name for path in tmp_path.iterdir()}
    assert names <= written
    assert {Path(name).suffix for name in written} == {".json", ".py", ".safetensors"}
    again = AutoModelForImageClassification.from_pretrained(tmp_path, variant=how.get("variant"))
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    with pytest.raises(ValueError, match="trained with stem_stride=2"):
        AutoModelForImageClassification.from_pretrained(tmp_path, variant=how.get("variant"), stem_stride=1)


def test_pickles_are_not_read(
    classifier: SelfConResNetForImageClassification, classifier_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((classifier_folder / "config.json").read_bytes())
    torch.save(classifier.state_dict(), tmp_path / "pytorch_model.bin")
    for auto_class in (AutoModel, AutoModelForImageClassification):
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            auto_class.from_pretrained(tmp_path)


def test_classification_pipeline_refuses_a_folder_without_a_head(pretraining_folder: Path) -> None:
    with pytest.raises(ValueError, match="would be random"):
        pipeline("image-classification", model=str(pretraining_folder))


def test_other_families_are_left_alone(tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path))
    assert type(classify.image_processor).__name__.startswith("ViTImageProcessor")
    assert len(classify(Image.new("RGB", (20, 20)))) == 2


def test_saves_the_configuration_it_has_now(tmp_path: Path, classifier_folder: Path) -> None:
    model = AutoModelForImageClassification.from_pretrained(classifier_folder)
    model.config.trained_on = {"fingerprint": "def"}
    folder = save_publishable(model, SelfConImageProcessor(crop_size=24), tmp_path / "new")
    assert AutoConfig.from_pretrained(folder).trained_on == {"fingerprint": "def"}
    assert AutoImageProcessor.from_pretrained(folder).crop_size.height == 24


def test_public_names_exist() -> None:
    for name in selfcon.__all__:
        assert getattr(selfcon, name) is not None
    assert set(selfcon.__all__) <= set(dir(selfcon))
    with pytest.raises(AttributeError, match="nothing"):
        selfcon.nothing  # noqa: B018


def test_import_is_light(tmp_path: Path) -> None:
    script = "import sys, imaginet_hub.selfcon; print(*{'torch', 'transformers', 'timm', 'numpy'} & set(sys.modules))"
    assert python(script, cwd=tmp_path, path=ROOT).strip() == ""


AS_POST_IMPORT_HOOK = """
import sys, wrapt

def hook():
    from imaginet_hub.selfcon import AUTO_MODULES
    for name in AUTO_MODULES:
        wrapt.register_post_import_hook("imaginet_hub.selfcon:register_in", name)

folder, first, when = sys.argv[1:]
if when == "before":
    hook()
    assert "transformers" not in sys.modules
exec(first)
if when == "after":
    hook()
from transformers import AutoImageProcessor, AutoModel, pipeline
print(type(AutoModel.from_pretrained(folder)).__module__, type(AutoImageProcessor.from_pretrained(folder)).__module__)
pipeline("image-classification", model=folder)
"""


@pytest.mark.parametrize(
    ("first", "when"),
    [
        ("import transformers.modeling_utils", "before"),
        ("from transformers import AutoImageProcessor", "before"),
        ("from transformers import pipeline, AutoModel", "after"),
    ],
)
def test_registers_from_post_import_hooks(first: str, when: str, classifier_folder: Path, tmp_path: Path) -> None:
    # The first of these start transformers' circular imports in places where our classes cannot be imported yet.
    out = python(AS_POST_IMPORT_HOOK, classifier_folder, first, when, cwd=tmp_path, path=ROOT)
    assert out.strip() == "imaginet_hub.selfcon.modeling_selfcon imaginet_hub.selfcon.image_processing_selfcon"


SUBCLASS = """
import sys
from imaginet_hub.selfcon import SelfConResNetConfig, SelfConResNetForImageClassification

class Mine(SelfConResNetForImageClassification):
    pass

def save(folder):
    config = type("Config", (SelfConResNetConfig,), {}) if __name__ == "__main__" else SelfConResNetConfig
    Mine(config(backbone="test_resnet", stem_stride=2)).save_pretrained(folder)

if __name__ == "__main__":
    save(sys.argv[1])
"""


@pytest.mark.parametrize("module", ["__main__", "somebodys"])
def test_subclasses_are_saved_with_all_code_that_the_folder_names(module: str, tmp_path: Path) -> None:
    (tmp_path / "somebodys.py").write_text(SUBCLASS)
    folder = tmp_path / "saved"
    script = SUBCLASS if module == "__main__" else "import somebodys, sys; somebodys.save(sys.argv[1])"
    python(script, folder, cwd=tmp_path, path=Path(os.pathsep.join(map(str, (ROOT, tmp_path)))))
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map.keys() == {
        "AutoConfig", "AutoModel", "AutoModelForPreTraining", "AutoModelForImageClassification"
    }  # fmt: skip
    for entry in auto_map.values():
        file, _, name = entry.partition(".")
        assert f"class {name}(" in (folder / f"{file}.py").read_text()
    assert ("somebodys.Mine" in auto_map.values()) is (module == "somebodys")
    loading = WITHOUT_THE_PACKAGE.partition("import json")[0] + (
        "from transformers import AutoModel\n"
        "print(type(AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__)"
    )
    assert python(loading, folder, cwd=tmp_path).strip() == "SelfConResNetModel"


def test_a_new_head_takes_over_no_history(classifier_folder: Path, pretraining_folder: Path) -> None:
    kept = AutoModelForImageClassification.from_pretrained(classifier_folder)
    assert kept.config.trained_on == {"fingerprint": "abc"}
    for folder, more in ((pretraining_folder, {}), (classifier_folder, {"ignore_mismatched_sizes": True})):
        fresh = SelfConResNetForImageClassification.from_pretrained(folder, num_labels=3, **more)
        assert fresh.config.trained_on == {"encoder": {"fingerprint": "abc"}}


FITTED = {
    "calibration": {"method": "temperature", "temperature": 2.0},
    "open_set": {"threshold": 3.0},
    "label_column": "generator_family",
    "track": "identification",
}


@pytest.fixture
def identifier_folder(tmp_path: Path) -> Path:
    model = SelfConResNetForImageClassification(tiny(**FITTED, id2label={0: "GAN", 1: "SD"}))
    model.save_pretrained(tmp_path / "identifier")
    return tmp_path / "identifier"


def test_what_was_fitted_to_a_head_goes_with_it(identifier_folder: Path, tmp_path: Path) -> None:
    kept = AutoModelForImageClassification.from_pretrained(identifier_folder).config
    assert {name: getattr(kept, name) for name in FITTED} == FITTED
    for kind, more in ((AutoModel, {}), (AutoModelForPreTraining, {"projection_dim": 4})):
        kind.from_pretrained(identifier_folder, **more).save_pretrained(tmp_path / "without")
        config = json.loads((tmp_path / "without" / "config.json").read_text())
        assert not config.get("calibration") and not config.get("open_set")


def test_new_classes_have_their_own_meaning(identifier_folder: Path, pretraining_folder: Path) -> None:
    def meaning(folder: Path, **asked: Any) -> tuple[Any, Any]:
        more = {"ignore_mismatched_sizes": True, **asked}
        direct, auto = (
            kind.from_pretrained(folder, **more).config
            for kind in (SelfConResNetForImageClassification, AutoModelForImageClassification)
        )
        assert (direct.track, direct.label_column) == (auto.track, auto.label_column)
        return auto.track, auto.label_column

    for folder in (identifier_folder, pretraining_folder):
        assert meaning(folder, num_labels=3) == (None, None)
        assert meaning(folder, num_labels=3, track="identification") == ("identification", None)
        assert meaning(folder, id2label={0: "a", 1: "b", 2: "c"}, label_column="camera") == (None, "camera")
    assert meaning(identifier_folder, head_hidden_size=9) == ("identification", "generator_family"), "the same classes"


def test_half_a_head_is_none(classifier_folder: Path) -> None:
    with pytest.raises(ValueError, match="the head_type that it was saved with"):
        SelfConResNetForImageClassification.from_pretrained(classifier_folder, head_type="l2norm_mlp")
