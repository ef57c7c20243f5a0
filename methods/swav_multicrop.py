"""SwAV multicrop: Caron et al. 2020, "Unsupervised learning by contrasting cluster assignments", arXiv 2006.09882."""

from dataclasses import replace

from methods import methods
from methods.swav import VIEW, SwAV

LOCAL = replace(VIEW, crop=(0.05, 0.14), size=96 / 224)


@methods.register("swav_multicrop")
class SwAVMultiCrop(SwAV):
    """SwAV that also predicts the assignments of the two global views from six small ones.

    Loss: equation 6, in the mean over the 14 pairs of an assignment and another view's prediction. Views: those of
    SwAV, and local ones of 96 pixels where the global ones have 224, cropped to between 0.05 and 0.14 of the area
    (section 3.2 and the public code). Local views are neither assigned nor queued.

    All else is SwAV's. The local views go through the network together, as in the public code.
    """

    views = (*SwAV.views, *6 * (LOCAL,))
