"""DINO multicrop: Caron et al. 2021, "Emerging properties in self-supervised vision transformers", arXiv 2104.14294."""

from methods import View, methods
from methods.dino import DINO

LOCAL = View(crop=(0.05, 0.4), blur=0.5, size=96 / 224)


@methods.register("dino_multicrop")
class DINOMultiCrop(DINO):
    """DINO whose student also predicts from six small views what the momentum network makes of the two global ones.

    Loss: equation 3; each of the 14 pairs of a teacher's and a student's view that are not the same one counts alike.
    Views: those of DINO, and local ones of 96 pixels where the global ones have 224, cropped to between 0.05 and 0.4 of
    the area (DINO's public code, which has eight of them; for ResNets it has 0.14 in the place of 0.4).

    All else is DINO's. The local views go through the student together, as in the public code.
    """

    views = (*DINO.views, *6 * (LOCAL,))
