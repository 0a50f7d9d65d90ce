"""Pictures: each function takes a result and returns a matplotlib figure at its final size, ready for a paper.

A module for each subject; what all of them share, sizes, type, colours and how a figure is written, is `style.py`.
"""

from klscale.show.pictures.calibration import estimate_against_exact
from klscale.show.pictures.layers import layer_threads
from klscale.show.pictures.matrices import kl_heat_map
from klscale.show.pictures.model_maps import model_map
from klscale.show.pictures.predicting import predicted_scores
from klscale.show.pictures.quantization import kl_against_size, quantization_ladder, sensitivity_grid
from klscale.show.pictures.rulers import scale_ruler, scale_strip
from klscale.show.pictures.style import COLOURS, Look, group_looks, others_line, save
from klscale.show.pictures.tails import tails_of_pairs, text_contributions
from klscale.show.pictures.training import (
    displacement,
    kl_along_attribute,
    kl_along_training,
    training_trajectories,
)
from klscale.show.pictures.validity import text_set_sensitivity, two_text_sets

__all__ = [
    "COLOURS",
    "Look",
    "displacement",
    "estimate_against_exact",
    "group_looks",
    "kl_against_size",
    "kl_along_attribute",
    "kl_along_training",
    "kl_heat_map",
    "layer_threads",
    "model_map",
    "others_line",
    "predicted_scores",
    "quantization_ladder",
    "save",
    "scale_ruler",
    "scale_strip",
    "sensitivity_grid",
    "tails_of_pairs",
    "text_contributions",
    "text_set_sensitivity",
    "training_trajectories",
    "two_text_sets",
]
