"""Fit a LoRA adapter on labelled images, starting from the weights of the graph that ships. Needs the extra `train`."""

import logging
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from vision_model.adapt.adapter import Adapter, float_graph, float_model, product_of
from vision_model.adapt.fit import STRENGTH, Examples, Indices, left_out, logistic
from vision_model.errors import GraphInvalid, SupportInvalid
from vision_model.net import TAPS, TOKEN_SCALE, PerChannel, ReadOut, Untrained, new_encoder, side_by_side
from vision_model.runtime import Model

logger = logging.getLogger(__name__)

RANK = 4
FROZEN = TAPS[0] + 1  # blocks before it stay as they are, and their tokens are computed once
EPOCHS = 10
BATCH = 32
RATE = 1e-3
SMOOTHING = 0.1
TOLERANCE = 1e-3
LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def parts(y: Indices, groups: NDArray[np.str_], *, seed: int) -> tuple[Indices, Indices]:
    """(train, left out) of all images: a fifth of the groups that neither adapter nor head sees.

    An encoder that has seen an image says nothing of new ones through it, so validation, temperature and prediction
    sets rest on that fifth. Raises SupportInvalid where a label has one group only.
    """
    nothing = np.empty((len(y), 0))
    for train, test in left_out(Examples(nothing, y, groups, int(y.max()) + 1), seed=seed):
        if len(set(y[train].tolist())) == len(set(y[test].tolist())) == int(y.max()) + 1:
            return train, test
    raise SupportInvalid('method "lora" leaves a fifth of the groups out, and each label needs some on both sides')


def fit(model: Model, inputs: NDArray[np.float32], y: Indices, *, seed: int) -> Adapter:
    """Fit low-rank changes of the last blocks on prepared images (n, 3, S, S) and their label indices.

    The tokens of the frozen blocks are computed once, so an epoch costs the last blocks only. Raises GraphInvalid when
    torch, with the graph's weights, does not give the graph's embeddings.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    (expected,) = float_model(model).run(inputs[:1], ("embedding",))
    tail = Tail(read_out_of(model), inputs, expected=expected)
    classes = int(y.max()) + 1
    with torch.inference_mode():
        plain = torch.cat([tail(slice(i, i + BATCH)) for i in range(0, len(y), BATCH)]).numpy().astype(np.float64)
    start = logistic(Examples(plain, y, np.arange(len(y)).astype(str), classes), (STRENGTH,))[0]
    head = nn.Linear(plain.shape[1], classes)
    head.weight.data, head.bias.data = torch.from_numpy(start.weight.copy()), torch.from_numpy(start.bias.copy())
    steps = EPOCHS * -(-len(y) // BATCH)
    optimizer = torch.optim.AdamW(
        [{"params": tail.changes(), "lr": RATE}, {"params": head.parameters(), "lr": RATE / 10}], weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    targets = torch.from_numpy(y)
    for epoch in range(EPOCHS):
        total = 0.0
        for chosen in np.array_split(rng.permutation(len(y)), -(-len(y) // BATCH)):
            logits = head(tail(torch.from_numpy(chosen)))
            loss = functional.cross_entropy(logits, targets[chosen], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        logger.info("LoRA epoch %s of %s, loss %.4f", epoch + 1, EPOCHS, total / len(y))
    return tail.adapter()


class LowRank(nn.Module):
    """A frozen linear layer and a low-rank branch beside it that starts at nothing."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = nn.Parameter(torch.randn(frozen.in_features, RANK) / frozen.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(RANK, frozen.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        frozen: Tensor = self.frozen(x)
        return frozen + x @ self.down @ self.up


class Tail(nn.Module):
    """The trained encoder's last blocks with LoRA, from what the frozen ones give to the embeddings of n images."""

    tokens: Tensor  # (n, prefix + T, width) after the frozen blocks
    untrained: Tensor  # (n, UNTRAINED_SIZE), the untrained taps' part of the embeddings

    def __init__(self, net: ReadOut, inputs: NDArray[np.float32], *, expected: NDArray[np.float32]) -> None:
        """`expected` (1, D) is the graph's embedding of the first input. Raises GraphInvalid where torch differs."""
        super().__init__()
        encoder: Any = net.encoder  # timm's attributes are not typed
        self.norm, self.prefix = encoder.norm, encoder.num_prefix_tokens
        self.blocks = encoder.blocks[FROZEN:]
        net.requires_grad_(requires_grad=False)
        with torch.inference_mode():
            found, untrained = [], []
            for start in range(0, len(inputs), BATCH):
                images = torch.from_numpy(inputs[start : start + BATCH])
                untrained.append(net.untrained(images).mean(dim=1))
                x = encoder.norm_pre(encoder._pos_embed(encoder.patch_embed(images)))  # noqa: SLF001  # timm has no public name for it
                for block in encoder.blocks[:FROZEN]:
                    x = block(x)
                found.append(x)
            self.tokens, self.untrained = torch.cat(found).clone(), torch.cat(untrained).clone()
            apart = float(np.abs(self(slice(1)).numpy() - expected).max())
        if not apart <= TOLERANCE:
            raise GraphInvalid(
                f"torch, with the graph's weights, is {apart:.2g} away from the graph; LoRA needs them alike"
            )
        self.tokens, self.untrained = self.tokens.detach().clone(), self.untrained.detach().clone()
        for block in self.blocks:
            block.attn.qkv = LowRank(block.attn.qkv)

    def forward(self, chosen: slice | Tensor) -> Tensor:
        """Embeddings (B, D) of the chosen images."""
        tokens = self.tokens[chosen]
        taps = [self.norm(tokens)]
        for number, block in enumerate(self.blocks, start=FROZEN):
            tokens = block(tokens)
            if number in TAPS:
                taps.append(self.norm(tokens))
        seen = [side_by_side(tap[:, self.prefix :], tap[:, : self.prefix]) for tap in taps]
        trained = torch.cat(seen, dim=-1).mean(dim=1)
        return torch.cat([trained, self.untrained[chosen]], dim=-1) / TOKEN_SCALE

    def changes(self) -> list[nn.Parameter]:
        """What is learnt."""
        return [parameter for block in self.blocks for parameter in (block.attn.qkv.down, block.attn.qkv.up)]

    def adapter(self) -> Adapter:
        """The changes as they are stored."""
        layers = [block.attn.qkv for block in self.blocks]
        return Adapter(
            blocks=tuple(range(FROZEN, FROZEN + len(layers))),
            down=np.stack([one.down.detach().numpy() for one in layers]).astype(np.float16),
            up=np.stack([one.up.detach().numpy() for one in layers]).astype(np.float16),
        )


def read_out_of(model: Model) -> ReadOut:
    """The encoders with the weights of the model's float graph. Raises PrecisionUnavailable, GraphInvalid."""
    graph = onnx.load(model.folder / float_graph(model).file).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}

    def kept(name: str) -> str:
        """The name under which a tensor is there: of small tensors that are equal, the exporter keeps the first."""
        return name if name in constants or name in makers else name.replace("untrained.", "", 1)

    def value(name: str) -> NDArray[np.float32]:
        """A constant, through the casts and scales that store it small."""
        if name in constants:
            return numpy_helper.to_array(constants[name]).astype(np.float32)
        node = makers.get(name)
        if node is None or node.op_type not in {"Cast", "Mul"}:
            raise GraphInvalid(f"the graph holds no constant {name}; LoRA needs one that Hilum exported")
        array = value(node.input[0])
        return array if node.op_type == "Cast" else array * value(node.input[1])

    size, view = model.manifest.input.size, len(value("net.untrained.shrink"))
    net = ReadOut(new_encoder(size), Untrained(size=size, view=view))
    for _, block in net.blocks():
        block.mlp.norm = PerChannel(block.mlp.fc2.in_features)
    state = {}
    for name, tensor in net.state_dict().items():
        owner, _, kind = name.rpartition(".")
        if kind == "weight" and owner.endswith(LINEAR):
            product = product_of(graph, kept(f"net.{owner}.bias"))
            array = value(product.input[1]).T
        else:
            array = value(kept(f"net.{name}"))
        state[name] = torch.from_numpy(np.ascontiguousarray(array).reshape(tensor.shape).copy())
    net.load_state_dict(state)
    return net.eval()
