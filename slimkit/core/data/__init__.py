"""Data sets: opened by name, decoded once, in batches and augmented."""

from slimkit.core.data.augment import USUAL_AUGMENTATION, Augmentation, augment, evaluation_input
from slimkit.core.data.calibration import Batches, CalibrationBatches, random_images
from slimkit.core.data.check import DatasetCheck, check_dataset
from slimkit.core.data.dataset import ImageSet, decoded_once, label_map, open_dataset, sized
from slimkit.core.data.image_folder import write_image_folder
from slimkit.core.data.images import Images
from slimkit.core.data.mixing import draw_mixing
from slimkit.core.data.randomness import epoch_order

__all__ = [
    "USUAL_AUGMENTATION",
    "Augmentation",
    "Batches",
    "CalibrationBatches",
    "DatasetCheck",
    "ImageSet",
    "Images",
    "augment",
    "check_dataset",
    "decoded_once",
    "draw_mixing",
    "epoch_order",
    "evaluation_input",
    "label_map",
    "open_dataset",
    "random_images",
    "sized",
    "write_image_folder",
]
