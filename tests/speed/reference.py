"""The reference pipeline: BYOL as the tutorials of self-supervised libraries write it, to compare our speed with.

PIL transforms of lightly in the workers of a DataLoader, tensors as PyTorch lays them out (NCHW), the default AdamW, a
momentum update one tensor after another, and a loss that is looked at in each step.
"""

import copy

import numpy as np
import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bench.models.backbones import build_backbone


class Images(Dataset[list[Tensor]]):
    """Two BYOL views of each image, without blur, as on CIFAR; `images` is uint8 (N, 3, size, size)."""

    def __init__(self, images: Tensor) -> None:
        size = images.shape[-1]
        self.images = [
            Image.fromarray(np.ascontiguousarray(image)) for image in images.permute(0, 2, 3, 1).cpu().numpy()
        ]
        self.transform = BYOLTransform(
            BYOLView1Transform(input_size=size, gaussian_blur=0.0),
            BYOLView2Transform(input_size=size, gaussian_blur=0.0),
        )

    def __getitem__(self, index: int) -> list[Tensor]:
        views: list[Tensor] = self.transform(self.images[index])
        return views

    def __len__(self) -> int:
        return len(self.images)


class Reference:
    """Trains BYOL on all images, an epoch at a time."""

    def __init__(self, images: Tensor, backbone: str, batch_size: int, workers: int, device: torch.device) -> None:
        network = build_backbone(backbone, images.shape[-1])
        dim = network.dim
        self.device = device
        self.student = nn.Sequential(network.module, BYOLProjectionHead(dim, 2 * dim, 256)).to(device)
        self.predictor = BYOLPredictionHead(256, 2 * dim, 256).to(device)
        self.teacher = copy.deepcopy(self.student)
        deactivate_requires_grad(self.teacher)
        self.criterion = NegativeCosineSimilarity()
        trained = [*self.student.parameters(), *self.predictor.parameters()]
        self.optimiser = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01, foreach=True)
        self.loader = DataLoader(
            Images(images),
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )

    def epoch(self) -> float:
        """Train for an epoch and return the sum of the losses."""
        total = 0.0
        for views in self.loader:
            x0, x1 = (view.to(self.device) for view in views)
            update_momentum(self.student, self.teacher, m=0.99)
            p0, p1 = self.predictor(self.student(x0)), self.predictor(self.student(x1))
            with torch.no_grad():
                z0, z1 = self.teacher(x0), self.teacher(x1)
            loss = (self.criterion(p0, z1) + self.criterion(p1, z0)) / 2
            total += loss.item()
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
        return total
