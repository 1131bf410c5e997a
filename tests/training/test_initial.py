"""What a run starts from: ImageNet weights of a loopback Hub, files, models of the family, or nothing."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from imaginet_hub.cli import main
from imaginet_hub.errors import DataNotFoundError, ModelError, UsageError
from imaginet_hub.selfcon import SelfConResNetConfig, SelfConResNetForImageClassification, SelfConResNetModel
from imaginet_hub.training.arguments import SelfConModelArguments
from imaginet_hub.training.initial import build_classifier, build_model, init_in_full
from imaginet_hub.training.trainer import SelfConTrainer, parse_train_args
from tests.training.conftest import FAMILIES
from tests.training.test_trainer import small, trained

SMALL = {"backbone": "test_resnet", "stem_stride": 2}
PATH = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    return trained(rows, tmp_path_factory.mktemp("run"), "--max_steps", "1")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A plain ResNet's weights with their classifier, as timm publishes them."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=5)
    file = tmp_path_factory.mktemp("plain") / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, file)
    return file


class Hub(ThreadingHTTPServer):
    """Serves one file at every address, or fails as `how` says: a status, html, noise or short."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.content = content
        self.how = "whole"
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        how, content = self.server.how, self.server.content
        self.answer(content[: len(content) // 2] if how == "short" else self.content())

    def content(self) -> bytes:
        return b"<html>log in</html>" if self.server.how in ("html", "noise") else self.server.content

    def answer(self, body: bytes) -> None:
        how = self.server.how
        if self.path.startswith("/timm"):
            self.server.asked.append(self.path)
        self.send_response(int(how) if how.isdigit() else 200)
        if not how.isdigit() and how != "html":
            self.send_header("ETag", f'"{how:a<40}"')
            self.send_header("X-Repo-Commit", "b" * 40)
        self.send_header("Content-Length", "0" if how.isdigit() else str(len(self.content())))
        self.end_headers()
        if not how.isdigit():
            self.wfile.write(body)


@pytest.fixture
def hub(plain, monkeypatch, tmp_path) -> Iterator[Hub]:
    """The only Hub there is, with an empty cache, for a client that does not wait before it tries again."""
    server = Hub(plain.read_bytes())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield server
    server.shutdown()
    server.server_close()


def same(model, file):
    weights = load_file(file)
    return all(torch.equal(value, weights[name]) for name, value in model.encoder.backbone.state_dict().items())


@pytest.mark.parametrize("init", ["timm", "timm:r160_in1k"])
def test_imagenet_weights_are_downloaded_once(init, hub, plain, monkeypatch):
    assert same(build_model(SelfConModelArguments(**SMALL, init=init)), plain)
    assert set(hub.asked) == {PATH}
    hub.asked.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert same(build_model(SelfConModelArguments(**SMALL, init=init)), plain)
    assert hub.asked == []


def test_the_papers_weights_are_the_default_where_timm_has_them(hub):
    assert init_in_full(SelfConModelArguments()) == "timm:tv2_in1k"
    assert init_in_full(SelfConModelArguments(backbone="resnet101")) == "timm:tv2_in1k"
    assert init_in_full(SelfConModelArguments(**SMALL)) == "timm"
    assert init_in_full(SelfConModelArguments(init="timm:a1_in1k")) == "timm:a1_in1k"
    hub.how = "404"
    for tag, init in {"tv2_in1k": "timm", "a1_in1k": "timm:a1_in1k"}.items():
        with pytest.raises(ModelError):
            build_model(SelfConModelArguments(init=init))
        assert set(hub.asked) == {f"/timm/resnet50.{tag}/resolve/main/model.safetensors"}
        hub.asked.clear()


@pytest.mark.parametrize("how", ["401", "403", "404", "429", "500", "503", "html", "short"])
def test_a_hub_that_fails_is_one_line_with_both_ways_out(how, hub):
    hub.how = how
    with pytest.raises(ModelError, match=r"--init FILE\.safetensors.*--init random") as caught:
        build_model(SelfConModelArguments(**SMALL))
    assert "\n" not in str(caught.value) and "timm/test_resnet.r160_in1k" in str(caught.value)


def test_what_is_no_weights_is_not_left_to_be_found_again(hub, plain, tmp_path):
    hub.how = "noise"
    with pytest.raises(ModelError, match=r"Delete .*model\.safetensors and try again") as caught:
        build_model(SelfConModelArguments(**SMALL))
    named = str(caught.value).partition("Delete ")[2].partition(" and try again")[0]
    assert named.startswith(str(tmp_path / "cache"))
    Path(named).unlink()
    hub.how = "whole"
    assert same(build_model(SelfConModelArguments(**SMALL)), plain), "what the message says helps"


def test_weights_of_another_shape_are_refused(hub, run):
    hub.content = (run / "model.safetensors").read_bytes()
    with pytest.raises(ModelError, match="not those of a test_resnet"):
        build_model(SelfConModelArguments(**SMALL))


def test_offline_and_unasked_the_command_says_what_to_do(rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("imaginet_hub.data.loading.load_rows", lambda *args, **options: rows)
    batch = ["--stem_stride", "2", "--per_device_train_batch_size", "8", "--use_cpu"]
    assert main(["train", "data", str(tmp_path / "out"), *batch]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("imaginet train: ") and "\n" not in said
    assert "timm/resnet50.tv2_in1k" in said and "--init FILE.safetensors" in said and "--init random" in said


def test_names_are_torchvisions_and_features_are_the_same(tmp_path):
    """Upstream starts from torchvision's ResNet-50 of ImageNet V2, which timm publishes as tv2_in1k."""
    torch.manual_seed(1)
    theirs = torchvision.models.resnet50(weights=None)
    for layer in theirs.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # statistics that are not those of no data at all
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    theirs.eval()
    save_file(theirs.state_dict(), tmp_path / "resnet50.safetensors")
    init = str(tmp_path / "resnet50.safetensors")
    ours = build_model(SelfConModelArguments(stem_stride=2, init=init)).encoder.eval()
    pixels = torch.randn(2, 3, 96, 96)
    trunk = torch.nn.Sequential(*list(theirs.children())[:-1])
    with torch.no_grad():
        expected, got = trunk(pixels).flatten(1), ours(pixels).pooler_output
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert got.std() > 1e-3, "features that are all alike would agree too"


@pytest.mark.parametrize("damage", ["empty", "truncated", "long header", "not JSON", "folder"])
def test_files_that_hold_no_weights_are_one_line(damage, plain, tmp_path):
    file = tmp_path / "weights.safetensors"
    content = plain.read_bytes()
    match damage:
        case "empty":
            file.write_bytes(b"")
        case "truncated":
            file.write_bytes(content[: len(content) // 2])
        case "long header":
            file.write_bytes((2**63).to_bytes(8, "little") + content[8:])
        case "not JSON":
            file.write_bytes(content[:8] + b"\x80" * (len(content) - 8))
        case "folder":
            file.mkdir()
    with pytest.raises((ModelError, DataNotFoundError), match=r"weights\.safetensors") as caught:
        build_model(SelfConModelArguments(**SMALL, init=str(file)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_pickles_are_not_opened(suffix, tmp_path):
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(ModelError, match=r"pickles are not read.*imaginet convert.*save_file\(torch\.load"):
        build_model(SelfConModelArguments(**SMALL, init=str(file)))


def test_every_kind_of_model_can_be_gone_on_from(run, tmp_path):
    encoder = SelfConResNetModel.from_pretrained(run)
    encoder.save_pretrained(tmp_path / "encoder")
    for track, names in {"detection": 2, "identification": 7}.items():
        id2label = {place: f"class{place}" for place in range(names)}
        build_classifier(run, track=track, id2label=id2label).save_pretrained(tmp_path / track)
    for kind in ("detection", "identification"):
        model = build_model(SelfConModelArguments(init=str(tmp_path / kind)))
        expected = encoder.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in model.encoder.state_dict().items())
        assert model.config.track is None
    with pytest.raises(ModelError, match="would be random"):
        build_model(SelfConModelArguments(init=str(tmp_path / "encoder")))
    assert build_model(SelfConModelArguments(init=str(tmp_path / "encoder"), projection_dim=128)).projector
    model = build_model(SelfConModelArguments(init=str(tmp_path / "detection"), projection_dim=32))
    assert model.config.projection_dim == 32 and model.projector[-1].out_features == 32
    for name, value in {"backbone": "resnet18", "stem_stride": 1, "exit_stages": [1], "projection_dim": 7}.items():
        with pytest.raises(UsageError, match=f"expected --{name}"):
            build_model(SelfConModelArguments(init=str(run), **{name: value}))


STATE = {
    "track": "identification", "label_column": "generator_family", "head_type": "l2norm_mlp", "head_hidden_size": 64,
    "calibration": {"method": "temperature", "temperature": 2.0}, "open_set": {"threshold": 3.0},
    "id2label": {0: "GAN", 1: "SD", 2: "DALL-E 3"},
}  # fmt: skip


def test_nothing_of_a_classifier_is_said_of_what_starts_from_it(rows, run, tmp_path):
    build_classifier(run, **STATE).save_pretrained(tmp_path / "identifier")
    out = trained(rows, tmp_path / "out", "--max_steps", "1", "--init", str(tmp_path / "identifier"))
    config, fresh = SelfConResNetConfig.from_pretrained(out), SelfConResNetConfig()
    expected = {name: getattr(fresh, name) for name in (*STATE, "label2id")}
    assert {name: getattr(config, name) for name in expected} == expected
    assert not {"GAN", "temperature", "threshold"} & set((out / "config.json").read_text().split('"'))
    other = build_classifier(tmp_path / "identifier", id2label={0: "a", 1: "b"}).config
    assert (other.track, other.label_column, other.calibration, other.open_set) == (None, None, None, None)


def test_a_classifier_is_known_without_its_track(run, tmp_path):
    SelfConResNetForImageClassification.from_pretrained(run, num_labels=3).save_pretrained(tmp_path / "three")
    assert build_model(SelfConModelArguments(init=str(tmp_path / "three"))).projector


def test_the_preset_fits_the_model_to_go_on_from(run, tmp_path):
    quiet = ["--use_cpu", "--init", str(run), "--preset", "quick"]
    assert build_model(parse_train_args(quiet, tmp_path)[0]).config.stem_stride == 2
    with pytest.raises(UsageError, match=r"expected --backbone test_resnet.*got resnet18"):
        build_model(parse_train_args([*quiet, "--backbone", "resnet18"], tmp_path)[0])


def test_self_contrast_needs_exits_or_several_crops(rows, tmp_path):
    supcon = trained(rows, tmp_path / "supcon", "--max_steps", "1", "--objective", "supcon")
    (tmp_path / "flags.yaml").write_text("exit_stages: []")
    for start in (["--init", str(supcon)], ["--config", str(tmp_path / "flags.yaml")]):
        for objective in ("imaginet", "selfcon"):
            with pytest.raises(UsageError, match=rf"--objective {objective}.*--exit_stages 2.*--objective supcon"):
                trained(rows, tmp_path / "refused", "--max_steps", "1", "--objective", objective, *start)
    more = ["--max_steps", "1", "--objective", "supcon", "--init", str(supcon)]
    assert (trained(rows, tmp_path / "more", *more) / "model.safetensors").is_file()
    crops = ["--max_steps", "1", "--crops_per_image", "2", "--init", str(supcon)]
    assert (trained(rows, tmp_path / "crops", *crops) / "model.safetensors").is_file()


def recast(rows, column, values, feature):
    """The rows with other values in a column."""
    return rows.remove_columns(column).add_column(column, values, feature=feature)


NAMES = {"label": ["real", "synthetic"], "generator_family": FAMILIES}


@pytest.mark.parametrize("flags", [[], ["--balance"]])
@pytest.mark.parametrize(
    ("column", "kind", "missing"),
    [
        ("label", "classes", None),
        ("label", "classes", -1),
        ("generator_family", "classes", None),
        ("generator_family", "classes", -1),
        ("generator_family", "string", None),
        ("generator_family", "int64", None),
    ],
)
def test_rows_without_a_class_are_refused(column, kind, missing, flags, rows, tmp_path):
    feature = datasets.ClassLabel(names=NAMES[column]) if kind == "classes" else datasets.Value(kind)
    values = [NAMES[column][value] if kind == "string" else value for value in rows[column]]
    values[3] = missing
    holed = recast(rows, column, values, feature)
    said = f"in the column {column} of every row.* got rows with {missing}"
    with pytest.raises(UsageError, match=said):
        trained(holed, tmp_path, *flags)
    model_args, args = parse_train_args(small(*flags), tmp_path)
    with pytest.raises(UsageError, match=said):
        SelfConTrainer(build_model(model_args), args, holed)


def test_families_that_are_no_classes_are_refused(rows, tmp_path):
    odd = recast(rows, "generator_family", [0.5] * len(rows), datasets.Value("float64"))
    with pytest.raises(UsageError, match=r"column of class names, got generator_family with Value\('float64'\)"):
        trained(odd, tmp_path)


@pytest.mark.parametrize("flags", [[], ["--balance"]])
def test_families_may_be_text_or_numbers(flags, rows, tmp_path):
    families = rows["generator_family"]
    text = recast(rows, "generator_family", [FAMILIES[family] for family in families], datasets.Value("string"))
    plain = recast(rows, "generator_family", [7 * family for family in families], datasets.Value("int64"))
    weights = [
        load_file(trained(some, tmp_path / name, "--max_steps", "2", *flags) / "model.safetensors")
        for name, some in {"classes": rows, "text": text, "plain": plain}.items()
    ]
    assert all(torch.equal(value, other[name]) for other in weights[1:] for name, value in weights[0].items())


def test_families_are_asked_for_only_where_they_are_used(rows, tmp_path):
    without = rows.remove_columns("generator_family")
    for objective in ("selfcon", "supcon", "cross_entropy"):
        flags = ["--max_steps", "1", "--objective", objective]
        assert (trained(without, tmp_path / objective, *flags) / "model.safetensors").is_file()
        with pytest.raises(UsageError, match="generator_family missing"):
            trained(without, tmp_path / "refused", *flags, "--balance")
        if objective != "cross_entropy":
            model_args, args = parse_train_args(small(*flags), tmp_path)
            trainer = SelfConTrainer(build_model(model_args), args, without, eval_dataset=without)
            assert trainer.evaluate()["eval_loss"] > 0
    with pytest.raises(UsageError, match="generator_family missing"):
        trained(without, tmp_path / "refused", "--max_steps", "1")


def test_the_record_names_weights_but_no_place(rows, plain, run, tmp_path):
    for init, said in {str(plain): "weights.safetensors", str(run): run.name}.items():
        out = trained(rows, tmp_path / said, "--max_steps", "1", "--init", init)
        text = (out / "training.json").read_text() + (out / "config.json").read_text()
        assert json.loads((out / "training.json").read_text())["model"]["init"] == said
        assert str(plain.parent) not in text and str(run.parent) not in text


def test_weights_can_come_from_a_model_of_the_family(run):
    model = build_model(SelfConModelArguments(init=str(run)))
    saved = load_file(run / "model.safetensors")
    assert model.config.backbone == "test_resnet" and model.config.stem_stride == 2
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    with pytest.raises(UsageError, match=r"--backbone test_resnet, which the model of --init has"):
        build_model(SelfConModelArguments(init=str(run), backbone="resnet18"))


def changed(folder, copy, without=(), fields=()):
    """A copy of a model folder without the tensors that start so and with other fields of its configuration."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("checkpoint-*"))
    weights = load_file(copy / "model.safetensors")
    left = {name: value for name, value in weights.items() if not name.startswith(tuple(without))}
    save_file(left, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text()) | dict(fields)
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_heads_that_a_model_of_the_family_lost_are_not_made_up(run, tmp_path):
    heads = ("projector.", "exit_projectors.")
    lost = changed(run, tmp_path / "lost", heads)
    with pytest.raises(ModelError, match=r"e\.g\. exit_projectors.* would be random"):
        build_model(SelfConModelArguments(init=str(lost)))
    assert build_model(SelfConModelArguments(init=str(lost), projection_dim=128)).projector, "asked for"
    classifier = changed(run, tmp_path / "classifier", heads, {"track": "detection"})
    model = build_model(SelfConModelArguments(init=str(classifier)))
    assert all(torch.equal(v, load_file(run / "model.safetensors")[f"encoder.{n}"])
               for n, v in model.encoder.state_dict().items())  # fmt: skip
    assert model.config.track is None
    no_exits = changed(classifier, tmp_path / "no_exits", ["encoder.exits."])
    with pytest.raises(ModelError, match=r"e\.g\. encoder\.exits\."):
        build_model(SelfConModelArguments(init=str(no_exits)))


def test_what_a_model_started_from_is_kept(rows, run, tmp_path):
    out = trained(rows, tmp_path, "--max_steps", "1", "--init", str(run))
    record = {"name": "patterns", "images": 40}
    assert json.loads((out / "config.json").read_text())["trained_on"] == {**record, "init": record}
    assert json.loads((out / "training.json").read_text())["dataset"] == record


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '"text"',
        "{",
        "[" * 100_000,
        '{"model_type": "selfcon_resnet", "backbone": 3}',
        '{"model_type": "selfcon_resnet", "id2label": {"zero": "a"}}',
        '{"model_type": "selfcon_resnet", "id2label": {"0": ["a"]}}',
        '{"model_type": "selfcon_resnet", "dtype": "no_such"}',
        '{"model_type": "selfcon_resnet", "num_labels": 65536, "head_hidden_size": 65536}',
        '{"model_type": "selfcon_resnet", "forget_what_was_asked": 1}',
    ],
    ids=lambda content: content[-40:],
)
def test_configurations_that_cannot_be_read_are_one_line(content, run, tmp_path):
    folder = changed(run, tmp_path / "broken")
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        build_model(SelfConModelArguments(init=str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", [b"", b"no safetensors", None])
def test_weights_that_cannot_be_read_are_one_line(weights, run, tmp_path):
    folder = changed(run, tmp_path / "broken", fields={"projection_dim": 7} if weights is None else ())
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError) as caught:
        build_model(SelfConModelArguments(init=str(folder)))
    assert "\n" not in str(caught.value)


def test_weights_can_come_from_a_plain_resnet(tmp_path):
    tiny = {"backbone": "test_resnet", "stem_stride": 2}
    torch.manual_seed(0)
    source = build_model(SelfConModelArguments(**tiny, init="random")).encoder.backbone
    plain = {name: value.clone() for name, value in source.state_dict().items()} | {"fc.weight": torch.zeros(5, 96)}
    save_file(plain, tmp_path / "plain.safetensors")
    model = build_model(SelfConModelArguments(**tiny, init=str(tmp_path / "plain.safetensors")))
    assert all(torch.equal(value, plain[name]) for name, value in model.encoder.backbone.state_dict().items())
    with pytest.raises(ModelError, match="not those of a resnet18"):
        build_model(SelfConModelArguments(backbone="resnet18", init=str(tmp_path / "plain.safetensors")))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"init": "nowhere.safetensors"}, DataNotFoundError, "no weights at nowhere.safetensors"),
        ({"init": "weights.pth"}, ModelError, "pickles are not read"),
        ({"init": "nowhere"}, DataNotFoundError, "no model at 'nowhere'"),
        (
            {"init": "timm:no_such_tag"},
            ModelError,
            "has for test_resnet, test_resnet.r160_in1k, got test_resnet.no_such_tag",
        ),
        ({"backbone": "resnet9000"}, ModelError, "resnet9000"),
        ({"exit_stages": [3, 2]}, ModelError, "strictly increasing"),
    ],
)
def test_initialisations_that_are_not_there_are_explained(arguments, error, message):
    with pytest.raises(error, match=message):
        build_model(SelfConModelArguments(**{"backbone": "test_resnet", "stem_stride": 2, **arguments}))


def test_timm_weights_offline_name_the_way_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"--init FILE.safetensors"):
        build_model(SelfConModelArguments(backbone="test_resnet", stem_stride=2, init="timm"))
