"""Names that the command line knows without importing torch, which takes seconds.

``tests/test_cli_completion.py`` checks that they equal the names in the registries.
"""

MODELS = (
    "densenet121", "digits", "hyperspectral", "mobilenet_v2", "paper-cifar", "paper-mnist",
    "resnet18", "resnet50", "unet", "vgg11", "vgg16",
)  # fmt: skip

DATA_SETS = (
    "cifar10", "cifar100", "digits", "digits-segmentation", "folder", "hdf5", "hyperspectral",
    "mnist", "npz", "synthetic",
)  # fmt: skip

OPTIMIZERS = (
    "adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "lamb", "lars", "nadam", "radam",
    "rmsprop", "rprop", "sgd",
)  # fmt: skip

JOBS = ("train", "train_hetero", "profile", "evaluate")
"""The job templates of ``hetmp submit``."""
