"""The models that `benchmarks/coverage.py` tries: torchvision's, randomly initialised."""

from __future__ import annotations

from typing import Any

FAMILIES = ("classification", "segmentation", "video")
# The smallest square image that an architecture takes, where 64 is too small for it.
SIZES = {"inception_v3": 75, "maxvit_t": 224, "vit_h_14": 56}
# Frames and image of a clip, (batch, 3, frames, height, width).
CLIPS = {
    "mc3_18": (4, 32),
    "r3d_18": (4, 32),
    "r2plus1d_18": (4, 32),
    # The sizes that these are built for; they take no others.
    "s3d": (16, 224),
    "mvit_v1_b": (16, 224),
    "mvit_v2_s": (16, 224),
    "swin3d_t": (4, 32),
    "swin3d_s": (4, 32),
    "swin3d_b": (4, 32),
}
SEGMENTED = 32
CLASSES = {"classification": 10, "segmentation": 2, "video": 10}


def family_of(name: str) -> str:
    """Of which family a model is."""
    return next(family for family in FAMILIES if name in names_of(family))


def names_of(family: str) -> list[str]:
    """All models of a family, those with the fewest parameters first."""
    from torchvision import models

    module = models if family == "classification" else getattr(models, family)
    names = models.list_models(module=module)
    return sorted(names, key=_parameters)


def _parameters(name: str) -> int:
    from torchvision import models

    weights = models.get_model_weights(name)
    return max(item.meta["num_params"] for item in weights)


def input_shape(name: str) -> tuple[int, ...]:
    """Shape of one small input that the architecture takes, without the batch."""
    if name in CLIPS:
        frames, size = CLIPS[name]
        return (3, frames, size, size)
    size = SEGMENTED if family_of(name) == "segmentation" else SIZES.get(name, 64)
    return (3, size, size)


def build(name: str, classes: int | None = None) -> Any:
    """A model in evaluation mode, of few classes by default; transformers are built for a size."""
    import torch
    from torchvision import models

    torch.manual_seed(0)
    family, shape = family_of(name), input_shape(name)
    options: dict[str, Any] = {"weights": None, "num_classes": classes or CLASSES[family]}
    if family == "segmentation":
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    if name.startswith("vit"):
        options["image_size"] = shape[-1]
    model = models.get_model(name, **options).eval()
    for parameter in model.parameters():
        # The head of a vision transformer starts at zero, which would leave nothing to bound.
        if parameter.dim() > 1 and not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.02)
    return model
