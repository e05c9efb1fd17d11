"""Turn words into vectors: a small frozen sentence encoder, run by ONNX Runtime without torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vision_model.errors import GraphInvalid, PromptsInvalid, TextEncoderMissing
from vision_model.manifest import TEXT_GRAPH_NAME, TOKENIZER_NAME

__all__ = ["LONGEST", "TEXT_GRAPH_NAME", "TEXT_SIZE", "TOKENIZER_NAME", "TextEncoder"]

TEXT_SIZE = 384
LONGEST = 256  # tokens; the encoder was trained on no more


class TextEncoder:
    """The sentence encoder of a model's folder. Safe to call from several threads."""

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        """Open text.onnx and tokenizer.json; no digest is checked here.

        Raises TextEncoderMissing and GraphInvalid.
        """
        for name in (TEXT_GRAPH_NAME, TOKENIZER_NAME):
            if not (folder / name).is_file():
                raise TextEncoderMissing(
                    f"{folder} holds no {name}; write it with vision_model.pretrain.text_encoder, "
                    "or name the folder of a model that has a text encoder"
                )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            # A sentence takes a millisecond or two on a CPU: a GPU would gain nothing.
            self._session = onnxruntime.InferenceSession(
                folder / TEXT_GRAPH_NAME, options, providers=["CPUExecutionProvider"]
            )
            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_NAME))
        except Exception as exc:  # both libraries raise types of their own that share no root
            raise GraphInvalid(f"the text encoder of {folder} cannot be loaded: {exc}") from exc

    def embed(self, texts: Sequence[str], *, batch: int = 32) -> NDArray[np.float32]:
        """Embed texts -> (N, 384), each of unit length.

        Raises PromptsInvalid where one is blank or has more than 256 tokens: nothing is cut off unsaid.
        """
        parts = [np.empty((0, TEXT_SIZE), np.float32)]
        for start in range(0, len(texts), batch):
            chunk = [text.strip() for text in texts[start : start + batch]]
            if not all(chunk):
                raise PromptsInvalid("a text to compare with is blank")
            encodings = self._tokenizer.encode_batch(chunk)
            if (length := len(encodings[0].ids)) > LONGEST:
                raise PromptsInvalid(
                    f"a text has {length} tokens; the encoder takes at most {LONGEST}: use fewer words"
                )
            parts += self._session.run(
                ["embedding"],
                {
                    "token_ids": np.array([e.ids for e in encodings], np.int64),
                    "mask": np.array([e.attention_mask for e in encodings], np.int64),
                },
            )
        return np.concatenate(parts)
