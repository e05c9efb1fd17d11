"""The sentence encoder gives torch's numbers without torch, and is written only if it does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional

from tests.vision_model.tiny import tiny_model
from tests.vision_model.tiny_text import with_words
from vision_model.errors import GraphInvalid, ParityFailed, PromptsInvalid, TextEncoderMissing, WeightsInvalid
from vision_model.manifest import TEXT_GRAPH_NAME, TOKENIZER_NAME
from vision_model.pretrain import text_encoder
from vision_model.pretrain.text_encoder import as_int8, as_it_is, embed, sentence_encoder, write_text_encoder
from vision_model.runtime import MODELS, SHIPPED
from vision_model.text import LONGEST, TEXT_SIZE, TextEncoder

HEADS, DEPTH, WIDTH, INNER = 4, 1, TEXT_SIZE, 32
WORDS = ("[PAD]", "[UNK]", "clear", "lungs", "no", "mass", "in", "the", "breast")
TEXTS = ["clear lungs", "no mass", "no mass in the breast", "lungs"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the package's: a tiny BERT with random weights, and its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), WIDTH),
        "embeddings.position_embeddings.weight": (512, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
    }
    for i in range(DEPTH):
        for name, outputs, inputs in (
            *((f"attention.self.{n}", WIDTH, WIDTH) for n in ("query", "key", "value")),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", INNER, WIDTH),
            ("output.dense", WIDTH, INNER),
        ):
            shapes |= {f"encoder.layer.{i}.{name}.weight": (outputs, inputs)}
            shapes |= {f"encoder.layer.{i}.{name}.bias": (outputs,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"encoder.layer.{i}.{name}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
    generator = torch.Generator().manual_seed(0)
    save_file(
        {
            name: torch.randn(shape, generator=generator) * 0.1 + ("LayerNorm.weight" in name)
            for name, shape in shapes.items()
        },
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": HEADS, "layer_norm_eps": 1e-12}))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(3)
    tokenizer.save(str(folder / TOKENIZER_NAME))
    return folder


@pytest.fixture(scope="module")
def written(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("written")
    return folder, write_text_encoder(folder, texts=TEXTS, source=bert)


def torchs_own_bert(weights: dict[str, Tensor], ids: Tensor, mask: Tensor) -> Tensor:
    """The same net from torch's own layers: what ours is measured against."""
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = functional.layer_norm(
        x, (WIDTH,), weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"], 1e-12
    )
    for i in range(DEPTH):
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, INNER, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        ).eval()
        own = {n.removeprefix(f"encoder.layer.{i}."): w for n, w in weights.items() if f"layer.{i}." in n}
        state: dict[str, Tensor] = {}
        for kind in ("weight", "bias"):
            parts = [own[f"attention.self.{n}.{kind}"] for n in ("query", "key", "value")]
            state[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
            for theirs, name in (
                ("self_attn.out_proj", "attention.output.dense"),
                ("linear1", "intermediate.dense"),
                ("linear2", "output.dense"),
                ("norm1", "attention.output.LayerNorm"),
                ("norm2", "output.LayerNorm"),
            ):
                state[f"{theirs}.{kind}"] = own[f"{name}.{kind}"]
        layer.load_state_dict(state)
        x = layer(x, src_key_padding_mask=mask == 0)
    here = mask[..., None].float()
    return functional.normalize((x * here).sum(1) / here.sum(1), dim=1)


@torch.no_grad()
def test_the_encoder_is_the_bert_that_torchs_own_layers_make(bert: Path) -> None:
    ids = torch.tensor([[2, 3, 4, 5], [6, 7, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    encoder = sentence_encoder(bert, store=as_it_is)
    expected = torchs_own_bert(load_file(bert / "model.safetensors"), ids, mask)
    torch.testing.assert_close(encoder(ids, mask), expected, atol=1e-5, rtol=0)


def test_int8_is_off_by_at_most_half_a_step_of_its_row() -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)) * torch.tensor([[1e-3], [1], [9], [0], [2]])
    kept, scale = as_int8(weight)
    assert kept.dtype == torch.int8
    assert ((kept * scale - weight).abs() <= scale / 2 * 1.0001).all()
    assert scale[1] == pytest.approx(float(weight[1].abs().max()) / 127)


def test_the_graph_gives_torchs_numbers(bert: Path, written: tuple[Path, dict[str, float]]) -> None:
    folder, report = written
    assert report["largest difference from torch"] <= 1e-4
    assert report["least cosine with fp32"] >= 0.998
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_NAME))
    expected = embed(sentence_encoder(bert, store=as_int8), tokenizer, TEXTS)
    np.testing.assert_allclose(TextEncoder(folder).embed(TEXTS), expected.numpy(), atol=1e-5)


def test_a_text_means_the_same_alone_and_beside_longer_ones(written: tuple[Path, dict[str, float]]) -> None:
    encoder = TextEncoder(written[0])
    together = encoder.embed(TEXTS, batch=3)
    assert together.dtype == np.float32
    assert together.shape == (4, TEXT_SIZE)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([encoder.embed([text]) for text in TEXTS]), together, atol=1e-5)
    assert encoder.embed([]).shape == (0, TEXT_SIZE)


def test_no_note_of_the_machine_is_left_in_the_graph(written: tuple[Path, dict[str, float]]) -> None:
    bytes_of_graph = (written[0] / TEXT_GRAPH_NAME).read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in bytes_of_graph
    assert sorted(path.name for path in written[0].iterdir()) == [TEXT_GRAPH_NAME, TOKENIZER_NAME]


def test_a_graph_that_loses_too_much_is_not_written(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_encoder, "LEAST_COSINE", 1.1)
    with pytest.raises(ParityFailed, match="to a cosine of"):
        write_text_encoder(tmp_path, texts=TEXTS, source=bert)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "PACKAGE", "no_such_package")
    with pytest.raises(WeightsInvalid, match=r"hilum\[text\]"):
        text_encoder.package_folder()


def test_blank_and_overlong_texts_are_refused_not_cut(tmp_path: Path) -> None:
    encoder = TextEncoder(with_words(tiny_model(tmp_path)))
    assert encoder.embed(["lung " * LONGEST]).shape == (1, TEXT_SIZE)
    with pytest.raises(PromptsInvalid, match="257 tokens"):
        encoder.embed(["lung", "lung " * (LONGEST + 1)])
    with pytest.raises(PromptsInvalid, match="blank"):
        encoder.embed(["lung", " "])


def test_a_folder_without_an_encoder_and_one_with_a_broken_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(TextEncoderMissing, match=r"holds no text\.onnx"):
        TextEncoder(tmp_path)
    folder = with_words(tiny_model(tmp_path))
    (folder / TEXT_GRAPH_NAME).write_bytes(b"no graph")
    with pytest.raises(GraphInvalid, match="cannot be loaded"):
        TextEncoder(folder)


def test_the_shipped_encoder_agrees_with_sentence_transformers() -> None:
    # Cosines that sentence-transformers 6.2.0 computes in fp32 with all-MiniLM-L6-v2.
    expected = [0.7271, 0.2998, 0.5140, 0.2739, 0.5791, 0.3201]
    vectors = TextEncoder(MODELS / SHIPPED).embed(["Pneumonia", "lung infection", "Melanoma", "clear lungs"])
    np.testing.assert_allclose((vectors @ vectors.T)[np.triu_indices(4, 1)], expected, atol=0.01)
