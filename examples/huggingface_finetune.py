"""Fine-tuning with Hugging Face's Trainer: the body is frozen, and only what is trained travels.

    pip install 'peerd[transformers]'
    peerd create tuning --task script --local-steps 8     # on one device; prints the join key
    peerd join tuning --key peerd1-…                      # on the other
    python examples/huggingface_finetune.py tuning --part 0       # on one
    python examples/huggingface_finetune.py tuning --part 1       # on the other

Parameters that require no gradient stay where they are: they are neither sent nor compared, so every device
has to load the same pretrained body. `peerd status` counts the bytes. Here the body is a small BERT with
numbers drawn from a seed, so that this runs without a download; put from_pretrained("…") in its place.
"""

import argparse
import tempfile

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from peer.adapters.transformers import PeerdCallback

WORDS, LENGTH, KINDS = 64, 12, 4


def pretrained() -> nn.Module:
    """The same on all devices; its last layer, which is new, is each device's own until it joins."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=LENGTH, num_labels=KINDS, hidden_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def freeze(model: nn.Module) -> None:
    """All but the classifier and the pooler before it."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(("classifier", "bert.pooler"))


class Sentences(Dataset[dict[str, Tensor]]):
    """Your own data: here sentences of a kind's own words. Each part lacks one of the four kinds."""

    def __init__(self, part: int | None, count: int = 512) -> None:
        chance = torch.Generator().manual_seed(17 if part is None else part)
        kinds = torch.tensor([kind for kind in range(KINDS) if kind != part])
        self.labels = kinds[torch.randint(len(kinds), (count,), generator=chance)]
        words = torch.randint(WORDS // KINDS, (count, LENGTH), generator=chance)
        self.words = self.labels[:, None] + KINDS * words

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.words[index], "labels": self.labels[index]}


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Over all kinds of sentences."""
    model.eval()
    everything = Sentences(None)
    found = model(input_ids=everything.words).logits.argmax(dim=1)
    return (found == everything.labels).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("session")
    parser.add_argument("--part", type=int, default=0, help="which data this device has: 0 or 1")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--pace", choices=["free", "lockstep"], default="free")
    asked = parser.parse_args()

    model = pretrained()
    freeze(model)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    travel, whole = sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)
    print(f"{travel} of {whole} parameters travel", flush=True)

    together = PeerdCallback(asked.session, pace=asked.pace)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=asked.steps, per_device_train_batch_size=16, learning_rate=0.1,
            lr_scheduler_type="constant", optim="sgd", logging_steps=50, save_strategy="no",
            report_to=[], disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=Sentences(asked.part), callbacks=[together]).train()
    swarm = together.swarm
    assert swarm is not None
    print(f"{swarm.round + 1} rounds closed, {swarm.rounds_with_others} of them here and with others")
    print(f"accuracy over all kinds {accuracy(model):.1%}")


if __name__ == "__main__":
    main()
