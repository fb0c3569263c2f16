"""The next character of a text: whatever text each device has, as bytes, so that all mean the same 256.

`--data` names a file, or a folder with one .txt or .txt.gz in it. The last tenth of it is for testing and no
shard has any of that; `3/8` is the fourth of eight equal pieces of the rest, each in one piece, as somebody's
own writing would be. Devices with different texts test on their own. Options: `model`, a GRU of 103,424
parameters or a transformer of 137,216 with the default context; `context`, bytes it looks back.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from peer.catalogue import TASKS
from peer.errors import DataError, UsageError
from peer.grammar import parse_shard
from peer.learner.task import BATCH, Settings, optimizer_of

SYMBOLS = 256
TEST_PART = 10  # one in so many
TEST_BYTES = 1 << 15  # of them are looked at: a second or two on a Pi (guess)
MAX_BYTES = 1 << 28  # of a text (guess)
LR = 0.2  # tinyshakespeare, momentum 0.9: 0.5 is faster, and without warm-up too much for a transformer
SUFFIXES = (".txt", ".txt.gz")

KNOWN = TASKS["characters"].options


class Gru(nn.Module):
    """[batch, length] bytes to [batch, length, 256] logits of the byte that follows each."""

    def __init__(self, width: int = 32, hidden: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, width)
        self.gru = nn.GRU(width, hidden, batch_first=True)
        self.out = nn.Linear(hidden, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        hidden, _ = self.gru(self.embed(symbols))
        logits: Tensor = self.out(hidden)
        return logits


class Block(nn.Module):
    """Attention to what came before, then a layer for each place; both on normalized input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.look, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.look(self.before(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 3, 0, 1, 4).transpose(1, 2)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.join(seen.transpose(1, 2).reshape(batch, length, width))
        thought: Tensor = x + self.think(self.between(x))
        return thought


class Transformer(nn.Module):
    """As Gru, for at most `context` bytes."""

    def __init__(self, context: int, width: int = 64, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(SYMBOLS, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)), nn.LayerNorm(width))
        self.out = nn.Linear(width, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        places = torch.arange(symbols.shape[1], device=symbols.device)
        logits: Tensor = self.out(self.blocks(self.embed(symbols) + self.place(places)))
        return logits


def find_text(data: str | None) -> Path:
    """The one text that --data means. Raises DataError."""
    if data is None:
        raise DataError("task characters needs --data, a text file or a folder with one .txt or .txt.gz")
    path = Path(data)
    if not path.is_dir():
        return path
    found = sorted(file for file in path.iterdir() if file.name.lower().endswith(SUFFIXES))
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:5]) or "none"
        raise DataError(f"{path}: expected one .txt or .txt.gz, found {names}; name the file with --data")
    return found[0]


@cache  # a rehearsal's devices share it
def load_text(path: Path) -> Tensor:
    """All bytes of a text, [bytes] of uint8. Raises DataError that names the file."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            text = bytearray(file.read(MAX_BYTES + 1))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is cut short or garbled ({error}): expected a text packed by gzip"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; look at --data") from error
    if not text or len(text) > MAX_BYTES:
        size = "more than" if text else "none of"
        raise DataError(f"{path} has {size} {MAX_BYTES} bytes; expected a text of less than that")
    return torch.frombuffer(text, dtype=torch.uint8)


class Characters:
    """The task, see peer/learner/task.py."""

    name = "characters"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kind, context = (settings.option(name, KNOWN[name].default) for name in ("model", "context"))
        try:
            for name, value in (("model", self._kind), ("context", context)):
                KNOWN[name].check(name, value)
        except UsageError as error:
            raise DataError(str(error)) from error
        self._context = int(context)
        self._path = find_text(settings.data)

    def model(self) -> nn.Module:
        return Transformer(self._context) if self._kind == "transformer" else Gru()

    def batches(self, shard: str | None, device: torch.device) -> Iterator[Tensor]:
        """[batch, context + 1] bytes each, from places drawn at random."""
        mine = self._part(shard).to(device)
        return self._windows(mine, torch.Generator().manual_seed(self._settings.order))

    def _windows(self, mine: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        batch, ahead = self._settings.batch or BATCH, torch.arange(self._context + 1)
        while True:
            starts = torch.randint(len(mine) - self._context, (batch, 1), generator=generator)
            yield mine[(starts + ahead).to(mine.device)].long()

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean over all bytes but the first of each row, in nats."""
        return functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return optimizer_of(parameters, self._settings, LR)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Over the first 32 KiB of the text's last tenth, in windows of the context, each begun with nothing
        to look back on: share of bytes foretold, and bits per byte (2 to the power of it is the perplexity).
        """
        device = next(model.parameters()).device
        rows = self._test_rows()
        right, nats = 0.0, 0.0
        for part in rows.split(BATCH):
            part = part.long().to(device)
            logits, next_ones = model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten()
            right += (logits.argmax(dim=1) == next_ones).sum().item()
            nats += functional.cross_entropy(logits, next_ones, reduction="sum").item()
        count = len(rows) * self._context
        return {"accuracy": right / count, "bits-per-byte": nats / count / math.log(2)}

    def _test_rows(self) -> Tensor:
        text = load_text(self._path)
        tail = text[self._train_bytes(text) :][: max(TEST_BYTES, self._context + 1)]
        return tail.unfold(0, self._context + 1, self._context)

    def _train_bytes(self, text: Tensor) -> int:
        """How many bytes from the beginning are to train on; the rest has at least one window."""
        test = max(len(text) // TEST_PART, self._context + 1)
        return max(len(text) - test, 0)

    def _part(self, shard: str | None) -> Tensor:
        text = load_text(self._path)
        try:
            asked = parse_shard(shard or "0/1")
        except UsageError as error:
            raise DataError(str(error)) from error
        if asked.kind != "part":
            raise DataError(f"shard '{shard}': a text is cut into pieces, as in '3/8'; it has no labels")
        train = self._train_bytes(text)
        first, behind = (train * k // asked.count for k in (asked.index, asked.index + 1))
        if behind - first <= self._context:
            raise DataError(
                f"{self._path} has {len(text)} bytes, too few for {asked.count} pieces of more than "
                f"{self._context}; give it more text, or --option context with fewer bytes"
            )
        return text[first:behind]


def create(settings: Settings) -> Characters:
    return Characters(settings)
