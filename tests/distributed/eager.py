"""Run from test_eager.py: a plain PyTorch VBPR, trained with AMR, with Mirror Gradient or against perturbed features of
the encoder, beside the trainer's.

AMR               Delta_i = eps G_i / |G_i| with G the gradient of the BPR loss in the visual rows, of all batch rows
                  of an item; loss(0) + weight loss(Delta) (arXiv 1809.07062)
encoder           Delta_i = eps |x_i| G_i / |G_i| for the raw rows x of both modalities; the projectors train, too
Mirror Gradient   on every beta-th batch a step on alpha1 L, then one on -alpha2 L of the same batch (arXiv 2402.11262)
"""

import copy
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from uatmc_dist.config import load_config
from uatmc_dist.data.catalog import MODALITIES
from uatmc_dist.parallel import process_group
from uatmc_dist.training import Position, Trainer

STEPS = 8
OPTIONS = {
    "amr": ["adversarial.adversary=amr", "adversarial.amr_epsilon=0.3", "adversarial.amr_weight=0.7"],
    "mirror_gradient": [
        "adversarial.adversary=none",
        "mirror_gradient.alpha1=0.9",
        "mirror_gradient.alpha2=0.3",
        "mirror_gradient.beta=3",
    ],
    "encoder": [
        "adversarial.adversary=uat",
        "adversarial.at=encoder",
        "adversarial.epsilon=0.2",
        "adversarial.adv_weight=0.7",
    ],
}


class Eager:
    """Users and items of a VBPR as dense parameters, under Adagrad (tables) and AdamW (fusion)."""

    def __init__(self, trainer: Trainer) -> None:
        model, self.config = trainer.model, trainer.config
        self.users, self.items = (
            torch.nn.Parameter(table.local_weight.clone()) for table in (model.users.tables[0], model.items)
        )
        self.dense = copy.deepcopy(model.dense)
        if self.config.adversarial.at == "encoder":
            raw = model.content.movable(torch.arange(len(self.items)))
            self.raw = {name: rows.detach() for name, rows in zip(MODALITIES, raw, strict=True)}
        else:
            self.v, self.t = (rows.clone() for rows in model.content.of_block())
        tables, training = self.config.tables, self.config.training
        self.optimizers = [
            torch.optim.Adagrad([self.users, self.items], lr=tables.lr, eps=1e-8),
            torch.optim.AdamW(self.dense.parameters(), lr=training.lr, weight_decay=training.weight_decay),
        ]

    def bpr(self, batch, v, t=None) -> torch.Tensor:
        w_v, w_t, bias = self.dense.w_v, self.dense.w_t, self.dense.bias
        items = torch.cat([self.items, v @ w_v.T + (self.t if t is None else t) @ w_t.T + bias], dim=1)
        users = self.users[batch.users_B]
        margins = (users * (items[batch.positives_B] - items[batch.negatives_B])).sum(1)
        return F.softplus(-margins).mean()

    def size(self, batch) -> torch.Tensor:
        rows = self.users[batch.users_B], self.items[batch.positives_B], self.items[batch.negatives_B]
        return self.config.training.reg_weight / len(batch) * sum(part.square().sum() for part in rows)

    def step(self, loss) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()

    def amr(self, batch, index) -> float:
        adversarial = self.config.adversarial
        v = self.v.clone().requires_grad_()
        clean = self.bpr(batch, v)
        (gradient,) = torch.autograd.grad(clean, v)
        length = gradient.norm(dim=1, keepdim=True)
        delta = torch.where(length > 0, adversarial.amr_epsilon * gradient / length.clamp(min=1e-30), 0.0)
        loss = self.bpr(batch, self.v) + adversarial.amr_weight * self.bpr(batch, self.v + delta) + self.size(batch)
        self.step(loss)
        return float(loss)

    def encoder(self, batch, index) -> float:
        adversarial = self.config.adversarial
        raw = {name: rows.clone().requires_grad_() for name, rows in self.raw.items()}
        gradients = torch.autograd.grad(self.bpr(batch, *self.dense.project(raw)), list(raw.values()))
        moved = {}
        for (name, rows), gradient in zip(self.raw.items(), gradients, strict=True):
            length = gradient.norm(dim=1, keepdim=True)
            step = adversarial.epsilon * rows.norm(dim=1, keepdim=True) * gradient / length.clamp(min=1e-30)
            moved[name] = rows + torch.where(length > 0, step, 0.0)
        loss = self.bpr(batch, *self.dense.project(self.raw)) + self.size(batch)
        loss = loss + adversarial.adv_weight * self.bpr(batch, *self.dense.project(moved))
        self.step(loss)
        return float(loss)

    def mirror_gradient(self, batch, index) -> float:
        mirror = self.config.mirror_gradient
        loss = self.bpr(batch, self.v) + self.size(batch)
        if index % mirror.beta:
            self.step(loss)
        else:
            self.step(mirror.alpha1 * loss)
            self.step(-mirror.alpha2 * (self.bpr(batch, self.v) + self.size(batch)))
        return float(loss)


def main(config_path: str, name: str) -> None:
    world = process_group.join()
    trainer = Trainer(load_config(Path(config_path), OPTIONS[name]), world)
    trainer.begin(Position("adversarial"))
    trainer.checkpoints.settle()
    eager = Eager(trainer)
    for index in range(STEPS):
        batch = trainer.sampler.batch(0, index)
        theirs = getattr(eager, name)(batch, index)
        ours = float(sum(trainer.train_step(batch).values()))
        trainer._advance()
        assert abs(ours - theirs) < 1e-5 * theirs, (index, ours, theirs)
    pairs = [(trainer.model.items.local_weight, eager.items), (trainer.model.users.tables[0].local_weight, eager.users)]
    # The bias cancels in every margin: its gradient is rounding, which AdamW makes steps of.
    ours = dict(trainer.model.dense.named_parameters())
    pairs += [(ours[n], w) for n, w in eager.dense.named_parameters() if n != "bias"]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-4, atol=1e-5)
    print(f"{name}: equal")
    process_group.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
